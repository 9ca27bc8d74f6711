"""GELU, exact (erf) or by the tanh approximation, and what its backward pass keeps."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax import plans
from pbr_jax.kernels import gelu as kernel
from pbr_jax.ops import dispatch, gelu_codes, pair, residuals
from pbr_jax.ops.arrays import sample_keys
from pbr_jax.plans import Implementation

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _refusal(u: jax.Array | jax.ShapeDtypeStruct, keys: jax.Array | None) -> str | None:
    if keys is not None:
        return "it rounds codes to the nearest level only, and these are rounded at random"
    return dispatch.unfit(u=u)


KERNEL = dispatch.Kernel("gelu", _refusal, kernel.TILES)
"""Kernel of a GELU that keeps codes; chosen for u and the keys that round them."""


class Settings(NamedTuple):
    """Static part of a GELU."""

    kind: str = "dense"  # name of its residual, see `pbr_jax.ops.gelu_kinds`
    approximate: bool = False  # tanh form
    implementation: Implementation | None = None  # where codes are kept, see `dispatch`


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
        bell = v * jnp.exp(-0.5 * v * v) / math.sqrt(2 * math.pi)
        slope = 0.5 * (1 + lax.erf(v / math.sqrt(2))) + bell
    return slope.astype(u.dtype)


def forward(
    u: jax.Array,
    settings: Settings,
    *,
    keys: jax.Array | None = None,
    columns: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """GELU of `u`, `[B, ..., F]`, its residual, and `columns` of the output, packed.

    Where codes are kept, a kernel can make all three in one pass over `u`.

    Args:
      u: the input.
      settings: static.
      keys: one per sample, to round codes at random and without bias.
      columns: int32 `[K]`, columns of the output to pack, or None.

    Raises:
      ValueError: the named implementation cannot run.
    """
    kind, approximate = plans.kind("gelu", settings.kind), settings.approximate
    # The kernel numbers the tokens; results get the leading axes of u back.
    if kind.bits and KERNEL.choose(settings.implementation, u, keys) == "triton":
        a, planes, packed = kernel.gelu(
            u.reshape(-1, u.shape[-1]),
            gelu_codes.nearest_steps(kind.bits, approximate),
            columns,
            approximate=approximate,
            blocks=KERNEL.cut()[u.dtype.itemsize],
            interpret=dispatch.interpreting(),
        )
        leading = u.shape[:-1]
        residual = planes.reshape(*leading, *planes.shape[1:])
        packed = None if packed is None else packed.reshape(*leading, -1)
        return a.reshape(u.shape), residual, packed
    a = value(u, approximate=approximate)
    packed = None if columns is None else residuals.take_columns(a, columns)
    return a, kind.save(u, approximate=approximate, keys=keys), packed


def gelu_pair(settings: Settings) -> pair.Pair:
    """GELU as a pair; `aux` holds keys for stochastic rounding, `[B]`, or is None."""

    def backward(params, residual, keys, dy):
        slope = plans.kind("gelu", settings.kind).restore(
            residual, dy, approximate=settings.approximate, stochastic=keys is not None
        )
        return None, dy * slope

    return pair.Pair(lambda params, u, keys: forward(u, settings, keys=keys)[:2], backward)


def gelu(
    u: jax.Array,
    *,
    approximate: bool = False,
    kind: str = "dense",
    key: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """GELU of `u`, `[B, ..., F]`, that saves one array, or a code of a few bits per element.

    Args:
      u: the input; the result has its shape and dtype.
      approximate: tanh form.
      kind: of the residual: "dense", or "code2", "code3", "code4": the derivative in so many bits.
        Their relative error on N(0, 1) is 13, 6.5 and 3.2 %.
      key: for codes: rounds stochastically, so that the gradient is unbiased (22.8, 10.0, 4.7 %).
      implementation: of codes, see `pbr_jax.ops.dispatch`; None lets the device decide.

    Raises:
      ValueError: `kind` is unknown, `key` is given for "dense", or the named implementation cannot
        run.
    """
    if key is not None and not plans.kind("gelu", kind).bits:
        raise ValueError(f"key given with kind = {kind!r}: only codes are rounded; drop the key")
    keys = None if key is None else sample_keys(key, u.shape[0])
    return pair.bind(gelu_pair(Settings(kind, approximate, implementation)))(None, u, keys)
