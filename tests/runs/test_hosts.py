"""Two real processes of one training: where they agree, and what is left when one is lost."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from programs import SETTINGS, Program, content, differing, logged_step

from pbr_jax.runs import manifest

pytestmark = pytest.mark.slow

FAULTY = Path(__file__).parents[1] / "faulty.py"
STEPS = 30
COMPLETE = re.compile(r"checkpoint [12]0 is complete, and the same command resumes")
FEW = {"steps": STEPS, "checkpoint_every": 10, "eval_every": 25, "optimizer.warmup_steps": 3}


class Processes(Program):
    """Starts `train.py` in several processes of one job."""

    def start(self, workdir, hosts=2, devices=2, faults=(), folders=None, **changes):
        """One process of a job for each of `hosts`, with so many devices; none is a job of one."""
        settings = {"config": "configs/digits.py:tiny"} | SETTINGS | FEW | changes
        config = settings.pop("config")
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        found = []
        for index in range(hosts):
            fault = dict(faults).get(index, "none")
            command = [sys.executable, str(FAULTY), fault, "--config", config]
            place = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(hosts),
                "JAX_PROCESS_ID": str(index),
                "JAX_NUM_CPU_DEVICES": str(devices),
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            process = subprocess.Popen(
                [*command, "--workdir", str(folders[index] if folders else workdir), *flags],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=self.environment | place,
                cwd=FAULTY.parents[1],
            )
            found.append(process)
        return found

    def lose(self, workdir, number, victim):
        """Sends a signal to one of two processes; what both print, codes, and seconds."""
        processes = self.start(workdir, steps=2000)
        while not (workdir / "checkpoints" / "10").exists() and processes[0].poll() is None:
            time.sleep(0.01)
        processes[victim].send_signal(number)
        return self.ended(processes)

    def ended(self, processes):
        began = time.monotonic()
        outputs = []
        for process in processes:
            try:
                outputs.append(process.communicate(timeout=200)[0])
            except subprocess.TimeoutExpired:
                for one in processes:
                    one.kill()
                raise
        return outputs, [p.returncode for p in processes], time.monotonic() - began


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    return Processes(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def straight(processes, tmp_path_factory):
    """The folder of a run of two processes that never stopped."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    first, second = processes.finish(*processes.start(folder))
    assert "4 x cpu of 2 processes" in first and "done" in first
    assert second.strip() == "" or "[Gloo]" in second  # one screen is enough
    return folder


def damaged_copy(straight, folder):
    """A copy of a run whose only checkpoints are 10 and 20, of which the newer is damaged."""
    shutil.copytree(straight, folder)
    for step in ("25", "30"):
        shutil.rmtree(folder / "checkpoints" / step)
    (folder / "summary.json").unlink()
    (file,) = (folder / "checkpoints" / "20" / "state").glob("manifest.ocdbt")
    file.write_bytes(b"x" + file.read_bytes()[1:])
    return folder


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


def test_a_stop_that_one_process_is_asked_for_is_that_of_all(processes, straight, tmp_path):
    folder = tmp_path / "run"
    began = processes.start(folder)
    while logged_step(folder) < 5 and began[0].poll() is None:
        time.sleep(0.002)
    began[1].send_signal(signal.SIGTERM)
    outputs, codes, _ = processes.ended(began)
    assert codes == [143, 143], outputs
    assert "SIGTERM: saved checkpoint" in outputs[0]
    assert logged_step(folder) < STEPS
    processes.finish(*processes.start(folder))
    assert differing(content(straight, STEPS), content(folder, STEPS)) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("hosts", "devices"), [(1, 4), (4, 1), (1, 1), (2, 2)])
def test_it_goes_on_with_other_processes(processes, straight, tmp_path, hosts, devices):
    """From the newest checkpoint that is sound, at the same place in the data."""
    folder, expected = damaged_copy(straight, tmp_path / "run"), losses(straight)
    first, *others = processes.finish(*processes.start(folder, hosts, devices))
    assert "using checkpoint 10 instead" in first and "resumed from checkpoint 10" in first
    assert first.count("20.broken") == 1
    assert not any("broken" in other for other in others)
    found = losses(folder)
    assert found[11] == pytest.approx(expected[11], rel=1e-5)
    assert [*found] == [*expected]
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=0.05)
    if (hosts, devices) == (2, 2):
        assert differing(content(straight, STEPS), content(folder, STEPS)) == []


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_a_killed_process_ends_the_other_with_a_message(processes, tmp_path, victim):
    outputs, codes, seconds = processes.lose(tmp_path / "run", signal.SIGKILL, victim)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] != 0
    assert seconds < 60
    for output in outputs:
        assert COMPLETE.search(output)
    assert f"process {victim} of 2" in outputs[victim]


@pytest.mark.exhaustive
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stuck_process_ends_the_job(processes, tmp_path, victim):
    started = processes.start(tmp_path / "run", faults={victim: "stuck@22"}, **{"mesh.timeout": 15})
    outputs, codes, _ = processes.ended(started)
    assert codes == [1, 1], outputs
    for output in outputs:
        assert f"process {victim} of 2 on {socket.gethostname()} is stuck" in output
        assert "mesh.timeout = 15" in output
        assert COMPLETE.search(output)


@pytest.mark.exhaustive
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_of_one_process_is_that_of_all(processes, tmp_path, victim):
    started = processes.start(tmp_path / "run", faults={victim: "raises@22"})
    outputs, codes, _ = processes.ended(started)
    assert codes == [1, 1], outputs
    for output in outputs:
        assert f"process {victim} of 2" in output
        assert "birds/7.jpg: not a readable image" in output
    assert COMPLETE.search(outputs[1 - victim])


@pytest.mark.exhaustive
def test_a_full_disk_of_one_process_leaves_what_was_saved(processes, straight, tmp_path):
    folder = damaged_copy(straight, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "20")
    outputs, codes, _ = processes.ended(processes.start(folder, faults={1: "full@15000"}))
    assert codes == [1, 1], outputs
    for output in outputs:
        assert "checkpoint 20 was not saved" in output
        assert "checkpoint 10 is complete" in output
    manifest.verify(folder / "checkpoints" / "10")


@pytest.mark.exhaustive
def test_processes_must_see_one_folder(processes, tmp_path):
    first, second = processes.start(tmp_path / "run", folders=[tmp_path / "run", tmp_path / "b"])
    outputs, codes, _ = processes.ended([first, second])
    assert codes == [1, 1], outputs
    for output in outputs:
        assert f"{tmp_path / 'b'}: is another folder than that of the first process" in output
