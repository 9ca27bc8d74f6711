"""A configuration as working parts: the one place where settings meet the library."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from pbr_jax import methods
from pbr_jax.configs.common import Config, Mesh
from pbr_jax.families import Family, find, late
from pbr_jax.settings.resolve import family_faults, rate_factor, resolve_method
from pbr_jax.training.devices import ONE, Devices
from pbr_jax.training.mesh import Placement, placement
from pbr_jax.training.mover import Mover, whole
from pbr_jax.training.optimizer import Optimizer, learning_rate, make_optimizer
from pbr_jax.training.packed import packed
from pbr_jax.training.pruned_model import PrunedModel
from pbr_jax.training.state import TrainState, init_state
from pbr_jax.training.step import EvalStep, TrainStep, make_eval_step, make_train_step
from pbr_jax.training.task import Task


class Parts(NamedTuple):
    """What a run is made of."""

    method: methods.Method  # as resolved
    family: Family
    task: Task  # loss and figures
    model: PrunedModel  # what is trained, and who chooses of it
    mover: Mover  # who draws and moves its rows: an optimizer, with clipping and schedule
    schedule: optax.Schedule  # step -> learning rate
    train_step: TrainStep  # `(state, batch) -> (state, metrics)`, not yet jitted
    eval_step: EvalStep  # `(variables, batch) -> {name: sum}`, not yet jitted
    placement: Placement  # how arrays lie on the devices, and how steps are jitted for them


def build(config: Config, devices: Sequence[jax.Device] | None = None) -> Parts:
    """All parts of the run that `config` describes, for JAX's devices or, to compile only, others.

    Raises:
      ValueError: settings that each are valid do not go together.
    """
    # What is trained: a model by its family's provider, as the method says.
    method, family = resolve_method(config), find(config.model.family)
    if faults := family_faults(config):
        raise ValueError("\n".join(faults))
    task = late(family.task)
    model = late(family.provider)(config, family, method, task)
    # Who trains it: the optimizer moves the rows that the policies draw.
    o = config.optimizer
    peak = o.learning_rate * rate_factor(config)
    schedule = learning_rate(peak, config.steps, o.warmup_steps, o.schedule)
    names = ("momentum", "b1", "b2", "eps", "weight_decay", "clip_norm")
    place = placement(config, model, method, devices)
    settings = {name: getattr(o, name) for name in names}
    optimizer = make_optimizer(o.name, schedule, **settings, norm=place.devices.norm)
    mover = make_mover(model, optimizer, method, place.devices)
    train_step = make_train_step(
        model,
        mover,
        devices=place.devices,
        accumulation_steps=o.accumulation_steps,
        importance_weighting=config.pruning.importance_weighting,
        task=task,
    )
    eval_step = make_eval_step(model, task, place.devices)
    return Parts(
        method,
        family,
        task,
        model,
        mover,
        schedule,
        place.spread(train_step, moves=True),
        place.spread(eval_step),
        place,
    )


def make_mover(
    model: PrunedModel, optimizer: Optimizer, method: methods.Method, devices: Devices = ONE
) -> Mover:
    """Who moves the rows that the policies draw, as the method says."""
    interval = None if method.interval == "never" else method.interval
    if method.state == "packed":
        draws = None if method.policy is None else interval  # where nobody chooses, nothing changes
        return packed(model, optimizer, interval=draws, devices=devices)
    return whole(model, optimizer, interval=interval, implementation=method.plan.implementation)


def new_state(config: Config, parts: Parts, params: Any, extra: Any = ()) -> TrainState:
    """The state before the first step."""
    run_key = jax.random.fold_in(jax.random.key(config.seed), 1)  # 0 gave the parameters
    return init_state(run_key, params, extra, parts.mover, parts.model)


def state_shapes(config: Config, parts: Parts) -> TrainState:
    """The train state as shapes and dtypes."""
    shapes = jax.eval_shape(lambda *own: new_state(config, parts, *own), *parts.model.shapes())
    return parts.placement.state_shapes(shapes)


def batch_specs(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch."""
    one = dataclasses.replace(config, mesh=Mesh(data=1))  # of all devices, whichever there are
    parts, size = build(one), config.batch_size
    return parts.model.input_specs(size) | parts.task.targets(size)
