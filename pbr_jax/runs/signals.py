"""SIGTERM and SIGINT as a flag, so that a run can finish its step, save, and exit."""

import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Context manager: the first SIGTERM or SIGINT sets a flag, a second one kills the process.

    Outside the main thread, where Python allows no handlers, entering it raises `ValueError`.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # the first
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """The shell's code for the signal received: 143 for SIGTERM, 130 for SIGINT, 0 for none."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("StopSignals: must be entered in the main thread, which gets signals")
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        # From now on the operating system ends the process, even in the middle of a long call into
        # compiled code, where Python would not run a handler. Checkpoints survive that.
        for either in SIGNALS:
            signal.signal(either, signal.SIG_DFL)
