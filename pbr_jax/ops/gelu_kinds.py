"""Kinds of residual of GELU: its input u, `[B, ..., F]`, or a code of its derivative at u."""

import math

import jax
import jax.numpy as jnp

from pbr_jax.ops import gelu, gelu_codes
from pbr_jax.ops.arrays import uniform_like


class GeluKind:
    """A kind of residual of GELU: one array.

    Attributes:
      bits: of a code, 0 where u itself is kept.
    """

    bits = 0

    def save(self, u: jax.Array, *, approximate: bool, keys: jax.Array | None) -> jax.Array:
        """The residual of u; codes are rounded at random if there are `keys`, one per sample."""
        raise NotImplementedError

    def restore(
        self, residual: jax.Array, like: jax.Array, *, approximate: bool, stochastic: bool
    ) -> jax.Array:
        """The derivative as the backward pass sees it, in shape and dtype of `like`."""
        raise NotImplementedError

    def saved_bytes(self, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> int:
        """Bytes of the residual of u."""
        raise NotImplementedError


class Dense(GeluKind):
    """u itself: the derivative is exact."""

    def save(self, u, *, approximate, keys):
        return u

    def restore(self, residual, like, *, approximate, stochastic):
        return gelu.derivative(residual, approximate=approximate)

    def saved_bytes(self, shape, dtype):
        return math.prod(shape) * jnp.dtype(dtype).itemsize


class Code2(GeluKind):
    """The derivative in 2 bits, as bit planes, uint8 `[B, ..., bits, ceil(F / 8)]`."""

    bits = 2

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

    def saved_bytes(self, shape, dtype):
        return math.prod(shape[:-1]) * self.bits * -(-shape[-1] // 8)


class Code3(Code2):
    """The derivative in 3 bits."""

    bits = 3


class Code4(Code2):
    """The derivative in 4 bits."""

    bits = 4
