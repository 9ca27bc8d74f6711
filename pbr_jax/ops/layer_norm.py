"""Layer normalisation over the last axis, with a choice of what the backward pass keeps."""

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax import residuals
from pbr_jax.ops import pair
from pbr_jax.ops.arrays import as_row
from pbr_jax.plans import LayerNormKind

Kind = LayerNormKind
_GROUP = 64  # channels that share an int8 scale


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


def layer_norm_pair(kind: Kind = "dense", keep: float = 1.0, epsilon: float = 1e-6) -> pair.Pair:
    """LayerNorm as a pair over `params = {scale, bias}`."""

    def forward(params, x, aux):
        x_hat, mean, rstd = normalize(x, epsilon)
        y = affine(x_hat, params, x.dtype)
        if kind == "elements":
            return y, PrunedInput(residuals.pack_elements(x, keep), mean, rstd)
        if kind == "int8":
            return y, Int8(*quantize(x_hat), rstd)
        return y, Normalized(x_hat.astype(x.dtype), rstd)

    def backward(params, residual, aux, dy):
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
        return grads, (rstd * (g - mean_g - x_hat * mean_gx)).astype(dy.dtype)

    return pair.Pair(forward, backward)


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float = 1e-6,
    residual: Kind = "dense",
    keep: float = 1.0,
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

    Raises:
      ValueError: `scale` or `bias` is not `[D]`, or `residual` is unknown.
    """
    for name, vector in (("scale", scale), ("bias", bias)):
        if vector.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} has shape {vector.shape}: must be [D] = {x.shape[-1:]}, the last axis of x"
            )
    if residual not in get_args(Kind):
        raise ValueError(f"residual = {residual!r}: must be one of {', '.join(get_args(Kind))}")
    return pair.bind(layer_norm_pair(residual, keep, epsilon))(
        {"scale": scale, "bias": bias}, x, None
    )
