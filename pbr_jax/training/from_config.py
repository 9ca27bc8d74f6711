"""A configuration as working parts: the one place where settings meet the library."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from pbr_jax import methods, pruning
from pbr_jax.configs.common import Config
from pbr_jax.families import BIAS, KERNEL, Architecture, Family, find, late
from pbr_jax.plans import Keep, ResidualPlan
from pbr_jax.settings.resolve import column_budgets, rate_factor, resolve_method
from pbr_jax.training import pretrained, selection
from pbr_jax.training.optimizer import Optimizer, learning_rate, make_optimizer
from pbr_jax.training.state import TrainState, init_state
from pbr_jax.training.step import EvalStep, TrainStep, make_eval_step, make_train_step
from pbr_jax.training.task import Task


class Parts(NamedTuple):
    """What a run is made of."""

    method: methods.Method  # as resolved
    family: Family
    architecture: Architecture
    task: Task  # loss and figures
    model: nn.Module  # with the method's residual plan
    optimizer: Optimizer  # with clipping and schedule
    selector: selection.Selector  # chooses columns and tensors
    schedule: optax.Schedule  # step -> learning rate
    train_step: TrainStep  # `(state, batch) -> (state, metrics)`, not yet jitted
    eval_step: EvalStep  # `(params, batch) -> {"loss" and each figure: sum}`, not yet jitted


def build(config: Config) -> Parts:
    """All parts of the run that `config` describes.

    Raises:
      ValueError: settings that each are valid do not go together.
    """
    # What is trained: a model under the plan of the method.
    method, family = resolve_method(config), find(config.model.family)
    sizes, task = family.describe(config.model), late(family.task)
    budgets, plan = column_budgets(config, method, sizes), method.plan
    if plan.kind("linear").selects:  # a site without a budget is trained dense
        keep = {site: plan.keep_at(site) if site in budgets else 1.0 for site in sizes.sites}
        plan = dataclasses.replace(plan, keep=Keep(**keep))
    model = late(family.build)(config.model, plan)
    # Who trains it: the optimizer moves the rows that the selector draws.
    o = config.optimizer
    peak = o.learning_rate * rate_factor(config)
    schedule = learning_rate(peak, config.steps, o.warmup_steps, o.schedule)
    names = ("momentum", "b1", "b2", "eps", "weight_decay", "clip_norm")
    optimizer = make_optimizer(o.name, schedule, **{name: getattr(o, name) for name in names})
    selector = make_selector(config, method, sizes, budgets)
    train_step = make_train_step(
        model,
        task,
        sizes,
        optimizer,
        selector,
        accumulation_steps=o.accumulation_steps,
        interval=config.pruning.interval,
        importance_weighting=config.pruning.importance_weighting,
        implementation=plan.implementation,
    )
    eval_step = make_eval_step(model, task)
    return Parts(
        method, family, sizes, task, model, optimizer, selector, schedule, train_step, eval_step
    )


def make_selector(
    config: Config, method: methods.Method, sizes: Architecture, budgets: Mapping[str, int]
) -> selection.Selector:
    """Policies of all sites that have a budget, and of all tensors."""
    p = config.pruning
    learning = pruning.Learning(step_size=p.step_size, min_prob=p.min_prob, offset=p.offset)
    make = functools.partial(
        pruning.make_policy, group_size=p.group_size, sampler=p.sampler, learning=learning
    )
    policies = {}
    for site, budget in budgets.items():
        assert method.policy is not None  # a method without one has no budgets
        policies[site] = make(method.policy, sizes.sites[site].columns, budget)
    spar, every, step_size = None, p.joint_spar_interval, p.joint_spar_step_size
    if (rate := method.joint_spar) is not None:
        spar = pruning.joint_spar(sizes.depth, rate, interval=every, step_size=step_size)
    joined = pruning.stacked(policies, sizes.depth)
    return selection.make_selector(joined, spar, sizes.depth, [*sizes.sites], (KERNEL, BIAS))


def random_params(config: Config, model: nn.Module) -> Any:
    """Fresh parameters, float32."""
    example = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), model.input_specs(1))
    return model.init(jax.random.key(config.seed), model.inputs(example))["params"]


def init_params(
    config: Config, model: nn.Module, class_names: Sequence[str] | None = None
) -> tuple[Any, list[str]]:
    """Fresh or pretrained parameters, and notes on the conversion of the latter.

    `class_names`, label -> name of the data, say which row of a pretrained head is of which class.
    """
    params = random_params(config, model)
    if config.model.weights is None:
        return params, []
    loaded = pretrained.load_weights(config.model, params, class_names)
    return jax.tree.map(jnp.asarray, loaded.params), loaded.notes


def new_state(config: Config, parts: Parts, params: Any) -> TrainState:
    """The state before the first step."""
    run_key = jax.random.fold_in(jax.random.key(config.seed), 1)  # 0 gave the parameters
    return init_state(run_key, params, parts.optimizer, parts.selector)


def state_shapes(config: Config, parts: Parts) -> TrainState:
    """The train state as shapes and dtypes."""
    return jax.eval_shape(lambda: new_state(config, parts, random_params(config, parts.model)))


def batch_specs(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch."""
    family = find(config.model.family)
    model = late(family.build)(config.model, ResidualPlan())
    return model.input_specs(config.batch_size) | late(family.task).targets(config.batch_size)
