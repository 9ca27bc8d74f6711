"""A family of language models is trained, judged by its loss, resumed and reported like others."""

import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest

from pbr_jax import cli, configs
from pbr_jax.compare.steps import random_batch
from pbr_jax.runs.metrics import read_metrics
from pbr_jax.runs.run import open_run
from pbr_jax.settings.load import load

ANSWERS = pathlib.Path(configs.__file__).parent / "answers"
SETTINGS = {
    "method": "full",
    "model.family": "toy_language:FAMILY",
    "model.width": 16,
    "model.depth": "none",
    "model.heads": "none",
    "model.mlp_dim": "none",
    "model.vocab_size": 512,
    "model.max_length": 64,
    "data.name": "language",
    "data.path": ANSWERS,
    "data.tokenizer": ANSWERS,
    "data.augment": "none",
    "optimizer.learning_rate": 3.0,
    "optimizer.accumulation_steps": 2,
    "optimizer.warmup_steps": 0,
    "batch_size": 4,
    "steps": 40,
    "eval_every": 20,
    "checkpoint_every": 20,
    "log_every": 10,
}
WORDS = [f"--config.{name}={value}" for name, value in SETTINGS.items()]


def run(command, *words):
    config = ["--config", "configs/digits.py:tiny"]
    assert cli.main([*command.split(), *config, *WORDS, *words]) == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("language") / "run"
    run("train", "--workdir", str(workdir))
    return workdir


def test_it_learns_and_is_judged_by_its_perplexity(finished):
    tests = [line for line in read_metrics(finished) if line["split"] == "test"]
    assert tests[-1]["loss"] < tests[0]["loss"] < math.log(512)
    assert tests[-1]["perplexity"] == pytest.approx(math.exp(tests[-1]["loss"]))
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["best_loss"] == min(line["loss"] for line in tests)
    assert summary["perplexity"] == tests[-1]["perplexity"]
    assert "test perplexity" in (finished / "report.html").read_text()
    assert open_run(finished).step == 40  # the lowest loss, and not the highest


def test_it_resumes_with_the_same_bits(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished, again, symlinks=True)
    shutil.rmtree(again / "checkpoints" / "40")
    (again / "summary.json").unlink()
    run("train", "--workdir", str(again))
    both = (open_run(folder, "last").params for folder in (again, finished))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *both)))


def test_it_holds_its_tokenizer(finished):
    files = {path.name for path in (finished / "inputs").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= files


def test_random_rows_are_full():
    """What steps are timed with."""
    batch = random_batch(load("configs/digits.py:tiny", [word.split(".", 1)[1] for word in WORDS]))
    assert np.all(batch["scored"]) and np.all(batch["segments"] == 1)
    assert batch["positions"].tolist() == [list(range(64))] * 4
