import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pruning import oracles

from pbr_jax.pruning import joint_spar


def run(policy, sq_norms: np.ndarray, steps: int):
    """With fixed squared norms: the last state, and `active` and `probs` of every step."""

    @jax.jit
    def scan(state):
        def body(state, step):
            state = policy.sample(jax.random.fold_in(jax.random.key(0), step), state, step)
            after = policy.update(state, jnp.asarray(sq_norms)[state.active], step)
            return after, (state.active, after.probs)

        return jax.lax.scan(body, state, jnp.arange(steps))

    state, (active, probs) = scan(policy.init())
    return state, np.asarray(active), np.asarray(probs)


@pytest.mark.parametrize(
    ("num_blocks", "rate", "num_active"), [(12, 0.5, 6), (12, 0.7, 8), (12, 0.01, 1), (4, 1.0, 4)]
)
def test_exactly_m_blocks_are_active(num_blocks, rate, num_active):
    policy = joint_spar(num_blocks, rate, interval=1)
    state, active, _ = run(policy, np.ones(num_blocks, np.float32), 60)
    assert active.shape == (60, num_active)
    assert policy.init().active.shape == (num_active,)
    assert np.all(np.diff(active, axis=1) > 0)
    assert active.min() >= 0
    assert active.max() < num_blocks
    assert state.counts.sum() == 60 * num_active
    np.testing.assert_array_equal(state.counts, np.bincount(active.ravel(), minlength=num_blocks))


def test_changes_only_at_the_ends_of_intervals():
    sq_norms = np.linspace(1.0, 5.0, 12).astype(np.float32)
    _, active, probs = run(joint_spar(12, 0.5, interval=5, step_size=1e-2), sq_norms, 50)
    resampled = np.flatnonzero(np.any(np.diff(active, axis=0) != 0, axis=1)) + 1
    moved = np.flatnonzero(np.any(np.diff(probs, axis=0) != 0, axis=1)) + 1
    assert resampled.size >= 7  # of 9; a draw may repeat the one before
    assert np.all(resampled % 5 == 0)
    # The probabilities move after the last step of a set, so that the set was drawn from them.
    np.testing.assert_array_equal(moved, np.arange(4, 50, 5))


def test_the_update_is_the_release_s():
    policy = joint_spar(6, 0.5, interval=1, step_size=0.05)
    state = policy.init()._replace(active=jnp.asarray([0, 2, 5]))
    sq_norms = np.array([4.0, 1.0, 2.0], np.float32)
    after = policy.update(state, jnp.asarray(sq_norms), 0)
    expected = oracles.bandit_update(
        np.full(6, 0.5), [0, 2, 5], sq_norms, 3, step_size=0.05, min_prob=1e-3, offset="minimum"
    )
    np.testing.assert_allclose(after.probs, expected, rtol=2e-6)
    assert np.asarray(after.probs).argmin() == 2  # the smallest active norm is charged most


def test_probability_moves_to_the_large_norms():
    sq_norms = np.exp(np.linspace(-3.0, 3.0, 12)).astype(np.float32)
    _, _, probs = run(joint_spar(12, 0.5, interval=2, step_size=3e-3), sq_norms, 6000)
    mean = probs[-2000:].mean(axis=0)
    assert mean[-3:].min() > 0.6
    assert mean[:3].max() < 0.45
    assert np.all(probs >= np.float32(1e-3))
    assert np.all(probs <= 1.0)
    np.testing.assert_allclose(probs.sum(axis=1), 6.0, rtol=1e-6)


def test_zero_gradients_leave_the_probabilities():
    _, _, probs = run(joint_spar(12, 0.5, interval=1), np.zeros(12, np.float32), 50)
    np.testing.assert_allclose(probs, 0.5, rtol=1e-5)


def test_state_survives_a_donated_jitted_step():
    policy = joint_spar(12, 0.5)

    def step(state, index):
        state = policy.sample(jax.random.key(1), state, index)
        return policy.update(state, jnp.ones((6,)), index)

    state = policy.init()
    shapes = jax.eval_shape(lambda: state)
    state = jax.jit(step, donate_argnums=0)(state, jnp.asarray(0))
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    assert jax.eval_shape(lambda: state) == shapes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks = 0"),
        ({"rate": 0.0}, "rate = 0.0"),
        ({"rate": 1.2}, "rate = 1.2"),
        ({"interval": 0}, "interval = 0"),
        ({"step_size": -1.0}, "step_size = -1.0"),
        ({"min_prob": 0.6}, "min_prob = 0.6"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        joint_spar(**{"num_blocks": 12, "rate": 0.5} | arguments)
