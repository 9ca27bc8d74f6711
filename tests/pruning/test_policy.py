import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pruning import oracles

from pbr_jax.pruning import Learning, make_policy
from pbr_jax.pruning.policy import NAMES


def with_uneven_probs(policy, seed: int = 0):
    """A state of the policy in which the probabilities differ."""
    state = policy.init()
    num_arms = state.probs.shape[0]
    budget = float(state.probs.sum())
    log_weights = np.random.default_rng(seed).normal(size=num_arms)
    probs = oracles.project(log_weights, budget, 0.2 * budget / num_arms)
    return state._replace(probs=jnp.asarray(probs, jnp.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "random"}, "name = 'random': must be one of uniform, bandit"),
        ({"sampler": "poisson"}, "sampler = 'poisson'"),
        ({"budget": 0}, "budget = 0"),
        ({"budget": 65}, "budget = 65"),
        ({"budget": 14, "group_size": 4}, "budget = 14: must be a multiple of group_size = 4"),
        ({"group_size": 5}, "group_size = 5: must divide num_columns = 64"),
        ({"group_size": 0}, "group_size = 0"),
        ({"learning": Learning(min_prob=0.5)}, "min_prob = 0.5"),
        ({"num_columns": 40_000, "budget": 39_000}, "budget = 39000.*at most 32767"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    valid = {"name": "bandit", "num_columns": 64, "budget": 16}
    make_policy(**valid)
    with pytest.raises(ValueError, match=message):
        make_policy(**valid | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offset": "minimum"}, "offset = 'minimum': must be one of none, paper"),
        ({"step_size": 0.0}, "step_size = 0.0"),
        ({"step_size": float("nan")}, "step_size = nan"),
        ({"decay": 1.0}, "decay = 1.0"),
    ],
)
def test_learning_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Learning(**arguments)


@pytest.mark.parametrize("name", NAMES)
def test_starts_at_the_budget(name):
    state = make_policy(name, 64, 16, group_size=2).init()
    np.testing.assert_array_equal(state.probs, np.full(32, 0.25, np.float32))
    assert state.counts.dtype == np.int32
    assert state.energy.shape == ((32,) if name == "importance" else (0,))


@pytest.mark.parametrize("sampler", ["systematic", "bernoulli"])
def test_the_weighted_gradient_is_unbiased(sampler):
    draws, num_columns = 20_000, 64
    policy = make_policy("bandit", num_columns, 16, sampler=sampler)
    state = with_uneven_probs(policy)
    gradient = np.random.default_rng(1).normal(size=num_columns).astype(np.float32)

    def estimate(key):
        columns = policy.sample(key, state)
        rows = jnp.asarray(gradient).at[columns].get(mode="fill", fill_value=0.0)
        rows = rows / policy.inclusion(state, columns)
        return jnp.zeros((num_columns,)).at[columns].add(rows, mode="drop")

    estimates = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(2), draws))
    mean = np.asarray(estimates, np.float64).mean(axis=0)
    probs = np.asarray(state.probs, np.float64)
    error = np.abs(gradient) * np.sqrt((1.0 - probs) / probs / draws)
    assert np.all(np.abs(mean - gradient) <= 4.5 * error + 1e-6)
    # The unweighted mean is far outside: without the division this test fails.
    assert np.any(np.abs(probs * gradient - gradient) > 45 * error)


def test_groups_are_drawn_and_learned_as_one():
    policy = make_policy("importance", 64, 16, group_size=4)
    state = with_uneven_probs(policy)
    columns = np.asarray(policy.sample(jax.random.key(0), state))
    assert columns.shape == (policy.num_slots,) == (16,)
    groups = columns.reshape(4, 4)
    np.testing.assert_array_equal(groups % 4, np.tile(np.arange(4), (4, 1)))
    assert len(set(groups[:, 0])) == 4
    arms = groups[:, 0] // 4
    np.testing.assert_array_equal(
        policy.inclusion(state, jnp.asarray(columns)), np.repeat(np.asarray(state.probs)[arms], 4)
    )
    sq_norms = np.arange(1.0, 17.0, dtype=np.float32)
    state = policy.update(state, jnp.asarray(columns), jnp.asarray(sq_norms))
    np.testing.assert_array_equal(np.asarray(state.energy)[arms], [10.0, 26.0, 42.0, 58.0])
    assert state.counts.sum() == 4
    np.testing.assert_array_equal(np.asarray(state.counts)[arms], 1)


