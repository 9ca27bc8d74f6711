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
from pbr_jax.memory.use import MemoryUse
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.training import from_config
from pbr_jax.training.inputs import make_inputs
from pbr_jax.training.loop import check_finite, make_evaluate
from pbr_jax.training.step import Batch

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
    test_loss: float  # its mean


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
    shapes = from_config.state_shapes(config, parts)
    step = jax.jit(parts.train_step, donate_argnums=0)
    compiled = step.lower(shapes, from_config.batch_specs(config)).compile()
    use = from_config.memory_use(config)
    return Contestant(config, parts, compiled, use, compiled_memory(compiled).peak_bytes)


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
    config = dataclasses.replace(contestant.config, seed=seed)
    parts = contestant.parts
    inputs, workers = make_inputs(config), config.data.workers
    evaluate = make_evaluate(
        jax.jit(parts.eval_step),
        lambda: data.eval_batches(dataset.test, inputs, config.batch_size, workers),
    )
    batches = train_batches(config, dataset)
    with Checkpointer(folder, keep=1) as checkpoints:
        restored = checkpoints.restore(from_config.state_shapes(config, parts))
        if restored is None:
            params, _ = from_config.init_params(config, parts.model)
            state, curve = from_config.new_state(config, parts, params), []
        else:
            state = restored.state
            curve = [Point(**point) for point in restored.data_state["curve"]]
            batches.restore(restored.data_state["batches"])
        seconds = curve[-1].seconds if curve else 0.0
        losses: list[jax.Array] = []
        start = time.perf_counter()
        for step in range((curve[-1].step if curve else 0) + 1, config.steps + 1):
            state, metrics = contestant.step(state, next(batches))
            losses.append(metrics.loss)
            on_step(step)
            if step % config.eval_every and step < config.steps:
                continue
            check_finite(step, metrics)
            jax.block_until_ready(state)
            seconds += time.perf_counter() - start
            loss = statistics.fmean(map(float, losses))
            test = evaluate(state.params)
            curve.append(Point(step, seconds, loss, test["accuracy"], test["loss"]))
            if step < config.steps:
                position = {"batches": batches.state(), "curve": [p._asdict() for p in curve]}
                checkpoints.save(step, state, position)
            losses, start = [], time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    return Trial(curve[-1].accuracy, curve)


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
