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

from pbr_jax.models import Classifier
from pbr_jax.plans import SITES, Implementation
from pbr_jax.training import selection as selecting
from pbr_jax.training.optimizer import ALL, update_rows
from pbr_jax.training.state import TrainState

PyTree = Any
Batch = Mapping[str, jax.Array | np.ndarray]


class StepMetrics(NamedTuple):
    """Scalars of one step, float32 but for `finite`.

    Attributes:
      loss, accuracy: means over the batch.
      grad_norm: global norm of all gradients, before clipping.
      finite: bool; False means that the update was not applied.
    """

    loss: jax.Array
    accuracy: jax.Array
    grad_norm: jax.Array
    finite: jax.Array


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[PyTree, Batch], tuple[jax.Array, jax.Array]]


def make_loss(model: Classifier, num_blocks: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`loss(trained, frozen, selection, batch, key) -> (loss, accuracy)`.

    It is differentiated in its first argument: `trained` is the parameter tree with packed zeros
    `[L, K, F]` in place of the kernels that are pruned; `frozen` holds these, `{site: [L, D, F]}`.
    """

    def loss(trained: PyTree, frozen: PyTree, selection, batch: Batch, key: jax.Array):
        rows = {site: trained["blocks"][site]["kernel"] for site in frozen}
        params = _with_kernels(trained, frozen)
        variables = {
            "params": params,
            "selection": {"blocks": selecting.model_variables(selection, rows, num_blocks)},
        }
        logits = _logits(model, variables, batch, train=True, rngs={"dropout": key})
        return _cross_entropy(logits, batch["label"]), _accuracy(logits, batch["label"])

    return loss


def make_train_step(
    model: Classifier,
    tx: optax.GradientTransformation,
    selector: selecting.Selector,
    *,
    num_blocks: int,
    accumulation_steps: int = 1,
    interval: int = 1,
    importance_weighting: bool = False,
    implementation: Implementation | None = None,
) -> TrainStep:
    """The train step `(state, batch) -> (state, metrics)`; jit it with the state donated.

    Args:
      model: its blocks are stacked under `params["blocks"]`, its sites are `pbr_jax.plans.SITES`.
      tx: initialised on all parameters.
      selector: chooses columns and tensors.
      num_blocks: L.
      accumulation_steps: micro-batches per step; one selection serves them all.
      interval: steps that draw columns with the same random numbers: the same columns where p
        does not change, and nearly the same ones under a policy that learns.
      importance_weighting: divide kept rows by their probability (Theorem 1) or not (the authors'
        code).
      implementation: of the optimizer, see `pbr_jax.ops.dispatch`.

    A step whose loss or gradient is not finite changes neither parameters nor optimizer nor
    policies.
    """
    loss = make_loss(model, num_blocks)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        _, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        draw = state.step - state.step % interval
        select_key, _ = jax.random.split(jax.random.fold_in(state.key, draw))
        drawn, selection = selector.select(select_key, state.pruning, state.step)
        trained, frozen = split_params(state.params, selection)
        (value, accuracy), grads = _accumulate(
            loss, trained, frozen, selection, batch, dropout_key, accumulation_steps
        )
        blocks = grads["blocks"]
        if importance_weighting:
            grads = grads | {"blocks": selector.unbias(drawn, selection, blocks)}
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        # Behind the gradients: XLA would number the rows with the columns and hold both all along.
        selection, finite = jax.lax.optimization_barrier((selection, finite))
        rows, packed = _pack(selector, selection, grads, state.params)
        params, opt_state, norms = update_rows(
            tx, packed, state.opt_state, state.params, rows, finite, implementation
        )
        # The optimizer sees the rows divided by p, the policies what they were before.
        seen = None if importance_weighting else norms["blocks"]
        learned = selector.update(drawn, selection, blocks, state.step, seen)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), learned, state.pruning)
        return (
            TrainState(state.step + 1, state.key, params, opt_state, kept),
            StepMetrics(value, accuracy, grad_norm, finite),
        )

    return train_step


def make_eval_step(model: Classifier) -> EvalStep:
    """`(params, batch) -> (summed loss, correct)` over the examples whose `mask` is True."""

    def eval_step(params: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits = _logits(model, {"params": params}, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        mask = batch["mask"]
        return jnp.sum(jnp.where(mask, losses, 0.0)), jnp.sum(correct & mask)

    return eval_step


def split_params(
    params: PyTree, selection: selecting.Selection
) -> tuple[PyTree, dict[str, jax.Array]]:
    """`(trained, frozen)` for `make_loss`: pruned kernels become zeros of the packed shape."""
    frozen = {site: params["blocks"][site]["kernel"] for site in selection.columns}
    rows = {
        site: jnp.zeros((*selection.columns[site].shape, kernel.shape[-1]), kernel.dtype)
        for site, kernel in frozen.items()
    }
    return _with_kernels(params, rows), frozen


def _with_kernels(params: PyTree, kernels: dict[str, jax.Array]) -> PyTree:
    blocks = {s: params["blocks"][s] | {"kernel": kernel} for s, kernel in kernels.items()}
    return params | {"blocks": params["blocks"] | blocks}


def _accumulate(loss, trained, frozen, selection, batch, key, steps: int):
    gradient = jax.value_and_grad(loss, has_aux=True)
    if steps == 1:
        return gradient(trained, frozen, selection, batch, key)

    def micro(total, inputs):
        index, part = inputs
        out = gradient(trained, frozen, selection, part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, out), None

    parts = jax.tree.map(lambda a: a.reshape(steps, a.shape[0] // steps, *a.shape[1:]), batch)
    first = jax.tree.map(lambda a: a[0], parts)
    shapes = jax.eval_shape(gradient, trained, frozen, selection, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(micro, zeros, (jnp.arange(steps), parts))
    return jax.tree.map(lambda t: t / steps, total)


def _pack(selector, selection, grads, params) -> tuple[PyTree, PyTree]:
    """Rows and packed gradients for `update_rows`."""
    rows = jax.tree.map(lambda _: ALL, params)
    for site, named in selector.rows(selection).items():
        rows["blocks"][site] |= named
    sites = selector.pack(selection, {site: grads["blocks"][site] for site in SITES})
    return rows, grads | {"blocks": grads["blocks"] | sites}


def _logits(model: Classifier, variables: PyTree, batch: Batch, **kwargs: Any) -> jax.Array:
    logits = model.apply(variables, model.inputs(batch), **kwargs)
    assert isinstance(logits, jax.Array)  # no collection is mutable
    return logits


def _cross_entropy(logits: jax.Array, labels: Any) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _accuracy(logits: jax.Array, labels: Any) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)
