"""A configuration as working parts: the one place where settings meet the library."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pbr_jax import data, methods, pruning
from pbr_jax.checkpoints import vit_npz
from pbr_jax.configs.common import Config
from pbr_jax.configs.common import Keep as ConfigKeep
from pbr_jax.models.vit import ViT
from pbr_jax.plans import SITES, Keep
from pbr_jax.training import selection
from pbr_jax.training.optimizer import learning_rate, make_optimizer
from pbr_jax.training.state import TrainState, init_state
from pbr_jax.training.step import Batch, StepMetrics, make_eval_step, make_train_step

_PACKAGE = Path(__file__).resolve().parents[1]


class Parts(NamedTuple):
    """What a run is made of.

    Attributes:
      method: the resolved method.
      model: the Flax module, with the method's residual plan.
      tx: optimizer with clipping and schedule.
      selector: chooses columns and tensors.
      schedule: step -> learning rate.
      train_step: `(state, batch) -> (state, metrics)`, not yet jitted.
      eval_step: `(params, batch) -> (summed loss, correct)`, not yet jitted.
    """

    method: methods.Method
    model: ViT
    tx: optax.GradientTransformation
    selector: selection.Selector
    schedule: optax.Schedule
    train_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
    eval_step: Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


def build(config: Config) -> Parts:
    """All parts of the run that `config` describes.

    Raises:
      ValueError: settings that each are valid do not go together.
    """
    method = resolve_method(config)
    sizes = config.model.resolved()
    model = ViT(
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        mlp_dim=sizes.mlp_dim,
        patch=sizes.patch,
        image_size=sizes.image_size,
        num_classes=sizes.num_classes,
        channels=sizes.channels,
        pool=sizes.pool,
        dropout=sizes.dropout,
        dtype=jnp.dtype(sizes.dtype),
        plan=method.plan,
    )
    o = config.optimizer
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
    selector = make_selector(config, method)
    train_step = make_train_step(
        model,
        tx,
        selector,
        num_blocks=model.depth,
        accumulation_steps=o.accumulation_steps,
        importance_weighting=config.pruning.importance_weighting,
    )
    return Parts(method, model, tx, selector, schedule, train_step, make_eval_step(model))


def resolve_method(config: Config) -> methods.Method:
    """The method named in `config` with its overrides."""
    p = config.pruning
    return methods.resolve(
        config.method,
        keep=_keep(config),
        policy=p.policy,
        joint_spar=p.joint_spar,
        attention_keep=p.attention_keep,
        **{field.name: getattr(config.plan, field.name) for field in dataclasses.fields(config.plan)},
    )


def _keep(config: Config) -> float | Keep | None:
    """Keep as the library has it; sites that a per-site setting leaves open take the method's own."""
    keep = config.pruning.keep
    if not isinstance(keep, ConfigKeep):
        return keep
    own = methods.resolve(config.method).plan.keep
    return Keep(**{s: getattr(own, s) if (v := getattr(keep, s)) is None else v for s in SITES})


def make_selector(config: Config, method: methods.Method) -> selection.Selector:
    """Policies of all sites and tensors."""
    p, sizes = config.pruning, config.model.resolved()
    depth, columns = sizes.depth, num_columns(sizes.width, sizes.mlp_dim)
    policies = {}
    if method.plan.linear == "columns":
        for site in SITES:
            keep = getattr(method.plan.keep, site)
            budget = pruning.budget_for(keep, columns[site], p.group_size)
            if budget == columns[site]:
                continue  # nothing to choose: the site is trained dense
            policy = pruning.make_policy(
                method.policy,
                columns[site],
                budget,
                group_size=p.group_size,
                sampler=p.sampler,
                step_size=p.step_size,
                min_prob=p.min_prob,
                offset=p.offset,
            )
            policies[site] = pruning.stacked(policy, depth)
    tensors = {}
    if method.joint_spar is not None:
        spar = pruning.joint_spar(
            depth, method.joint_spar, interval=p.joint_spar_interval, step_size=p.joint_spar_step_size
        )
        tensors = dict.fromkeys(SITES, spar)
    return selection.make_selector(policies, tensors, columns, depth)


def num_columns(width: int, mlp_dim: int) -> dict[str, int]:
    """D of each site."""
    return {"qkv": width, "proj": width, "fc1": width, "fc2": mlp_dim}


def random_params(config: Config, model: ViT) -> Any:
    """Fresh parameters, float32."""
    shape = (1, model.image_size, model.image_size, model.channels)
    return model.init(jax.random.key(config.seed), jnp.zeros(shape, model.dtype))["params"]


def init_params(config: Config, model: ViT) -> tuple[Any, list[str]]:
    """Fresh or pretrained parameters, and notes on the conversion of the latter."""
    params = random_params(config, model)
    if config.model.weights is None:
        return params, []
    loaded = vit_npz.load(find_weights(config.model.weights), params, model.heads)
    return jax.tree.map(jnp.asarray, loaded.params), loaded.notes


def find_weights(name: str) -> Path:
    """The path as given, or, where there is none, the file of that name that the package ships."""
    path, shipped = Path(name), _PACKAGE / name
    return shipped if shipped.is_file() and not path.is_file() else path


def new_state(config: Config, parts: Parts, params: Any) -> TrainState:
    """The state before the first step."""
    run_key = jax.random.fold_in(jax.random.key(config.seed), 1)  # 0 gave the parameters
    return init_state(run_key, params, parts.tx, parts.selector)


def batch_specs(config: Config) -> Batch:
    """Shapes and dtypes of a training batch."""
    m, b = config.model.resolved(), config.batch_size
    return {
        "image": jax.ShapeDtypeStruct((b, m.image_size, m.image_size, m.channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((b,), jnp.int32),
    }


def load_data(config: Config) -> data.Dataset:
    """The data set named in `config`."""
    return data.load(config.data.name, path=config.data.path)
