"""The beginning of a training, or the point from which it goes on."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax

from pbr_jax import data
from pbr_jax.configs.common import Config
from pbr_jax.training import from_config
from pbr_jax.training.cuts import SPLIT_FROM
from pbr_jax.training.from_config import Parts
from pbr_jax.training.inputs import make_inputs
from pbr_jax.training.loop import Intervals, Run, make_evaluate
from pbr_jax.training.mesh import ONE_DEVICE, Placement
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


def train_batches(
    config: Config, dataset: data.Dataset, placement: Placement = ONE_DEVICE
) -> data.TrainBatches:
    """The batches of a run, from its first: the samples that this process prepares."""
    places = placement.places(config.batch_size, config.optimizer.accumulation_steps)
    how = (make_inputs(config), config.batch_size, config.seed, config.data.workers)
    return data.TrainBatches(dataset.train, *how, places=places.tolist())


def begin(
    config: Config,
    parts: Parts,
    dataset: data.Dataset,
    saved: Saved | None = None,
    train_step: TrainStep | None = None,
    alive: Callable[[], None] = lambda: None,
) -> tuple[Run, list[str]]:
    """A run at its first step, or at a checkpoint, and notes on what it starts from.

    Args:
      config, dataset: of the run, with as many classes as the model.
      parts: built from `config`, or from a run that differs in the seed only.
      saved: the checkpoint from which it goes on, position of the data included.
      train_step: of `parts`, compiled; None compiles at the first step.
      alive: called after every step and after every batch of an evaluation.

    Raises:
      WeightsError: the configured weights do not fit.
    """
    place = parts.placement
    batches = train_batches(config, dataset, place)
    # Parameters are drawn or loaded only where no checkpoint replaces them.
    state: TrainState
    if saved is None:
        params, extra, notes = parts.model.begin(config.seed, dataset.class_names)
        # Moments lie where their parameters do, and of a large model no device has room for all.
        params = parts.placement.state(params)
        state, start, best = from_config.new_state(config, parts, params, extra), 0, None
    else:
        state, start, notes = saved.state, saved.step, []
        best = saved.data_state["best"]
        batches.restore(saved.data_state["batches"])
    if config.mesh.fsdp > 1 and not place.split:
        notes = [
            *notes,
            f"mesh.fsdp = {config.mesh.fsdp}: nothing is split, since no parameter has"
            f" {SPLIT_FROM / 2**20:g} MiB and outputs that so many devices can share",
        ]
    step = train_step or place.jit(parts.train_step, donate_argnums=0)
    how = (make_inputs(config), config.batch_size, config.data.workers)
    places = place.places(config.batch_size).tolist()
    test = functools.partial(data.eval_batches, dataset.test, *how, places)
    eval_step = on_batches(parts, place.jit(parts.eval_step), alive)
    run = Run(
        place.state(state) if saved is None else state,
        start,
        config.steps,
        train_step=on_batches(parts, step, alive),
        evaluate=make_evaluate(eval_step, test, parts.task.derived),
        batches=batches,
        schedule=parts.schedule,
        batch_size=config.batch_size,
        every=Intervals(config.log_every, config.eval_every, config.checkpoint_every),
        criterion=parts.task.best,
        best=best,
    )
    return run, notes


def on_batches(
    parts: Parts, step: Callable[..., Any], alive: Callable[[], None] = lambda: None
) -> Callable[..., Any]:
    """A jitted or compiled step of `parts` that takes batches as they come from the data."""

    def taken(state: Any, batch: Any) -> Any:
        result = step(state, parts.placement.batch(batch))
        alive()
        return result

    return taken


def compile_step(config: Config, parts: Parts) -> jax.stages.Compiled:
    """The train step, compiled for the device at hand; it donates the state."""
    step = parts.placement.jit(parts.train_step, donate_argnums=0)
    shapes = from_config.state_shapes(config, parts)
    return step.lower(shapes, from_config.batch_specs(config)).compile()
