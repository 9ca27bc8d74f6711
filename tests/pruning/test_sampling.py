import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from pruning import oracles

from pbr_jax.pruning import sampling

DRAWS = 20_000
NUM_ARMS, BUDGET = 96, 24


def probs_for(seed: int, num_arms: int, budget: int, scale: float = 1.5) -> np.ndarray:
    log_weights = np.random.default_rng(seed).normal(size=num_arms) * scale
    return oracles.project(log_weights, budget, 0.2 * budget / num_arms).astype(np.float32)


def systematic_draws(probs, budget: int, draws: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(7), draws)
    draw = jax.jit(
        jax.vmap(lambda key, p: sampling.systematic(key, p, budget, budget), in_axes=(0, None))
    )
    return np.asarray(draw(keys, jnp.asarray(probs)))


@functools.cache
def probs_and_draws(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of 96 arms, and 20 000 systematic draws of 24 of them."""
    probs = probs_for(1, NUM_ARMS, BUDGET, scale)
    return probs, systematic_draws(probs, BUDGET, DRAWS)


def bernoulli_draws(probs, slots: int, draws: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(8), draws)
    draw = jax.jit(
        jax.vmap(lambda key, p: sampling.bernoulli(key, p, slots, slots), in_axes=(0, None))
    )
    return np.asarray(draw(keys, jnp.asarray(probs)))


def hits(arms: np.ndarray, num_arms: int) -> np.ndarray:
    return np.bincount(arms.ravel(), minlength=num_arms + 1)[:num_arms]


@pytest.mark.parametrize(
    ("num_arms", "budget", "draws"),
    [(3072, 1536, 500), (3072, 3072, 50), (768, 80, 1000), (8, 1, 500)],
)
def test_exactly_the_budget_in_every_draw(num_arms, budget, draws):
    arms = systematic_draws(probs_for(0, num_arms, budget), budget, draws)
    assert arms.shape == (draws, budget)
    assert arms.dtype == np.int32
    assert np.all(np.diff(arms, axis=1) > 0)  # increasing, so also distinct
    assert arms.min() >= 0
    assert arms.max() < num_arms


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_systematic_frequencies_are_the_probabilities(scale):
    probs, arms = probs_and_draws(scale)
    assert np.any(probs == 1.0) == (scale > 0.0)
    assert oracles.largest_z_score(hits(arms, NUM_ARMS), probs, DRAWS) < 4.5


def test_systematic_frequencies_would_reveal_a_bias():
    probs, arms = probs_and_draws(1.5)
    wrong = np.where(probs < 1.0, probs * 0.93, probs)
    assert oracles.largest_z_score(hits(arms, NUM_ARMS), wrong, DRAWS) > 4.5


@pytest.mark.parametrize("draw", [sampling.systematic, sampling.bernoulli])
def test_slots_past_the_budget_are_unused_and_change_no_draw(draw):
    probs, key = jnp.asarray(probs_for(2, NUM_ARMS, BUDGET)), jax.random.key(0)
    alone, more = draw(key, probs, BUDGET, BUDGET), draw(key, probs, BUDGET, BUDGET + 8)
    np.testing.assert_array_equal(more[:BUDGET], alone)
    np.testing.assert_array_equal(more[BUDGET:], NUM_ARMS)


def test_every_pair_is_drawn_together():
    # Without the permutation, neighbours would never be: systematic sampling's known defect.
    _, arms = probs_and_draws(0.0)
    chosen = np.zeros((DRAWS, NUM_ARMS), np.float32)
    np.put_along_axis(chosen, arms, 1.0, axis=1)
    together = chosen.T @ chosen / DRAWS
    np.fill_diagonal(together, BUDGET / NUM_ARMS * (BUDGET - 1) / (NUM_ARMS - 1))
    np.testing.assert_allclose(together, together[0, 0], atol=0.011)  # five standard errors


@hypothesis.given(
    shape=st.sampled_from([(8, 3), (96, 95), (3072, 1536)]),
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0.0, 10.0),
    error=st.floats(-1e-5, 1e-5),
)
@hypothesis.settings(max_examples=60)
def test_quantized_probabilities(shape, seed, scale, error):
    num_arms, budget = shape
    one = 2 ** int(sampling.resolution_bits(budget))
    probs = probs_for(seed, num_arms, budget, scale)
    probs = np.minimum(probs * np.float32(1.0 + error), np.float32(1.0))
    units = np.asarray(sampling.quantize(probs, budget), np.int64)
    assert units.sum() == budget * one
    assert units.min() >= 0
    assert units.max() <= one
    # At most the error that the sum has to lose, shared out among the arms with room, and a unit.
    inexact = abs(probs.astype(np.float64).sum() - budget) * one / max(1, np.sum(probs < 1.0))
    assert np.abs(units - probs.astype(np.float64) * one).max() <= 4 * inexact + 2


def test_largest_remainders_get_the_missing_units():
    bits = int(sampling.resolution_bits(1))
    probs = (
        np.array([0.25, 0.25, 0.5], np.float32) - np.array([0.3, 0.1, 0.6], np.float32) / 2**bits
    )
    units = np.asarray(sampling.quantize(jnp.asarray(probs), 1))
    exact = probs.astype(np.float64) * 2**bits
    assert units.sum() == 2**bits
    assert np.abs(units - exact).max() <= 1


def test_resolution_is_never_coarser_than_16_bits_and_never_overflows():
    for budget in (1, 2, 127, 128, 1536, 3072, 32767):
        bits = int(sampling.resolution_bits(budget))
        assert 16 <= bits <= 24
        assert (budget + 1) * 2**bits <= 2**31


def test_too_large_a_budget_is_refused():
    with pytest.raises(ValueError, match=r"budget = 32768.*at most 32767"):
        sampling.check_systematic_budget(32_768)


def test_the_largest_budget_works():
    arms = sampling.systematic(jax.random.key(0), jnp.ones((32_767,)), 32_767, 32_767)
    np.testing.assert_array_equal(arms, np.arange(32_767))


def test_same_key_same_draw():
    probs = jnp.asarray(probs_for(2, NUM_ARMS, BUDGET))
    first, again, other = (
        np.asarray(sampling.systematic(jax.random.key(seed), probs, BUDGET, BUDGET))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_bernoulli_frequencies_are_the_probabilities():
    probs = probs_for(3, NUM_ARMS, BUDGET)
    arms = bernoulli_draws(probs, NUM_ARMS, DRAWS)
    assert oracles.largest_z_score(hits(arms, NUM_ARMS), probs, DRAWS) < 4.5
    # The draws are independent: the size of the set varies as it must.
    size = np.sum(arms < NUM_ARMS, axis=1)
    assert size.var() == pytest.approx(np.sum(probs * (1 - probs)), rel=0.06)


def test_bernoulli_overflow_is_dropped_at_random():
    probs = np.full(NUM_ARMS, BUDGET / NUM_ARMS, np.float32)
    everything = bernoulli_draws(probs, NUM_ARMS, DRAWS)
    slots = 16
    arms = bernoulli_draws(probs, slots, DRAWS)
    size = np.sum(everything < NUM_ARMS, axis=1)
    np.testing.assert_array_equal(np.sum(arms < NUM_ARMS, axis=1), np.minimum(size, slots))
    for kept, drawn in zip(arms[:50], everything[:50], strict=True):
        kept = kept[kept < NUM_ARMS]
        assert np.all(np.diff(kept) > 0)
        assert set(kept) <= set(drawn)
    kept_probability = np.minimum(size, slots).mean() / NUM_ARMS
    expected = np.full(NUM_ARMS, kept_probability)
    assert oracles.largest_z_score(hits(arms, NUM_ARMS), expected, DRAWS) < 4.5


@pytest.mark.parametrize(
    ("num_arms", "budget"), [(16, 8), (768, 80), (3072, 8), (3072, 312), (3072, 1536), (5, 5)]
)
def test_bernoulli_slots(num_arms, budget):
    slots = sampling.bernoulli_slots(num_arms, budget)
    tail = scipy.stats.binom(num_arms, budget / num_arms).sf
    assert budget <= slots <= num_arms
    assert slots % 8 == 0 or slots == num_arms
    assert tail(slots) < 1e-4
    assert tail(slots - 8) >= 1e-4 or slots - 8 < budget + 1  # and no smaller capacity would do
