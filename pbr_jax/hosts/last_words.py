"""A line that is printed when this process ends without having said anything.

A process that is killed, and one that JAX aborts since it has lost the others, run no code of
theirs any more. A second, small process waits at a pipe and speaks for it.
"""

import contextlib
import subprocess
import sys

# Keeps the last line that it reads, and prints it at the end of its input.
_PROGRAM = """
import sys
line = ""
for line in sys.stdin:
    pass
if line.strip():
    sys.stderr.write(line)
"""


class LastWords:
    """Prints `text`, one line, on standard error unless `clear` was called before the end."""

    def __init__(self, text: str) -> None:
        # Without site-packages it starts in milliseconds; in a session of its own, signals that
        # are meant for the training do not reach it.
        self._speaker = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.set(text)

    def set(self, text: str) -> None:
        """Replaces the line."""
        assert self._speaker.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # the speaker itself was killed
            self._speaker.stdin.write(text.replace("\n", " ") + "\n")
            self._speaker.stdin.flush()

    def clear(self) -> None:
        """Has nothing printed: this process speaks for itself."""
        self.set("")
        assert self._speaker.stdin is not None
        with contextlib.suppress(OSError):
            self._speaker.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._speaker.wait(timeout=5)
