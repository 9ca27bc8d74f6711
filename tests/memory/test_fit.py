"""What fits on a card: with made-up memory, with the formula, and once with the compiler."""

import dataclasses
import random
import threading

import jax
import pytest
from fakes import config

from pbr_jax.configs.common import Config, Keep, Model, Optimizer, Plan, Pruning
from pbr_jax.gpu import CARDS, MemoryReport, sized_card
from pbr_jax.memory import fit
from pbr_jax.memory.cache import cached
from pbr_jax.memory.use import MemoryUse, memory_use, tree_bytes
from pbr_jax.methods import METHODS
from pbr_jax.settings.resolve import resolve_method
from pbr_jax.training import from_config

USE = MemoryUse(10, 10, 10, 100)


def affine(fixed, slope, wobble=0):
    """`fixed + slope * batch` bytes, with noise that is the same for the same batch."""
    tried = []

    def measure(run):
        tried.append(run.batch_size)
        noise = random.Random(run.batch_size).random() * wobble
        return MemoryReport(0, 0, round(fixed + slope * run.batch_size + noise), 0)

    return measure, tried


def search(run, room, fixed, slope, wobble=0, known=None):
    measure, tried = affine(fixed, slope, wobble)
    need = measure(run)
    return fit.largest_batch(run, USE, need, measure, room, known)[0], tried


@pytest.mark.parametrize(
    ("method", "fixed", "slope", "room", "largest"),
    [
        ("full", 100, 70, 169, 0),
        ("full", 100, 70, 170, 1),
        ("full", 100, 70, 1000, 12),
        ("lean", 499_900, 130, 500_950, 8),  # in chunks of 4
        ("full", 0, 1, 10**9, fit.LARGEST_BATCH),
    ],
)
def test_the_smallest_and_the_largest_answer_are_exact(method, fixed, slope, room, largest):
    found, tried = search(config(method), room, fixed, slope)
    assert found == largest
    assert found in tried or found == 0
    assert len(tried) <= 4


@pytest.mark.parametrize("slope", [200_000, 300_000, 1_000_000])
def test_few_compilations_find_a_batch_that_needs_all_but_a_hundredth(slope):
    room = 8_000_000_000
    found, tried = search(config("tiny"), room, 4_000_000, slope)
    exact = int(0.99 * room - 4_000_000) // slope // 8 * 8
    assert exact <= found <= exact + 8
    assert len(tried) <= 3  # the batch itself, a guess, and the secant's where the guess was bad
    assert any(abs(4_000_000 + slope * batch - room) < 0.05 * room for batch in tried)


def test_a_known_slope_saves_a_compilation():
    found, tried = search(config("full"), 1_000_000, 100, 70, known=70.0)
    assert found == 14_141  # (0.99 * 1_000_000 - 100) / 70
    assert tried == [8, found]


def test_with_noise_the_answer_still_fits():
    room = 500_000
    for seed in range(5):
        found, _ = search(config("lean"), room, 10_000 + seed, 130, wobble=3000)
        measure, _ = affine(10_000 + seed, 130, 3000)
        assert measure(config("lean", batch_size=found)).peak_bytes <= room
        assert found > 0.97 * (room - 13_000) / 130


def test_accumulation_and_chunks_divide_the_largest_batch():
    run = config("lean", optimizer=Optimizer(accumulation_steps=3), batch_size=24)
    assert fit.batch_granule(run) == 12
    assert search(run, 100_000, 0, 130)[0] == 756  # of 761, a multiple of 12


def test_every_method_has_a_row():
    names = fit.method_names(config("fast/js30"))
    assert names == [*METHODS]
    assert fit.method_names(config("lean/chunks2/js30")) == ["lean/chunks2", *METHODS]
    for name in names:
        resolve_method(fit.with_method(config("prebackrazor"), name))


def test_settings_stay_where_they_mean_something():
    run = config("fast", pruning=Pruning(keep=0.5, policy="uniform"), plan=Plan(gelu="code4"))
    assert fit.with_method(run, "fast") is run
    assert fit.with_method(run, "fast/js50").plan == run.plan
    lean = fit.with_method(run, "lean")
    assert (lean.plan, lean.pruning) == (Plan(), run.pruning)
    backrazor = fit.with_method(run, "backrazor").pruning
    assert (backrazor.keep, backrazor.policy) == (0.5, None)
    full = fit.with_method(run, "full").pruning
    assert (full.keep, full.policy) == (None, None)
    sites = config("fast", pruning=Pruning(keep=Keep(fc2=0.2)))
    assert fit.with_method(sites, "tiny").pruning == sites.pruning


def test_candidates_train_the_same_share_of_the_tensors():
    assert fit.candidates(config()) == fit.method_names(config())
    spar = fit.candidates(config("fast/js30"))
    runs = [fit.with_method(config("fast/js30"), name) for name in spar]
    assert {resolve_method(run).joint_spar for run in runs} == {0.3}
    assert len(spar) == len(METHODS)


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
    names = ("full", "backrazor", "fast", "fast/js50", "tiny")
    run = config("full", batch_size=12)
    found = fit.find_rows(run, names, card, 500_000, measure, done=done.append)
    assert sorted(row.method for row in done) == sorted(names)
    assert threading.get_ident() not in threads
    return {row.method: row for row in found}


def test_rows_come_in_their_order_and_say_what_fits(rows):
    assert list(rows) == ["full", "backrazor", "fast", "fast/js50", "tiny"]
    for name in ("full", "fast"):
        row = rows[name]
        assert row.fits == (row.need.peak_bytes <= 1_500_000)
        at_most = dataclasses.replace(row.config, batch_size=row.largest_batch)
        beyond = row.largest_batch + fit.batch_granule(row.config)
        too_many = dataclasses.replace(row.config, batch_size=beyond)
        assert fit.estimated(at_most).peak_bytes <= 1_500_000
        assert fit.estimated(too_many).peak_bytes > 0.99 * 1_500_000
    assert rows["full"].time == 1.0
    assert rows["fast/js50"].time < rows["fast"].time


def test_a_method_that_does_not_compile_is_named_and_the_others_go_on(rows):
    assert rows["backrazor"].fault == "JaxRuntimeError: INTERNAL: no tile"
    assert rows["backrazor"].fits is None and rows["backrazor"].largest_batch is None


def test_a_batch_that_cannot_be_cut_is_said_and_the_largest_still_found(rows):
    assert rows["tiny"].indivisible
    assert rows["tiny"].fault == "batch_size = 12: must be a multiple of 8"
    assert rows["tiny"].largest_batch > 0 and rows["tiny"].largest_batch % 8 == 0


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
        return fit.compiled(CARDS["rtx4090"])(run)

    remembering = cached(measure, CARDS["rtx4090"], tmp_path)
    need = remembering(run)
    state = from_config.state_shapes(run, from_config.build(run))
    assert need.argument_bytes == tree_bytes(state) + tree_bytes(from_config.batch_specs(run))
    assert need.temp_bytes >= memory_use(run).activations
    assert remembering(run) == need
    assert len(compilations) == 1
