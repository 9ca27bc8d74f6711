"""An optimizer of the drawn rows alone: its steps, its draws, and what it keeps."""

import jax
import numpy as np
import pytest
from checkpointed import assert_bit_equal
from fakes import batch, bert_config, config, random_params, token_batch

from pbr_jax.configs.common import Optimizer, Pruning
from pbr_jax.memory.use import memory_use
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.training import from_config

ADAMW = Optimizer(name="adamw", learning_rate=0.01, schedule="constant", weight_decay=0.3)
SGD = Optimizer(learning_rate=0.05, schedule="constant")


def started(settings):
    parts = from_config.build(settings)
    return parts, from_config.new_state(settings, parts, random_params(parts.model.module))


def settings_of(interval, optimizer=ADAMW, state="packed", **changes):
    how = Pruning(policy="uniform", interval=interval, state=state)
    return config("prebackrazor", optimizer=optimizer, pruning=how, **changes)


def ran(settings, steps, batches=batch):
    """The states after each step."""
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        parts, state = started(settings)
        step, states = jax.jit(parts.train_step), [state]
        for i in range(steps):
            states.append(step(states[-1], batches(seed=i))[0])
    return states


def close(a, b, **tolerance):
    tolerance = tolerance or {"rtol": 2e-5, "atol": 2e-6}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.fixture(scope="module")
def redrawn():
    """Six steps with a draw before the fourth."""
    return ran(settings_of(3), 6)


@pytest.mark.parametrize("optimizer", [ADAMW, pytest.param(SGD, marks=pytest.mark.exhaustive)])
def test_until_a_draw_it_is_the_optimizer_of_all_rows(optimizer):
    """Fixed columns: the rows that move have the same moments either way."""
    ours, theirs = (
        ran(settings_of("never", optimizer, state), 4)[-1].params for state in ("packed", "whole")
    )
    for params in (ours, theirs):  # the bias of the keys has no gradient but rounding
        del params["blocks"]["qkv"]["bias"]
    close(ours, theirs)


def test_a_row_that_stays_goes_on_and_a_new_one_begins(redrawn):
    """Against a dense AdamW of one's own, row by row, with a count for each."""
    parts = from_config.build(settings_of(3))
    site = "fc2"

    def kernel(state):
        return np.asarray(state.params["blocks"][site]["kernel"], np.float64)

    def columns(state):
        return np.asarray(state.opt_state.selection.columns[site])

    before, after = columns(redrawn[2]), columns(redrawn[3])
    assert not np.array_equal(before, after)
    assert all(np.array_equal(before, columns(state)) for state in redrawn[:3])
    assert all(np.array_equal(after, columns(state)) for state in redrawn[3:6])
    # The ages tell the past of every row.
    stays = np.stack([np.isin(new, old) for new, old in zip(after, before, strict=True)])
    assert stays.any() and not stays.all()
    ages = redrawn[4].opt_state.ages["blocks"][site]["kernel"]["age"]
    np.testing.assert_array_equal(ages, np.where(stays, 4, 1))
    # A row without a past moves by the rate in its first step: AdamW's, decay aside.
    for block, (new, fresh) in enumerate(zip(after, ~stays, strict=True)):
        was, now = (kernel(state)[block, new[fresh]] for state in redrawn[3:5])
        moved = now - was + 0.01 * 0.3 * was
        np.testing.assert_allclose(np.abs(moved), 0.01, rtol=0.05)
    assert parts.method.interval == 3


def test_a_row_that_left_stays_where_it_was(redrawn):
    columns = np.asarray(redrawn[4].opt_state.selection.columns["fc2"])
    for block, drawn in enumerate(columns):
        others = np.setdiff1d(np.arange(32), drawn)
        was, now = (
            np.asarray(state.params["blocks"]["fc2"]["kernel"])[block, others]
            for state in (redrawn[3], redrawn[6])
        )
        np.testing.assert_array_equal(was, now)


def test_a_run_that_goes_on_is_the_same_across_a_draw(redrawn, tmp_path):
    """Saved before the draw, and restored: bit for bit."""
    with Checkpointer(tmp_path, 1) as checkpoints:
        checkpoints.save(2, redrawn[2], {})
    with Checkpointer(tmp_path, 1) as checkpoints:
        restored = checkpoints.restore(redrawn[0])
    assert restored is not None
    parts = from_config.build(settings_of(3))
    step, state = jax.jit(parts.train_step), restored.state
    for i in range(2, 6):
        state, _ = step(state, batch(seed=i))
    assert_bit_equal(state, redrawn[6])


def test_a_step_that_is_not_finite_changes_nothing():
    settings = settings_of("never")
    parts, state = started(settings)
    broken = batch()
    broken["image"][0, 0, 0, 0] = np.nan
    new, metrics = jax.jit(parts.train_step)(state, broken)
    assert not bool(metrics.finite)
    jax.tree.map(
        np.testing.assert_array_equal, (new.params, new.opt_state), (state.params, state.opt_state)
    )


def test_what_it_keeps_is_counted():
    """Two moments of the drawn rows, of everything that is trained whole, and no masters."""
    settings = settings_of("never")
    use, whole = (memory_use(settings_of("never", state=state)) for state in ("packed", "whole"))
    parts = from_config.build(settings)
    state = from_config.state_shapes(settings, parts)
    rows = use.gradients  # float32 like the moments
    small = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state[:3]))
    assert use.optimizer == 2 * rows + small
    assert small < 0.2 * rows
    assert whole.optimizer > 1.4 * use.optimizer
    assert use.parameters == whole.parameters


@pytest.mark.exhaustive
def test_bert_trains_by_it():
    pruning = Pruning(interval=5, state="packed")
    parts, state = started(bert_config("prebackrazor", pruning=pruning))
    step, losses = jax.jit(parts.train_step), []
    for i in range(25):
        state, metrics = step(state, token_batch(seed=i % 3))
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.7 * losses[0]
    assert step._cache_size() == 1
