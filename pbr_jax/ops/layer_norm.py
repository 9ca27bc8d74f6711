"""Layer normalisation over the last axis, with a choice of what the backward pass keeps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax import plans
from pbr_jax.kernels import layer_norm as kernel
from pbr_jax.ops import dispatch, pair
from pbr_jax.ops.arrays import as_matrix, as_row
from pbr_jax.plans import Implementation


def normalize(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(x_hat, mean, rstd)`, all float32."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centered = wide - mean
    rstd = lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + epsilon)
    return centered * rstd, mean, rstd


def affine(x_hat: jax.Array, params: dict, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`x_hat * scale + bias`, computed in float32 and cast to `dtype`."""
    y = x_hat.astype(jnp.float32) * as_row(params["scale"], x_hat.ndim, jnp.float32)
    return (y + as_row(params["bias"], x_hat.ndim, jnp.float32)).astype(dtype)


class Settings(NamedTuple):
    """Static part of a LayerNorm."""

    kind: str = "dense"  # name of its residual, see `pbr_jax.ops.layer_norm_kinds`
    keep: float = 1.0  # fraction kept by "elements", in (0, 1]
    epsilon: float = 1e-6  # added to the variance
    implementation: Implementation | None = None  # see `dispatch`


def _refusal(x: jax.Array | jax.ShapeDtypeStruct, kind: str) -> str | None:
    if refusal := plans.kind("layer_norm", kind).kernel_refusal:
        return refusal
    if x.shape[-1] > kernel.LARGEST_WIDTH:
        return f"x has D = {x.shape[-1]}: must be at most {kernel.LARGEST_WIDTH}"
    return dispatch.unfit(x=x)


KERNEL = dispatch.Kernel("layer_norm", _refusal, kernel.TILES)
"""Kernels of both passes; chosen for an input or a cotangent and the kind of residual."""


def forward(params: dict, x: jax.Array, settings: Settings) -> tuple[jax.Array, Any]:
    """The output and the residual that `settings.kind` names."""
    kind = plans.kind("layer_norm", settings.kind)
    if KERNEL.choose(settings.implementation, x, settings.kind) == "xla":
        x_hat, mean, rstd = normalize(x, settings.epsilon)
        return affine(x_hat, params, x.dtype), kind.save(x, x_hat, mean, rstd, settings)
    y, x_hat, rstd, scales = kernel.forward(
        as_matrix(x),
        params["scale"].astype(jnp.float32),
        params["bias"].astype(jnp.float32),
        epsilon=settings.epsilon,
        int8=kind.eight_bits,
        blocks=KERNEL.cut(),
        interpret=dispatch.interpreting(),
    )
    # The kernels number the tokens; residuals have the leading axes of x.
    residual = kind.from_kernel(x_hat, rstd, scales)
    residual = jax.tree.map(lambda a: a.reshape(*x.shape[:-1], -1), residual)
    return y.reshape(x.shape), residual


def backward(
    params: dict, residual: Any, dy: jax.Array, settings: Settings, skip: jax.Array | None = None
) -> tuple[dict, jax.Array]:
    """`{scale, bias}` and `dx`, plus `skip`, the cotangent of a residual connection around it."""
    kind = plans.kind("layer_norm", settings.kind)
    if KERNEL.choose(settings.implementation, dy, settings.kind) == "triton":
        x_hat, scales = kind.for_kernel(residual)
        dx, dscale, dbias = kernel.backward(
            as_matrix(dy),
            as_matrix(x_hat),
            residual.rstd.reshape(-1),
            params["scale"].astype(jnp.float32),
            None if skip is None else as_matrix(skip),
            None if scales is None else as_matrix(scales),
            blocks=KERNEL.cut(),
            interpret=dispatch.interpreting(),
        )
        return _gradients(params, dscale, dbias), dx.reshape(dy.shape)
    x_hat, rstd = kind.restore(residual, dy.shape, dy.dtype)
    # dscale and dbias are sums over all tokens.
    wide = dy.astype(jnp.float32)
    rows = tuple(range(dy.ndim - 1))
    grads = _gradients(params, jnp.sum(wide * x_hat, axis=rows), jnp.sum(wide, axis=rows))
    # LayerNorm removes the mean and fixes the length, so that dx has no part along either.
    g = wide * as_row(params["scale"], dy.ndim, jnp.float32)
    mean_g = jnp.mean(g, axis=-1, keepdims=True)
    mean_gx = jnp.mean(g * x_hat, axis=-1, keepdims=True)
    dx = (rstd * (g - mean_g - x_hat * mean_gx)).astype(dy.dtype)
    return grads, dx if skip is None else dx + skip


def _gradients(params: dict, dscale: jax.Array, dbias: jax.Array) -> dict:
    dtypes = params["scale"].dtype, params["bias"].dtype
    return {"scale": dscale.astype(dtypes[0]), "bias": dbias.astype(dtypes[1])}


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float = 1e-6,
    kind: str = "dense",
    keep: float = 1.0,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Layer normalisation of `x`, `[B, ..., D]`, over its last axis; statistics in float32.

    Args:
      x: the input; the result has its dtype.
      scale: `[D]`.
      bias: `[D]`.
      epsilon: added to the variance.
      kind: of the residual: "dense" saves the normalised input in the dtype of `x` (dx exact to
        rounding); "int8" saves it in 8 bits with a scale per 64 channels; "elements" saves
        BackRazor's pruned input, which makes dx and dscale approximate.
      keep: fraction kept by "elements", in (0, 1].
      implementation: see `pbr_jax.ops.dispatch`; None lets the device decide.

    Raises:
      ValueError: `scale` or `bias` is not `[D]`, `kind` is unknown, or the named implementation
        cannot run.
    """
    for name, vector in (("scale", scale), ("bias", bias)):
        if vector.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} has shape {vector.shape}: must be [D] = {x.shape[-1:]}, the last axis of x"
            )
    settings = Settings(kind, keep, epsilon, implementation)
    op = pair.Pair(
        lambda params, x, aux: forward(params, x, settings),
        lambda params, residual, aux, dy: backward(params, residual, dy, settings),
    )
    return pair.bind(op)({"scale": scale, "bias": bias}, x, None)
