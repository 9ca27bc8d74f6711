"""What accompanies a run and may fail: its curves, pictures and tables. The training goes on."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from pbr_jax.training.loop import Observer


class Extras(contextlib.AbstractContextManager["Extras", None]):
    """Runs what is no part of the training itself, each under the name of what it writes.

    A fault is said once for each name, as one line, and `report` has all of them for the end. What
    failed is tried again at the next occasion: a disk may have room by then. Use as a context
    manager around the loop: leaving it closes the observers, and does what is left `at_end`.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lost: dict[str, str] = {}  # what is not written, or not all of it, and why first
        self._left: list[tuple[str, Callable[[], None]]] = []

    def __exit__(self, *error: object) -> None:
        for name, action in self._left:
            with self.attempt(name):
                action()
        self._left.clear()

    def at_end(self, name: str, action: Callable[[], None]) -> None:
        """Has `action`, which writes `name`, done when the context is left."""
        self._left.append((name, action))

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Runs the block that writes `name`; an exception of it ends the block only."""
        try:
            yield
        except Exception as error:  # whatever it runs into, the training is worth more
            strerror = error.strerror if isinstance(error, OSError) else None
            why = strerror or f"{type(error).__name__}: {error}"
            if name not in self._lost:
                self._lost[name] = why
                self._say(f"{name} cannot be written: {why}; the run goes on without")

    def observe(self, name: str, make: Callable[[], Any]) -> Observer:
        """The observer that `make` gives, which may fail now and at everything it is told."""
        with self.attempt(name):
            observer = make()
            if hasattr(observer, "close"):
                self.at_end(name, observer.close)
            return _Attempted(observer, lambda: self.attempt(name))
        return Observer()

    def report(self) -> str:
        """One line on what is not there, or not whole; empty if nothing is amiss."""
        named = ", ".join(f"{name} ({why})" for name, why in self._lost.items())
        return f"not written, or not all of it: {named}" if named else ""


class _Attempted(Observer):
    """An observer each of whose calls is an attempt."""

    def __init__(
        self, observer: Observer, attempt: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._observer, self._attempt = observer, attempt

    def began(self, *event: Any) -> None:
        with self._attempt():
            self._observer.began(*event)

    def stepped(self, *event: Any) -> None:
        with self._attempt():
            self._observer.stepped(*event)

    def logged(self, *event: Any) -> None:
        with self._attempt():
            self._observer.logged(*event)

    def evaluated(self, *event: Any) -> None:
        with self._attempt():
            self._observer.evaluated(*event)

    def stopped(self, *event: Any) -> None:
        with self._attempt():
            self._observer.stopped(*event)
