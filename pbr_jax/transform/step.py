"""`pbr_jax.train_step`: the loop around a pruned model in one function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pbr_jax.freeze import freeze_unselected
from pbr_jax.transform.packed_update import packed_update
from pbr_jax.transform.policies import State
from pbr_jax.transform.pruned import Pruned

PyTree = Any


class TrainState(NamedTuple):
    """Everything that a training changes: one pytree, to be kept and donated as a whole.

    Attributes:
      step: int32, steps done.
      params: of the model.
      extra: what an NNX module changes beside them; empty for others.
      opt_state: of the optimizer.
      pruning: of the policies.
    """

    step: jax.Array
    params: PyTree
    extra: PyTree
    opt_state: PyTree
    pruning: State


class TrainStep(NamedTuple):
    """Two pure functions.

    Attributes:
      init: `params -> TrainState`; of an NNX model, `module -> TrainState`.
      step: `(state, key, *batch) -> (state, loss)`, or `(state, (loss, aux))`. Give it to `jax.jit`
        with `donate_argnums=0`. The key draws the columns and is consumed.
    """

    init: Callable[[PyTree], TrainState]
    step: Callable[..., tuple[TrainState, Any]]


def train_step(
    pruned: Pruned,
    loss: Callable[..., Any],
    tx: optax.GradientTransformation,
    accumulate: int = 1,
    has_aux: bool = False,
    packed: bool = False,
) -> TrainStep:
    """Draws, differentiates, learns and updates (Algorithm 1).

        train = pbr_jax.train_step(pruned, loss, optax.adamw(1e-3))
        state, step = train.init(params), jax.jit(train.step, donate_argnums=0)
        state, value = step(state, key, images, labels)

    Args:
      pruned: from `pbr_jax.prune`.
      loss: as for `Pruned.value_and_grad`; the mean over its batch.
      tx: any Optax transformation; rows that are not selected stand still under it.
      accumulate: parts of the batch that follow one another with one selection, their packed
        gradients averaged. Divides the leading axis of every array of the batch.
      has_aux: whether the loss returns `(scalar, aux)`; that of the last part is returned.
      packed: `tx` sees the selected rows alone, which takes less time and memory. For those that
        treat every element alike, or look at the global norm: SGD, momentum, Adam, decoupled decay,
        clipping; not for Muon, Adafactor, or what goes by the names or shapes of parameters.

    Raises:
      ValueError: `accumulate` is less than 1 or does not divide the batch.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate = {accumulate}: must be at least 1, which is a whole batch")
    init_state = tx.init if packed else freeze_unselected(tx, pruned).init
    gradients = pruned.gradients(loss, has_aux)

    def init(given):
        params, extra = pruned.parts(given)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, extra, init_state(params), pruned.init())

    def step(state, key, *batch):
        # Columns first, since the forward pass keeps only these (lines 5-6).
        selection = pruned.select(state.pruning, key)
        if accumulate == 1:
            found = gradients(state.params, state.extra, selection, *batch)
            value, aux, grads, extra, _ = found
        else:
            value, aux, grads, extra = _averaged(gradients, accumulate, state, selection, batch)
        # The policies learn from packed rows (line 24).
        pruning = pruned.learn(state.pruning, selection, grads)
        given = grads, state.opt_state, state.params
        update = packed_update if packed else _dense_update
        params, opt_state = update(pruned, tx, *given, selection)
        new = TrainState(state.step + 1, params, extra, opt_state, pruning)
        return new, ((value, aux) if has_aux else value)

    return TrainStep(init, step)


def _dense_update(pruned, tx, grads, opt_state, params, selection):
    """As `packed_update`, of any transformation: it sees gradients in the parameters' shape."""
    frozen, dense = freeze_unselected(tx, pruned), pruned.dense(grads, selection)
    updates, opt_state = frozen.update(dense, opt_state, params, selection=selection)
    return optax.apply_updates(params, updates), opt_state


def _averaged(gradients, accumulate, state, selection, batch):
    """Mean loss and packed gradients of equal parts of a batch; the model changes with each."""
    # Shapes of a part's loss and gradients, to begin the sums with.
    parts = jax.tree.map(lambda array: _split(array, accumulate), batch)
    first = jax.eval_shape(
        lambda part: gradients(state.params, state.extra, selection, *part),
        jax.tree.map(lambda array: array[0], parts),
    )
    total = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (first.value, first.grads))

    def body(carry, part):
        extra, total = carry
        found = gradients(state.params, extra, selection, *part)
        total = jax.tree.map(jnp.add, total, (found.value, found.grads))
        return (found.extra, total), found.aux

    (extra, total), aux = jax.lax.scan(body, (state.extra, total), parts)
    value, grads = jax.tree.map(lambda a: (a / accumulate).astype(a.dtype), total)
    return value, jax.tree.map(lambda a: a[-1], aux), grads, extra


def _split(array: jax.Array, parts: int) -> jax.Array:
    if array.ndim == 0 or array.shape[0] % parts:
        raise ValueError(
            f"accumulate = {parts}: must divide the leading axis of every array of the batch; one"
            f" has shape {array.shape}"
        )
    return array.reshape(parts, array.shape[0] // parts, *array.shape[1:])
