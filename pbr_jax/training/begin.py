"""The beginning of a training, or the point from which it goes on."""

import functools
from typing import Any, Protocol

import jax

from pbr_jax import data
from pbr_jax.configs.common import Config
from pbr_jax.training import from_config
from pbr_jax.training.from_config import Parts
from pbr_jax.training.inputs import make_inputs
from pbr_jax.training.loop import Intervals, Run, make_evaluate
from pbr_jax.training.state import TrainState
from pbr_jax.training.step import TrainStep


class Saved(Protocol):
    """A checkpoint: the state after `step` steps, and the position that was saved with it."""

    @property
    def step(self) -> int: ...
    @property
    def state(self) -> Any: ...
    @property
    def data_state(self) -> dict[str, Any]: ...


def train_batches(config: Config, dataset: data.Dataset) -> data.TrainBatches:
    """The batches of a run, from its first."""
    how = (make_inputs(config), config.batch_size, config.seed, config.data.workers)
    return data.TrainBatches(dataset.train, *how)


def begin(
    config: Config,
    parts: Parts,
    dataset: data.Dataset,
    saved: Saved | None = None,
    train_step: TrainStep | None = None,
) -> tuple[Run, list[str]]:
    """A run at its first step, or at a checkpoint, and notes on the weights that it starts from.

    Args:
      config, dataset: of the run, with as many classes as the model.
      parts: built from `config`, or from a run that differs in the seed only.
      saved: the checkpoint from which it goes on, position of the data included.
      train_step: of `parts`, compiled; None compiles at the first step.

    Raises:
      WeightsError: the configured weights do not fit.
    """
    batches = train_batches(config, dataset)
    # Parameters are drawn or loaded only where no checkpoint replaces them.
    state: TrainState
    if saved is None:
        params, extra, notes = parts.model.begin(config.seed, dataset.class_names)
        state, start, best = from_config.new_state(config, parts, params, extra), 0, -1.0
    else:
        state, start, notes = saved.state, saved.step, []
        best = saved.data_state["best"]
        batches.restore(saved.data_state["batches"])
    how = (make_inputs(config), config.batch_size, config.data.workers)
    test = functools.partial(data.eval_batches, dataset.test, *how)
    run = Run(
        state,
        start,
        config.steps,
        train_step=train_step or jax.jit(parts.train_step, donate_argnums=0),
        evaluate=make_evaluate(jax.jit(parts.eval_step), test),
        batches=batches,
        schedule=parts.schedule,
        batch_size=config.batch_size,
        every=Intervals(config.log_every, config.eval_every, config.checkpoint_every),
        criterion=parts.task.best,
        best=best,
    )
    return run, notes


def compile_step(config: Config, parts: Parts) -> jax.stages.Compiled:
    """The train step, compiled for the device at hand; it donates the state."""
    step = jax.jit(parts.train_step, donate_argnums=0)
    shapes = from_config.state_shapes(config, parts)
    return step.lower(shapes, from_config.batch_specs(config)).compile()
