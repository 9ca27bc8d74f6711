"""Methods side by side: same data per seed, exact continuation, times in turn."""

import dataclasses

import pytest

from pbr_jax.compare import trials
from pbr_jax.configs import digits
from pbr_jax.training.inputs import load_data

CONFIG = dataclasses.replace(digits.get_config("tiny"), steps=6, eval_every=2)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def contestant():
    return trials.prepare(CONFIG)


@pytest.fixture(scope="module")
def dataset():
    return load_data(CONFIG)


def without_clock(trial):
    return [point._replace(seconds=0) for point in trial.curve]


def test_an_interrupted_trial_goes_on_exactly(contestant, dataset, tmp_path):
    whole = trials.run_trial(contestant, 1, dataset, tmp_path / "whole")
    assert [point.step for point in whole.curve] == [2, 4, 6]
    assert whole.accuracy == whole.curve[-1].accuracy

    def kill(step):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        trials.run_trial(contestant, 1, dataset, tmp_path / "cut", kill)
    steps = []
    resumed = trials.run_trial(contestant, 1, dataset, tmp_path / "cut", steps.append)
    assert steps == [5, 6]
    assert without_clock(resumed) == without_clock(whole)
    assert not (tmp_path / "cut").exists()
    other = trials.run_trial(contestant, 2, dataset, tmp_path / "other")
    assert without_clock(other) != without_clock(whole)


def test_times_are_ratios_within_rounds(contestant, dataset, monkeypatch):
    monkeypatch.setattr(trials, "_SECONDS", 0.0)
    batch = next(trials.train_batches(CONFIG, dataset))
    timing = trials.time_against(contestant, contestant, batch)
    assert timing.seconds > 0
    assert timing.spread[0] <= timing.to_full <= timing.spread[1]


def test_a_contestant_knows_its_memory(contestant):
    assert contestant.activation_bytes > 0
    assert contestant.peak_bytes > 0


@pytest.mark.slow
def test_a_device_without_statistics_measures_nothing():
    assert trials.measured_peak(CONFIG) is None
