"""Optax optimizers, and their update of selected rows only.

Rows that were not selected are frozen: neither momentum nor weight decay moves them, and their
moments stay ("halts the updating of corresponding weights", section 4.1). `update_rows` gathers the
selected rows of parameters and of every optimizer moment, lets Optax update these small arrays, and
scatters the result back into donated buffers, so the other rows are not even read.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class Rows(NamedTuple):
    """Which slices of a parameter are trained in a step.

    Attributes:
      slots: int32 `[R]` into the leading axes, flattened; an index past the end is an unused slot.
      axes: how many leading axes are flattened: of a stacked kernel `[L, D, F]` 2 for columns, 1
        for blocks.
    """

    slots: jax.Array
    axes: int

    def gather(self, leaf: jax.Array) -> jax.Array:
        return self._flat(leaf).at[self.slots].get(mode="fill", fill_value=0)

    def scatter(self, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return self._flat(leaf).at[self.slots].set(rows, mode="drop").reshape(leaf.shape)

    def _flat(self, leaf: jax.Array) -> jax.Array:
        return leaf.reshape(math.prod(leaf.shape[: self.axes]), *leaf.shape[self.axes :])


class _All:
    """A parameter trained whole; an object, since None would vanish from the tree."""

    def gather(self, leaf: jax.Array) -> jax.Array:
        return leaf

    def scatter(self, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return rows


ALL = _All()


def learning_rate(
    peak: float, steps: int, warmup_steps: int, schedule: Literal["cosine", "linear", "constant"]
) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine or a line to zero at `steps`, or constant."""
    if schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps)
    else:
        warmup = optax.linear_schedule(0.0, peak, warmup_steps)
        end = 0.0 if schedule == "linear" else peak
        rest = optax.linear_schedule(peak, end, steps - warmup_steps)
        rate = optax.join_schedules([warmup, rest], [warmup_steps])
    # Optax mixes its integer count with floats, which strict promotion refuses. Exact up to 2^24.
    return lambda count: rate(jnp.asarray(count, jnp.float32))


def make_optimizer(
    name: Literal["sgd", "adamw"],
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """SGD with momentum or AdamW (decoupled decay), behind global-norm clipping.

    Weight decay applies to leaves named `kernel` only: biases, LayerNorm, the class token and the
    embeddings of position are left alone. That of SGD is part of its gradient, behind the clipping.
    """
    if name == "sgd":
        rule = optax.sgd(schedule, momentum=momentum or None)
        if weight_decay:
            rule = optax.chain(optax.add_decayed_weights(weight_decay, _is_kernel), rule)
    elif name == "adamw":
        rule = optax.adamw(
            schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_is_kernel
        )
    else:
        raise ValueError(f"optimizer.name = {name!r}: must be sgd or adamw")
    return rule if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), rule)


def _is_kernel(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def update_rows(
    tx: optax.GradientTransformation,
    grads: PyTree,
    opt_state: optax.OptState,
    params: PyTree,
    rows: PyTree,
    apply: jax.Array,
) -> tuple[PyTree, optax.OptState]:
    """One optimizer step on the selected rows.

    Equal to the dense optimizer whose parameters and moments are put back wherever a row was not
    selected, for every Optax transformation that acts elementwise (SGD, momentum, Adam, decoupled
    decay) or through the global gradient norm.

    Args:
      tx: initialised on `params`.
      grads: like `params`, with `[R, ...]` in place of a leaf that has `Rows`.
      opt_state: of `tx`.
      params: all parameters.
      rows: like `params`, each leaf a `Rows` or `ALL`.
      apply: bool scalar; where False nothing changes (a step whose gradient is not finite).

    Returns:
      New parameters and optimizer state.
    """

    # The same tree for the optimizer state: moments follow their parameter, counters are whole.
    state_rows = optax.tree_utils.tree_map_params(
        tx, lambda _, r: r, opt_state, rows, transform_non_params=lambda _: ALL
    )
    packed_params, packed_state = _gather(rows, params), _gather(state_rows, opt_state)
    updates, new_state = tx.update(grads, packed_state, packed_params)
    new_params = optax.apply_updates(packed_params, updates)
    new_params, new_state = jax.tree.map(
        lambda new, old: jnp.where(apply, new, old),
        (new_params, new_state),
        (packed_params, packed_state),
    )
    return _scatter(rows, params, new_params), _scatter(state_rows, opt_state, new_state)


def _is_rows(node: Any) -> bool:
    return isinstance(node, Rows | _All)


def _gather(rows: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda r, leaf: r.gather(leaf), rows, tree, is_leaf=_is_rows)


def _scatter(rows: PyTree, tree: PyTree, packed: PyTree) -> PyTree:
    return jax.tree.map(lambda r, leaf, p: r.scatter(leaf, p), rows, tree, packed, is_leaf=_is_rows)
