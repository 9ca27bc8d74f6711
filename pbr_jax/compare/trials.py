"""Methods side by side: compiled once each, timed in turn, trained on the same data and seeds."""

import dataclasses
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax import data
from pbr_jax.configs.common import Config
from pbr_jax.gpu import memory as compiled_memory
from pbr_jax.memory.use import MemoryUse, memory_use
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.training import from_config
from pbr_jax.training.begin import begin, compile_step
from pbr_jax.training.inputs import make_inputs
from pbr_jax.training.loop import Observer, train
from pbr_jax.training.state import TrainState
from pbr_jax.training.step import Batch, StepMetrics

_ROUNDS = (5, 40)  # fewest and most
_SECONDS = 4.0  # spent on timing one method, if the fewest rounds allow


class Contestant(NamedTuple):
    """A method that is ready to run: one compilation serves its timing and all of its seeds.

    Attributes:
      config: with the method in it.
      parts: of the run.
      step: the compiled train step `(state, batch) -> (state, metrics)`; it donates the state.
      use: bytes by purpose, what is saved between forward and backward pass among them.
      peak_bytes: of the compiled step, as its compiler planned it, arguments included.
    """

    config: Config
    parts: from_config.Parts
    step: jax.stages.Compiled
    use: MemoryUse
    peak_bytes: int

    @property
    def activation_bytes(self) -> int:
        """Saved between forward and backward pass."""
        return self.use.activations


class Point(NamedTuple):
    """One evaluation of a trial."""

    step: int
    seconds: float  # of training so far, evaluations excluded
    loss: float  # mean training loss since the point before
    accuracy: float  # on the test split


class Trial(NamedTuple):
    """One training run to its end."""

    accuracy: float
    curve: list[Point]


class Timing(NamedTuple):
    """Seconds per step, and their ratio to full fine-tuning within each round."""

    seconds: float  # median
    to_full: float  # median of the ratios
    spread: tuple[float, float]  # their quartiles


def prepare(config: Config) -> Contestant:
    """Builds and compiles `config` for the device at hand."""
    parts = from_config.build(config)
    step, use = compile_step(config, parts), memory_use(config)
    return Contestant(config, parts, step, use, compiled_memory(step).peak_bytes)


def time_against(full: Contestant, other: Contestant, batch: Batch) -> Timing:
    """Times both in turn, so that a drift of the machine cancels in the ratio."""
    pair = [full, other]
    states = [_warm(contestant, batch) for contestant in pair]
    spent: list[list[float]] = [[], []]
    began = time.perf_counter()
    while len(spent[0]) < _ROUNDS[0] or (
        len(spent[0]) < _ROUNDS[1] and time.perf_counter() - began < _SECONDS
    ):
        for i, contestant in enumerate(pair):
            start = time.perf_counter()
            states[i], _ = contestant.step(states[i], batch)
            jax.block_until_ready(states[i])
            spent[i].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*spent, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Timing(statistics.median(spent[1]), middle, (low, high))


def _warm(contestant: Contestant, batch: Batch) -> Any:
    params = from_config.random_params(contestant.config, contestant.parts.model)
    state = from_config.new_state(contestant.config, contestant.parts, params)
    state, _ = contestant.step(state, batch)
    return jax.block_until_ready(state)


def run_trial(
    contestant: Contestant,
    seed: int,
    dataset: data.Dataset,
    folder: Path,
    on_step: Callable[[int], None] = lambda step: None,
) -> Trial:
    """Trains to the end with `seed`; every method of a seed sees the same batches.

    Args:
      contestant: the method.
      seed: of parameters, data order, dropout and columns.
      dataset: as `data.load` gives it.
      folder: for checkpoints at every evaluation: an interrupted trial goes on exactly where it
        was. It is removed when the trial is complete.
      on_step: called with the number of finished steps.

    Raises:
      Diverged: the loss or gradient of a step was not finite.
    """
    config = dataclasses.replace(
        contestant.config,
        seed=seed,
        log_every=contestant.config.eval_every,
        checkpoint_every=contestant.config.eval_every,
    )
    parts, curve = contestant.parts, _Curve(on_step)
    with Checkpointer(folder, keep=1) as checkpoints:
        saved = checkpoints.restore(from_config.state_shapes(config, parts))
        if saved is not None:
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
        self.points.append(Point(step, self._seconds, loss, test["accuracy"]))
        self._losses = []


def train_batches(config: Config, dataset: data.Dataset) -> data.TrainBatches:
    """The batches of a run, as `train.py` has them."""
    return data.TrainBatches(
        dataset.train, make_inputs(config), config.batch_size, config.seed, config.data.workers
    )


def measured_peak(config: Config) -> int | None:
    """Peak bytes in use on the accelerator after two steps in a process of their own, or None.

    Call it before this process has used its accelerator: a GPU's memory would be taken.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure_peak, (config,))


def _measure_peak(config: Config) -> int | None:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if jax.local_devices()[0].memory_stats() is None:
        return None
    contestant = prepare(config)
    specs = from_config.batch_specs(config)
    batch = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    state = _warm(contestant, batch)
    jax.block_until_ready(contestant.step(state, batch))
    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
