"""What accompanies a run may fail: it is said once, and again at the end."""

import errno
import os

import pytest

from pbr_jax.runs.extras import Extras
from pbr_jax.training.loop import Observer


class Failing(Observer):
    """Fails while `error` is set; keeps what it could take."""

    def __init__(self, error=None):
        self.error, self.taken = error, []

    def logged(self, line):
        if self.error:
            raise self.error
        self.taken.append(line)

    def close(self):
        self.logged("close")


def full():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")


def test_a_fault_is_said_once_and_what_comes_later_is_tried():
    said, observer = [], Failing(full())
    with Extras(said.append) as extras:
        guarded = extras.observe("curves", lambda: observer)
        for step in (1, 2):
            guarded.logged(step)
        observer.error = None
        guarded.logged(3)
        for event in (guarded.began, guarded.stopped):
            event(1, None)
    assert said == ["curves cannot be written: No space left on device; the run goes on without"]
    assert observer.taken == [3, "close"]
    assert extras.report() == "not written, or not all of it: curves (No space left on device)"


def test_an_observer_that_cannot_begin_or_end_stops_nothing():
    def make():
        raise ValueError("no")

    said = []
    with Extras(said.append) as extras:
        extras.observe("one", make).logged(1)
        extras.observe("two", lambda: Failing(full()))
        extras.at_end("three", make)
    assert [text.partition(" ")[0] for text in said] == ["one", "two", "three"]
    assert "one (ValueError: no), two (No space" in extras.report()


def test_what_ends_a_run_passes():
    extras = Extras(print)
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), extras.attempt("x"):
            raise kind
    assert extras.report() == ""
