"""The scripts of examples/launch, with stand-ins for `srun`, `ssh` and `python`."""

import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest
import yaml

from pbr_jax.hosts.cluster import VARIABLES, found

LAUNCH = pathlib.Path(__file__).parents[2] / "examples" / "launch"
pytestmark = pytest.mark.skipif(not LAUNCH.is_dir(), reason="examples are not installed")

# Two tasks on two nodes of four GPUs, as `srun` would start them from a batch script.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=2
export SLURM_GPUS_ON_NODE=4 SLURM_LOCALID=0
for i in 0 1; do SLURM_PROCID=$i "$@" & done
wait
"""
SSH = """#!/bin/bash
echo "to $2"
shift 2
exec bash -c "$*"
"""
# Joins as a training does, and says where it is.
JOINS = """
import pathlib, sys
from pbr_jax.hosts import joined
with joined(pathlib.Path("none")) as job:
    job.check_same({"arguments": sys.argv[1:]})
    sys.stdout.write(" ".join([str(job.index), str(job.count), *sys.argv[1:]]) + "\\n")
"""
# Says its place and its arguments, one to a line.
TELLS = f"""
import os, sys
said = [*(os.environ[name] for name in {VARIABLES!r}), *sys.argv[1:]]
sys.stdout.write("|".join(said) + "\\n")
"""


# Waits to be stopped.
WAITS = """
import sys, time
sys.stdout.write("ready\\n")
sys.stdout.flush()
time.sleep(60)
"""


def stand_ins(folder, program):
    """An environment in which `program` runs in place of `python`."""
    (folder / "program.py").write_text(program)
    python = f'#!/bin/bash\nexec {sys.executable} {folder / "program.py"} "$@"\n'
    for name, text in {"srun": SRUN, "ssh": SSH, "python": python}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}
    return environment | {"PYTHONPATH": os.pathsep.join(sys.path)}


def launched(folder, script, arguments=(), program=TELLS, **variables):
    """The lines that a script's processes print; they are `program` in place of `python`."""
    environment = stand_ins(folder, program) | variables
    command = ["bash", str(LAUNCH / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


@pytest.mark.slow
def test_the_tasks_of_slurm_are_one_job(tmp_path):
    job = str(random.randrange(10**6))  # JAX makes the port of it
    lines = launched(tmp_path, "slurm.sh", ["--force"], JOINS, SLURM_JOB_ID=job, WORKDIR="/w")
    more = "train.py --config configs/vit_b16.py --workdir /w --force"
    assert [line for line in lines if "Gloo" not in line] == [f"0 2 {more}", f"1 2 {more}"]


def test_ssh_gives_every_host_its_place(tmp_path):
    given = ["--workdir", "runs/two birds", "--config.name=it's"]
    first, second, *there = launched(tmp_path, "ssh.sh", given, HOSTS="node1 node2")
    said = "|".join(["train.py", *given])
    assert (first, second) == (f"node1:12321|2|0|{said}", f"node1:12321|2|1|{said}")
    assert there == ["to node1", "to node2"]


def test_a_signal_to_the_script_ends_what_it_started(tmp_path):
    """Which here dies of it; a training saves."""
    environment = stand_ins(tmp_path, WAITS) | {"HOSTS": "node1 node2"}
    command = ["bash", str(LAUNCH / "ssh.sh")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as script:
        said = [script.stdout.readline().split()[0] for _ in range(4)]
        assert sorted(said) == ["ready", "ready", "to", "to"]
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=20) == 128 + signal.SIGTERM
        assert script.stdout.read() == ""  # nobody is left who could write


def test_the_pods_of_a_jobset_know_their_place():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 2
    (container,) = spec["template"]["spec"]["containers"]
    for index in range(2):
        # What Kubernetes makes of the manifest for the pod of that index.
        environ = {}
        for entry in container["env"]:
            path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            own = str(index) if "job-completion-index" in path else None
            environ[entry["name"]] = own or entry["value"]
        place = found(environ)
        assert (place["process_id"], place["num_processes"]) == (index, 2)
    # The first pod has this name under the headless service that a JobSet makes.
    first = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
    assert place["coordinator_address"].rpartition(":")[0] == first
