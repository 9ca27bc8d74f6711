"""GELU and its derivative, exact (erf) or by the tanh approximation."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.ops import pair

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
        slope = 0.5 * (1 + lax.erf(v / math.sqrt(2))) + v * jnp.exp(-0.5 * v * v) / math.sqrt(2 * math.pi)
    return slope.astype(u.dtype)


def gelu_pair(approximate: bool = False) -> pair.Pair:
    """GELU as a pair whose residual is its input."""

    def forward(params, u, aux):
        return value(u, approximate=approximate), u

    def backward(params, u, aux, dy):
        return None, dy * derivative(u, approximate=approximate)

    return pair.Pair(forward, backward)


def gelu(u: jax.Array, *, approximate: bool = False) -> jax.Array:
    """GELU that saves one array of the size and dtype of its input (plain autodiff saves several)."""
    return pair.bind(gelu_pair(approximate))(None, u, None)
