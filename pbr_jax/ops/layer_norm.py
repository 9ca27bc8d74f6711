"""Layer normalisation over the last axis, with a choice of what the backward pass keeps."""

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.kernels import layer_norm as kernel
from pbr_jax.ops import dispatch, pair, residuals
from pbr_jax.ops.arrays import as_row
from pbr_jax.plans import Implementation, LayerNormKind

Kind = LayerNormKind
_GROUP = kernel.GROUP


class Normalized(NamedTuple):
    """Exact residual: the normalised input and the factor that normalised it."""

    x_hat: jax.Array  # [..., D], dtype of x
    rstd: jax.Array  # float32 [..., 1]


class Int8(NamedTuple):
    """The normalised input in 8 bits, with one scale for every 64 channels of a token.

    One scale per token would let a single outlier channel, as pretrained models have, ruin the
    rest.
    """

    codes: jax.Array  # int8 [..., D]
    scales: jax.Array  # bfloat16 [..., ceil(D / 64)]
    rstd: jax.Array  # float32 [..., 1]


class PrunedInput(NamedTuple):
    """BackRazor's residual: pruned input in its own dtype, true mean and reciprocal deviation."""

    x: residuals.Elements
    mean: jax.Array  # float32 [..., 1]
    rstd: jax.Array  # float32 [..., 1]


