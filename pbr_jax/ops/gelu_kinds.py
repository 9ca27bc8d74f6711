"""Kinds of residual of GELU: its input u, `[B, ..., F]`, or a code of its derivative at u."""

import functools

import jax
import jax.numpy as jnp

from pbr_jax.ops import gelu, gelu_codes
from pbr_jax.ops.arrays import uniform_like


class GeluKind:
    """A kind of residual of GELU: one array, by default u."""

    bits = 0  # of a code, 0 where u itself is kept

    def save(self, u: jax.Array, *, approximate: bool, keys: jax.Array | None) -> jax.Array:
        """The residual of u; codes are rounded at random if there are `keys`, one per sample."""
        return u

    def restore(
        self, residual: jax.Array, like: jax.Array, *, approximate: bool, stochastic: bool
    ) -> jax.Array:
        """The derivative as the backward pass sees it, in shape and dtype of `like`."""
        return gelu.derivative(residual, approximate=approximate)


class Dense(GeluKind):
    """u itself: the derivative is exact."""


class Code(GeluKind):
    """The derivative in a few bits, as bit planes, uint8 `[B, ..., bits, ceil(F / 8)]`."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def save(self, u, *, approximate, keys):
        wide = u.astype(jnp.float32)
        if keys is None:
            codes = gelu_codes.nearest(wide, self.bits, approximate)
        else:
            levels = gelu_codes.codebook(self.bits, True, approximate)
            slope = gelu.derivative(wide, approximate=approximate)
            codes = gelu_codes.at_random(slope, levels, uniform_like(keys, u))
        return gelu_codes.pack(codes, self.bits)

    def restore(self, residual, like, *, approximate, stochastic):
        levels = gelu_codes.codebook(self.bits, stochastic, approximate)
        codes = gelu_codes.unpack(residual, like.shape[-1])
        return gelu_codes.look_up(codes, levels, like.dtype)


Code2, Code3, Code4 = (functools.partial(Code, bits) for bits in gelu_codes.BITS)
