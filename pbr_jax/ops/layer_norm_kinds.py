"""Kinds of residual of LayerNorm: the normalised input in full, in 8 bits, or BackRazor's."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.kernels import layer_norm as kernel
from pbr_jax.ops import residuals

_GROUP = kernel.GROUP


class Normalized(NamedTuple):
    """Exact residual: the normalised input and the factor that normalised it."""

    x_hat: jax.Array  # [..., D], dtype of x
    rstd: jax.Array  # float32 [..., 1]


class LayerNormKind:
    """A kind of residual of LayerNorm over the last axis of x, `[B, ..., D]`.

    By default it is the normalised input in the dtype of x, and exact.
    """

    rebuilds = True  # gives the output back, so that a linear layer behind it keeps nothing
    eight_bits = False  # is kept in int8
    kernel_refusal: str | None = None  # why the kernels cannot make it, or None

    def save(
        self,
        x: jax.Array,
        x_hat: jax.Array,
        mean: jax.Array,
        rstd: jax.Array,
        settings: residuals.Kept,
    ) -> Any:
        """The residual of x, given its float32 normalised form, mean and reciprocal deviation."""
        return Normalized(x_hat.astype(x.dtype), rstd)

    def restore(
        self, residual: Any, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
    ) -> tuple[jax.Array, jax.Array]:
        """Float32 `(x_hat, rstd)` as the backward pass sees them, for x of that shape and dtype."""
        return residual.x_hat.astype(jnp.float32), residual.rstd

    def from_kernel(self, x_hat: jax.Array, rstd: jax.Array, scales: jax.Array | None) -> Any:
        """The residual out of the results of `kernel.forward`."""
        return Normalized(x_hat, rstd)

    def for_kernel(self, residual: Any) -> tuple[jax.Array, jax.Array | None]:
        """The normalised input and its scales, as `kernel.backward` takes them."""
        return residual.x_hat, None

    def searched_channels(self, width: int) -> int:
        """Channels of a token among which the largest elements are searched for, 0 if none are."""
        return 0


class Dense(LayerNormKind):
    """The normalised input in the dtype of x."""


class Quantized(NamedTuple):
    """The normalised input in 8 bits, with one scale for every 64 channels of a token.

    One scale per token would let a single outlier channel, as pretrained models have, ruin the
    rest.
    """

    codes: jax.Array  # int8 [..., D]
    scales: jax.Array  # bfloat16 [..., ceil(D / 64)]
    rstd: jax.Array  # float32 [..., 1]


class Int8(LayerNormKind):
    """The normalised input in 8 bits; dx is off by less than 1 %."""

    eight_bits = True

    def save(self, x, x_hat, mean, rstd, settings):
        return Quantized(*quantize(x_hat), rstd)

    def restore(self, residual, shape, dtype):
        return dequantize(residual.codes, residual.scales), residual.rstd

    def from_kernel(self, x_hat, rstd, scales):
        return Quantized(x_hat, scales, rstd)

    def for_kernel(self, residual):
        return residual.codes, residual.scales


class Pruned(NamedTuple):
    """BackRazor's residual: pruned input in its own dtype, true mean and reciprocal deviation."""

    x: residuals.Elements
    mean: jax.Array  # float32 [..., 1]
    rstd: jax.Array  # float32 [..., 1]


class Elements(LayerNormKind):
    """BackRazor: the largest elements of x; dx and dscale are approximate."""

    rebuilds = False
    kernel_refusal = "its residual is 'elements', which a kernel of its own packs"

    def save(self, x, x_hat, mean, rstd, settings):
        return Pruned(residuals.pack_for(settings, x), mean, rstd)

    def restore(self, residual, shape, dtype):
        # A dropped entry becomes -mean * rstd, as in BackRazor: its true mean is kept, its value is
        # not.
        x = residuals.unpack_elements(residual.x, shape, dtype).astype(jnp.float32)
        return (x - residual.mean) * residual.rstd, residual.rstd

    def searched_channels(self, width):
        return width


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
