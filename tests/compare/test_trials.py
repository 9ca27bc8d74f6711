"""Methods side by side: same data per seed, exact continuation."""

import dataclasses

import pytest

from pbr_jax.compare import trials
from pbr_jax.configs import digits
from pbr_jax.training.inputs import load_data

CONFIG = dataclasses.replace(digits.get_config("tiny"), steps=6, eval_every=2)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def prepared():
    return trials.prepare(CONFIG)


@pytest.fixture(scope="module")
def dataset():
    return load_data(CONFIG)


def without_clock(trial):
    return [point._replace(seconds=0) for point in trial.curve]


def test_an_interrupted_trial_goes_on_exactly(prepared, dataset, tmp_path):
    whole = trials.run_trial(prepared, 1, dataset, tmp_path / "whole")
    assert [point.step for point in whole.curve] == [2, 4, 6]
    assert whole.accuracy == whole.curve[-1].accuracy

    def kill(step):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        trials.run_trial(prepared, 1, dataset, tmp_path / "cut", kill)
    steps = []
    resumed = trials.run_trial(prepared, 1, dataset, tmp_path / "cut", steps.append)
    assert steps == [5, 6]
    assert without_clock(resumed) == without_clock(whole)
    assert not (tmp_path / "cut").exists()
    other = trials.run_trial(prepared, 2, dataset, tmp_path / "other")
    assert without_clock(other) != without_clock(whole)
