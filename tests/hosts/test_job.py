"""What the processes of a job know alike, and the one step at which they stop."""

import signal

import pytest
from fake_texts import texts_of

from pbr_jax.hosts import AgreedStop, Job


def jobs(count=2):
    return [Job(index, count, store) for index, store in enumerate(texts_of(count))]


def test_the_others_have_what_the_first_says():
    first, second = jobs()
    for value in ({"steps": 3}, None, [1, "a"]):
        assert first.shared(value) == value
        assert second.shared("not asked") == value


def test_a_difference_between_processes_is_named():
    first, second, third = jobs(3)
    first.check_same({"jax": "0.11.2", "steps": 10})
    second.check_same({"jax": "0.11.2", "steps": 10})
    with pytest.raises(
        ValueError, match=r"process 2 of 3 on .* has steps 11, process 0 of 3 on .* has 10"
    ):
        third.check_same({"jax": "0.11.2", "steps": 11})


@pytest.mark.parametrize("asked", [0, 1, 2])
@pytest.mark.parametrize("ahead", [0, 1])
def test_all_stop_at_one_step(asked, ahead):
    """Whoever gets the signal, and though the others are one step ahead of the first."""
    received, told = [None] * 3, [[], [], []]
    stops = [
        AgreedStop(job, lambda i=i: received[i], told[i].append) for i, job in enumerate(jobs(3))
    ]
    stopped = [None] * 3
    for step in range(1, 20):
        if step == 7:
            received[asked] = signal.SIGUSR1
        # The first is at `step` when the others are at most one step further.
        for index in (1, 2, 0) if ahead else (0, 1, 2):
            at = step + ahead if index else step
            if stopped[index] is None and stops[index](at):
                stopped[index] = at
    assert len({*stopped}) == 1 and 7 <= stopped[0] <= 11
    assert told == [[signal.SIGUSR1]] * 3


def test_a_process_by_itself_stops_at_once():
    received = [None]
    stop = AgreedStop(Job(), lambda: received[0], lambda number: None)
    assert not stop(1)
    received[0] = signal.SIGTERM
    assert stop(2)
