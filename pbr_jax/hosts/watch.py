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

from pbr_jax.hosts.texts import Texts

LINGER = 3.0  # seconds that the first process stays, so that the others can read why
_PAUSE = 1.0  # seconds between two signs of life
_PATIENCE = 3600.0  # seconds for reading the data, compiling, a checkpoint or a report
_SILENCE = 30.0  # seconds without one, after which a process counts as gone
_FAILED = "failed"


class _Sign(NamedTuple):
    """What a process says of itself."""

    number: int  # of signs
    name: str  # of the process
    progress: int  # steps and batches of evaluations
    idle: float  # seconds since it last got further
    allowed: float  # seconds that it may be idle


class Watch(contextlib.AbstractContextManager["Watch", None]):
    """Watches from a thread, inside its context, and ends the process when the job has failed.

    Args:
      texts: of the job.
      index, name: of this process.
      before_end: called before this process ends; returns what to say of that.
    """

    def __init__(
        self,
        texts: Texts,
        index: int,
        name: str,
        before_end: Callable[[], str],
        end: Callable[[int], Any] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout: int | None = None  # seconds that a step may take; None expects no step
        self._texts, self._index, self._name = texts, index, name
        self._before_end, self._end, self._clock = before_end, end, clock
        self._progress = 0
        self._since = clock()  # when this process last got further
        self._patient = False
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
        """Counts a step or a batch of an evaluation."""
        self._progress += 1
        self._since = self._clock()

    def patiently(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which may take longer than a step."""

        def waited_for(*args: Any) -> Any:
            self._patient, self._since = True, self._clock()
            try:
                return function(*args)
            finally:
                self._patient, self._since = False, self._clock()

        return waited_for

    def end_job(self, why: str) -> bool:
        """Has the other processes end, and say why; False if another one had that done before."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first process is gone
            return self._texts.put(f"{_FAILED}/why", json.dumps([self._index, why]))
        return True

    def look(self) -> None:
        """Gives a sign of life; ends this process, or the job, where there is reason to."""
        self._signs += 1
        idle = self._clock() - self._since
        allowed = _PATIENCE if self._patient or self.timeout is None else self.timeout
        sign = _Sign(self._signs, self._name, self._progress, idle, allowed)
        self._texts.put(f"alive/{self._index}", json.dumps(sign), replace=True)
        if self._index == 0 and (why := self._missed()):
            self._texts.put(f"{_FAILED}/why", json.dumps([None, why]))
        if found := self._texts.under(_FAILED):
            author, why = json.loads(found["why"])
            if author != self._index:  # which speaks for itself
                self._leave(why)
            self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_PAUSE):
            try:
                self.look()
            except jax.errors.JaxRuntimeError:
                continue  # where the first process is gone, JAX ends this one

    def _missed(self) -> str:
        """Who is gone or stuck, and why one thinks so; "" if nobody is."""
        found = self._texts.under("alive").items()
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
        late = max(signs, key=lambda sign: sign.idle - sign.allowed)
        if late.idle <= late.allowed:
            return ""
        idle, of_steps = late.idle, late.allowed == self.timeout
        rule = f"{'mesh.timeout =' if of_steps else 'allowed are'} {late.allowed:.0f} s"
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
