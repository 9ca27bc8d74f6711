"""The watch over a job: within seconds every process knows that one failed, is gone or is stuck.

A process that waits in an exchange for one that never comes would wait for ever. So each has a
thread that gives signs of life, and reads whether the job has failed. The thread of the first looks
at the signs of the others.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax

from pbr_jax.hosts.store import Store

LINGER = 3.0  # seconds that the first process stays, so that the others can read why
_PAUSE = 1.0  # seconds between two signs of life
_SILENCE = 30.0  # seconds without one, after which a process counts as gone
_FAILED = "failed"


class _Sign(NamedTuple):
    """What a process says of itself."""

    number: int  # of signs
    name: str  # of the process
    progress: int  # steps and batches of evaluations
    idle: float | None  # seconds since the last of them; None where none is expected


class Watch(contextlib.AbstractContextManager["Watch", None]):
    """Watches from a thread, inside its context, and ends the process when the job has failed.

    Args:
      store: of the job.
      index, count, name: of this process, and how many there are.
      before_end: called before this process ends; returns what to say of that.
    """

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        name: str,
        before_end: Callable[[], str],
        end: Callable[[int], Any] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout: int | None = None  # seconds that a step may take; None watches none
        self._store, self._index, self._count, self._name = store, index, count, name
        self._before_end, self._end, self._clock = before_end, end, clock
        self._progress = 0
        self._since: float | None = None  # when a step was last finished
        self._signs = 0
        self._heard: dict[int, tuple[int, float]] = {}  # the last sign of each, and when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._over.set()
            self._thread.join()

    def alive(self) -> None:
        """Counts a step, and expects the next within `timeout`."""
        self._progress += 1
        self._since = self._clock()

    def patiently(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; no step is expected while it runs."""

        def waited_for(*args: Any) -> Any:
            before, self._since = self._since, None
            try:
                return function(*args)
            finally:
                self._since = before and self._clock()

        return waited_for

    def failed(self, why: str) -> bool:
        """Ends the job; whether this process is the first to say so."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first process is gone
            words = json.dumps([self._index, f"{self._name} failed: {why}"])
            return self._store.put(f"{_FAILED}/why", words)
        return True

    def look(self) -> None:
        """Gives a sign of life; ends this process, or the job, where there is reason to."""
        self._signs += 1
        since = self._since
        idle = None if since is None or self.timeout is None else self._clock() - since
        sign = _Sign(self._signs, self._name, self._progress, idle)
        self._store.put(f"alive/{self._index}", json.dumps(sign), replace=True)
        if self._index == 0 and (why := self._missed()):
            self._store.put(f"{_FAILED}/why", json.dumps([None, why]))
        if found := self._store.under(_FAILED):
            author, why = json.loads(found["why"])
            if author != self._index:  # which speaks for itself
                self._leave(why)
            self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_PAUSE):
            try:
                self.look()
            except jax.errors.JaxRuntimeError:
                return  # the first process is gone, and JAX ends this one

    def _missed(self) -> str:
        """Who is gone or stuck, and why one thinks so; "" if nobody is."""
        found = self._store.under("alive").items()
        signs = {int(index): _Sign(*json.loads(text)) for index, text in found}
        return self._gone(signs) or self._stuck([*signs.values()])

    def _gone(self, signs: Mapping[int, _Sign]) -> str:
        now = self._clock()
        for index, sign in signs.items():
            number, since = self._heard.get(index, (0, now))
            if sign.number != number:
                self._heard[index] = sign.number, now
            elif now - since > _SILENCE:
                return (
                    f"{sign.name} is gone: no sign of life for {_SILENCE:.0f} s. Was it killed, out"
                    " of memory, or is its host down?"
                )
        return ""

    def _stuck(self, signs: Sequence[_Sign]) -> str:
        idle = max((sign.idle for sign in signs if sign.idle is not None), default=0.0)
        if self.timeout is None or idle <= self.timeout:
            return ""
        rule = f"mesh.timeout = {self.timeout} s"
        # Whoever is behind keeps the others waiting.
        least = min(sign.progress for sign in signs)
        behind = [sign.name for sign in signs if sign.progress == least]
        if len(behind) == len(signs):
            return f"no process has got further for {idle:.0f} s: {rule}"
        return f"{', '.join(behind)} is stuck: the others have waited {idle:.0f} s for it: {rule}"

    def _leave(self, why: str) -> None:
        advice = self._before_end()
        with contextlib.suppress(OSError, ValueError):
            print(f"{why}\n{advice}", file=sys.stderr, flush=True)
        if self._index == 0:
            time.sleep(LINGER)
        self._end(1)
