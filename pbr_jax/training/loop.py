"""The training loop: steps, evaluations, checkpoints, and an orderly stop."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import optax

from pbr_jax.training.state import TrainState
from pbr_jax.training.step import WEIGHT, Batch, EvalStep, StepMetrics, TrainStep
from pbr_jax.training.task import better

Figures = dict[str, float]


class Diverged(ArithmeticError):
    """The loss or the gradient of a step is not finite."""


class Batches(Protocol):
    """An endless iterator over training batches whose position can be saved."""

    def __next__(self) -> Batch: ...

    def state(self) -> dict[str, Any]: ...


Save = Callable[[int, TrainState, dict[str, Any], Figures | None], None]
"""`(step, state, position, figures of its evaluation)`: starts to save a state."""


class Intervals(NamedTuple):
    """Steps between two log lines, evaluations and checkpoints; the last step has all three."""

    log: int
    evaluate: int
    save: int


class Run(NamedTuple):
    """A training, ready to begin or to go on."""

    state: TrainState  # after `start` steps; `train` donates it
    start: int  # finished steps
    steps: int  # of the whole run
    train_step: TrainStep  # compiled, its state donated
    evaluate: Callable[[Any], Figures]  # `variables -> {"loss" and each figure: mean}`, test
    batches: Batches  # at the position of `start`
    schedule: optax.Schedule  # step -> learning rate
    batch_size: int  # examples of a step
    every: Intervals
    criterion: str  # the figure whose best value makes the best checkpoint, see `Task.best`
    best: float | None = None  # that value before `start`; a better one is saved at once
    save: Save = lambda step, state, position, evaluated: None
    wait: Callable[[], None] = lambda: None  # returns when what is being saved is on disk


class Outcome(NamedTuple):
    """How a run ended: after its last step, or earlier because it was asked to stop."""

    state: TrainState
    step: int
    stopped: bool
    test: Figures  # of the last evaluation in this process, empty without one


class Observer:
    """Told what happens in a run; what a subclass does not override, it ignores."""

    def began(self, step: int, state: TrainState) -> None:
        """The run begins or goes on after `step`."""

    def stepped(self, step: int, metrics: StepMetrics) -> None:
        """`step` was given to the device; its metrics may not be there yet."""

    def logged(self, line: dict[str, float]) -> None:
        """A line of metrics: `step`, `loss`, the task's figures, rates and times."""

    def evaluated(self, step: int, state: TrainState, test: Figures, improved: bool) -> None:
        """The test split was evaluated; `improved`: it is the best so far."""

    def stopped(self, step: int, state: TrainState) -> None:
        """The run was asked to stop, and `step` is saved."""


def train(
    run: Run,
    observers: Sequence[Observer] = (),
    stop_requested: Callable[[int], bool] = lambda step: False,
) -> Outcome:
    """Runs steps `start + 1 ... steps`.

    Args:
      run: its state is donated.
      observers: told of everything, in their order.
      stop_requested: asked once after every step; when it says so, the state is saved first.

    Raises:
      Diverged: a step was not finite; its update was not applied. It is noticed one step later, so
        that the device never waits for the host.
    """
    state, best, every = run.state, run.best, run.every
    for observer in observers:
        observer.began(run.start, state)
    previous: StepMetrics | None = None
    test: Figures = {}
    since, since_step = time.monotonic(), run.start
    for step in range(run.start + 1, run.steps + 1):
        state, metrics = run.train_step(state, next(run.batches))
        if previous is not None:
            check_finite(step - 1, previous)
        previous = metrics
        for observer in observers:
            observer.stepped(step, metrics)
        last = step == run.steps
        # Asked once: a signal that comes later waits for the next step.
        stopping = stop_requested(step)
        logging = last or step % every.log == 0  # a stop leaves no line that a straight run lacks
        evaluating = last or step % every.evaluate == 0
        saving = last or stopping or step % every.save == 0
        if not (logging or evaluating or saving):
            continue

        # Only now does the host wait for the device: nothing is said or saved of a broken step.
        check_finite(step, metrics)
        seconds = (time.monotonic() - since) / (step - since_step)
        if logging:
            line = _line(run, step, metrics, seconds)
            for observer in observers:
                observer.logged(line)
        evaluated = None
        if evaluating:
            test = run.evaluate(state.variables)
            evaluated = {run.criterion: test[run.criterion]}
            improved = better(run.criterion, test[run.criterion], best)
            best = test[run.criterion] if improved else best
            saving |= improved
            for observer in observers:
                observer.evaluated(step, state, test, improved)
        if saving:
            run.save(step, state, {"batches": run.batches.state(), "best": best}, evaluated)
        if stopping:
            run.wait()
            for observer in observers:
                observer.stopped(step, state)
            return Outcome(state, step, not last, test)
        since, since_step = time.monotonic(), step
    run.wait()
    return Outcome(state, run.steps, False, test)


def _line(run: Run, step: int, metrics: StepMetrics, seconds: float) -> dict[str, float]:
    return {
        "step": step,
        "loss": float(metrics.loss),
        **{name: float(value) for name, value in metrics.figures.items()},
        "grad_norm": float(metrics.grad_norm),
        "learning_rate": float(run.schedule(step - 1)),
        "seconds_per_step": seconds,
        "examples_per_second": run.batch_size / seconds,
    }


def check_finite(step: int, metrics: StepMetrics) -> None:
    """Raises `Diverged` if the loss or gradient of `step` was not finite."""
    if not bool(metrics.finite):
        raise Diverged(
            f"step {step}: loss = {float(metrics.loss)}, gradient norm ="
            f" {float(metrics.grad_norm)}\n"
            "its update was not applied, and every checkpoint is finite\n"
            "Try a lower optimizer.learning_rate, a smaller optimizer.clip_norm or a longer"
            " optimizer.warmup_steps."
        )


def make_evaluate(
    eval_step: EvalStep,
    batches: Callable[[], Iterable[Batch]],
    derived: Callable[[Figures], Figures] = lambda means: {},
) -> Callable[[Any], Figures]:
    """`variables -> {"loss" and each figure: mean}` over `batches`, and what is derived of them."""

    def evaluate(variables: Any) -> Figures:
        totals: Figures = {}
        for batch in batches():
            for name, value in eval_step(variables, batch).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        weight = totals.pop(WEIGHT)
        means = {name: total / weight for name, total in totals.items()}
        return means | derived(means)

    return evaluate
