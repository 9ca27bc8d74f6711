"""A line that is printed when this process ends without having said anything.

A process that is killed, and one that JAX aborts since it has lost the others, run no code of
theirs any more. A second, small process waits at a pipe and speaks for it: this module, as a
program, which imports nothing that takes time or memory.
"""

import contextlib
import os
import subprocess
import sys


def advice(checkpoints: str | os.PathLike[str]) -> str:
    """What is left when a job ends early: its newest complete checkpoint, by its folder's name."""
    steps = []
    with contextlib.suppress(OSError):
        steps = [int(name) for name in os.listdir(checkpoints) if name.isdecimal()]
    if not steps:
        return "it has saved no checkpoint; the same command begins it anew"
    return f"checkpoint {max(steps)} is complete, and the same command resumes"


class LastWords:
    """Prints `text` and `advice`, unless `clear` was called before this process ended."""

    def __init__(self, text: str, checkpoints: str | os.PathLike[str]) -> None:
        # Without site-packages it starts in milliseconds; in a session of its own, signals that
        # are meant for the training do not reach it.
        self._speaker = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, text, os.path.abspath(checkpoints)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def clear(self) -> None:
        """Has nothing printed: this process speaks for itself."""
        self._speaker.kill()
        self._speaker.wait()
        assert self._speaker.stdin is not None
        self._speaker.stdin.close()


if __name__ == "__main__":
    sys.stdin.read()  # until the process at the other end is no more
    sys.stderr.write(f"{sys.argv[1]}\n{advice(sys.argv[2])}\n")
