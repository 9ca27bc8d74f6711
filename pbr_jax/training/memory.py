"""How many bytes a train step keeps and needs, known before it runs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.configs.common import Config
from pbr_jax.training import from_config
from pbr_jax.training.console import MemoryUse
from pbr_jax.training.state import TrainState
from pbr_jax.training.step import make_loss, split_params

PyTree = Any


def memory_use(config: Config) -> MemoryUse:
    """What a step of the configured run keeps, in bytes: properties of the program, nothing is computed."""
    parts = from_config.build(config)
    state = state_shapes(config, parts)
    _, selection = jax.eval_shape(parts.selector.select, state.key, state.pruning, state.step)
    trained, frozen = jax.eval_shape(split_params, state.params, selection)
    micro = config.batch_size // config.optimizer.accumulation_steps
    batch = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((micro, *s.shape[1:]), s.dtype), from_config.batch_specs(config)
    )
    loss = make_loss(parts.model, parts.model.depth)
    return MemoryUse(
        parameters=tree_bytes(state.params),
        gradients=tree_bytes(trained),
        optimizer=tree_bytes(state.opt_state),
        activations=saved_bytes(loss, trained, frozen, selection, batch, state.key, has_aux=True),
    )


def state_shapes(config: Config, parts: from_config.Parts) -> TrainState:
    """The train state as shapes and dtypes."""

    def create():
        return from_config.new_state(config, parts, from_config.random_params(config, parts.model))

    return jax.eval_shape(create)


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays (or shapes) of a tree; a typed key counts as its data."""
    return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _leaf_bytes(leaf: Any) -> int:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return leaf.size * leaf.dtype.itemsize


def saved_bytes(function: Callable[..., Any], primal: PyTree, *others: PyTree, has_aux: bool = False) -> int:
    """Bytes that `function(primal, *others)` keeps for the gradient in `primal`.

    Counts what `jax.vjp` saves, less what is one of the arguments anyway (weights, selections). Arguments may be
    arrays or shapes; nothing is computed.
    """

    def saved(primal, *others):
        return jax.tree.leaves(jax.vjp(lambda p: function(p, *others), primal, has_aux=has_aux)[1])

    jaxpr = jax.make_jaxpr(saved)(primal, *others).jaxpr
    inputs = {id(v) for v in (*jaxpr.invars, *jaxpr.constvars)}
    kept = {id(v): v.aval for v in jaxpr.outvars if id(v) not in inputs}
    return sum(map(_leaf_bytes, kept.values()))
