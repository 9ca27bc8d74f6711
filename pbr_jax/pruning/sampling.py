"""Draws the active set S_t of Algorithm 1 with given inclusion probabilities and a static length.

Two samplers, both with P(d in S_t) = p_d:

* `systematic` draws exactly K distinct arms every time. Its arithmetic is in integers: in float32
  the same method repeats an arm now and then, and a repeated column counts its gradient twice.
* `bernoulli` draws every arm independently, as the paper does. The size of the set is random, so
  it lives in a fixed number of slots (`bernoulli_slots`), and what does not fit is dropped.

Both take the budget as an array, so that `jax.vmap` draws for sites of one width but different
budgets at once.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax.plans import MOST_DRAWN

_OVERFLOW_PROBABILITY = 1e-4


def check_systematic_budget(budget: int) -> None:
    """Raises ValueError when the cumulative sums of `systematic` would overflow int32."""
    if budget > MOST_DRAWN:  # budget * 2**16 must fit in int32
        raise ValueError(
            f"budget = {budget}: systematic sampling counts in int32 and takes at most "
            f"{MOST_DRAWN}; use a smaller keep, a group_size, or sampler='bernoulli'"
        )


def resolution_bits(budget: int | np.int32 | jax.Array) -> jax.Array:
    """Bits S of the fixed-point probabilities of `systematic`: budget * 2**S < 2**31, at most 24.

    At least 16 for every permitted budget; 24 bits hold a float32 probability exactly.
    """
    return jnp.minimum(24, jax.lax.clz(jnp.asarray(budget, jnp.int32)) - 1)


@jax.jit
def quantize(probs: jax.Array, budget: int | np.int32 | jax.Array) -> jax.Array:
    """Rounds probabilities to integers of 2**-S that sum to exactly `budget * 2**S`.

    Largest remainders: everything is rounded down, and the arms that lost most get the missing
    units back. (Where rounding left the sum too large, the arms that lost least give them.)

    Args:
      probs: float32 [A] in [0, 1], summing to `budget` to within float32 rounding.
      budget: int32 [], K, at most 32767 and at most A.

    Returns:
      int32 [A], each in 0 ... 2**S with S = `resolution_bits(budget)`.
    """
    num_arms = probs.shape[0]
    one = jnp.left_shift(1, resolution_bits(budget))
    scaled = jnp.clip(probs, 0.0, 1.0) * one.astype(probs.dtype)
    units = jnp.floor(scaled).astype(jnp.int32)
    # Where the sum wraps past 2**31 the difference wraps back: int32 is exact modulo 2**32.
    missing = budget * one - jnp.sum(units)
    give = missing >= 0
    room = jnp.where(give, one - units, units)
    remainder = scaled - units.astype(scaled.dtype)
    order = _argsort(jnp.where(give, -remainder, remainder))
    # One unit each is usual. Float32 rounding of a sum over many arms can ask for a few more: the
    # smallest power of two that suffices.
    shares = 2 ** jnp.arange(max(1, (2**31 // num_arms).bit_length() - 1), dtype=jnp.int32)
    shares = jnp.minimum(shares, one)
    capacity = jnp.sum(jnp.minimum(room[None], shares[:, None]), axis=1)
    share = shares[jnp.argmax(capacity >= jnp.abs(missing))]
    # The arms in turn, each up to its share, until nothing is missing.
    portion = jnp.minimum(room, share)[order]
    before = jnp.cumsum(portion) - portion
    portion = jnp.clip(jnp.abs(missing) - before, 0, portion)
    return units.at[order].add(jnp.where(give, portion, -portion), unique_indices=True)


@functools.partial(jax.jit, static_argnames="slots")
def systematic(
    key: jax.Array, probs: jax.Array, budget: int | np.int32 | jax.Array, slots: int
) -> jax.Array:
    """Systematic sampling on a random permutation: exactly `budget` distinct arms in every draw.

    The arms lie end to end, in random order, on a line of length `budget`, each as long as its
    probability; a comb of unit spacing at one uniform offset picks the arms that it hits. An arm
    is never longer than the spacing, so no arm is hit twice. It stands in for lines 5-6 of
    Algorithm 1, whose sets differ in size from draw to draw.

    Args:
      key: PRNG key, consumed.
      probs: float32 [A] in [0, 1], summing to `budget` to within float32 rounding.
      budget: int32 [], K, at most 32767 (`check_systematic_budget`) and at most A.
      slots: length of the result, at least `budget`.

    Returns:
      int32 [slots], increasing, slots past `budget` holding A. Inclusion probabilities are exactly
      `quantize(probs) / 2**S`.
    """
    num_arms = probs.shape[0]
    bits = resolution_bits(budget)
    order_key, offset_key = jax.random.split(key)
    # One sort of random words; `jax.random.permutation` would sort twice to also break rare ties
    # at random.
    order = _argsort(jax.random.bits(order_key, (num_arms,), jnp.uint32))
    lengths = quantize(probs, budget)[order]
    word = jax.random.bits(offset_key, (), jnp.uint32)
    offset = (word >> (32 - bits).astype(jnp.uint32)).astype(jnp.int32)
    # An arm is hit where the whole part changes between its two ends.
    end = jnp.cumsum(lengths) + offset  # at most budget * 2**S + 2**S - 1 < 2**31
    hit = (end >> bits) != ((end - lengths) >> bits)
    return _increasing(order, hit, num_arms, slots)


@functools.cache
def bernoulli_slots(num_arms: int, budget: int, multiple: int = 8) -> int:
    """Slots that `bernoulli` needs: more draws than that have probability below 1e-4.

    The bound holds for every vector of probabilities that sums to `budget`: at and above its mean
    plus one, the tail of such a sum is largest when all are equal (Hoeffding 1956), so the exact
    tail of Binomial(A, budget / A) decides.

    Args:
      num_arms: A.
      budget: K, the expected number of draws, from 1 to A.
      multiple: the result is a multiple of this, or A.
    """
    if budget == num_arms:
        return num_arms
    log_p, log_q = math.log(budget / num_arms), math.log1p(-budget / num_arms)
    tail, slots = 0.0, num_arms
    while slots > budget + 1:
        tail += math.exp(
            math.lgamma(num_arms + 1) - math.lgamma(slots + 1) - math.lgamma(num_arms - slots + 1)
            + slots * log_p + (num_arms - slots) * log_q
        )  # fmt: skip
        if tail >= _OVERFLOW_PROBABILITY:
            break
        slots -= 1
    return min(num_arms, multiple * math.ceil(slots / multiple))


@functools.partial(jax.jit, static_argnames="slots")
def bernoulli(
    key: jax.Array, probs: jax.Array, capacity: int | np.int32 | jax.Array, slots: int
) -> jax.Array:
    """Independent draws (Algorithm 1, lines 5-6), in a fixed number of slots.

    When more arms are drawn than fit, the ones to drop are chosen uniformly at random.

    Args:
      key: PRNG key, consumed.
      probs: float32 [A] in [0, 1].
      capacity: int32 [], arms kept at most; see `bernoulli_slots`.
      slots: length of the result, at least `capacity` and at most A.

    Returns:
      The drawn arms, int32 [slots], increasing, unused slots holding A at the end.
    """
    num_arms = probs.shape[0]
    draw_key, drop_key = jax.random.split(key)
    drawn = jax.random.uniform(draw_key, (num_arms,), probs.dtype) < probs
    # Drawn arms first, in random order: 31 random bits, and the largest word for the others.
    rank = jax.random.bits(drop_key, (num_arms,), jnp.uint32) >> 1
    order = _argsort(jnp.where(drawn, rank, jnp.uint32(2**32 - 1)))[:slots]
    kept = drawn[order] & (jnp.arange(slots) < capacity)
    return _increasing(order, kept, num_arms, slots)


def _argsort(keys: jax.Array) -> jax.Array:
    """What `jnp.argsort` gives, equal keys in order of their index.

    XLA would keep that order by a third operand beside keys and indices, and the code that it makes
    of a sort for a GPU, most of that of a step without this, grows with each.
    """
    index = jnp.arange(keys.shape[0], dtype=jnp.int32)
    return jax.lax.sort((keys, index), num_keys=2, is_stable=False)[1]


def _increasing(arms: jax.Array, chosen: jax.Array, num_arms: int, slots: int) -> jax.Array:
    """Those of the distinct `arms` that are `chosen`, int32 [slots], increasing; then `num_arms`.

    They fall into place by their count: a sort would do more, and takes seconds to compile.
    """
    flags = jnp.zeros((num_arms,), bool).at[arms].set(chosen, unique_indices=True)
    slot = jnp.where(flags, jnp.cumsum(flags) - 1, slots)
    index = jnp.arange(num_arms, dtype=jnp.int32)
    return jnp.full((slots,), num_arms, jnp.int32).at[slot].set(index, mode="drop")
