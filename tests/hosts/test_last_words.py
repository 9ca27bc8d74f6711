"""What is said for a process that could not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pbr_jax.hosts.last_words import advice

# A process with last words, which says that it has them and waits.
PROGRAM = """
import sys, time
from pbr_jax.hosts.last_words import LastWords
words = LastWords("process 1 was lost", sys.argv[1])
if sys.argv[2] == "speaks":
    words.clear()
print("ready", flush=True)
time.sleep(60)
"""


def lost(folder, how):
    """What is on standard error once the process was killed."""
    command = [sys.executable, "-c", PROGRAM, str(folder), how]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **streams) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        began = time.monotonic()
        said = process.stderr.read()  # until the speaker has ended, too
    assert time.monotonic() - began < 10
    return said


@pytest.mark.parametrize("how", ["killed", "speaks"])
def test_a_killed_process_has_last_words_unless_it_spoke(tmp_path, how):
    (tmp_path / "20").mkdir()
    said = "process 1 was lost\ncheckpoint 20 is complete, and the same command resumes\n"
    assert lost(tmp_path, how) == (said if how == "killed" else "")


def test_the_newest_complete_checkpoint_is_named(tmp_path):
    assert advice(tmp_path / "none").startswith("it has saved no checkpoint")
    for name in ("9", "20", "30.orbax-checkpoint-tmp", "40.broken", "best"):
        (tmp_path / name).mkdir()
    assert advice(tmp_path).startswith("checkpoint 20 is complete")
