"""A configuration as working parts: the one place where settings meet the library."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pbr_jax import methods, pruning
from pbr_jax.configs.common import Config
from pbr_jax.configs.common import Keep as ConfigKeep
from pbr_jax.memory.use import MemoryUse, saved_bytes, tree_bytes
from pbr_jax.models import Bert, Classifier, ViT
from pbr_jax.plans import SITES, Keep, ResidualPlan, budget_for
from pbr_jax.training import pretrained, selection
from pbr_jax.training.optimizer import learning_rate, make_optimizer
from pbr_jax.training.state import TrainState, init_state
from pbr_jax.training.step import (
    EvalStep,
    TrainStep,
    make_eval_step,
    make_loss,
    make_train_step,
    split_params,
)


class Sizes(NamedTuple):
    """Sizes of a transformer: D, L, H and the hidden width of the MLP."""

    width: int
    depth: int
    heads: int
    mlp_dim: int


class Parts(NamedTuple):
    """What a run is made of.

    Attributes:
      method: as resolved.
      model: the Flax module, with the method's residual plan.
      tx: optimizer with clipping and schedule.
      selector: chooses columns and tensors.
      schedule: step -> learning rate.
      train_step: `(state, batch) -> (state, metrics)`, not yet jitted.
      eval_step: `(params, batch) -> (summed loss, correct)`, not yet jitted.
    """

    method: methods.Method
    model: Classifier
    tx: optax.GradientTransformation
    selector: selection.Selector
    schedule: optax.Schedule
    train_step: TrainStep
    eval_step: EvalStep


def build(config: Config) -> Parts:
    """All parts of the run that `config` describes.

    Raises:
      ValueError: settings that each are valid do not go together.
    """
    method, sizes = resolve_method(config), model_sizes(config)
    budgets = column_budgets(config, method, sizes)
    plan = method.plan
    if plan.linear == "columns":  # a site without a budget is trained dense
        keep = {site: getattr(plan.keep, site) if site in budgets else 1.0 for site in SITES}
        plan = dataclasses.replace(plan, keep=Keep(**keep))
    model, o = make_model(config, plan), config.optimizer
    schedule = learning_rate(o.learning_rate, config.steps, o.warmup_steps, o.schedule)
    tx = make_optimizer(
        o.name,
        schedule,
        momentum=o.momentum,
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
    )
    selector = make_selector(config, method, sizes, budgets)
    train_step = make_train_step(
        model,
        tx,
        selector,
        num_blocks=sizes.depth,
        accumulation_steps=o.accumulation_steps,
        interval=config.pruning.interval,
        importance_weighting=config.pruning.importance_weighting,
        implementation=plan.implementation,
    )
    return Parts(method, model, tx, selector, schedule, train_step, make_eval_step(model))


def make_model(config: Config, plan: ResidualPlan) -> Classifier:
    """The model of the configured family and sizes."""
    m, sizes, dtype = config.model, model_sizes(config)._asdict(), jnp.dtype(config.model.dtype)
    if m.family == "bert":
        return Bert(
            **sizes,
            vocab_size=m.vocab_size,
            max_length=m.max_length,
            num_classes=m.num_classes,
            dropout=m.dropout,
            dtype=dtype,
            plan=plan,
        )
    return ViT(
        **sizes,
        patch=m.patch,
        image_size=m.image_size,
        num_classes=m.num_classes,
        channels=m.channels,
        pool=m.pool,
        dropout=m.dropout,
        dtype=dtype,
        plan=plan,
    )


def resolve_method(config: Config) -> methods.Method:
    """The method named in `config` with its overrides."""
    p = config.pruning
    return methods.resolve(
        config.method,
        keep=_keep(config),
        policy=p.policy,
        joint_spar=p.joint_spar,
        attention_keep=p.attention_keep,
        **{
            field.name: getattr(config.plan, field.name)
            for field in dataclasses.fields(config.plan)
        },
    )


def _keep(config: Config) -> float | Keep | None:
    """Keep as the library has it; sites that a setting per site leaves open take the method's."""
    keep = config.pruning.keep
    if not isinstance(keep, ConfigKeep):
        return keep
    own = methods.resolve(config.method).plan.keep
    return Keep(**{s: getattr(own, s) if (v := getattr(keep, s)) is None else v for s in SITES})


