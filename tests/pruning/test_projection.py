import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from pruning import oracles

from pbr_jax.pruning.projection import make_simplex
from pbr_jax.pruning.projection import project as project_onto


def project(log_weights, budget: int, min_prob: float):
    log_weights = jnp.asarray(log_weights)
    return project_onto(log_weights, make_simplex(log_weights.shape[-1], budget, min_prob))


def random_log_weights(seed: int, num_arms: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=num_arms) * scale).astype(np.float32)


def test_the_oracle_is_the_convex_minimum():
    log_weights = random_log_weights(0, 7, 1.5).astype(np.float64)
    weights, budget, min_prob = np.exp(log_weights), 3.0, 0.2
    solved = scipy.optimize.minimize(
        lambda q: np.sum(q * np.log(q / weights) - q),
        np.full(7, budget / 7),
        jac=lambda q: np.log(q / weights),
        bounds=[(min_prob, 1.0)] * 7,
        constraints={"type": "eq", "fun": lambda q: q.sum() - budget, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert solved.success
    expected = oracles.project(log_weights, budget, min_prob)
    assert np.any(expected == 1.0)
    assert np.any(np.isclose(expected, min_prob))
    np.testing.assert_allclose(solved.x, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 50.0])
@pytest.mark.parametrize(
    ("num_arms", "budget", "min_prob"),
    [(16, 8, 1e-3), (768, 80, 0.02), (3072, 312, 1e-4), (3072, 1536, 1e-3), (3072, 3064, 1e-3)],
)
def test_agrees_with_float64(num_arms, budget, min_prob, scale):
    log_weights = random_log_weights(1, num_arms, scale)
    probs = np.asarray(project(log_weights, budget, min_prob))
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, oracles.project(log_weights, budget, min_prob), rtol=1e-6)
    assert abs(probs.astype(np.float64).sum() / budget - 1) < 1e-6


@hypothesis.given(
    shape=st.sampled_from([(8, 3, 0.01), (64, 16, 0.05), (64, 63, 1e-6), (64, 1, 1e-6)]),
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0.0, 1e9),
    weightless=st.floats(0.0, 1.0),
    common=st.floats(-1e3, 1e3),
)
@hypothesis.settings(max_examples=150)
def test_always_inside_the_set(shape, seed, scale, weightless, common):
    num_arms, budget, min_prob = shape
    log_weights = random_log_weights(seed, num_arms, scale) + np.float32(common)
    absent = np.random.default_rng(seed + 1).random(num_arms) < weightless
    log_weights[absent] = -np.inf
    probs = np.asarray(project(log_weights, budget, min_prob), np.float64)
    assert np.all(probs >= np.float32(min_prob))
    assert np.all(probs <= 1.0)
    assert abs(probs.sum() / budget - 1) < 2e-6
    order = np.argsort(log_weights)
    assert np.all(np.diff(probs[order]) >= 0)  # a heavier arm is never less probable


def test_a_point_of_the_set_stays():
    probs = oracles.project(random_log_weights(2, 768, 1.0), 80, 0.01).astype(np.float32)
    np.testing.assert_allclose(project(np.log(probs), 80, 0.01), probs, rtol=1e-6)


def test_infinite_and_equal_weights():
    one_heavy = jnp.full((6,), -jnp.inf).at[2].set(0.0)
    np.testing.assert_allclose(
        project(one_heavy, 2, 0.1), np.where(np.arange(6) == 2, 1.0, 0.2), rtol=1e-6
    )
    np.testing.assert_allclose(project(jnp.full((6,), -jnp.inf), 2, 0.1), np.full(6, 1 / 3), 1e-6)
    np.testing.assert_allclose(project(jnp.full((6,), jnp.inf), 2, 0.1), np.full(6, 1 / 3), 1e-6)


def test_sets_of_one_point():
    log_weights = random_log_weights(3, 8, 3.0)
    np.testing.assert_array_equal(project(jnp.asarray(log_weights), 8, 0.1), np.ones(8))
    np.testing.assert_array_equal(project(jnp.asarray(log_weights), 4, 0.5), np.full(8, 0.5))


def test_vmaps():
    log_weights = np.stack([random_log_weights(seed, 32, 2.0) for seed in range(4)])
    together = jax.vmap(functools.partial(project, budget=8, min_prob=0.01))(log_weights)
    for row, alone in zip(together, log_weights, strict=True):
        np.testing.assert_allclose(row, project(alone, 8, 0.01), rtol=1e-6)


@pytest.mark.parametrize(
    ("budget", "min_prob", "message"),
    [
        (9, 0.1, "budget = 9"),
        (0, 0.1, "budget = 0"),
        (2, 0.3, "min_prob = 0.3.*at most 0.25"),
        (8, 1.5, "min_prob = 1.5"),
        (2, 0.0, "min_prob = 0.0"),
        (2, float("nan"), "min_prob = nan"),
    ],
)
def test_empty_sets_are_refused(budget, min_prob, message):
    with pytest.raises(ValueError, match=message):
        make_simplex(8, budget, min_prob)
