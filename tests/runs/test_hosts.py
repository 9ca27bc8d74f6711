"""Two real processes of one training: where they agree, and what is left when one is lost."""

import json
import os
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

pytestmark = pytest.mark.slow

FAULTY = Path(__file__).parents[1] / "faulty.py"
STEPS = 30
FEW = {"steps": STEPS, "checkpoint_every": 10, "eval_every": 25, "optimizer.warmup_steps": 3}


class Processes(Program):
    """Starts `train.py` in several processes of one job."""

    def start(self, workdir, hosts=2, devices=2, faults=(), **changes):
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
                [*command, "--workdir", str(workdir), *flags],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=self.environment | place,
                cwd=FAULTY.parents[1],
            )
            found.append(process)
        return found

    def lose(self, workdir, number, victim, step=12):
        """Sends a signal to one of two processes at a step; what both print, codes, and seconds."""
        processes = self.start(workdir, steps=2000)
        while logged_step(workdir) < step and processes[0].poll() is None:
            time.sleep(0.01)
        processes[victim].send_signal(number)
        return self.ended(processes)

    def ended(self, processes):
        began = time.monotonic()
        outputs = [process.communicate()[0] for process in processes]
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


def test_it_goes_on_with_other_processes(processes, straight, tmp_path):
    """On one process of four devices, of one device, and of four processes; data position too."""
    layouts = {"1x4": (1, 4), "1x1": (1, 1), "4x1": (4, 1)}
    expected, started = losses(straight), []
    for name in layouts:
        shutil.copytree(straight, tmp_path / name)
        for step in ("30", "25", "20"):
            shutil.rmtree(tmp_path / name / "checkpoints" / step)
        (tmp_path / name / "summary.json").unlink()
    for name, (hosts, devices) in layouts.items():
        started = processes.start(tmp_path / name, hosts, devices)
        outputs = processes.finish(*started)
        assert "resumed from checkpoint 10" in outputs[0]
        found = losses(tmp_path / name)
        assert found[11] == pytest.approx(expected[11], rel=1e-5), name
        assert [*found] == [*expected]
        np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=0.05)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_a_message(processes, tmp_path, victim):
    outputs, codes, seconds = processes.lose(tmp_path / "run", signal.SIGKILL, victim)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] != 0
    assert seconds < 60
    said = "".join(outputs)
    assert "checkpoint 10 is complete, and the same command resumes" in said
    assert f"process {victim} of 2" in said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stuck_process_ends_the_job(processes, tmp_path, victim):
    started = processes.start(tmp_path / "run", faults={victim: "stuck@14"}, **{"mesh.timeout": 15})
    outputs, codes, _ = processes.ended(started)
    assert codes == [1, 1], outputs
    for output in outputs:
        assert f"process {victim} of 2 on {socket.gethostname()} is stuck" in output
        assert "mesh.timeout = 15" in output
        assert "checkpoint 10 is complete" in output


@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_of_one_process_is_that_of_all(processes, tmp_path, victim):
    started = processes.start(tmp_path / "run", faults={victim: "raises@14"})
    outputs, codes, _ = processes.ended(started)
    assert codes == [1, 1], outputs
    for output in outputs:
        assert f"process {victim} of 2" in output
        assert "birds/7.jpg: not a readable image" in output
    assert "checkpoint 10 is complete" in outputs[1 - victim]


def test_a_full_disk_of_one_process_leaves_what_was_saved(processes, tmp_path):
    started = processes.start(tmp_path / "run", faults={0: "full@15000"})
    outputs, codes, _ = processes.ended(started)
    assert codes == [1, 1], outputs
    for output in outputs:
        assert "was not saved" in output


def test_a_damaged_checkpoint_is_set_aside_once(processes, straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    (folder / "summary.json").unlink()
    (file,) = (folder / "checkpoints" / "30" / "state").glob("manifest.ocdbt")
    file.write_bytes(b"x" + file.read_bytes()[1:])
    first, second = processes.finish(*processes.start(folder))
    assert "using checkpoint 25 instead" in first
    assert first.count("30.broken") == 1
    assert "broken" not in second
    assert differing(content(straight, STEPS), content(folder, STEPS)) == []
