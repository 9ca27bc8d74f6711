"""The watch over a job, with clocks and processes of the test's own."""

import contextlib
import io

import pytest
from fake_texts import texts_of

from pbr_jax.hosts import watch
from pbr_jax.hosts.watch import Watch


class Process:
    """A process of a job whose watch looks when the test says so."""

    def __init__(self, index, store, now):
        self.ended, self.said, self.cleared = None, "", 0
        self.watch = Watch(store, index, f"process {index}", self.clear, self.end, now)
        self.watch.timeout = 10

    def clear(self):
        self.cleared += 1
        return "checkpoint 3 is complete"

    def end(self, code):
        self.ended = code

    def look(self):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.watch.look()
        self.said += said.getvalue()


@pytest.fixture
def job(monkeypatch):
    """Two processes, and a function that lets seconds pass."""
    monkeypatch.setattr(watch, "LINGER", 0.0)
    now = [100.0]
    processes = [Process(i, store, lambda: now[0]) for i, store in enumerate(texts_of(2))]

    def wait(seconds, *looking):
        for _ in range(seconds):
            now[0] += 1
            for process in looking or processes:
                process.look()

    return *processes, wait


def test_a_job_that_goes_on_is_left_alone(job):
    first, second, wait = job
    for _ in range(20):
        first.watch.alive()
        second.watch.alive()
        wait(9)
    assert first.ended is None and second.ended is None


def test_a_process_without_signs_of_life_is_gone(job):
    first, second, wait = job
    first.watch.timeout = second.watch.timeout = 100
    wait(3)
    wait(29, first)
    assert first.ended is None
    wait(3, first)
    assert first.ended == 1 and first.cleared == 1
    assert first.said.startswith("process 1 is gone: no sign of life for 30 s")
    assert first.said.rstrip().endswith("checkpoint 3 is complete")


@pytest.mark.parametrize("behind", [0, 1])
def test_the_process_that_keeps_others_waiting_is_named(job, behind):
    first, second, wait = job
    for process in (first, second, (second, first)[behind]):
        process.watch.alive()
    wait(10)
    assert first.ended is None
    wait(2)
    for process in (first, second):
        assert process.ended == 1
        assert process.said.startswith(f"process {behind} is stuck: the others have waited 11 s")


def test_a_step_that_none_finishes_is_told(job):
    first, second, wait = job
    first.watch.alive()
    second.watch.alive()
    wait(12)
    assert second.ended == 1
    assert first.said.startswith("no process has got further for 11 s: mesh.timeout = 10 s")


def test_a_save_may_take_its_time(job):
    first, second, wait = job
    saved = first.watch.patiently(second.watch.patiently(lambda a: wait(50) or a + 1))
    assert saved(1) == 2
    assert first.ended is None
    wait(12)  # and then the next step is due
    assert first.ended == second.ended == 1


def test_what_is_no_step_has_an_hour(job):
    first, second, wait = job
    for process in (first, second):
        process.watch.timeout = None
    wait(3599)
    assert first.ended is None
    wait(2)
    assert first.said.startswith("no process has got further for 3601 s: allowed are 3600 s")


def test_who_fails_speaks_for_itself_and_the_others_say_why(job):
    first, second, wait = job
    assert second.watch.end_job("process 1 failed: bird.jpg: not an image")
    assert not first.watch.end_job("lost process 1")  # it was not the first to say so
    wait(1)
    assert (second.ended, second.said) == (None, "")
    assert first.ended == 1
    assert first.said.startswith("process 1 failed: bird.jpg: not an image\n")
