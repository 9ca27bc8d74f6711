"""A run that is stopped and resumed ends with the same bits as one that never stopped.

Real processes of `train.py` and real signals, with augmentation, dropout, the bandit and JointSPAR.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pbr_jax.runs import manifest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[2] / "train.py"
STEPS = 90
SETTINGS = {
    "method": "prebackrazor/js50",
    "steps": STEPS,
    "log_every": 1,
    "eval_every": 40,
    "checkpoint_every": 15,
    "keep_checkpoints": 20,
    "data.augment": "affine",
    "model.dropout": 0.1,
}
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


class Program:
    """Starts `train.py`, with one compilation cache for all: most of their time is compiling."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }

    def start(self, workdir: Path, **changes) -> subprocess.Popen:
        settings = {"config": "configs/digits.py:tiny"} | SETTINGS | changes
        command = [sys.executable, str(PROGRAM), "--config", settings.pop("config")]
        command += ["--workdir", str(workdir)]
        command += [f"--config.{name}={value}" for name, value in settings.items()]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=PROGRAM.parent,
        )

    @staticmethod
    def finish(*processes: subprocess.Popen) -> list[str]:
        """Waits for runs that were started together; returns what each printed."""
        outputs = [process.communicate()[0] for process in processes]
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == 0, output
        return outputs

    def stop(self, workdir: Path, number: signal.Signals, step: int) -> tuple[int, str]:
        """Sends a signal once `step` is logged; returns the exit code and what was printed.

        This run has workers that prepare batches ahead of it; the runs that are compared have none.
        """
        with self.start(workdir, **{"data.workers": 2}) as process:
            while logged_step(workdir) < step and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(number)
            output = process.stdout.read()
        assert logged_step(workdir) < STEPS, f"it ended before the signal came:\n{output}"
        return process.returncode, output


def logged_step(workdir: Path) -> int:
    """The last training step in `metrics.jsonl`; 0 if there is none."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return 0
    lines = path.read_text().split("\n")[:-1]  # what follows the last newline is being written
    return max((json.loads(line)["step"] for line in lines), default=0)


def resumed_step(output: str) -> int:
    """The step that a run said it resumed from."""
    return int(re.search(r"resumed from checkpoint (\d+)", output)[1])


def content(workdir: Path, step: int = STEPS) -> dict[str, bytes]:
    """The bits of a verified checkpoint: every leaf of its state by path, and the data position."""
    directory = workdir / "checkpoints" / str(step)
    manifest.verify(directory)
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(directory / "state")
    bits = {"data": (directory / "data" / "metadata").read_bytes()}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        bits[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf).tobytes()
    return bits


def differing(a: dict[str, bytes], b: dict[str, bytes]) -> list[str]:
    """Paths whose bits differ."""
    assert a.keys() == b.keys()
    return [name for name in a if a[name] != b[name]]


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
