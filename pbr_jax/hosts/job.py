"""One process among all of its job: who it is, and what all of them know alike.

Processes tell each other by the key-value store of `jax.distributed`, which also works while they
compute, and while one of them is stuck in an exchange.
"""

import atexit
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from pbr_jax.hosts import cluster
from pbr_jax.hosts.last_words import LastWords, advice
from pbr_jax.hosts.texts import Texts
from pbr_jax.hosts.watch import LINGER, Watch

# JAX ends a process that has lost the others. The watch comes before it, with a message.
_HEARTBEAT = 40  # seconds
_SHUTDOWN = 3600  # seconds in which the first may still write a report


class Job:
    """This process among `count`; the first has `index` 0."""

    def __init__(self, index: int = 0, count: int = 1, texts: Texts | None = None) -> None:
        self.index, self.count = index, count
        self.texts = texts  # where the processes tell each other; None where there is one
        self._shared = self._met = 0  # so far; all processes do the same in the same order
        self._watch: Watch | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def __str__(self) -> str:
        return f"process {self.index} of {self.count} on {socket.gethostname()}"

    def shared(self, value: Any) -> Any:
        """What the first process passes, a JSON value, in every process; waits for it."""
        if self.texts is None:
            return value
        self._shared += 1
        key = f"shared/{self._shared}"
        if self.first:
            self.texts.put(key, json.dumps(value))
            return value
        return json.loads(self.texts.wait_for(key))

    def meet(self) -> None:
        """Waits until all processes have come here."""
        if self.texts is None:
            return
        self._met += 1
        if not self.first:
            self.texts.put(f"met/{self._met}/{self.index}", "")
        else:
            for index in range(1, self.count):
                self.texts.wait_for(f"met/{self._met}/{index}")
        self.shared(None)

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Checks that this process has what the first has, by name; JSON values.

        Raises:
          ValueError: they differ; names what, and both.
        """
        if self.texts is None:
            return
        who, theirs = self.shared([str(self), dict(what)])
        for name, own in json.loads(json.dumps(dict(what))).items():
            if own != theirs[name]:
                raise ValueError(
                    f"{self} has {name} {own}, {who} has {theirs[name]}: all processes of a job"
                    " must have the same"
                )

    def alive(self) -> None:
        """Tells that this process got further: it finished a step or a batch of an evaluation."""
        if self._watch is not None:
            self._watch.alive()

    def patiently(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which may take longer than a step."""
        if self._watch is None:
            return function
        return self._watch.patiently(function)

    def expect_steps(self, timeout: int | None) -> None:
        """Has the job end when a step takes longer than `timeout` seconds; None expects no step."""
        if self._watch is not None:
            self._watch.timeout = timeout

    @contextlib.contextmanager
    def _watched(self, checkpoints: Path) -> Iterator[None]:
        """Has every process know within seconds when this one fails, and this one of the others."""
        assert self.texts is not None
        gone = f"{self} ended without a word: it was killed, or has lost the others of its job"
        last_words = LastWords(gone, checkpoints)

        def before_end() -> str:
            last_words.clear()
            return advice(checkpoints)

        self._watch = Watch(self.texts, self.index, str(self), before_end)
        try:
            with self._watch:
                yield
                jax.distributed.shutdown()  # when all have come here; until then it is watched
        except BaseException as error:
            if not self._watch.end_job(self._why(error)):
                time.sleep(2 * LINGER)  # the watch says who failed first, and ends this process
            last_words.clear()
            if self.first:
                time.sleep(LINGER)  # the others are lost without it, before they have read why
            # At its end JAX would wait for processes that are gone, and abort.
            atexit.register(_leave)
            print(f"{advice(checkpoints)}\n{self}:", file=sys.stderr, flush=True)
            raise
        last_words.clear()

    def _why(self, error: BaseException) -> str:
        said = str(error) or type(error).__name__
        # An exchange with a process that is gone fails, too, if it does not wait for ever.
        lost = "lost another process, or its own device: "
        return (
            f"{self} {lost if isinstance(error, jax.errors.JaxRuntimeError) else 'failed: '}{said}"
        )


ALONE = Job()
"""The only process."""


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


@contextlib.contextmanager
def joined(checkpoints: Path, environ: Mapping[str, str] = os.environ) -> Iterator[Job]:
    """Joins the job that this process was started for; `ALONE` where it is the only one.

    Must be entered before anything asks JAX for devices. An error that leaves the block ends the
    job: every process says which one failed, and why, and ends with exit code 1, or as interrupted.

    Args:
      checkpoints: the folder whose newest step is named when the job ends early.
      environ: in which `cluster.found` looks.

    Raises:
      ValueError: the environment describes no place in a job.
    """
    arguments = cluster.found(environ)
    if arguments is None:
        yield ALONE
        return
    # JAX would take SIGTERM for itself; `AgreedStop` agrees on other signals, too.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        **arguments,
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
    )
    job = Job(jax.process_index(), jax.process_count(), Texts())
    with job._watched(checkpoints):
        yield job
