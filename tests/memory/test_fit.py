"""What fits on a card: with made-up memory, with the formula, and once with the compiler."""

import dataclasses
import threading

import jax
import pytest
from fakes import config

from pbr_jax.configs.common import Config, Model, Optimizer
from pbr_jax.gpu import CARDS, sized_card
from pbr_jax.memory import fit
from pbr_jax.memory.cache import cached
from pbr_jax.memory.use import memory_use, tree_bytes
from pbr_jax.training import from_config


def test_accumulation_and_chunks_divide_the_batch():
    run = config("lean", optimizer=Optimizer(accumulation_steps=3), batch_size=24)
    assert fit.batch_granule(run) == 12


def test_the_largest_batch_is_found_from_few_compilations_of_the_formula():
    """The bytes of the batch and of temporary memory but for gradients are a guess of the slope."""
    tried = []

    def measure(run):
        tried.append(run.batch_size)
        return fit.estimated(run)

    target = fit.Target(sized_card("5MB", 5_000_000), 0, measure)
    found = fit.fit_method(config("lean"), target)
    assert found.fits and found.largest_batch % 4 == 0
    peak = fit.estimated(config("lean", batch_size=found.largest_batch)).peak_bytes
    assert 0.98 * 5_000_000 < peak <= 5_000_000
    assert tried[0] == 8 and len(tried) == 2
    again = fit.fit_method(config("lean"), target, slope=found.bytes_per_example)
    assert again.largest_batch == found.largest_batch


@pytest.fixture(scope="module")
def rows():
    """Rows of a small card, by a measure that fails for one method."""
    threads = set()

    def measure(run):
        threads.add(threading.get_ident())
        if run.method == "backrazor":
            raise jax.errors.JaxRuntimeError("INTERNAL: no tile\nmore of it")
        return fit.estimated(run)

    done = []
    card = sized_card("2MB", 2_000_000)
    names = ("full", "backrazor", "fast", "fast/js50", "tiny/chunks8", "tiny")
    run = config("full", batch_size=12)
    target = fit.Target(card, 500_000, measure)
    found = fit.fit_methods(run, names, target, {"tiny/chunks8": 0.5}, done=done.append)
    assert sorted(row.method for row in done) == sorted(names)
    assert threading.get_ident() not in threads
    return {row.method: row for row in found}


def test_rows_come_in_their_order_and_say_what_fits(rows):
    assert list(rows) == ["full", "backrazor", "fast", "fast/js50", "tiny/chunks8", "tiny"]
    for name in ("full", "fast"):
        row = rows[name]
        assert row.fits == (row.need.peak_bytes <= 1_500_000)
        at_most = dataclasses.replace(row.config, batch_size=row.largest_batch)
        beyond = row.largest_batch + fit.batch_granule(row.config)
        too_many = dataclasses.replace(row.config, batch_size=beyond)
        assert fit.estimated(at_most).peak_bytes <= 1_500_000
        assert fit.estimated(too_many).peak_bytes > 0.99 * 1_500_000
    assert rows["full"].time == 1.0 and not any(row.measured for row in rows.values())
    assert rows["fast/js50"].time < rows["fast"].time


def test_a_method_that_does_not_compile_is_named_and_the_others_go_on(rows):
    assert rows["backrazor"].fault == "JaxRuntimeError: INTERNAL: no tile"
    assert rows["backrazor"].fits is None and rows["backrazor"].largest_batch is None


def test_a_batch_that_cannot_be_cut_is_said_and_the_largest_still_found(rows):
    asked, own = rows["tiny/chunks8"], rows["tiny"]
    assert asked.indivisible
    assert asked.fault == "batch_size = 12: must be a multiple of 8"
    assert asked.largest_batch > 0 and asked.largest_batch % 8 == 0
    # Chunks that nobody asked for give way to the batch, and are as many as they can be at most.
    assert not own.indivisible and own.need is not None and not own.fault
    assert own.largest_batch == asked.largest_batch


def test_the_fastest_that_fits(rows):
    found = list(rows.values())
    assert fit.fastest(found).method in ("full", "fast")
    assert fit.fastest([rows["fast"], rows["fast/js50"]]) == rows["fast"]
    assert fit.fastest([rows["fast/js50"]]) == rows["fast/js50"]
    assert fit.fastest([rows["backrazor"]]) is None


# Peak of a ViT-B/16 step, batch 128, as the GPU compiler plans it for an H200 (docs/fit.md), GB.
COMPILED = {"full": 8.46, "remat": 2.08, "prebackrazor": 6.16, "lean": 2.16, "tiny": 1.60}


@pytest.mark.parametrize("method", COMPILED)
def test_the_formula_is_near_the_compiler(method):
    vit = Config(
        method=method,
        batch_size=128,
        model=Model(size="B", num_classes=100, dtype="bfloat16"),
    )
    assert fit.estimated(vit).peak_bytes == pytest.approx(COMPILED[method] * 1e9, rel=0.15)


@pytest.mark.gpu_compile
def test_compiled_needs_are_those_of_the_real_step(tmp_path):
    run = config("full")
    compilations = []

    def measure(run):
        compilations.append(run)
        return compile_step(run)

    with fit.compiled(CARDS["rtx4090"]) as compile_step:
        remembering = cached(measure, CARDS["rtx4090"], tmp_path)
        need = remembering(run)
        assert remembering(run) == need
    state = from_config.state_shapes(run, from_config.build(run))
    assert need.argument_bytes == tree_bytes(state) + tree_bytes(from_config.batch_specs(run))
    assert need.temp_bytes >= memory_use(run).activations
    assert len(compilations) == 1
