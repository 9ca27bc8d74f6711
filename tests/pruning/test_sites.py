"""Sites of different widths at once: each draws and learns as it would alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax.pruning import make_policy, stacked

BLOCKS = 3
SIZES = {"wide": (64, 8), "narrow": (24, 8), "more": (24, 16), "all": (16, 16)}


def policies(name="bandit", **options):
    return {site: make_policy(name, *size, **options) for site, size in SIZES.items()}


@pytest.mark.parametrize(
    ("name", "sampler", "group_size"),
    [
        ("bandit", "systematic", 1),
        pytest.param("importance", "bernoulli", 2, marks=pytest.mark.exhaustive),
    ],
)
def test_sites_draw_and_learn_as_each_would_alone(name, sampler, group_size):
    """Those of one width are drawn together; it must not show."""
    alone = policies(name, sampler=sampler, group_size=group_size)
    together = stacked(alone, BLOCKS)
    assert together.num_columns == {site: width for site, (width, _) in SIZES.items()}
    sample, update = jax.jit(together.sample), jax.jit(together.update)
    states, generator = together.init(), np.random.default_rng(0)
    expected = {(site, b): alone[site].init() for site in SIZES for b in range(BLOCKS)}
    for step in range(2):
        key = jax.random.key(step)
        columns = sample(key, states)
        sq_norms = {
            site: jnp.asarray(generator.exponential(size=drawn.shape), jnp.float32)
            for site, drawn in columns.items()
        }
        probs = together.inclusion(states, columns)
        states = update(states, columns, sq_norms)
        for i, (site, policy) in enumerate(alone.items()):
            keys = jax.random.split(jax.random.fold_in(key, i), BLOCKS)
            for b in range(BLOCKS):
                state = expected[site, b]
                drawn = policy.sample(keys[b], state)
                np.testing.assert_array_equal(columns[site][b], drawn)
                np.testing.assert_allclose(
                    probs[site][b], policy.inclusion(state, drawn), rtol=1e-6
                )
                state = expected[site, b] = policy.update(state, drawn, sq_norms[site][b])
                got = jax.tree.map(lambda leaf, b=b: leaf[b], states[site])
                jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-6), got, state)


def test_blocks_and_sites_draw_independently():
    alike = {site: make_policy("uniform", 64, 16) for site in ("qkv", "proj")}
    policy = stacked(alike, BLOCKS)
    columns = policy.sample(jax.random.key(0), policy.init())
    rows = {tuple(row) for drawn in columns.values() for row in np.asarray(drawn)}
    assert len(rows) == 2 * BLOCKS


@pytest.mark.parametrize(
    ("name", "sampler"), [("importance", "systematic"), ("bandit", "bernoulli")]
)
def test_state_survives_a_donated_jitted_step(name, sampler):
    policy = stacked(policies(name, sampler=sampler, group_size=2), BLOCKS)

    def step(states, key):
        columns = policy.sample(key, states)
        return policy.update(states, columns, policy.inclusion(states, columns))

    states = policy.init()
    shapes = jax.eval_shape(lambda: states)
    step = jax.jit(step, donate_argnums=0)
    for seed in range(3):
        states = step(states, jax.random.key(seed))
    assert jax.tree.structure(states) == jax.tree.structure(shapes)
    assert jax.eval_shape(lambda: states) == shapes


def test_policies_of_one_width_that_differ_in_more_than_budget_are_refused():
    different = {"a": make_policy("bandit", 64, 8), "b": make_policy("uniform", 64, 16)}
    with pytest.raises(ValueError, match="bandit"):
        stacked(different, BLOCKS)


def test_no_sites():
    policy = stacked({}, BLOCKS)
    assert policy.init() == policy.sample(jax.random.key(0), {}) == policy.update({}, {}, {}) == {}
