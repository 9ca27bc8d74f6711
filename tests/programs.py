"""Real processes of `train.py`, and the bits of what they leave."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from pbr_jax.runs import manifest

PROGRAM = Path(__file__).parents[1] / "train.py"
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
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(directory / "state").item_metadata.tree
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
        state = checkpointer.restore(directory / "state", like)
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
