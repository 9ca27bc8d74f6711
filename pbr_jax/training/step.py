"""The train step and the evaluation step as pure functions of the state and a batch.

Data flow of a step, each name assigned once:

    key -> select -> selection -> model -> loss -> grads (packed) -> pruning', optimizer -> params'
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from pbr_jax.families import KERNEL, Architecture
from pbr_jax.plans import Implementation
from pbr_jax.training import selection as selecting
from pbr_jax.training.optimizer import ALL, Optimizer, update_rows
from pbr_jax.training.sites import layers, with_layers
from pbr_jax.training.state import TrainState
from pbr_jax.training.task import Task

PyTree = Any
Batch = Mapping[str, jax.Array | np.ndarray]


class StepMetrics(NamedTuple):
    """Scalars of one step, float32 but for `finite`."""

    loss: jax.Array  # mean over the batch
    figures: dict[str, jax.Array]  # means of what the task counts beside it, such as accuracy
    grad_norm: jax.Array  # global, before clipping
    finite: jax.Array  # bool; False means that the update was not applied


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[PyTree, Batch], dict[str, jax.Array]]
Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def make_loss(model: nn.Module, task: Task, architecture: Architecture) -> Loss:
    """`loss(trained, frozen, selection, batch, key) -> (loss, figures)`.

    It is differentiated in its first argument: `trained` is the parameter tree with packed zeros
    `[L, K, F]` in place of the kernels that are pruned; `frozen` holds these, `{site: [L, D, F]}`.
    """

    def loss(trained: PyTree, frozen: PyTree, selection, batch: Batch, key: jax.Array):
        # The zeros reach the layers beside the columns; the whole kernels take their place.
        packed = layers(trained, architecture)
        rows = {site: packed[site][KERNEL] for site in frozen}
        params = with_layers(trained, architecture, _kernels(frozen))
        entries = selecting.model_variables(selection, rows, architecture.depth)
        variables = {"params": params, "selection": with_layers({}, architecture, entries)}
        outputs = _outputs(model, variables, batch, train=True, rngs={"dropout": key})
        figures = jax.tree.map(jnp.mean, task.figures(outputs, batch))
        return jnp.mean(task.losses(outputs, batch)), figures

    return loss


def make_train_step(
    model: nn.Module,
    task: Task,
    architecture: Architecture,
    optimizer: Optimizer,
    selector: selecting.Selector,
    *,
    accumulation_steps: int = 1,
    interval: int = 1,
    importance_weighting: bool = False,
    implementation: Implementation | None = None,
    rates: Mapping[str, float] | None = None,
) -> TrainStep:
    """The train step `(state, batch) -> (state, metrics)`; jit it with the state donated.

    Args:
      model, task, architecture: what is trained, and where the layers are that sites feed.
      optimizer, selector: who moves the rows of parameters, and who chooses them.
      accumulation_steps: micro-batches per step; one selection serves them all.
      interval: steps that draw columns with the same random numbers: the same columns where p
        does not change, and nearly the same ones under a policy that learns.
      importance_weighting: divide kept rows by their probability (Theorem 1) or not (the authors'
        code).
      implementation: of the update, see `pbr_jax.ops.dispatch`.
      rates: `{site: factor on the learning rate of its kernel}`; None is 1 for all.

    A step whose loss or gradient is not finite changes neither parameters nor optimizer nor
    policies.
    """
    loss = make_loss(model, task, architecture)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        # 1. Draw, before the forward pass, what will be kept (Algorithm 1, lines 5-6).
        _, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        draw = state.step - state.step % interval
        select_key, _ = jax.random.split(jax.random.fold_in(state.key, draw))
        drawn, selection = selector.select(select_key, state.pruning, state.step)

        # 2. Forward and backward pass; the gradient of a pruned kernel has the drawn rows alone.
        trained, frozen = split_params(state.params, selection, architecture)
        (value, figures), grads = _accumulate(
            loss, trained, frozen, selection, batch, dropout_key, accumulation_steps
        )
        gradients = layers(grads, architecture)
        if importance_weighting:
            unbiased = selector.unbias(drawn, selection, gradients)
            grads = with_layers(grads, architecture, unbiased)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)

        # 3. The optimizer moves the drawn rows, and finds their squared norms on the way.
        # Barrier: otherwise XLA computes row indices in the forward pass and keeps them alive
        # through the backward pass.
        selection, finite = jax.lax.optimization_barrier((selection, finite))
        rows, packed = _pack(selector, selection, grads, state.params, architecture)
        factors = None
        if rates is not None:
            factors = jax.tree.map(lambda _: 1.0, state.params)
            factors = with_layers(factors, architecture, _kernels(rates))
        params, opt_state, norms = update_rows(
            optimizer, packed, state.opt_state, state.params, rows, finite, implementation, factors
        )

        # 4. The policies learn from the norms (line 24), as they were before any division by p.
        squared_norms = None if importance_weighting else layers(norms, architecture)
        learned = selector.update(drawn, selection, gradients, state.step, squared_norms)
        pruning = jax.tree.map(lambda new, old: jnp.where(finite, new, old), learned, state.pruning)
        return (
            TrainState(state.step + 1, state.key, params, opt_state, pruning),
            StepMetrics(value, figures, grad_norm, finite),
        )

    return train_step


def make_eval_step(model: nn.Module, task: Task) -> EvalStep:
    """`(params, batch) -> {"loss" and each figure: sum}` over the examples whose `mask` is True."""

    def eval_step(params: PyTree, batch: Batch) -> dict[str, jax.Array]:
        outputs = _outputs(model, {"params": params}, batch)
        values = {"loss": task.losses(outputs, batch), **task.figures(outputs, batch)}
        wide = {name: value.astype(jnp.float32) for name, value in values.items()}
        return {name: jnp.sum(jnp.where(batch["mask"], v, 0.0)) for name, v in wide.items()}

    return eval_step


def split_params(
    params: PyTree, selection: selecting.Selection, architecture: Architecture
) -> tuple[PyTree, dict[str, jax.Array]]:
    """`(trained, frozen)` for `make_loss`: pruned kernels become zeros of the packed shape."""
    own = layers(params, architecture)
    frozen = {site: own[site][KERNEL] for site in selection.columns}
    rows = {
        site: jnp.zeros((*selection.columns[site].shape, kernel.shape[-1]), kernel.dtype)
        for site, kernel in frozen.items()
    }
    return with_layers(params, architecture, _kernels(rows)), frozen


def _kernels(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {site: {KERNEL: array} for site, array in arrays.items()}


def _accumulate(loss, trained, frozen, selection, batch, key, steps: int):
    """`((loss, figures), gradients)`, means over so many micro-batches."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if steps == 1:
        return gradient(trained, frozen, selection, batch, key)

    def micro(total, inputs):
        index, part = inputs
        out = gradient(trained, frozen, selection, part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, out), None

    parts = jax.tree.map(lambda a: a.reshape(steps, a.shape[0] // steps, *a.shape[1:]), batch)
    first = jax.tree.map(lambda a: a[0], parts)
    # A sum needs a place to start, of the shapes that one part gives.
    shapes = jax.eval_shape(gradient, trained, frozen, selection, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(micro, zeros, (jnp.arange(steps), parts))
    return jax.tree.map(lambda t: t / steps, total)


def _pack(selector, selection, grads, params, architecture: Architecture) -> tuple[PyTree, PyTree]:
    """Rows and packed gradients for `update_rows`."""
    rows = with_layers(jax.tree.map(lambda _: ALL, params), architecture, selector.rows(selection))
    packed = selector.pack(selection, layers(grads, architecture))
    return rows, with_layers(grads, architecture, packed)


def _outputs(model: nn.Module, variables: PyTree, batch: Batch, **kwargs: Any) -> Any:
    return model.apply(variables, model.inputs(batch), **kwargs)  # no collection is mutable
