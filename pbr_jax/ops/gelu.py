"""GELU, exact (erf) or by the tanh approximation, and what its backward pass keeps."""

import math
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.kernels import gelu as kernel
from pbr_jax.ops import dispatch, gelu_codes, pair, residuals
from pbr_jax.ops.arrays import sample_keys, uniform_like
from pbr_jax.plans import GeluKind, Implementation

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _refusal(u: jax.Array | jax.ShapeDtypeStruct, keys: jax.Array | None) -> str | None:
    if keys is not None:
        return "it rounds codes to the nearest level only, and these are rounded at random"
    return dispatch.unfit(u=u)


KERNEL = dispatch.Kernel("gelu", _refusal, kernel.TILES)
"""Kernel of a GELU that keeps codes; chosen for u and the keys that round them."""


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
    """The derivative in a few bits: bit planes, uint8 `[B, ..., bits, ceil(F / 8)]`."""

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
    return Code(gelu_codes.pack(codes, bits))


def saved_derivative(
    saved: jax.Array | Code, like: jax.Array, *, approximate: bool = False, stochastic: bool = False
) -> jax.Array:
    """The derivative as the backward pass sees it, shape and dtype of `like`."""
    if not isinstance(saved, Code):
        return derivative(saved, approximate=approximate)
    levels = gelu_codes.codebook(saved.planes.shape[-2], stochastic, approximate)
    codes = gelu_codes.unpack(saved.planes, like.shape[-1])
    return gelu_codes.look_up(codes, levels, like.dtype)


def forward(
    u: jax.Array,
    kind: GeluKind,
    *,
    approximate: bool = False,
    keys: jax.Array | None = None,
    columns: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array | Code, jax.Array | None]:
    """GELU of `u`, `[B, ..., F]`, what `save` keeps of it, and `columns` of the output, packed.

    Where codes are kept, a kernel can make all three in one pass over `u`.

    Raises:
      ValueError: the named implementation cannot run.
    """
    if kind != "dense" and KERNEL.choose(implementation, u, keys) == "triton":
        a, planes, packed = kernel.gelu(
            u.reshape(-1, u.shape[-1]),
            gelu_codes.nearest_steps(int(kind.removeprefix("code")), approximate),
            columns,
            approximate=approximate,
            blocks=KERNEL.cut()[u.dtype.itemsize],
            interpret=dispatch.interpreting(),
        )
        leading = u.shape[:-1]
        saved = Code(planes.reshape(*leading, *planes.shape[1:]))
        return a.reshape(u.shape), saved, None if packed is None else packed.reshape(*leading, -1)
    a = value(u, approximate=approximate)
    packed = None if columns is None else residuals.take_columns(a, columns)
    return a, save(u, kind, approximate=approximate, keys=keys), packed


def gelu_pair(
    kind: GeluKind = "dense",
    approximate: bool = False,
    implementation: Implementation | None = None,
) -> pair.Pair:
    """GELU as a pair; `aux` holds keys for stochastic rounding, `[B]`, or is None."""

    def forward_(params, u, keys):
        return forward(u, kind, approximate=approximate, keys=keys, implementation=implementation)[
            :2
        ]

    def backward(params, saved, keys, dy):
        slope = saved_derivative(saved, dy, approximate=approximate, stochastic=keys is not None)
        return None, dy * slope

    return pair.Pair(forward_, backward)


def gelu(
    u: jax.Array,
    *,
    approximate: bool = False,
    residual: GeluKind = "dense",
    key: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """GELU of `u`, `[B, ..., F]`, that saves one array, or a code of a few bits per element.

    Args:
      u: the input; the result has its shape and dtype.
      approximate: tanh form.
      residual: "dense", or "code2", "code3", "code4": the derivative in so many bits. Their
        relative error on N(0, 1) is 13, 6.5 and 3.2 %.
      key: for codes: rounds stochastically, so that the gradient is unbiased (22.8, 10.0, 4.7 %).
      implementation: of codes, see `pbr_jax.ops.dispatch`; None lets the device decide.

    Raises:
      ValueError: `residual` is unknown, `key` is given for "dense", or the named implementation
        cannot run.
    """
    if residual not in get_args(GeluKind):
        raise ValueError(f"residual = {residual!r}: must be one of {', '.join(get_args(GeluKind))}")
    if key is not None and residual == "dense":
        raise ValueError("key given with residual = 'dense': only codes are rounded; drop the key")
    keys = None if key is None else sample_keys(key, u.shape[0])
    return pair.bind(gelu_pair(residual, approximate, implementation))(None, u, keys)
