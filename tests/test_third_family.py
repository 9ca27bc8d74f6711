"""A family that the package does not know is trained, fitted, compared and resumed like ours."""

import json
import shutil

import jax
import numpy as np
import pytest

from pbr_jax import cli
from pbr_jax.gpu import GpuCompilerMissing
from pbr_jax.runs.metrics import read_metrics
from pbr_jax.runs.run import open_run

SETTINGS = {
    "model.family": "toy_mixer:FAMILY",
    "model.width": 32,
    "model.depth": 2,
    "model.heads": "none",
    "model.mlp_dim": 48,
    "optimizer.learning_rate": 0.05,
    "pruning.keep.channels_out": 0.5,
    "steps": 60,
    "eval_every": 60,
    "checkpoint_every": 30,
    "log_every": 10,
}
WORDS = [f"--config.{name}={value}" for name, value in SETTINGS.items()]


def run(command, *words):
    """Runs a command of `pbr` on the digits with the mixer."""
    config = ["--config", "configs/digits.py:tiny"]
    assert cli.main([*command.split(), *config, *WORDS, *words]) == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mixer") / "run"
    run("train", "--workdir", str(workdir))
    return workdir


def missing_compiler():
    raise GpuCompilerMissing("the compiler is not installed")


def test_it_learns_and_its_bandits_do(finished):
    lines = [line for line in read_metrics(finished) if line["split"] == "train"]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    pruning = open_run(finished).state.pruning.columns
    assert set(pruning) == {"tokens_in", "tokens_out", "channels_in", "channels_out"}
    assert all(np.ptp(policy.probs) > 0 for policy in pruning.values())


def test_every_step_drew_a_sixth_of_the_columns(finished):
    """8 of 48 columns in each of 2 blocks for 60 steps: gradients are packed."""
    columns = open_run(finished).state.pruning.columns["tokens_out"]
    assert columns.counts.shape == (2, 48) and int(columns.counts.sum()) == 2 * 60 * 8
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["memory"]["gradients"] < 0.5 * summary["full_memory"]["gradients"]


def test_it_resumes_with_the_same_bits(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "60")
    (again / "summary.json").unlink()
    run("train", "--workdir", str(again))
    assert open_run(again, "last").step == 60
    same = jax.tree.map(
        np.array_equal, open_run(again, "last").params, open_run(finished, "last").params
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    "compiled",
    [False, pytest.param(True, marks=[pytest.mark.exhaustive, pytest.mark.gpu_compile])],
)
def test_it_is_fitted_to_a_card(compiled, capsys, monkeypatch):
    """By the formula, and by the compiler."""
    if not compiled:
        monkeypatch.setattr("pbr_jax.memory.budget.require_compiler", missing_compiler)
    run("fit", "--gpu", "8GiB", "--methods", "full,prebackrazor", "--json")
    full, pruned = json.loads(capsys.readouterr().out)["rows"]
    assert full["fits"] and pruned["fits"]
    assert pruned["gradient_bytes"] < full["gradient_bytes"]


@pytest.mark.exhaustive
def test_it_is_compared(tmp_path, capsys):
    words = ["--methods", "full,prebackrazor", "--config.steps=2", "--config.eval_every=2"]
    run("compare", *words, "--config.optimizer.warmup_steps=0", "--out", str(tmp_path), "--json")
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["method"] for row in rows] == ["full", "prebackrazor"]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def test_a_family_that_is_not_there_is_named(capsys):
    words = ["--config", "configs/digits.py:tiny", "--config.model.family=nowhere:FAMILY"]
    assert cli.main(["train", *words]) == 2
    assert "is its folder on PYTHONPATH?" in capsys.readouterr().err
