"""Methods compiled once each and trained on the same data and seeds."""

import dataclasses
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pbr_jax import data
from pbr_jax.configs.common import Config
from pbr_jax.gpu import memory as compiled_memory
from pbr_jax.memory.room import check_room
from pbr_jax.memory.use import MemoryUse, memory_use
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.training import from_config
from pbr_jax.training.begin import begin, compile_step
from pbr_jax.training.loop import Observer, train
from pbr_jax.training.state import TrainState
from pbr_jax.training.step import StepMetrics


class Prepared(NamedTuple):
    """A method that is ready to run: one compilation serves its timing and all of its seeds."""

    config: Config  # with the method in it
    parts: from_config.Parts
    step: jax.stages.Compiled  # `(state, batch) -> (state, metrics)`; it donates the state
    use: MemoryUse
    peak_bytes: int  # of the step as its compiler planned it, arguments included

    @property
    def planned(self) -> dict[str, int]:
        """Bytes that a step saves for its backward pass, and the compiler's plan of it."""
        need = compiled_memory(self.step)
        saved = {"saved_bytes": self.use.activations}
        return {**saved, **need._asdict(), "peak_bytes": need.peak_bytes}


class Point(NamedTuple):
    """One evaluation of a trial."""

    step: int
    seconds: float  # of training so far, evaluations excluded
    loss: float  # mean training loss since the point before
    test_loss: float
    accuracy: float  # on the test split


class Trial(NamedTuple):
    """One training run to its end."""

    accuracy: float
    curve: list[Point]


def prepare(config: Config) -> Prepared:
    """Builds and compiles `config` for the device at hand.

    Raises:
      ValueError: it needs more memory than there is.
    """
    check_room(config)
    parts = from_config.build(config)
    step, use = compile_step(config, parts), memory_use(config)
    return Prepared(config, parts, step, use, compiled_memory(step).peak_bytes)


def run_trial(
    contestant: Prepared,
    seed: int,
    dataset: data.Dataset,
    folder: Path,
    on_step: Callable[[int], None] = lambda step: None,
) -> Trial:
    """Trains to the end with `seed`; every method of a seed sees the same batches.

    Checkpoints go to `folder` at every evaluation, so that an interrupted trial goes on exactly
    where it was; a complete trial removes it. `on_step` gets the number of finished steps.

    Raises:
      Diverged: the loss or gradient of a step was not finite.
    """
    # A trial stops, saves and reports at its evaluations only, whatever its configuration says.
    every = contestant.config.eval_every
    config = dataclasses.replace(
        contestant.config, seed=seed, log_every=every, checkpoint_every=every
    )
    parts, curve = contestant.parts, _Curve(on_step)
    with Checkpointer(folder, keep=1) as checkpoints:
        saved = checkpoints.restore(from_config.state_shapes(config, parts))
        if saved is not None:
            # The curve is part of what a trial resumes.
            curve.points = [Point(**point) for point in saved.data_state["curve"]]

        def save(step: int, state: TrainState, position: dict[str, Any], evaluated: Any) -> None:
            curve_so_far = [point._asdict() for point in curve.points]
            checkpoints.save(step, state, position | {"curve": curve_so_far}, evaluated)

        run, _ = begin(config, parts, dataset, saved, contestant.step)
        train(run._replace(save=save, wait=checkpoints.wait), (curve,))
    shutil.rmtree(folder, ignore_errors=True)
    return Trial(curve.points[-1].accuracy, curve.points)


class _Curve(Observer):
    """Points of a trial, one for each evaluation."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self.points: list[Point] = []
        self._on_step = on_step
        self._losses: list[jax.Array] = []
        self._since = 0  # the step of the last line
        self._seconds = 0.0

    def began(self, step: int, state: TrainState) -> None:
        self._since = step
        self._seconds = self.points[-1].seconds if self.points else 0.0

    def stepped(self, step: int, metrics: StepMetrics) -> None:
        self._losses.append(metrics.loss)
        self._on_step(step)

    def logged(self, line: dict[str, float]) -> None:
        self._seconds += line["seconds_per_step"] * (line["step"] - self._since)
        self._since = int(line["step"])

    def evaluated(
        self, step: int, state: TrainState, test: dict[str, float], improved: bool
    ) -> None:
        loss = statistics.fmean(map(float, self._losses))
        self.points.append(Point(step, self._seconds, loss, test["loss"], test["accuracy"]))
        self._losses = []
