"""Chunks of a batch: a method's own give way to the batch, and those that were asked for do not."""

import pytest
from fakes import config

from pbr_jax.configs.common import Keep, Optimizer, Plan, Pruning
from pbr_jax.settings.load import SHIPPED, collect
from pbr_jax.settings.resolve import (
    batch_divisor,
    chunk_notes,
    rate_factor,
    rate_notes,
    resolve_method,
)


@pytest.mark.parametrize(
    ("method", "batch", "parts", "chunks"),
    [
        ("lean", 64, 1, 4),
        ("lean", 6, 1, 3),
        ("lean", 50, 1, 2),
        ("lean", 7, 1, 1),
        ("lean", 1, 1, 1),
        ("lean", 24, 4, 3),
        ("lean", 48, 4, 4),
        ("tiny", 12, 1, 6),
        ("full", 7, 1, 1),
        ("remat/js50", 10, 1, 2),
        ("lean/chunks2", 8, 1, 2),
    ],
)
def test_the_most_chunks_that_divide_the_batch_run(method, batch, parts, chunks):
    run = config(method, batch_size=batch, optimizer=Optimizer(accumulation_steps=parts))
    assert resolve_method(run).plan.batch_chunks == chunks
    assert batch % batch_divisor(run) == 0


def test_other_chunks_than_the_methods_own_are_said():
    assert chunk_notes(config("lean", batch_size=64)) == []
    assert chunk_notes(config("lean", batch_size=6)) == [
        "method lean runs 6 examples in 3 parts in place of 4, which do not divide them"
    ]
    assert "in 1 part in place of 4" in chunk_notes(config("lean", batch_size=7))[0]


def test_another_rate_than_the_one_that_was_set_is_said():
    assert rate_notes(config("lean")) == []
    told = Optimizer(learning_rate=0.1, rate_for_keep=0.5)
    assert rate_notes(config("full", optimizer=told)) == []
    assert rate_factor(config("full", optimizer=told)) == 1.0
    # 8 of 16 columns at three sites and 8 of 32 at the fourth.
    assert rate_notes(config("prebackrazor", optimizer=told)) == [
        "learning rate 0.151: 0.1 of the settings times 0.438^-0.5, since 43.8% of the columns are"
        " kept in the mean (optimizer.rate_for_keep)"
    ]
    some = config("prebackrazor", optimizer=told, pruning=Pruning(keep=Keep(fc1=1.0)))
    assert rate_factor(some) == pytest.approx(0.5625**-0.5)


def test_chunks_that_were_asked_for_stay():
    for run in (
        config("lean/chunks4", batch_size=6),
        config(plan=Plan(batch_chunks=4), batch_size=6),
    ):
        assert resolve_method(run).plan.batch_chunks == batch_divisor(run) == 4
        assert chunk_notes(run) == []


@pytest.mark.parametrize("method", ["lean", "fast", "tiny", "remat"])
def test_no_batch_is_refused_by_a_methods_own_chunks(method):
    for batch in (1, 2, 3, 6, 7, 50, 99):
        assert (
            collect(str(SHIPPED / "digits.py"), [f"method={method}", f"batch_size={batch}"])[1]
            == []
        )
