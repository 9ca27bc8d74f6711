"""GELU, exact (erf) or by the tanh approximation, and what its backward pass keeps."""

import math
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.ops import gelu_codes, pair
from pbr_jax.ops.arrays import sample_keys, uniform_like
from pbr_jax.plans import GeluKind

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def value(u: jax.Array, *, approximate: bool = False) -> jax.Array:
    """`u * Phi(u)`, elementwise, in the dtype of `u`."""
    return jax.nn.gelu(u, approximate=approximate)


def derivative(u: jax.Array, *, approximate: bool = False) -> jax.Array:
    """`Phi(u) + u * phi(u)`, elementwise, float32 inside, in the dtype of `u`."""
    v = u.astype(jnp.float32)
    if approximate:
        t = jnp.tanh(_SQRT_2_OVER_PI * (v + _CUBIC * v**3))
        slope = 0.5 * (1 + t) + 0.5 * v * (1 - t * t) * _SQRT_2_OVER_PI * (1 + 3 * _CUBIC * v * v)
    else:
        slope = 0.5 * (1 + lax.erf(v / math.sqrt(2))) + v * jnp.exp(-0.5 * v * v) / math.sqrt(
            2 * math.pi
        )
    return slope.astype(u.dtype)


class Code(NamedTuple):
    """The derivative in a few bits: bit planes, uint8 `[B, bits, ..., ceil(F / 8)]`."""

    planes: jax.Array


def save(
    u: jax.Array, kind: GeluKind, *, approximate: bool = False, keys: jax.Array | None = None
) -> jax.Array | Code:
    """What the backward pass keeps of `u`, `[B, ..., F]`.

    "dense" keeps `u` itself. "code2", "code3" and "code4" keep the derivative in that many bits,
    rounded to the nearest level, or, given one key per sample, at random and without bias.
    """
    if kind == "dense":
        return u
    bits, wide = int(kind.removeprefix("code")), u.astype(jnp.float32)
    if keys is None:
        codes = gelu_codes.nearest(wide, bits, approximate)
    else:
        levels = gelu_codes.codebook(bits, True, approximate)
        slope = derivative(wide, approximate=approximate)
        codes = gelu_codes.at_random(slope, levels, uniform_like(keys, u))
    return Code(jnp.moveaxis(gelu_codes.pack(codes, bits), 0, 1))


def saved_derivative(
    saved: jax.Array | Code, like: jax.Array, *, approximate: bool = False, stochastic: bool = False
) -> jax.Array:
    """The derivative as the backward pass sees it, shape and dtype of `like`."""
    if not isinstance(saved, Code):
        return derivative(saved, approximate=approximate)
    levels = gelu_codes.codebook(saved.planes.shape[1], stochastic, approximate)
    codes = gelu_codes.unpack(jnp.moveaxis(saved.planes, 1, 0), like.shape[-1])
    return gelu_codes.look_up(codes, levels).astype(like.dtype)


def gelu_pair(kind: GeluKind = "dense", approximate: bool = False) -> pair.Pair:
    """GELU as a pair; `aux` holds keys for stochastic rounding, `[B]`, or is None."""

    def forward(params, u, keys):
        return value(u, approximate=approximate), save(u, kind, approximate=approximate, keys=keys)

    def backward(params, saved, keys, dy):
        slope = saved_derivative(saved, dy, approximate=approximate, stochastic=keys is not None)
        return None, dy * slope

    return pair.Pair(forward, backward)


def gelu(
    u: jax.Array,
    *,
    approximate: bool = False,
    residual: GeluKind = "dense",
    key: jax.Array | None = None,
) -> jax.Array:
    """GELU of `u`, `[B, ..., F]`, that saves one array, or a code of a few bits per element.

    Args:
      u: the input; the result has its shape and dtype.
      approximate: tanh form.
      residual: "dense", or "code2", "code3", "code4": the derivative in so many bits. Their
        relative error on N(0, 1) is 13, 6.5 and 3.2 %.
      key: for codes: rounds stochastically, so that the gradient is unbiased (22.8, 10.0, 4.7 %).

    Raises:
      ValueError: `residual` is unknown, or `key` is given for "dense".
    """
    if residual not in get_args(GeluKind):
        raise ValueError(f"residual = {residual!r}: must be one of {', '.join(get_args(GeluKind))}")
    if key is not None and residual == "dense":
        raise ValueError("key given with residual = 'dense': only codes are rounded; drop the key")
    keys = None if key is None else sample_keys(key, u.shape[0])
    return pair.bind(gelu_pair(residual, approximate))(None, u, keys)
