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

from pbr_jax.kernels.gelu import Steps

BITS = (2, 3, 4)
_BITS_PER_BYTE = 8
_GRID = 768  # candidate positions of a level


def gelu_derivative(u: np.ndarray, approximate: bool) -> np.ndarray:
    """The derivative in float64.

    NumPy, since it may be needed while JAX traces for a device that is not there. Not shared with
    `ops.gelu`: some codebooks of the tanh form have a mirror image of the same cost, and another
    order of the operations would choose that.
    """
    if approximate:
        t = np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * u**2)
        return 0.5 * (1 + t) + 0.5 * u * (1 - t**2) * slope
    erf = np.vectorize(math.erf)(u / math.sqrt(2))
    return 0.5 * (1 + erf) + u * np.exp(-0.5 * u**2) / math.sqrt(2 * math.pi)


def _derivative_grid(approximate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sorted values of the derivative over a fine grid of u, and their weights under N(0, 1)."""
    u = np.linspace(-8, 8, 32769)
    g = gelu_derivative(u, approximate)
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
    # Candidate levels, or edges between them, are places on a grid; the cost of a codebook is a sum
    # over its intervals, so that a shortest path finds the best one.
    g, w = _derivative_grid(approximate)
    edges = np.linspace(g[0], g[-1], _GRID)
    edges[-1] = np.nextafter(g[-1], np.inf)
    m0, m1, m2 = _interval_moments(g, w, edges)
    if stochastic:
        low, high = edges[:, None], edges[None, :]
        cost = (low + high) * m1 - m2 - low * high * m0  # E (g - low)(high - g)
        path = _cheapest_path(cost, 2**bits - 1)
        return edges[path].astype(np.float32)
    # A level at the mean of its interval costs the variance there.
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(m0 > 0, m2 - m1**2 / m0, 0.0)
    path = _cheapest_path(cost, 2**bits)
    inside = list(itertools.pairwise(path))
    return np.array([m1[a, b] / m0[a, b] for a, b in inside], np.float32)


@functools.cache
def nearest_steps(bits: int, approximate: bool) -> Steps:
    """Where the code of the nearest level changes.

    The derivative rises and falls, but it crosses the midpoint of two levels at a few places only,
    so its code takes a few comparisons of u and no erf or exp.
    """
    levels = codebook(bits, False, approximate).astype(np.float64)
    u = np.linspace(-8, 8, 32769)
    g = gelu_derivative(u, approximate)
    found: list[tuple[float, int]] = []
    for threshold in 0.5 * (levels[:-1] + levels[1:]):
        above = g >= threshold
        (before,) = np.nonzero(above[1:] != above[:-1])
        slope = (g[before + 1] - g[before]) / (u[1] - u[0])
        cuts = u[before] + (threshold - g[before]) / slope
        found += zip(cuts, np.where(above[before], -1, 1), strict=True)
    cuts, by = zip(*sorted(found), strict=True)
    first = int(np.argmin(np.abs(levels)))  # far to the left the derivative is 0
    return Steps(bits, first, tuple(float(np.float32(cut)) for cut in cuts), tuple(map(int, by)))


def nearest(u: jax.Array, bits: int, approximate: bool) -> jax.Array:
    """The code of the level nearest to the derivative at u, int32, shape of `u` (float32)."""
    return nearest_steps(bits, approximate).code(u)


def at_random(g: jax.Array, levels: np.ndarray, noise: jax.Array) -> jax.Array:
    """The code of one of the two levels around the derivative g, so that its expectation is g.

    Args:
      g: derivative, float32.
      levels: of a stochastic codebook.
      noise: uniform in [0, 1), like `g`.
    """
    above = [(g >= float(level)).astype(jnp.int32) for level in levels[1:-1]]
    lower = functools.reduce(jnp.add, above)
    low, high = (look_up(lower, few, g.dtype) for few in (levels[:-1], levels[1:]))
    return lower + (noise * (high - low) < g - low).astype(jnp.int32)


def look_up(codes: jax.Array, levels: np.ndarray, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`levels[codes]` in `dtype`, shape of `codes`, none of which may lie outside.

    A gather, not the selections of the kernels: with those the loop over da that XLA makes for a
    CPU takes longer, most likely in branches, and codes make those unpredictable.
    """
    return jnp.asarray(levels, dtype).at[codes].get(mode="promise_in_bounds")


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Codes as bit planes: `int32 [..., F] -> uint8 [..., bits, ceil(F / 8)]`.

    Bit i of byte j belongs to feature `i * ceil(F / 8) + j`: a kernel makes a byte of eight slices
    of the codes, with nothing to move between its threads.
    """
    num_bytes = -(-codes.shape[-1] // _BITS_PER_BYTE)
    padding = [(0, 0)] * (codes.ndim - 1) + [(0, _BITS_PER_BYTE * num_bytes - codes.shape[-1])]
    slices = jnp.pad(codes, padding).reshape(*codes.shape[:-1], _BITS_PER_BYTE, num_bytes)
    # All planes in one sum, a byte of it each, so that XLA reads the codes once.
    spread = [((slices >> b) & 1) << (_BITS_PER_BYTE * b) for b in range(bits)]
    together = functools.reduce(jnp.bitwise_or, spread) << _positions(slices.ndim)
    words = jnp.sum(together, axis=-2, dtype=jnp.int32)
    planes = [(words >> (_BITS_PER_BYTE * b)) & 0xFF for b in range(bits)]
    return jnp.stack(planes, axis=-2).astype(jnp.uint8)


def unpack(planes: jax.Array, size: int) -> jax.Array:
    """The inverse of `pack`: `uint8 [..., bits, ceil(F / 8)] -> int32 [..., F]`, F = size."""
    wide = planes.astype(jnp.int32)
    bits = [
        ((wide[..., b : b + 1, :] >> _positions(wide.ndim)) & 1) << b
        for b in range(planes.shape[-2])
    ]
    codes = functools.reduce(jnp.bitwise_or, bits)
    return codes.reshape(*codes.shape[:-2], -1)[..., :size]


def _positions(ndim: int) -> jax.Array:
    """0 ... 7, of the bits of a byte, along the last axis but one of `ndim`."""
    positions = jnp.arange(_BITS_PER_BYTE, dtype=jnp.int32)
    return positions.reshape(*[1] * (ndim - 2), _BITS_PER_BYTE, 1)
