"""What trains in a step: columns of sites, and JointSPAR's blocks of every kernel and bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax import pruning
from pbr_jax.training.selection import (
    Selection,
    block_flags,
    make_selector,
    model_variables,
)

BLOCKS, ACTIVE, KEPT, FEATURES = 4, 2, 8, 3
COLUMNS = {"qkv": 16, "proj": 16, "fc2": 24}  # fc1 is trained dense


SITES = ("qkv", "proj", "fc1", "fc2")


def selector_of(name="bandit", spar=None, sizes=COLUMNS, num_blocks=BLOCKS):
    """Columns of `sizes`, with a large step size, and of all sites the tensors of `spar`."""
    learning = pruning.Learning(step_size=0.05)
    policies = {
        site: pruning.make_policy(name, size, min(KEPT, size // 2), learning=learning)
        for site, size in sizes.items()
    }
    joined = pruning.stacked(policies, num_blocks)
    return make_selector(joined, spar, num_blocks, SITES, ("kernel", "bias"))


def joint(interval=1):
    return pruning.joint_spar(BLOCKS, 0.5, interval=interval)


def gradients(selection, columns=COLUMNS, seed=0):
    """Packed gradients of pruned kernels, dense ones of fc1; zero where nothing trains."""
    generator = np.random.default_rng(seed)
    grads = {}
    for site in ("qkv", "proj", "fc1", "fc2"):
        shape = selection.columns[site].shape if site in selection.columns else (BLOCKS, 16)
        kernel = generator.standard_normal((*shape, FEATURES))
        bias = generator.standard_normal((BLOCKS, FEATURES))
        if site in selection.columns:
            kernel *= np.asarray(selection.columns[site] < columns[site])[..., None]
        grads[site] = {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.asarray(bias, jnp.float32),
        }
    return grads


@pytest.fixture(scope="module")
def both():
    """A selector of columns and tensors, its initial state, and its compiled `select`."""
    selector = selector_of(spar=joint())
    return selector, selector.init(), jax.jit(selector.select)


@pytest.fixture(scope="module")
def drawn(both):
    """`(state, selection)` of twenty keys."""
    _, state, select = both
    return [select(jax.random.key(seed), state, jnp.asarray(0)) for seed in range(20)]


def test_exactly_so_many_blocks_of_a_tensor_are_active(drawn):
    for _, selection in drawn:
        assert set(selection.active) == {"qkv", "proj", "fc1", "fc2"}
        for named in selection.active.values():
            assert set(named) == {"kernel", "bias"}
            for active in named.values():
                assert active.shape == (ACTIVE,)
                assert 0 <= active[0] < active[1] < BLOCKS


def test_frozen_kernels_have_no_columns_and_others_exactly_their_budget(drawn):
    for _, selection in drawn:
        assert set(selection.columns) == set(COLUMNS)
        for site, columns in selection.columns.items():
            used = np.sum(np.asarray(columns) < COLUMNS[site], axis=1)
            flags = np.isin(np.arange(BLOCKS), selection.active[site]["kernel"])
            np.testing.assert_array_equal(used, np.where(flags, KEPT, 0))
            for row in np.asarray(columns)[flags]:
                assert len(set(row.tolist())) == KEPT


def test_sites_tensors_and_blocks_draw_independently(drawn):
    def differ(pick):
        return any(pick(selection)[0] != pick(selection)[1] for _, selection in drawn)

    assert differ(lambda s: [s.active[site]["kernel"].tolist() for site in ("qkv", "proj")])
    assert differ(lambda s: [s.active["qkv"][name].tolist() for name in ("kernel", "bias")])
    selector = selector_of()
    _, selection = selector.select(jax.random.key(0), selector.init(), jnp.asarray(0))
    assert selection.active == {}
    qkv, proj = np.asarray(selection.columns["qkv"]), np.asarray(selection.columns["proj"])
    assert not np.array_equal(qkv, proj)
    assert len({tuple(row) for row in [*qkv.tolist(), *proj.tolist()]}) == 2 * BLOCKS


def test_the_same_key_gives_the_same_selection(both, drawn):
    _, state, select = both
    again = select(jax.random.key(3), state, jnp.asarray(0))
    jax.tree.map(np.testing.assert_array_equal, again, drawn[3])


def test_selecting_moves_no_column_policy(both, drawn):
    _, state, _ = both
    for new, _ in drawn:
        jax.tree.map(np.testing.assert_array_equal, new.columns, state.columns)


def test_tensors_are_drawn_anew_only_once_per_interval():
    selector = selector_of(spar=joint(interval=3), sizes={})
    select = jax.jit(selector.select)
    state, seen = selector.init(), []
    for step in range(12):
        state, selection = select(jax.random.key(step), state, jnp.asarray(step))
        seen.append(str(jax.tree.map(lambda leaf: leaf.tolist(), selection.active)))
    for first in range(0, 12, 3):
        assert len(set(seen[first : first + 3])) == 1
    assert len(set(seen)) == 4


def test_policies_of_frozen_blocks_do_not_learn(both, drawn):
    selector, start, _ = both
    state, selection = drawn[0]
    packed = selector.pack(selection, gradients(selection))
    new = jax.jit(selector.update)(state, selection, packed, jnp.asarray(0))
    for site in COLUMNS:
        flags = np.isin(np.arange(BLOCKS), selection.active[site]["kernel"])
        for name in ("probs", "counts"):
            old, now = (np.asarray(getattr(s.columns[site], name)) for s in (start, new))
            if name == "counts":
                np.testing.assert_array_equal(now[~flags], old[~flags])
            else:  # projected onto the same budget again
                np.testing.assert_allclose(now[~flags], old[~flags], rtol=1e-5)
            assert np.all(np.any(now[flags] != old[flags], axis=1)), (site, name)


def test_policies_see_squared_norms_of_rows_and_of_tensors():
    """Columns with large gradients become more likely, and so do blocks: than the other active."""
    selector = selector_of(spar=joint())
    state, selection = selector.select(jax.random.key(0), selector.init(), jnp.asarray(0))
    grads = jax.tree.map(lambda g: 1e-3 * g, gradients(selection))
    block = int(selection.active["fc1"]["kernel"][1])
    grads["fc1"]["kernel"] = grads["fc1"]["kernel"].at[block].set(1.0)
    pruned = int(selection.active["qkv"]["kernel"][0])
    grads["qkv"]["kernel"] = grads["qkv"]["kernel"].at[pruned, 5].set(1.0)
    new = selector.update(state, selection, selector.pack(selection, grads), jnp.asarray(0))
    column = int(selection.columns["qkv"][pruned, 5])
    assert int(np.argmax(new.columns["qkv"].probs[pruned])) == column
    for site, larger in (("fc1", block), ("qkv", pruned)):
        probs = new.tensors[site]["kernel"].probs
        (smaller,) = set(selection.active[site]["kernel"].tolist()) - {larger}
        assert probs[larger] > probs[smaller]


def test_unbiasing_divides_kept_rows_by_their_probability():
    selector = selector_of("uniform")
    state, selection = selector.select(jax.random.key(0), selector.init(), jnp.asarray(0))
    probs = jnp.linspace(0.1, 0.9, 16)[None] * jnp.ones((BLOCKS, 1))
    state = state._replace(
        columns=state.columns | {"qkv": state.columns["qkv"]._replace(probs=probs)}
    )
    grads = gradients(selection)
    unbiased = selector.unbias(state, selection, grads)
    expected = (
        np.asarray(grads["qkv"]["kernel"])
        / (0.1 + 0.8 / 15 * np.asarray(selection.columns["qkv"]))[..., None]
    )
    np.testing.assert_allclose(unbiased["qkv"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        unbiased["fc2"]["kernel"], 3 * np.asarray(grads["fc2"]["kernel"]), rtol=1e-5
    )
    for site in grads:
        np.testing.assert_array_equal(unbiased[site]["bias"], grads[site]["bias"])
    np.testing.assert_array_equal(unbiased["fc1"]["kernel"], grads["fc1"]["kernel"])


# --- what the model and the optimizer receive ---


def test_the_model_receives_columns_rows_and_flags(drawn):
    _, selection = drawn[0]
    rows = {site: jnp.zeros((BLOCKS, KEPT, FEATURES)) for site in COLUMNS}
    blocks = model_variables(selection, rows, BLOCKS)
    assert set(blocks["qkv"]) == {"columns", "rows", "active"}
    assert set(blocks["fc1"]) == {"active"}
    np.testing.assert_array_equal(blocks["qkv"]["columns"], selection.columns["qkv"])
    for name, active in selection.active["fc1"].items():
        flags = blocks["fc1"]["active"][name]
        assert flags.shape == (BLOCKS,) and flags.dtype == jnp.bool_
        np.testing.assert_array_equal(np.flatnonzero(flags), active)


def test_flags_of_blocks():
    np.testing.assert_array_equal(block_flags(jnp.asarray([0, 3]), 4), [True, False, False, True])


def test_rows_of_a_pruned_kernel_name_block_and_column():
    selector = selector_of(sizes={"fc1": 4}, num_blocks=2)
    columns = jnp.asarray([[1, 3], [0, 4]], jnp.int32)  # of 4, so the last slot is unused
    selection = Selection({"fc1": columns}, {})
    rows = selector.rows(selection)
    assert {site: set(named) for site, named in rows.items()} == {"fc1": {"kernel"}}
    np.testing.assert_array_equal(rows["fc1"]["kernel"].slots, [[1, 3], [4, 8]])
    grads = {"fc1": {"kernel": jnp.ones((2, 2, 3)), "bias": jnp.ones((2, 3))}}
    assert selector.pack(selection, grads) == grads


def test_rows_of_frozen_blocks_are_left_out():
    selector = selector_of(sizes={"fc1": 4}, num_blocks=3)
    active = {"kernel": jnp.asarray([0, 2], jnp.int32), "bias": jnp.asarray([1, 2], jnp.int32)}
    columns = jnp.asarray([[1, 3], [4, 4], [0, 2]], jnp.int32)
    selection = Selection({"fc1": columns}, {"fc1": active, "fc2": active})
    rows = selector.rows(selection)
    np.testing.assert_array_equal(rows["fc1"]["kernel"].slots, [[1, 3], [8, 10]])
    for site, name in (("fc1", "bias"), ("fc2", "kernel"), ("fc2", "bias")):
        np.testing.assert_array_equal(rows[site][name].slots, active[name])
    kernel = jnp.arange(3 * 2 * 5, dtype=jnp.float32).reshape(3, 2, 5)
    grads = {site: {"kernel": kernel, "bias": kernel[:, 0]} for site in ("fc1", "fc2")}
    for named in selector.pack(selection, grads).values():
        np.testing.assert_array_equal(named["kernel"], kernel[jnp.asarray([0, 2])])
        np.testing.assert_array_equal(named["bias"], kernel[jnp.asarray([1, 2]), 0])


def test_norms_that_the_optimizer_found_teach_the_same(both, drawn):
    selector, _, _ = both
    state, selection = drawn[0]
    grads, step = gradients(selection), jnp.asarray(0)
    packed = selector.pack(selection, grads)
    norms = {
        site: {name: rows.norms(packed[site][name]) for name, rows in named.items()}
        for site, named in selector.rows(selection).items()
    }
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    found = selector.update(state, selection, packed, step, norms)
    jax.tree.map(close, found, selector.update(state, selection, packed, step))
