"""A module of a user's own, whose code knows nothing of us, by every command that knows a run."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from test_third_family import missing_compiler

from pbr_jax import cli
from pbr_jax.data import load
from pbr_jax.runs.run import open_run
from pbr_jax.training.state import as_tree
from pbr_jax.weights import read
from pbr_jax.weights.layout import unflatten

SETTINGS = {
    "model.family": "own_models:mixer",
    "model.size": "none",
    "model.width": "none",
    "model.depth": "none",
    "model.heads": "none",
    "model.mlp_dim": "none",
    "method": "prebackrazor",
    "optimizer.learning_rate": 0.05,
    "steps": 60,
    "eval_every": 60,
    "checkpoint_every": 30,
    "log_every": 10,
}


def run(command, *words, **changes):
    """Runs a command of `pbr` on the digits."""
    flags = [f"--config.{name}={value}" for name, value in (SETTINGS | changes).items()]
    assert cli.main([*command.split(), "--config", "configs/digits.py:tiny", *flags, *words]) == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own") / "run"
    run("train", "--workdir", str(workdir))
    return workdir


def same_bits(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_it_learns_and_reports(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["accuracy"] > 0.5
    assert summary["memory"]["gradients"] < 0.5 * summary["full_memory"]["gradients"]
    assert "layers/*/kernel" in (finished / "report.html").read_text()
    state = open_run(finished).state
    assert int(state.pruning.columns["layers/*/kernel"].counts.sum()) == 60 * 2 * 8
    assert np.any(np.asarray(state.extra["norm"]["mean"]))


def test_it_resumes_with_the_same_bits(finished, tmp_path):
    """Dropout and running statistics included."""
    again = tmp_path / "again"
    shutil.copytree(finished, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "60")
    (again / "summary.json").unlink()
    run("train", "--workdir", str(again))
    one, other = (open_run(folder, "last").state for folder in (finished, again))
    assert int(other.step) == 60
    assert same_bits(one._replace(key=0), other._replace(key=0))


def test_it_predicts(finished, tmp_path, capsys):
    test = load("digits").test
    for row in range(8):
        record = test[row]
        pixels = np.asarray(record.image).reshape(8, 8).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{record.label}-{row}.png")
    assert cli.main(["predict", str(finished), str(tmp_path)]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    right = [line.split("/")[-1][0] == line.split(",")[1] for line in lines]
    assert sum(right) >= 5


def test_its_export_starts_a_run(finished, tmp_path):
    out = tmp_path / "export"
    assert cli.main(["export", str(finished), "--to", "orbax", "--out", str(out)]) == 0
    changes = {"steps": 1, "eval_every": 1, "optimizer.learning_rate": 1e-30}
    changes |= {"model.weights": str(out), "optimizer.warmup_steps": 0}
    run("train", "--workdir", str(tmp_path / "run"), **changes)
    assert same_bits(open_run(tmp_path / "run").params, open_run(finished).params)
    # A delta of it, with the statistics that moved, stands for the same.
    delta = tmp_path / "delta"
    assert cli.main(["export", str(tmp_path / "run"), "--to", "delta", "--out", str(delta)]) == 0
    tree = as_tree(*open_run(tmp_path / "run").state.variables)
    assert same_bits(unflatten(read(delta).arrays), tree)


def test_an_export_has_no_layout_of_others(finished, capsys):
    assert cli.main(["export", str(finished), "--to", "safetensors"]) == 2
    assert "is no layout of a own_models:mixer; there are orbax" in capsys.readouterr().err


@pytest.mark.parametrize(
    "compiled",
    [False, pytest.param(True, marks=[pytest.mark.exhaustive, pytest.mark.gpu_compile])],
)
def test_it_is_fitted_to_a_card(compiled, capsys, monkeypatch):
    """By the formula, and by the compiler; by the methods that there are for it."""
    if not compiled:
        monkeypatch.setattr("pbr_jax.memory.budget.require_compiler", missing_compiler)
    run("fit", "--gpu", "8GiB", "--json")
    full, static, pruned = json.loads(capsys.readouterr().out)["rows"]
    named = (full["method"], static["method"], pruned["method"])
    assert named == ("full", "static", "prebackrazor")
    assert full["fits"] and static["fits"] and pruned["fits"]
    assert static["optimizer_bytes"] < pruned["optimizer_bytes"]
    assert pruned["gradient_bytes"] < full["gradient_bytes"]
    assert pruned["time"] < 1


def test_it_is_compared(tmp_path, capsys):
    changes = {"steps": 2, "eval_every": 2, "optimizer.warmup_steps": 0}
    run("compare", "--out", str(tmp_path), "--json", **changes)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["method"] for row in rows] == ["full", "static", "prebackrazor"]


def test_a_method_for_blocks_of_ours_is_refused(capsys):
    words = ["--config", "configs/digits.py:tiny", "--config.model.family=own_models:mixer"]
    assert cli.main(["train", *words, "--config.method=lean"]) == 2
    assert (
        "can be trained by full, lora, static, static-groups, prebackrazor"
        in capsys.readouterr().err
    )