def normalize(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(x_hat, mean, rstd)`, all float32."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    centered = wide - mean
    rstd = lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + epsilon)
    return centered * rstd, mean, rstd


def quantize(x_hat: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`float32 [..., D] -> int8 [..., D], bfloat16 [..., ceil(D / 64)]`."""
    groups = _grouped(x_hat)
    largest = jnp.max(jnp.abs(groups), axis=-1, keepdims=True)
    # Rounding the scale up keeps the largest entry within 127 after the cast to bfloat16.
    scales = (largest * (1 + 2**-7) / 127).astype(jnp.bfloat16)
    wide = scales.astype(jnp.float32)
    codes = jnp.round(groups / jnp.where(wide == 0, 1.0, wide)).astype(jnp.int8)
    return _ungrouped(codes, x_hat.shape), scales[..., 0]


def dequantize(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """The inverse of `quantize` up to half a step, float32."""
    groups = _grouped(codes).astype(jnp.float32) * scales[..., None].astype(jnp.float32)
    return _ungrouped(groups, codes.shape)


def _grouped(x: jax.Array) -> jax.Array:
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % _GROUP)]
    return jnp.pad(x, padding).reshape(*x.shape[:-1], -1, _GROUP)


def _ungrouped(groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return groups.reshape(*shape[:-1], -1)[..., : shape[-1]]


def affine(x_hat: jax.Array, params: dict, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`x_hat * scale + bias`, computed in float32 and cast to `dtype`."""
    y = x_hat.astype(jnp.float32) * as_row(params["scale"], x_hat.ndim, jnp.float32)
    return (y + as_row(params["bias"], x_hat.ndim, jnp.float32)).astype(dtype)


def restore(
    residual: Any, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """`(x_hat, rstd)` as the backward pass sees them."""
    if isinstance(residual, PrunedInput):
        # A dropped entry becomes -mean * rstd, as in BackRazor: its true mean is kept, its value is
        # not.
        x = residuals.unpack_elements(residual.x, shape, dtype).astype(jnp.float32)
        return (x - residual.mean) * residual.rstd, residual.rstd
    if isinstance(residual, Int8):
        return dequantize(residual.codes, residual.scales), residual.rstd
    return residual.x_hat.astype(jnp.float32), residual.rstd


class Settings(NamedTuple):
    """What is static about a LayerNorm.

    Attributes:
      kind: its residual.
      keep: fraction kept by "elements", in (0, 1].
      epsilon: added to the variance.
      implementation: see `pbr_jax.ops.dispatch`; None lets the device decide.
    """

    kind: Kind = "dense"
    keep: float = 1.0
    epsilon: float = 1e-6
    implementation: Implementation | None = None


def _refusal(x: jax.Array | jax.ShapeDtypeStruct, kind: Kind) -> str | None:
    if kind == "elements":
        return "its residual is 'elements', which a kernel of its own packs"
    if x.shape[-1] > kernel.LARGEST_WIDTH:
        return f"x has D = {x.shape[-1]}: must be at most {kernel.LARGEST_WIDTH}"
    return dispatch.unfit(x=x)


KERNEL = dispatch.Kernel("layer_norm", _refusal, kernel.TILES)
"""Kernels of both passes; chosen for an input or a cotangent and the kind of residual."""


def forward(params: dict, x: jax.Array, settings: Settings) -> tuple[jax.Array, Any]:
    """The output and what `settings.kind` keeps for the backward pass."""
    if KERNEL.choose(settings.implementation, x, settings.kind) == "triton":
        return _forward_kernel(params, x, settings)
    x_hat, mean, rstd = normalize(x, settings.epsilon)
    y = affine(x_hat, params, x.dtype)
    if settings.kind == "elements":
        return y, PrunedInput(residuals.pack_elements(x, settings.keep), mean, rstd)
    if settings.kind == "int8":
        return y, Int8(*quantize(x_hat), rstd)
    return y, Normalized(x_hat.astype(x.dtype), rstd)


def backward(
    params: dict, residual: Any, dy: jax.Array, settings: Settings, skip: jax.Array | None = None
) -> tuple[dict, jax.Array]:
    """`{scale, bias}` and `dx`, plus `skip`, the cotangent of a residual connection around it."""
    if KERNEL.choose(settings.implementation, dy, settings.kind) == "triton":
        return _backward_kernel(params, residual, dy, skip)
    x_hat, rstd = restore(residual, dy.shape, dy.dtype)
    wide = dy.astype(jnp.float32)
    rows = tuple(range(dy.ndim - 1))
    grads = {
        "scale": jnp.sum(wide * x_hat, axis=rows).astype(params["scale"].dtype),
        "bias": jnp.sum(wide, axis=rows).astype(params["bias"].dtype),
    }
    g = wide * as_row(params["scale"], dy.ndim, jnp.float32)
    mean_g = jnp.mean(g, axis=-1, keepdims=True)
    mean_gx = jnp.mean(g * x_hat, axis=-1, keepdims=True)
    dx = (rstd * (g - mean_g - x_hat * mean_gx)).astype(dy.dtype)
    return grads, dx if skip is None else dx + skip


def _forward_kernel(params: dict, x: jax.Array, settings: Settings) -> tuple[jax.Array, Any]:
    y, x_hat, rstd, scales = kernel.forward(
        _flat(x),
        params["scale"].astype(jnp.float32),
        params["bias"].astype(jnp.float32),
        epsilon=settings.epsilon,
        int8=settings.kind == "int8",
        blocks=KERNEL.cut(),
        interpret=dispatch.interpreting(),
    )
    leading = x.shape[:-1]
    rstd = rstd.reshape(*leading, 1)
    y, x_hat = y.reshape(x.shape), x_hat.reshape(x.shape)
    if scales is None:
        return y, Normalized(x_hat, rstd)
    return y, Int8(x_hat, scales.reshape(*leading, -1), rstd)


def _backward_kernel(params, residual, dy, skip) -> tuple[dict, jax.Array]:
    coded = isinstance(residual, Int8)
    dx, dscale, dbias = kernel.backward(
        _flat(dy),
        _flat(residual.codes if coded else residual.x_hat),
        residual.rstd.reshape(-1),
        params["scale"].astype(jnp.float32),
        None if skip is None else _flat(skip),
        _flat(residual.scales) if coded else None,
        blocks=KERNEL.cut(),
        interpret=dispatch.interpreting(),
    )
    grads = {
        "scale": dscale.astype(params["scale"].dtype),
        "bias": dbias.astype(params["bias"].dtype),
    }
    return grads, dx.reshape(dy.shape)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def layer_norm_pair(settings: Settings) -> pair.Pair:
    """LayerNorm as a pair over `params = {scale, bias}`."""
    return pair.Pair(
        lambda params, x, aux: forward(params, x, settings),
        lambda params, residual, aux, dy: backward(params, residual, dy, settings),
    )


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float = 1e-6,
    residual: Kind = "dense",
    keep: float = 1.0,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Layer normalisation of `x`, `[B, ..., D]`, over its last axis; statistics in float32.

    Args:
      x: the input; the result has its dtype.
      scale: `[D]`.
      bias: `[D]`.
      epsilon: added to the variance.
      residual: "dense" saves the normalised input in the dtype of `x` (dx exact to rounding);
        "int8" saves it in 8 bits with a scale per 64 channels; "elements" saves BackRazor's pruned
        input, which makes dx and dscale approximate.
      keep: fraction kept by "elements", in (0, 1].
      implementation: see `pbr_jax.ops.dispatch`; None lets the device decide.

    Raises:
      ValueError: `scale` or `bias` is not `[D]`, `residual` is unknown, or the named implementation
        cannot run.
    """
    for name, vector in (("scale", scale), ("bias", bias)):
        if vector.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} has shape {vector.shape}: must be [D] = {x.shape[-1:]}, the last axis of x"
            )
    if residual not in get_args(Kind):
        raise ValueError(f"residual = {residual!r}: must be one of {', '.join(get_args(Kind))}")
    settings = Settings(residual, keep, epsilon, implementation)
    return pair.bind(layer_norm_pair(settings))({"scale": scale, "bias": bias}, x, None)
