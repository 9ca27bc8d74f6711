"""Does the bandit learn? A stationary problem with heavy-tailed norms and noisy observations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pruning import oracles

from pbr_jax.pruning import bandit, make_policy
from pbr_jax.pruning.projection import make_simplex
from pbr_jax.pruning.sampling import systematic

NUM_ARMS, BUDGET, STEPS = 768, 80, 2000
MIN_PROB = 0.2 * BUDGET / NUM_ARMS  # the policies' default
NORMS = np.exp(1.16 * np.random.default_rng(0).normal(size=NUM_ARMS)).astype(np.float32)


def bandit_update(probs, arms, sq_norms, *, budget: int, min_prob: float, **options):
    simplex = make_simplex(probs.shape[0], budget, min_prob)
    return bandit.bandit_update(probs, arms, sq_norms, simplex, **options)


def regret(probs: jax.Array) -> jax.Array:
    """sum(norms**2 / p), relative to its minimum over the set of probabilities."""
    best = np.sum(NORMS**2 / oracles.optimal_probs(NORMS, BUDGET, MIN_PROB))
    return jnp.sum(NORMS**2 / probs) / best


def observe(key: jax.Array, columns: jax.Array) -> jax.Array:
    """Squared norms with log-normal noise of mean 1, on a scale that changes every step."""
    noise_key, scale_key = jax.random.split(key)
    noise = jnp.exp(jax.random.normal(noise_key, columns.shape) - 0.5)
    return jnp.asarray(NORMS)[columns] ** 2 * noise * jnp.exp(jax.random.normal(scale_key, ()))


@functools.partial(jax.jit, static_argnums=0)
def final_regret(policy) -> jax.Array:
    """Mean regret over the last quarter of the steps."""

    def step(state, key):
        sample_key, observe_key = jax.random.split(key)
        columns = policy.sample(sample_key, state)
        state = policy.update(state, columns, observe(observe_key, columns))
        return state, regret(state.probs)

    _, regrets = jax.lax.scan(step, policy.init(), jax.random.split(jax.random.key(3), STEPS))
    return regrets[-STEPS // 4 :].mean()


@pytest.mark.parametrize("name", ["bandit", "importance"])
def test_the_default_learns(name):
    uniform = regret(jnp.full((NUM_ARMS,), BUDGET / NUM_ARMS))
    assert uniform > 3.0
    assert final_regret(make_policy(name, NUM_ARMS, BUDGET)) < 1.15


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_literal_algorithm_learns_at_no_step_size():
    def run(step_size):
        def step(probs, key):
            sample_key, observe_key = jax.random.split(key)
            arms = systematic(sample_key, probs, BUDGET, BUDGET)
            probs = bandit_update(
                probs,
                arms,
                observe(observe_key, arms),
                budget=BUDGET,
                step_size=step_size,
                min_prob=MIN_PROB,
                offset="paper",
            )
            return probs, regret(probs)

        start = jnp.full((NUM_ARMS,), BUDGET / NUM_ARMS)
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(3), steps))[1]

    steps, step_sizes = STEPS // 2, 10.0 ** jnp.arange(-8.0, 0.0, 2.0)
    regrets = np.asarray(jax.jit(jax.vmap(run))(step_sizes))
    assert regrets.shape == (4, steps)
    assert regrets[:, -steps // 4 :].mean(axis=1).min() > 2.5  # uniform sampling has 3.06


@pytest.mark.parametrize("offset", ["none", "paper", "minimum"])
def test_agrees_with_algorithm_2(offset):
    rng = np.random.default_rng(5)
    probs = oracles.project(rng.normal(size=32), 8, 0.05).astype(np.float32)
    active = np.sort(rng.permutation(32)[:8]).astype(np.int32)
    sq_norms = np.exp(rng.normal(size=8)).astype(np.float32)
    sizes = {"budget": 8, "step_size": 2e-3, "min_prob": 0.05, "offset": offset}
    expected = oracles.bandit_update(probs, active, sq_norms, **sizes)
    assert np.abs(expected - probs).max() > 1e-3
    updated = bandit_update(jnp.asarray(probs), jnp.asarray(active), jnp.asarray(sq_norms), **sizes)
    np.testing.assert_allclose(updated, expected, rtol=2e-6)


@pytest.mark.parametrize("offset", ["none", "paper", "minimum"])
def test_the_scale_of_the_gradient_does_not_matter(offset):
    probs, active = jnp.full((16,), 0.25), jnp.asarray([1, 5, 6, 12])
    sq_norms = jnp.asarray([1.0, 4.0, 0.5, 2.0])
    update = functools.partial(
        bandit_update, probs, active, budget=4, step_size=1e-2, min_prob=0.05, offset=offset
    )
    reference = update(sq_norms)
    for scale in (1e-20, 1e20):
        np.testing.assert_allclose(update(sq_norms * scale), reference, rtol=1e-6)


def test_huge_steps_stay_finite():
    probs = jnp.full((16,), 0.25).at[0].set(1e-6)
    updated = bandit_update(
        probs, jnp.asarray([0, 1]), jnp.ones((2,)), budget=4, step_size=1e6, min_prob=1e-6
    )
    assert np.all(np.isfinite(updated))
    assert updated[0] == 1.0


def test_an_unknown_offset_is_refused():
    with pytest.raises(ValueError, match="offset = 'release': must be one of"):
        bandit_update(
            jnp.full((4,), 0.5),
            jnp.asarray([0, 1]),
            jnp.ones((2,)),
            budget=2,
            step_size=1e-3,
            min_prob=0.1,
            offset="release",
        )
