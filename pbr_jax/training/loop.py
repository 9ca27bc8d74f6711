"""The training loop: steps, evaluations, checkpoints, and an orderly stop."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import optax

from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.runs.console import Console
from pbr_jax.runs.history import PruningHistory
from pbr_jax.runs.metrics import MetricsWriter
from pbr_jax.runs.signals import StopSignals
from pbr_jax.training.state import TrainState
from pbr_jax.training.step import Batch, EvalStep, StepMetrics, TrainStep


class Diverged(ArithmeticError):
    """The loss or the gradient of a step is not finite."""


class Batches(Protocol):
    """An endless iterator over training batches whose position can be saved."""

    def __next__(self) -> Batch: ...

    def state(self) -> dict[str, Any]: ...


class Intervals(NamedTuple):
    """Steps between two log lines, evaluations and checkpoints; the last step has all three."""

    log: int
    evaluate: int
    save: int


class Outcome(NamedTuple):
    """How a run ended: after its last step, or earlier by a signal."""

    state: TrainState
    step: int
    accuracy: float | None  # of the last evaluation in this process
    stopped: bool


def train(
    state: TrainState,
    start: int,
    steps: int,
    *,
    train_step: TrainStep,
    evaluate: Callable[[Any], dict[str, float]],
    batches: Batches,
    schedule: optax.Schedule,
    batch_size: int,
    best: float,
    every: Intervals,
    checkpoints: Checkpointer,
    history: PruningHistory,
    writer: MetricsWriter,
    console: Console,
    stop: StopSignals,
) -> Outcome:
    """Runs steps `start + 1 ... steps`.

    Args:
      state: after step `start`; it is donated.
      train_step: compiled, its state donated.
      evaluate: `params -> {"loss", "accuracy"}` on the test split.
      best: highest test accuracy before `start`. A better one is saved at once.
      stop: asked after every step; when it asks to stop, the state is saved first.

    Raises:
      Diverged: a step was not finite; its update was not applied. It is noticed one step later, so
        that the device never waits for the host.
    """
    history.record(start, state.pruning)
    accuracy, previous = None, None
    since, since_step = time.monotonic(), start
    for step in range(start + 1, steps + 1):
        state, metrics = train_step(state, next(batches))
        if previous is not None:
            check_finite(step - 1, previous)
        previous = metrics
        console.step(step)
        last = step == steps
        stopping = stop.requested  # asked once: a signal that comes later waits for the next step
        logging = last or stopping or step % every.log == 0
        evaluating = last or step % every.evaluate == 0
        saving = last or stopping or step % every.save == 0
        if not (logging or evaluating or saving):
            continue

        check_finite(step, metrics)
        seconds = (time.monotonic() - since) / (step - since_step)
        if logging:
            line = {
                "step": step,
                "loss": float(metrics.loss),
                "accuracy": float(metrics.accuracy),
                "grad_norm": float(metrics.grad_norm),
                "learning_rate": float(schedule(step - 1)),
                "seconds_per_step": seconds,
                "examples_per_second": batch_size / seconds,
            }
            writer.write(line)
            console.train(line)
        evaluated = None
        if evaluating:
            test = evaluate(state.params)
            accuracy = test["accuracy"]
            evaluated = {"accuracy": accuracy}
            improved = accuracy > best
            best = max(best, accuracy)
            saving |= improved
            writer.write({"step": step, **test}, "test")
            console.evaluation(step, test, improved)
            history.record(step, state.pruning)
        if saving:
            position = {"batches": batches.state(), "best": best}
            checkpoints.save(step, state, position, evaluated)
        if stopping:
            checkpoints.wait()
            history.record(step, state.pruning)
            return Outcome(state, step, accuracy, stopped=not last)
        since, since_step = time.monotonic(), step
    checkpoints.wait()
    return Outcome(state, steps, accuracy, stopped=False)


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
) -> Callable[[Any], dict[str, float]]:
    """`params -> {"loss", "accuracy"}` over all examples whose `mask` is True."""

    def evaluate(params: Any) -> dict[str, float]:
        total = correct = count = 0.0
        for batch in batches():
            loss, hits = eval_step(params, batch)
            total += float(loss)
            correct += float(hits)
            count += float(batch["mask"].sum())
        return {"loss": total / count, "accuracy": correct / count}

    return evaluate