def model_sizes(config: Config) -> Sizes:
    """The sizes in `config`, given there one by one or by name."""
    m = config.model.resolved()
    if m.width is None or m.depth is None or m.heads is None or m.mlp_dim is None:
        raise ValueError(f"model = {m}: needs width, depth, heads and mlp_dim, or else size")
    return Sizes(m.width, m.depth, m.heads, m.mlp_dim)


def column_budgets(config: Config, method: methods.Method, sizes: Sizes) -> dict[str, int]:
    """K of each site where a policy chooses columns; not of those that keep all of them."""
    if method.plan.linear != "columns":
        return {}
    if method.policy is None:
        raise ValueError(
            f"plan.linear = 'columns': method {config.method!r} has no policy to choose columns;"
            " take a method that has one, such as prebackrazor"
        )
    budgets = {}
    for site, columns in num_columns(sizes).items():
        keep = getattr(method.plan.keep, site)
        budget = budget_for(keep, columns, config.pruning.group_size)
        if budget < columns:
            budgets[site] = budget
    return budgets


def make_selector(
    config: Config, method: methods.Method, sizes: Sizes, budgets: Mapping[str, int]
) -> selection.Selector:
    """Policies of all sites that have a budget, and of all tensors."""
    p, columns = config.pruning, num_columns(sizes)
    learning = pruning.Learning(step_size=p.step_size, min_prob=p.min_prob, offset=p.offset)
    policies = {}
    for site, budget in budgets.items():
        assert method.policy is not None
        policies[site] = pruning.make_policy(
            method.policy,
            columns[site],
            budget,
            group_size=p.group_size,
            sampler=p.sampler,
            learning=learning,
        )
    spar = None
    if method.joint_spar is not None:
        spar = pruning.joint_spar(
            sizes.depth,
            method.joint_spar,
            interval=p.joint_spar_interval,
            step_size=p.joint_spar_step_size,
        )
    joined = pruning.stacked(policies, sizes.depth)
    return selection.make_selector(joined, spar, sizes.depth, SITES, ("kernel", "bias"))


def num_columns(sizes: Sizes) -> dict[str, int]:
    """D of each site."""
    return {"qkv": sizes.width, "proj": sizes.width, "fc1": sizes.width, "fc2": sizes.mlp_dim}


def num_tokens(config: Config) -> int:
    """N: tokens of an example, padding included."""
    m = config.model.resolved()
    if m.family == "bert":
        return m.max_length
    return (m.image_size // m.patch) ** 2 + (m.pool == "cls")


def random_params(config: Config, model: Classifier) -> Any:
    """Fresh parameters, float32."""
    example = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), model.input_specs(1))
    return model.init(jax.random.key(config.seed), model.inputs(example))["params"]


def init_params(config: Config, model: Classifier) -> tuple[Any, list[str]]:
    """Fresh or pretrained parameters, and notes on the conversion of the latter."""
    params = random_params(config, model)
    if config.model.weights is None:
        return params, []
    loaded = pretrained.load_weights(config.model, model, params)
    return jax.tree.map(jnp.asarray, loaded.params), loaded.notes


def new_state(config: Config, parts: Parts, params: Any) -> TrainState:
    """The state before the first step."""
    run_key = jax.random.fold_in(jax.random.key(config.seed), 1)  # 0 gave the parameters
    return init_state(run_key, params, parts.tx, parts.selector)


def state_shapes(config: Config, parts: Parts) -> TrainState:
    """The train state as shapes and dtypes."""
    return jax.eval_shape(lambda: new_state(config, parts, random_params(config, parts.model)))


def batch_specs(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch."""
    inputs = make_model(config, ResidualPlan()).input_specs(config.batch_size)
    return inputs | {"label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)}


def memory_use(config: Config) -> MemoryUse:
    """Bytes that a step of the configured run needs: read off its program, nothing is computed."""
    parts = build(config)
    state = state_shapes(config, parts)
    _, drawn = jax.eval_shape(parts.selector.select, state.key, state.pruning, state.step)
    trained, frozen = jax.eval_shape(split_params, state.params, drawn)
    micro = config.batch_size // config.optimizer.accumulation_steps
    batch = {
        name: jax.ShapeDtypeStruct((micro, *spec.shape[1:]), spec.dtype)
        for name, spec in batch_specs(config).items()
    }
    loss = make_loss(parts.model, parts.model.depth)
    return MemoryUse(
        parameters=tree_bytes(state.params),
        gradients=tree_bytes(trained),
        optimizer=tree_bytes(state.opt_state),
        activations=saved_bytes(
            lambda *args: loss(*args)[0], trained, frozen, drawn, batch, state.key
        ),
    )
