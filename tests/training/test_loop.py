"""The loop: when it logs, evaluates and saves, and how it stops."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from fakes import batch, config, random_params

from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.training import from_config
from pbr_jax.training.loop import Diverged, Intervals, Observer, Run, make_evaluate, train
from pbr_jax.training.step import StepMetrics


class State(NamedTuple):
    step: int
    params: str = "params"
    pruning: str = "pruning"
    variables: tuple = ("params", ())


class Batches:
    """An endless iterator that counts its batches."""

    def __init__(self, make):
        self.make, self.given = make, 0

    def __next__(self):
        self.given += 1
        return self.make(self.given)

    def state(self):
        return {"batch_index": self.given}


class Recorder(Observer):
    """Keeps what it is told, in order, in a list that it shares."""

    def __init__(self, events):
        self.events = events

    def began(self, step, state):
        self.events.append(("began", step))

    def logged(self, line):
        self.events.append(("logged", line))

    def evaluated(self, step, state, test, improved):
        self.events.append(("evaluated", step, test, improved))

    def stopped(self, step, state):
        self.events.append(("stopped", step))


class Fake:
    """A run without a model; `events` lists what was told and saved, in order.

    Args:
      accuracies: of the evaluations, one after the other.
      broken: steps whose metrics are not finite.
      signal: `(step, when)`: when it is asked to stop, after `step` "step"s or amid "evaluate".
    """

    def __init__(self, accuracies=(), broken=(), signal=None):
        self.events, self.accuracies, self.broken = [], list(accuracies), broken
        self.signal, self.asked = signal, False
        self.batches = Batches(lambda number: {})

    def arrive(self, step, when):
        self.asked |= (step, when) == self.signal

    def train_step(self, state, batch):
        step = state.step + 1
        self.step = step
        self.arrive(step, "step")
        finite = step not in self.broken
        loss = np.float32(step if finite else np.nan)
        figures = {"accuracy": np.float32(0.5)}
        return State(step), StepMetrics(loss, figures, np.float32(2.0), np.bool_(finite))

    def evaluate(self, params):
        self.arrive(self.step, "evaluate")
        return {"loss": 1.0, "accuracy": self.accuracies.pop(0)}

    def save(self, step, state, position, evaluated):
        self.events.append(("save", step, position, evaluated))

    def __call__(self, steps, start=0, best=-1.0, **every):
        run = Run(
            State(start),
            start,
            steps,
            train_step=self.train_step,
            evaluate=self.evaluate,
            batches=self.batches,
            schedule=lambda count: 0.1 * count,
            batch_size=16,
            every=Intervals(**{"log": 1000, "evaluate": 1000, "save": 1000} | every),
            criterion="accuracy",
            best=best,
            save=self.save,
            wait=lambda: self.events.append(("wait",)),
        )
        return train(run, (Recorder(self.events),), lambda step: self.asked)

    def steps_of(self, name, pick=lambda event: event[1]):
        return [pick(event) for event in self.events if event[0] == name]


def test_everything_happens_at_its_interval_and_at_the_last_step():
    run = Fake(accuracies=[0.5, 0.4, 0.3])
    outcome = run(10, log=3, evaluate=4, save=5)
    assert (outcome.step, outcome.state.step, outcome.stopped) == (10, 10, False)
    assert outcome.test == {"loss": 1.0, "accuracy": 0.3}
    assert run.steps_of("logged", lambda event: event[1]["step"]) == [3, 6, 9, 10]
    assert run.steps_of("evaluated") == [4, 8, 10]
    assert run.steps_of("began") == [0]
    assert run.steps_of("save") == [4, 5, 10]  # 4 is the best so far
    assert run.events[-1] == ("wait",)


def test_a_line_of_metrics_holds_python_numbers():
    run = Fake(accuracies=[0.5])
    run(2, log=2)
    (line,) = run.steps_of("logged")
    seconds = line["seconds_per_step"]
    assert line == {
        "step": 2,
        "loss": 2.0,
        "accuracy": 0.5,
        "grad_norm": 2.0,
        "learning_rate": 0.1,  # that of the step, which counts from 0
        "seconds_per_step": seconds,
        "examples_per_second": 16 / seconds,
    }
    assert {type(value) for value in line.values()} == {int, float}


def test_a_checkpoint_knows_its_data_position_and_the_best_accuracy():
    run = Fake(accuracies=[0.6, 0.5, 0.9, 0.1])
    run(7, evaluate=2, save=5, best=0.55)
    assert run.steps_of("save", lambda event: event[1:]) == [
        (2, {"batches": {"batch_index": 2}, "best": 0.6}, {"accuracy": 0.6}),
        (5, {"batches": {"batch_index": 5}, "best": 0.6}, None),
        (6, {"batches": {"batch_index": 6}, "best": 0.9}, {"accuracy": 0.9}),
        (7, {"batches": {"batch_index": 7}, "best": 0.9}, {"accuracy": 0.1}),
    ]


def test_only_a_better_accuracy_than_before_resuming_is_the_best():
    run = Fake(accuracies=[0.6, 0.7])
    run(4, start=2, evaluate=1, best=0.65)
    assert run.steps_of("evaluated", lambda event: event[3]) == [False, True]
    assert run.steps_of("save") == [4]


def test_a_resumed_run_goes_on_from_its_step():
    run = Fake(accuracies=[0.5])
    outcome = run(5, start=3, log=1)
    assert run.batches.given == 2
    assert run.steps_of("logged", lambda event: event[1]["step"]) == [4, 5]
    assert outcome.step == 5


def test_a_run_that_was_at_its_end_does_nothing():
    run = Fake()
    outcome = run(5, start=5)
    assert (outcome.step, outcome.test, outcome.stopped) == (5, {}, False)
    assert run.batches.given == 0 and run.steps_of("save") == []


# --- stopping ---


def test_a_signal_saves_the_step_it_came_in():
    run = Fake(signal=(3, "step"))
    outcome = run(10)
    assert (outcome.step, outcome.stopped, run.batches.given) == (3, True, 3)
    assert run.steps_of("save") == [3]
    assert run.steps_of("logged") == []  # a run that never stopped has no line of this step
    assert ("wait",) in run.events  # the checkpoint is whole before the program ends
    assert run.events[-1] == ("stopped", 3)


def test_a_signal_amid_an_evaluation_saves_the_next_step():
    """It came after the loop had decided not to save: that step must not be the last."""
    run = Fake(accuracies=[0.1], signal=(4, "evaluate"))
    outcome = run(10, evaluate=4, best=0.9)
    assert (outcome.step, outcome.stopped) == (5, True)
    assert run.steps_of("save") == [5]


def test_a_signal_in_the_last_step_does_not_stop_a_run_that_is_done():
    run = Fake(accuracies=[0.5], signal=(4, "step"))
    outcome = run(4)
    assert (outcome.step, outcome.stopped) == (4, False)
    assert run.steps_of("save") == [4]


# --- diverging ---


def test_a_step_that_is_not_finite_is_named_one_step_later():
    run = Fake(broken=[3])
    with pytest.raises(
        Diverged, match=r"(?s)^step 3: loss = nan.*update was not applied.*learning"
    ):
        run(10)
    assert run.batches.given == 4
    assert run.steps_of("save") == []


@pytest.mark.parametrize("every", ["log", "evaluate", "save"])
def test_nothing_is_said_or_saved_of_a_step_that_is_not_finite(every):
    run = Fake(broken=[3])
    with pytest.raises(Diverged, match=r"^step 3:"):
        run(10, **{every: 3})
    assert run.batches.given == 3
    assert run.events == [("began", 0)]


def test_the_last_step_is_looked_at_too():
    with pytest.raises(Diverged, match=r"^step 4:"):
        Fake(accuracies=[0.5], broken=[4])(4)


def test_a_run_that_diverges_leaves_a_finite_checkpoint(tmp_path):
    """A real model, a real checkpoint, and a batch with a NaN in it."""
    settings = config("full")
    parts = from_config.build(settings)
    state = from_config.new_state(settings, parts, random_params(parts.model.module))

    def examples(number):
        drawn = batch(seed=number)
        drawn["image"][0, 0, 0, 0] = np.nan if number == 4 else 0.0
        return drawn

    told = []
    with Checkpointer(tmp_path / "checkpoints", 2) as checkpoints:
        run = Run(
            state,
            0,
            10,
            train_step=jax.jit(parts.train_step, donate_argnums=0),
            evaluate=None,
            batches=Batches(examples),
            schedule=lambda count: 0.1,
            batch_size=8,
            every=Intervals(log=100, evaluate=100, save=3),
            criterion="accuracy",
            save=checkpoints.save,
            wait=checkpoints.wait,
        )
        with pytest.raises(Diverged, match=r"^step 4: loss = nan, gradient norm = nan"):
            train(run, (Recorder(told),))
        checkpoints.wait()
        restored = checkpoints.restore(from_config.state_shapes(settings, parts))
    assert restored.step == int(restored.state.step) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.state.params))
    assert told == [("began", 0)]


# --- evaluating ---


def test_evaluation_weighs_examples_alike():
    batches = [
        {"loss": 6.0, "accuracy": 3, "weight": 3},
        {"loss": 4.0, "accuracy": 0, "weight": 1},  # filled up
    ]
    seen = []

    def eval_step(params, batch):
        seen.append(params)
        return batch

    evaluate = make_evaluate(
        eval_step, lambda: iter(batches), lambda means: {"twice": 2 * means["loss"]}
    )
    for _ in range(2):  # the batches are asked for anew
        assert evaluate("params") == {"loss": 2.5, "accuracy": 0.75, "twice": 5.0}
    assert seen == ["params"] * 4
