"""Bytes that a train step needs, by purpose: of arrays, and of what differentiation saves."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from pbr_jax.configs.common import Config
from pbr_jax.memory.flops import matrix_flops
from pbr_jax.ops.offload import is_on_host
from pbr_jax.settings.resolve import on_one_device, resolve_method
from pbr_jax.training import from_config
from pbr_jax.training.state import TrainState

PyTree = Any


class MemoryUse(NamedTuple):
    """Bytes that a training step needs, by purpose."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # saved between forward and backward pass, what is offloaded apart

    @property
    def total(self) -> int:
        return sum(self)


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays (or shapes) of a tree; a typed key counts as its data."""
    return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _leaf_bytes(leaf: Any) -> int:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return leaf.size * leaf.dtype.itemsize


class Saved(NamedTuple):
    """Bytes that a function keeps for its gradient."""

    device: int
    host: int  # in the memory of the host, by a plan that offloads


def saved(function: Callable[..., PyTree], primal: PyTree, *others: PyTree) -> Saved:
    """What `function(primal, *others)` keeps for the gradient in `primal`.

    Counts what `jax.vjp` saves, less what is one of the arguments anyway (weights, selections).
    Arguments may be arrays or shapes; nothing is computed.
    """

    def residuals(primal, *others):
        return jax.tree.leaves(jax.vjp(lambda p: function(p, *others), primal)[1])

    # A residual that is an argument, or a constant, is held anyway, and so is one held constant.
    jaxpr = jax.make_jaxpr(residuals)(primal, *others).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "stop_gradient" and eqn.invars[0] in given:
            given.add(eqn.outvars[0])
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)} - given
    away = {v for v in kept if is_on_host(v.aval)}
    return Saved(*(sum(_leaf_bytes(v.aval) for v in each) for each in (kept - away, away)))


def saved_bytes(function: Callable[..., PyTree], primal: PyTree, *others: PyTree) -> int:
    """The bytes of `saved` that a device has to hold."""
    return saved(function, primal, *others).device


@functools.lru_cache(256)  # tracing takes a second
def memory_use(config: Config) -> MemoryUse:
    """Bytes that a step of the configured run needs on a device: read off its program."""
    config = on_one_device(config)
    parts = from_config.build(config)
    state = from_config.state_shapes(config, parts)
    loss, trained, *others = _loss(config, parts, state)
    return MemoryUse(
        parameters=tree_bytes(state.params),
        gradients=tree_bytes(trained),
        optimizer=tree_bytes(state.opt_state),
        activations=saved_bytes(loss, trained, *others),
    )


@functools.lru_cache(256)
def offloaded_bytes(config: Config) -> int:
    """Bytes that a step keeps in the memory of the host between its passes."""
    config = on_one_device(config)
    if not resolve_method(config).plan.offload:
        return 0
    parts = from_config.build(config)
    loss, *args = _loss(config, parts, from_config.state_shapes(config, parts))
    return saved(loss, *args).host


def packed_bytes(config: Config) -> int:
    """Bytes of the gradients of a step that devices exchange, of BERT's word embedding the most."""
    return tree_bytes(exchanged_gradients(config, packed=True))


def exchanged_gradients(config: Config, packed: bool) -> PyTree:
    """The gradients of a step that devices exchange, as shapes in the tree of parameters.

    `packed`: without the blocks that JointSPAR dropped.
    """
    config = on_one_device(config)
    parts = from_config.build(config)
    _, trained, _, _, drawn, *_ = _loss(config, parts, from_config.state_shapes(config, parts))
    return jax.eval_shape(parts.model.pack, drawn, trained) if packed else trained


@functools.lru_cache(256)
def program_flops(config: Config) -> int:
    """Operations of the products of a step: of the forward pass and of both gradients."""
    config = on_one_device(config)
    parts = from_config.build(config)
    loss, *args = _loss(config, parts, from_config.state_shapes(config, parts))
    return config.optimizer.accumulation_steps * matrix_flops(jax.grad(loss), *args)


def _loss(config: Config, parts: from_config.Parts, state: TrainState) -> tuple[Any, ...]:
    """The loss of the part of a batch that runs at a time, and the shapes that it takes."""
    _, drawn = jax.eval_shape(parts.model.select, state.key, state.pruning, state.step)
    trained, frozen = jax.eval_shape(parts.model.split, state.params, drawn)
    micro = config.batch_size // config.optimizer.accumulation_steps
    batch = {
        name: jax.ShapeDtypeStruct((micro, *spec.shape[1:]), spec.dtype)
        for name, spec in from_config.batch_specs(config).items()
    }
    loss = lambda *args: parts.model.loss(*args)[0]  # noqa: E731
    return loss, trained, frozen, state.extra, drawn, batch, state.key
