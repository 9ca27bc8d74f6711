"""The train step and the evaluation step as pure functions of the state and a batch.

Data flow of a step, each name assigned once:

    key -> select -> selection -> model -> loss -> grads (packed) -> pruning', optimizer -> params'
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.training.devices import ONE, Devices
from pbr_jax.training.mover import Mover
from pbr_jax.training.pruned_model import Batch, PrunedModel
from pbr_jax.training.state import TrainState
from pbr_jax.training.task import LOSS, Task, scaled

PyTree = Any


class StepMetrics(NamedTuple):
    """Scalars of one step, float32 but for `finite`."""

    loss: jax.Array  # mean over the batch, of what its task counts
    figures: dict[str, jax.Array]  # means of what the task counts beside it, such as accuracy
    grad_norm: jax.Array  # global, before clipping
    finite: jax.Array  # bool; False means that the update was not applied


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
WEIGHT = "weight"
EvalStep = Callable[[tuple[PyTree, PyTree], Batch], dict[str, jax.Array]]


def make_train_step(
    model: PrunedModel,
    mover: Mover,
    *,
    accumulation_steps: int = 1,
    importance_weighting: bool = False,
    devices: Devices = ONE,
    rates: Callable[[PyTree], PyTree] | None = None,
    task: Task | None = None,
) -> TrainStep:
    """The train step `(state, batch) -> (state, metrics)`; jit it with the state donated.

    Args:
      model: what is trained, and who chooses its rows.
      mover: who draws and moves them.
      accumulation_steps: micro-batches per step; one selection serves them all.
      importance_weighting: divide kept rows by their probability (Theorem 1) or not (the authors'
        code).
      devices: that share the batch, each with a part of it.
      rates: `params -> factors on the learning rate`, a number for each leaf; None is 1 for all.
      task: whose examples may weigh differently in the mean over a batch; None: they do not.

    A step whose loss or gradient is not finite changes neither parameters nor optimizer nor
    policies.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        # 1. Draw, before the forward pass, what will be kept (Algorithm 1, lines 5-6).
        _, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        drawn = mover.draw(state)
        selection = drawn.selection

        # 2. Forward and backward pass; the gradient of a pruned kernel has the drawn rows alone.
        # What a mean is taken over is counted before the batch is split.
        if task is not None:
            batch = scaled(task, batch, devices.mean)
        trained, frozen = model.split(state.params, selection)
        (value, figures, extra), grads = _accumulate(
            model.loss,
            trained,
            frozen,
            state.extra,
            selection,
            batch,
            dropout_key,
            devices,
            accumulation_steps,
        )
        value, figures, extra = devices.mean((value, figures, extra))
        # Means over devices are taken of what is packed: the fewest bytes on the wire.
        packed = devices.reduced(model.pack(selection, grads))
        weighted = (
            model.unbias(drawn.pruning, selection, packed) if importance_weighting else packed
        )
        grad_norm = mover.norm(weighted)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)

        # 3. The optimizer moves the drawn rows, and finds their squared norms on the way.
        # Barrier: otherwise XLA computes row indices in the forward pass and keeps them alive
        # through the backward pass.
        selection, finite = jax.lax.optimization_barrier((selection, finite))
        slices = devices.own(model.slices(selection, state.params))
        factors = None if rates is None else rates(state.params)
        params, opt_state, norms = mover.update(
            weighted, drawn, state.params, slices, finite, factors
        )

        # 4. The policies learn from the norms (line 24), as they were before any division by p.
        squared_norms = None if importance_weighting else devices.added(norms)
        learned = model.learn(
            drawn.pruning, selection, packed, state.step, squared_norms, devices.added
        )
        pruning, extra = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (learned, extra),
            (state.pruning, state.extra),
        )
        new = TrainState(state.step + 1, state.key, params, opt_state, pruning, extra)
        new = new._replace(opt_state=mover.end(new))
        return new, StepMetrics(value, figures, grad_norm, finite)

    return train_step


def make_eval_step(model: PrunedModel, task: Task, devices: Devices = ONE) -> EvalStep:
    """`(variables, batch) -> {"loss", each figure and "weight": sum}`, where `mask` is True.

    The weight is that of the examples: means are sums by it.
    """

    def eval_step(variables: tuple[PyTree, PyTree], batch: Batch) -> dict[str, jax.Array]:
        size = jax.tree.leaves(batch)[0].shape[0]
        outputs = model.outputs(variables, batch, devices.part(size))
        weights = jnp.ones(size) if task.weights is None else task.weights(batch)
        values = {
            LOSS: task.losses(outputs, batch),
            **task.figures(outputs, batch),
            WEIGHT: weights,
        }
        wide = {name: value.astype(jnp.float32) for name, value in values.items()}
        sums = {name: jnp.sum(jnp.where(batch["mask"], v, 0.0)) for name, v in wide.items()}
        return devices.total(sums)

    return eval_step


def _accumulate(loss, trained, frozen, extra, selection, batch, key, devices, steps: int):
    """`((loss, figures, extra), gradients)`, means over micro-batches; extra is the last."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    size = jax.tree.leaves(batch)[0].shape[0] // steps

    def step(extra, micro, key):
        given = (trained, frozen, extra, selection, micro, key, devices.part(size))
        (value, (figures, extra)), grads = gradient(*given)
        return extra, (value, figures, grads)

    if steps == 1:
        extra, (value, figures, grads) = step(extra, batch, key)
        return (value, figures, extra), grads

    def micro(carry, inputs):
        (extra, total), (index, part) = carry, inputs
        extra, out = step(extra, part, jax.random.fold_in(key, index))
        return (extra, jax.tree.map(jnp.add, total, out)), None

    parts = jax.tree.map(lambda a: a.reshape(steps, a.shape[0] // steps, *a.shape[1:]), batch)
    first = jax.tree.map(lambda a: a[0], parts)
    # A sum needs a place to start, of the shapes that one part gives.
    _, shapes = jax.eval_shape(step, extra, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (extra, total), _ = jax.lax.scan(micro, (extra, zeros), (jnp.arange(steps), parts))
    value, figures, grads = jax.tree.map(lambda t: t / steps, total)
    return (value, figures, extra), grads
