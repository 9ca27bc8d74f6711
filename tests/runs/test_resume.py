"""A run that is stopped and resumed ends with the same bits as one that never stopped.

Real processes of `train.py` and real signals, with augmentation, dropout, the bandit and JointSPAR.
"""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from programs import STEPS, Program, content, differing, resumed_step

from pbr_jax.runs import manifest

pytestmark = pytest.mark.slow

BERT = {  # on the sentences that are shipped
    "config": "configs/bert_rte.py:smoke",
    "steps": 6,
    "checkpoint_every": 3,
    "data.augment": "off",
    "model.size": "none",
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 2,
    "model.mlp_dim": 64,
    "model.max_length": 32,
    "optimizer.learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return Program(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def straight(program, tmp_path_factory):
    """The work directory of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    program.finish(program.start(workdir))
    return workdir


def test_a_checkpoint_holds_all_that_a_run_needs(straight):
    bits = content(straight)
    for part in ("step", "key", "params/", "opt_state/", "pruning/"):
        assert any(name.startswith(part) for name in bits), part
    assert b"batch_index" in bits["data"]
    earlier = content(straight, STEPS - 15)
    assert not {"step", "data"} - set(differing(bits, earlier))
    assert [name for name in differing(bits, earlier) if name.startswith("pruning/")]


def test_a_run_that_was_stopped_and_killed_ends_with_the_same_bits(program, straight, tmp_path):
    code, output = program.stop(tmp_path, signal.SIGTERM, step=20)
    assert code == 143, output
    saved = int(re.search(r"saved checkpoint (\d+)", output)[1])
    assert saved >= 20
    manifest.verify(tmp_path / "checkpoints" / str(saved))

    code, output = program.stop(tmp_path, signal.SIGKILL, step=saved + 20)
    assert (code, resumed_step(output)) == (-signal.SIGKILL, saved), output

    (output,) = program.finish(program.start(tmp_path))
    assert resumed_step(output) >= saved
    assert differing(content(tmp_path), content(straight)) == []
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in logged if line["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    # All processes traced the same program, whatever the order of their sets, and one compiled it.
    assert len(list(program.cache.glob("jit_train_step-*-cache"))) == 1


def copy_up_to(step: int, source: Path, workdir: Path, shift: int) -> Path:
    """Copies a run as if it had been killed after `step`, its data position moved by `shift`."""
    shutil.copytree(source, workdir, symlinks=True)
    for directory in (workdir / "checkpoints").iterdir():
        if directory.name.isdigit() and int(directory.name) > step:
            shutil.rmtree(directory)
    directory = workdir / "checkpoints" / str(step)
    whole = manifest.verify(directory)
    position = json.loads((directory / "data" / "metadata").read_text())
    position["batches"]["batch_index"] += shift
    (directory / "data" / "metadata").write_text(json.dumps(position))
    unlisted = frozenset({"_CHECKPOINT_METADATA", "commit_success.txt"})
    manifest.write(directory, step, whole.metrics, whole.tree, unlisted)
    return workdir


@pytest.mark.exhaustive
def test_bert_resumes_with_the_same_bits_and_one_batch_farther_with_others(program, tmp_path):
    program.finish(program.start(tmp_path / "straight", **BERT))
    same, moved = (copy_up_to(3, tmp_path / "straight", tmp_path / str(n), n) for n in (0, 1))
    outputs = program.finish(program.start(same, **BERT), program.start(moved, **BERT))
    assert [resumed_step(output) for output in outputs] == [3, 3]
    straight = content(tmp_path / "straight", 6)
    assert differing(content(same, 6), straight) == []
    changed = differing(content(moved, 6), straight)
    assert "data" in changed and any(name.startswith("params/embedding") for name in changed)