@pytest.mark.parametrize("group_size", [1, 4])
def test_bernoulli_slots_are_marked(group_size):
    policy = make_policy("uniform", 256, 64, sampler="bernoulli", group_size=group_size)
    state = policy.init()
    columns = np.asarray(policy.sample(jax.random.key(0), state))
    assert columns.shape == (policy.num_slots,)
    assert policy.num_slots % 8 == 0
    unused = columns == 256
    assert 0 < unused.sum() < columns.size
    assert np.all(np.diff(columns[~unused]) > 0)
    assert not np.any(unused[: (~unused).sum()])  # at the end
    inclusion = np.asarray(policy.inclusion(state, jnp.asarray(columns)))
    np.testing.assert_array_equal(inclusion, np.where(unused, 1.0, 0.25).astype(np.float32))


def test_bernoulli_draws_beyond_the_slots_are_dropped():
    policy = make_policy("uniform", 256, 64, sampler="bernoulli", group_size=4)
    everything = policy.init()._replace(probs=jnp.ones((64,)))  # more than the budget
    columns = policy.sample(jax.random.key(0), everything)
    assert columns.shape == (policy.num_slots,)
    assert np.all(np.asarray(columns) < 256)


@pytest.mark.parametrize("name", NAMES)
def test_unused_slots_teach_nothing(name):
    policy = make_policy(name, 64, 16, sampler="bernoulli")
    state = with_uneven_probs(policy)
    columns = jnp.asarray([3, 9, 40] + [64] * (policy.num_slots - 3))
    sq_norms = jnp.ones((policy.num_slots,))
    garbage = sq_norms.at[3:].set(jnp.nan).at[5].set(1e9)
    for clean, dirty in zip(
        policy.update(state, columns, sq_norms.at[3:].set(0.0)),
        policy.update(state, columns, garbage),
        strict=True,
    ):
        np.testing.assert_array_equal(clean, dirty)
    counts = policy.update(state, columns, garbage).counts
    assert counts.sum() == 3


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("bandit", "systematic"), ("importance", "systematic"), ("bandit", "bernoulli")],
)
def test_zero_gradients_leave_valid_probabilities(name, sampler):
    policy = make_policy(name, 64, 16, sampler=sampler)

    @jax.jit
    def run(state):
        def step(state, key):
            columns = policy.sample(key, state)
            return policy.update(state, columns, jnp.zeros(columns.shape)), None

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(0), 200))[0]

    state = with_uneven_probs(policy)
    final = run(state)
    probs = np.asarray(final.probs, np.float64)
    assert np.all(np.isfinite(probs))
    assert probs.sum() == pytest.approx(16, rel=1e-6)
    assert np.all((probs >= 0.2 * 0.25 - 1e-7) & (probs <= 1.0))
    if name != "importance":  # nothing to learn from: nothing changes
        np.testing.assert_allclose(probs, state.probs, rtol=2e-5)


def test_values_that_are_not_finite_teach_nothing():
    policy = make_policy("importance", 16, 4)
    columns = jnp.arange(4)
    state = policy.update(policy.init(), columns, jnp.asarray([1.0, 2.0, 3.0, 4.0]))
    after = policy.update(state, columns, jnp.asarray([1.0, jnp.nan, jnp.inf, 4.0]))
    np.testing.assert_array_equal(after.energy, state.energy)
    bandit = make_policy("bandit", 16, 4)
    probs = bandit.update(bandit.init(), columns, jnp.asarray([1.0, jnp.nan, jnp.inf, 4.0])).probs
    assert np.all(np.isfinite(probs))
    assert probs[3] == np.max(probs)


def test_importance_follows_the_root_of_the_running_mean():
    policy = make_policy("importance", 16, 8, learning=Learning(min_prob=0.01, decay=0.75))
    state = policy.init()
    everything = [jnp.arange(8), jnp.arange(8, 16)]
    first = jnp.linspace(1.0, 2.0, 8)
    for columns in everything:
        state = policy.update(state, columns, first)
    state = policy.update(state, everything[0], 5 * first)
    energy = np.concatenate([0.75 * first + 0.25 * 5 * first, first])
    np.testing.assert_allclose(state.energy, energy, rtol=1e-6)
    np.testing.assert_allclose(
        state.probs, oracles.optimal_probs(np.sqrt(energy), 8, 0.01), rtol=2e-6
    )


def test_importance_does_not_starve_arms_it_has_not_seen():
    policy = make_policy("importance", 16, 4)
    sq_norms = jnp.asarray([1.0, 1.0, 1.0, 9.0])
    probs = np.asarray(policy.update(policy.init(), jnp.arange(4), sq_norms).probs)
    assert np.all(probs[4:] > probs[0])  # above the typical arm: the mean energy is 3
    assert np.all(probs[4:] < probs[3])


def test_keeping_everything():
    policy = make_policy("bandit", 24, 24)
    state = policy.init()
    columns = policy.sample(jax.random.key(0), state)
    np.testing.assert_array_equal(columns, np.arange(24))
    state = policy.update(state, columns, jnp.linspace(0.0, 1.0, 24))
    np.testing.assert_array_equal(state.probs, np.ones(24))
