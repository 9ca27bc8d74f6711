"""Codebooks of a few bits for the derivative of GELU.

The backward pass of GELU needs only its derivative g, a number in [-0.129, 1.129] (erf form).
Stored as a code of 2, 3 or 4 bits it takes 1/8 ... 1/4 of a bf16 activation. Two codebooks:

* *deterministic*: g is rounded to the nearest level. The levels minimise E (g - level)^2 for u ~
  N(0, 1) (the Lloyd-Max condition, solved exactly by dynamic programming): relative error 13, 6.5,
  3.2 %.
* *stochastic*: g is rounded up or down at random so that its expectation is g: unbiased, which
  needs the outermost levels to be the extremes of g. The others minimise the variance: 22.8, 10.0,
  4.7 %.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

BITS = (2, 3, 4)
_GRID = 768  # candidate positions of a level


def _derivative_grid(approximate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sorted values of the derivative over a fine grid of u, and their weights under N(0, 1).

    NumPy, since it may be needed while JAX traces for a device that is not there.
    """
    u = np.linspace(-8, 8, 32769)
    if approximate:
        t = np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * u**2)
        g = 0.5 * (1 + t) + 0.5 * u * (1 - t**2) * slope
    else:
        erf = np.vectorize(math.erf)(u / math.sqrt(2))
        g = 0.5 * (1 + erf) + u * np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi)
    weights = np.exp(-0.5 * u**2)
    order = np.argsort(g)
    return g[order], (weights / weights.sum())[order]


def _interval_moments(g: np.ndarray, w: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Moments 0, 1, 2 of g between every two edges: `[3, E, E]`."""
    sums = np.stack([np.concatenate([[0.0], np.cumsum(w * g**k)]) for k in range(3)])
    at = sums[:, np.searchsorted(g, edges)]
    return at[:, None, :] - at[:, :, None]


def _cheapest_path(cost: np.ndarray, num_intervals: int) -> list[int]:
    """Edges `0 = e_0 < ... < e_n = last` with the least summed cost of the intervals between."""
    cost = np.where(np.tri(len(cost), dtype=bool), np.inf, cost)
    best, steps = cost[0], []
    for _ in range(num_intervals - 1):
        through = best[:, None] + cost
        steps.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0)
    path = [len(cost) - 1]
    for step in reversed(steps):
        path.append(int(step[path[-1]]))
    return [0, *reversed(path)]


@functools.cache
def codebook(bits: int, stochastic: bool, approximate: bool) -> np.ndarray:
    """The best `2^bits` levels for u ~ N(0, 1), float32, ascending."""
    if bits not in BITS:
        raise ValueError(f"bits = {bits}: must be 2, 3 or 4")
    g, w = _derivative_grid(approximate)
    edges = np.linspace(g[0], g[-1], _GRID)
    edges[-1] = np.nextafter(g[-1], np.inf)
    m0, m1, m2 = _interval_moments(g, w, edges)
    if stochastic:
        low, high = edges[:, None], edges[None, :]
        cost = (low + high) * m1 - m2 - low * high * m0  # E (g - low)(high - g)
        path = _cheapest_path(cost, 2**bits - 1)
        return edges[path].astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(m0 > 0, m2 - m1**2 / m0, 0.0)
    path = _cheapest_path(cost, 2**bits)
    inside = list(itertools.pairwise(path))
    return np.array([m1[a, b] / m0[a, b] for a, b in inside], np.float32)


def encode(g: jax.Array, levels: np.ndarray, noise: jax.Array | None) -> jax.Array:
    """Codes of a derivative as bit planes: `[..., F] -> uint8 [bits, ..., ceil(F / 8)]`.

    Args:
      g: derivative, float32.
      levels: of the codebook.
      noise: uniform in [0, 1), like `g`, for stochastic rounding; None rounds to the nearest level.
    """
    if noise is None:
        codes = _count_above(g, 0.5 * (levels[:-1] + levels[1:]))
    else:
        lower = jnp.minimum(_count_above(g, levels[1:]), len(levels) - 2)
        low, high = _look_up(lower, levels[:-1]), _look_up(lower, levels[1:])
        codes = lower + (noise * (high - low) < g - low).astype(jnp.int32)
    bits = len(levels).bit_length() - 1
    planes = [(codes >> b) & 1 for b in range(bits)]
    return jnp.stack([jnp.packbits(plane.astype(bool), axis=-1) for plane in planes])


def decode(
    planes: jax.Array, levels: np.ndarray, size: int, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """What the codes stand for: `uint8 [bits, ..., ceil(F / 8)] -> [..., F]`, F = size."""
    bits = jnp.unpackbits(planes, axis=-1, count=size)
    shifts = jnp.arange(bits.shape[0], dtype=jnp.int32).reshape(-1, *[1] * (bits.ndim - 1))
    codes = jnp.sum(bits.astype(jnp.int32) << shifts, axis=0)
    return _look_up(codes, levels).astype(dtype)


def _count_above(g: jax.Array, thresholds: np.ndarray) -> jax.Array:
    """How many thresholds lie at or below g, by comparisons, which fuse, instead of a search."""
    above = [(g >= float(t)).astype(jnp.int32) for t in thresholds]
    return functools.reduce(jnp.add, above)


def _look_up(codes: jax.Array, levels: np.ndarray) -> jax.Array:
    """`levels[codes]` as nested selections, which fuse, instead of a gather."""
    out = jnp.full(codes.shape, levels[0], jnp.float32)
    for i in range(1, len(levels)):
        out = jnp.where(codes >= i, float(levels[i]), out)
    return out
