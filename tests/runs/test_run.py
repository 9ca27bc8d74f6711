"""A work directory is opened at its best or its last sound checkpoint."""

import json
import shutil

import jax
import numpy as np
import pytest
from fakes import config
from saved_runs import NAMES, vit_run

from pbr_jax.runs.checkpoints import CheckpointError
from pbr_jax.runs.run import open_run, read_config
from pbr_jax.training.inputs import settled


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("made") / "run"
    return workdir, vit_run(workdir)


@pytest.fixture
def copied(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.mark.parametrize(("checkpoint", "step"), [("best", 1), ("last", 2)])
def test_the_checkpoint_asked_for_is_opened(made, checkpoint, step):
    workdir, saved = made
    run = open_run(workdir, checkpoint)
    assert (run.step, run.class_names, run.config) == (step, NAMES, settled(config(), {})[0])
    jax.tree.map(np.testing.assert_array_equal, run.params, saved[step - 1])


def damage(workdir, step):
    for file in (workdir / "checkpoints" / str(step)).rglob("*"):
        if file.is_file() and file.stat().st_size > 500 and file.name != "manifest.json":
            file.write_bytes(file.read_bytes()[:-1])


def test_a_damaged_last_checkpoint_is_passed_over(copied):
    damage(copied, 2)
    messages = []
    assert open_run(copied, "last", messages.append).step == 1
    assert len(messages) == 1 and "checkpoint 2 is not used" in messages[0]


def test_a_damaged_best_checkpoint_is_an_error(copied):
    damage(copied, 1)
    with pytest.raises(CheckpointError, match="no checkpoint to be trusted"):
        open_run(copied)
    assert open_run(copied, "last").step == 2


def test_what_is_no_run_is_named(copied, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: not a run, there is no config.json"):
        open_run(tmp_path / "nowhere")
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        open_run(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json, line 1: is not JSON"):
        read_config(copied)


def test_classes_of_an_older_run_are_numbers(copied):
    (copied / "classes.json").unlink()
    assert open_run(copied).class_names == ("0", "1", "2", "3")


def test_a_configuration_of_another_version_says_so(copied):
    saved = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(saved | {"future": 1}))
    with pytest.raises(ValueError, match=r"future: no such key(.|\n)*another version of pbr_jax"):
        open_run(copied)
