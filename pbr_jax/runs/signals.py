"""Signals that end jobs: a training finishes its step and saves, everything else ends at once.

Python runs a handler between two of its own instructions only, and a compilation is one call that
takes up to a minute. The operating system, though, writes each signal's number to a pipe at once
(`signal.set_wakeup_fd`). A thread that reads there answers while the main thread computes.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

# From a terminal, a person or a scheduler: a terminal that is closed sends HUP, Slurm also USR1.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# Sent again, these mean now. The others may come twice by themselves, from shell and terminal.
_AGAIN = (signal.SIGTERM, signal.SIGINT)
_GRACE = 1.0  # seconds from an interrupt to the end of a program that cannot be interrupted


@contextlib.contextmanager
def _told_at_once(tell: Callable[[int], None]) -> Iterator[None]:
    """Calls `tell` with the number of each handled signal, on a thread, whatever the main one does.

    Must be entered in the main thread.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def listen() -> None:
        while number := os.read(reading, 1):
            tell(number[0])
        os.close(reading)

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # which ends the thread, unless it is held by what it tells
        listener.join(_GRACE)


class StopSignals(contextlib.AbstractContextManager["StopSignals", None]):
    """Context manager: the first of `SIGNALS` sets a flag, a second SIGTERM or SIGINT kills.

    The first one is answered at once through `say`: what the run waits for before it stops. Outside
    the main thread, where Python allows no handlers, entering it raises `ValueError`.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.received: signal.Signals | None = None  # the first
        self._say = say
        self._waits_for = "this step"
        self._told: list[int] = []  # on the listening thread
        self._previous: dict[signal.Signals, Any] = {}
        self._listening = contextlib.ExitStack()

    @property
    def requested(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """The shell's code for the signal received: 143 for SIGTERM, 130 for SIGINT, 0 for none."""
        return 0 if self.received is None else 128 + self.received

    def request(self, number: signal.Signals) -> None:
        """Sets the flag as if that signal had come, unless one did."""
        self.received = self.received or number

    def during(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; a signal that comes while it runs is said to wait for `what`."""

        def told(*args: Any) -> Any:
            before, self._waits_for = self._waits_for, what
            try:
                return function(*args)
            finally:
                self._waits_for = before

        return told

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("StopSignals: must be entered in the main thread, which gets signals")
        self._listening.enter_context(_told_at_once(self._tell))
        for number in SIGNALS:
            before = signal.getsignal(number)
            # `nohup` has a run outlive its terminal.
            if before != signal.SIG_IGN or number in _AGAIN:
                self._previous[number] = before
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
        self._listening.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number))
        # From now on the operating system ends the process, even in the middle of a long call into
        # compiled code, where Python would not run a handler. Checkpoints survive that.
        if number in _AGAIN:
            signal.signal(number, signal.SIG_DFL)

    def _tell(self, number: int) -> None:
        if number not in SIGNALS:
            return
        if number in _AGAIN and number in self._told:  # the main thread had no time to handle one
            os._exit(128 + number)
        name = signal.Signals(number).name
        if not self._told:
            again = "; once more stops at once" if number in _AGAIN else ""
            self._say(f"{name}: waits for {self._waits_for}, then saves and stops{again}")
        self._told.append(number)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Has an interrupt end the block within a second or so, though it be in compiled code.

    `KeyboardInterrupt` comes first, as always, so that files are closed and folders removed. A main
    thread that has not left the block a second later, since a compilation or other threads hold it,
    is not waited for: the process ends with exit code 130. An import is not interrupted but ends
    it, since libraries make other errors of the exception, or crash. Outside the main thread
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                leave("interrupted", 128 + number)
            frame = frame.f_back
        # Where the exception cannot be raised, as in a callback of the garbage collector, Python
        # would print it and go on.
        sys.unraisablehook = lambda unraisable: None
        raise KeyboardInterrupt

    def tell(number: int) -> None:
        if number == signal.SIGINT and not left.wait(_GRACE):
            leave("interrupted", 128 + number)

    # A shell's background jobs begin with interrupts ignored.
    before, hook = signal.signal(signal.SIGINT, interrupt), sys.unraisablehook
    try:
        with _told_at_once(tell):
            try:
                yield
            finally:
                left.set()
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def leave(text: str, code: int) -> None:
    """Ends the process at once with a line on standard error, and waits for no other thread.

    What the interpreter does at its end would wait for compilations that nothing can interrupt.
    """
    with contextlib.suppress(OSError, ValueError):  # closed, or a terminal that is gone
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
        print(f"{show_cursor}{text}", file=sys.stderr, flush=True)
    os._exit(code)
