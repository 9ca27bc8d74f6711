"""What a memory budget chooses, what a resumed run keeps of it, and the advice when memory ends."""

import contextlib

import jax
import pytest
from fakes import config

from pbr_jax.configs.common import Keep, Plan, Pruning, size_in_bytes
from pbr_jax.gpu import GpuCompilerMissing, MemoryReport
from pbr_jax.memory import budget, fit
from pbr_jax.memory.budget import OutOfMemory, explain_out_of_memory, settle
from pbr_jax.settings import saved as configuration
from pbr_jax.settings.flags import default_workdir, next_command, parse_config
from pbr_jax.settings.load import default_spec
from pbr_jax.settings.variants import with_method

PEAKS = {"full": 6, "remat": 2, "prebackrazor": 5, "fast": 4, "lean": 3, "tiny": 1}  # GB


@pytest.fixture
def measured(monkeypatch):
    """A measure by the table above; returns the methods that it was asked for."""
    asked = []

    def measure(run):
        asked.append(run.method)
        return MemoryReport(0, 0, round(PEAKS.get(run.method, 9) * 1e9), 0)

    made = contextlib.nullcontext((measure, ""))
    monkeypatch.setattr(budget, "measure_for", lambda card: made)
    return asked


@pytest.mark.parametrize(("size", "method"), [("4GB", "lean"), ("5GB", "fast"), ("2GB", "tiny")])
def test_the_fastest_plan_that_fits_is_chosen(measured, size, method):
    """Of 5 GB, 4.19 are left beside the reserve."""
    chosen, lines = settle(config("full", memory_budget=size), None)
    assert (chosen.method, chosen.memory_budget) == (method, size)
    peak = f"{PEAKS[method]}.00 GB compiled"
    assert f"memory_budget = {size}: {method}, the fastest plan that fits: {peak}" in lines[0]
    assert measured[-1] == method
    if method == "fast":  # what is slower was not compiled
        assert "lean" not in measured and "full" not in measured


def test_settings_of_pruning_stay_and_joint_spar_too(measured):
    run = config("fast/js50", pruning=Pruning(keep=Keep(fc2=0.5)), memory_budget="5GB")
    PEAKS["lean/js50"] = 3
    try:
        chosen, _ = settle(run, None)
    finally:
        del PEAKS["lean/js50"]
    assert chosen.method == "lean/js50"
    assert (chosen.pruning, chosen.plan) == (run.pruning, Plan())


def test_a_resumed_run_keeps_its_choice(measured):
    run = config("prebackrazor", memory_budget="4GB")
    started, _ = settle(run, None)
    del measured[:]
    resumed, lines = settle(run, configuration.to_dict(started))
    assert resumed == started
    assert measured == []
    assert lines == ["memory_budget = 4GB: lean, as at the start"]
    assert configuration.check_resume(configuration.to_dict(started), resumed, "run") == []


def test_another_budget_is_another_run(measured):
    started, _ = settle(config(memory_budget="4GB"), None)
    saved = configuration.to_dict(started)
    changed, _ = settle(config(memory_budget="6GB"), saved)
    with pytest.raises(ValueError, match="memory_budget = 6GB: was 4GB"):
        configuration.check_resume(saved, changed, "run")


def test_without_a_budget_nothing_is_chosen(measured):
    run = config()
    assert settle(run, None) == (run, [])
    assert measured == []


def test_a_budget_that_nothing_fits_says_what_would(measured):
    with pytest.raises(ValueError, match=r"memory_budget = 1GB: nothing fits.*tiny.*1\.81 GB"):
        settle(config(memory_budget="1GB"), None)


def test_without_the_compiler_the_formula_decides_and_says_so(monkeypatch):
    def missing():
        raise GpuCompilerMissing("the plugin is not installed")

    monkeypatch.setattr(budget, "require_compiler", missing)
    _, lines = settle(config(memory_budget="8GiB"), None)
    assert "by a formula, since the plugin is not installed" in lines[0]


def test_the_work_directory_is_that_of_the_budget():
    words = ["--config.memory_budget=8GiB"]
    arguments = parse_config(default_spec(), words, ())
    assert default_workdir(arguments.config).name == "digits-8GiB"
    after, _ = next_command(arguments, "lean")
    assert "memory_budget" not in after and "--config.method=full" in after


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("24 GB", 24 * 10**9),
        ("0.75gib", 3 * 2**28),
        ("512MiB", 2**29),
        ("8", None),
        ("8G", None),
        ("0GiB", None),
        ("-1GB", None),
        ("GiB", None),
    ],
)
def test_sizes(text, size):
    assert size_in_bytes(text) == size


def exhausted():
    text = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4567 bytes.\nallocations:"
    return jax.errors.JaxRuntimeError(text)


def test_out_of_memory_lists_what_needs_less_cheapest_first():
    run = config("full", batch_size=64)
    with pytest.raises(OutOfMemory) as raised, explain_out_of_memory(run):
        raise exhausted()
    first, needs, _, *options = str(raised.value).splitlines()
    assert first.endswith("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4567 bytes.")
    assert needs.startswith("full at batch 64 needs about ")
    assert "--config.batch_size=32" in options[-1]
    times = [float(line.split("time ")[1].split()[0]) for line in options[:-1]]
    assert len(times) >= 2 and times == sorted(times)
    peak = fit.estimated(run).peak_bytes
    for line in options[:-1]:
        key, _, value = line.split()[0].removeprefix("--config.").partition("=")
        if key == "method":
            assert fit.estimated(with_method(run, value)).peak_bytes < peak
    assert any("optimizer.accumulation_steps=2" in line for line in options)


def test_other_errors_of_the_device_pass():
    with pytest.raises(jax.errors.JaxRuntimeError), explain_out_of_memory(config()):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
