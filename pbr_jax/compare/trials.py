"""Methods compiled once each and trained on the same data and seeds."""

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from pbr_jax import data
from pbr_jax.configs.common import Config
from pbr_jax.gpu import memory as compiled_memory
from pbr_jax.memory.use import MemoryUse
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.training import from_config
from pbr_jax.training.inputs import make_inputs
from pbr_jax.training.loop import check_finite, make_evaluate


class Prepared(NamedTuple):
    """A method that is ready to run: one compilation serves its timing and all of its seeds.

    Attributes:
      config: with the method in it.
      parts: what the run is made of.
      step: the compiled train step `(state, batch) -> (state, metrics)`; it donates the state.
      use: bytes by purpose, what is saved between forward and backward pass among them.
      peak_bytes: memory of the step as its compiler planned it, arguments included.
    """

    config: Config
    parts: from_config.Parts
    step: jax.stages.Compiled
    use: MemoryUse
    peak_bytes: int

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
    accuracy: float  # on the test split


class Trial(NamedTuple):
    """One training run to its end."""

    accuracy: float
    curve: list[Point]


def prepare(config: Config) -> Prepared:
    """Builds and compiles `config` for the device at hand."""
    parts = from_config.build(config)
    shapes = from_config.state_shapes(config, parts)
    step = jax.jit(parts.train_step, donate_argnums=0)
    compiled = step.lower(shapes, from_config.batch_specs(config)).compile()
    use = from_config.memory_use(config)
    return Prepared(config, parts, compiled, use, compiled_memory(compiled).peak_bytes)


def run_trial(
    contestant: Prepared,
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
            curve.append(Point(step, seconds, loss, test["accuracy"]))
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
