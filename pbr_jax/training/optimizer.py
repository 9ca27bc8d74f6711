"""Optax optimizers, and their update of selected rows only.

Rows that were not selected are frozen: neither momentum nor weight decay moves them, and their
moments stay ("halts the updating of corresponding weights", section 4.1). `update_rows` gathers the
selected rows of parameters and of every optimizer moment, lets Optax update these small arrays, and
scatters the result back into donated buffers, so the other rows are not even read. On a GPU a
kernel does the same in one pass.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pbr_jax.families import KERNEL
from pbr_jax.kernels import row_update
from pbr_jax.kernels.row_update import Rule, Scalars
from pbr_jax.ops import dispatch
from pbr_jax.ops.arrays import as_matrix
from pbr_jax.plans import Implementation
from pbr_jax.training.slices import ALL, Rows, Share, Slices, is_slices

PyTree = Any


class Optimizer(NamedTuple):
    """An Optax transformation, and a description of it for the kernel that does the same."""

    tx: optax.GradientTransformation
    rule: Rule | None = None  # elementwise, its decay for kernels only; None: not described
    schedule: optax.Schedule = lambda count: 1.0  # step -> learning rate
    clip_norm: float | None = None  # largest global norm of the gradient
    norm: Callable[[PyTree], jax.Array] = optax.tree.norm  # global norm of packed gradients

    def init(self, params: PyTree) -> optax.OptState:
        """The state of `tx` before the first step."""
        return self.tx.init(params)


class Updated(NamedTuple):
    """What a step makes of the parameters."""

    params: PyTree
    opt_state: optax.OptState
    # Squared norms of the gradient's slices, before clipping, as `Slices.norms` gives them.
    norms: PyTree


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
    norm: Callable[[PyTree], jax.Array] = optax.tree.norm,
) -> Optimizer:
    """SGD with momentum or AdamW (decoupled decay), behind clipping of the global `norm`.

    Weight decay applies to leaves named `kernel` only: biases, LayerNorm, the class token and the
    embeddings of position are left alone. That of SGD is part of its gradient, behind the clipping.
    """
    # Innermost first: the rule, its decay, and before both the clipping.
    if name == "sgd":
        tx = optax.sgd(schedule, momentum=momentum or None)
        if weight_decay:
            tx = optax.chain(optax.add_decayed_weights(weight_decay, _is_kernel), tx)
    elif name == "adamw":
        tx = optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay, mask=_is_kernel)
    else:
        raise ValueError(f"optimizer.name = {name!r}: must be sgd or adamw")
    if clip_norm is not None:
        tx = optax.chain(_clip(clip_norm, norm), tx)
    rule = Rule(name, momentum, b1, b2, eps, weight_decay)
    return Optimizer(tx, rule, schedule, clip_norm, norm)


def _clip(clip_norm: float, norm: Callable[[PyTree], jax.Array]) -> optax.GradientTransformation:
    # Optax's own where it will do; it knows no norm but that of what a device has.
    if norm is optax.tree.norm:
        return optax.clip_by_global_norm(clip_norm)

    def clip(updates, params=None):
        scale = jnp.minimum(1.0, clip_norm / norm(updates))
        return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)

    return optax.stateless(clip)


def is_kernel(path: tuple) -> bool:
    """Whether weight decay applies to the leaf at `path`."""
    return path[-1].key == KERNEL


def _is_kernel(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: is_kernel(path), params)


def update_rows(
    optimizer: Optimizer,
    grads: PyTree,
    opt_state: optax.OptState,
    params: PyTree,
    rows: PyTree,
    apply: jax.Array,
    implementation: Implementation | None = None,
    rates: PyTree | None = None,
) -> Updated:
    """One optimizer step on the selected rows.

    Equal to the dense optimizer whose parameters and moments are put back wherever a row was not
    selected, for every Optax transformation that acts elementwise (SGD, momentum, Adam, decoupled
    decay) or through the global gradient norm.

    Args:
      optimizer, opt_state: the state was made for `params`.
      grads: like `params`; of a leaf that has `Rows` only the slices, in the shape of the slots.
      params: all parameters.
      rows: like `params`, each leaf `Slices`; of a `Share` gradient and moments are shares too.
      apply: bool scalar; where False nothing changes (a step whose gradient is not finite).
      implementation: see `pbr_jax.ops.dispatch`; the kernel knows what `make_optimizer` makes.
      rates: like `params`, a number each: factors on the learning rate; None is 1 for all.

    Raises:
      ValueError: the named implementation cannot run.
    """
    kinds = {type(leaf) for leaf in jax.tree.leaves(rows, is_leaf=is_slices)}
    # The kernel moves rows where they lie, and those of a share lie nowhere by themselves.
    in_place = Rows in kinds and Share not in kinds
    if in_place and ROW_UPDATE.choose(implementation, optimizer, params) == "triton":
        return _update_in_place(optimizer, grads, opt_state, params, rows, apply, rates)
    tx = optimizer.tx
    # The same tree for the optimizer state: moments follow their parameter, counters are whole.
    state_rows = optax.tree_utils.tree_map_params(
        tx, lambda _, r: _of_moments(r), opt_state, rows, transform_non_params=lambda _: ALL
    )
    packed_params, packed_state = _gather(rows, params), _gather(state_rows, opt_state)
    # Optax sees small arrays; where the step is not applied, they go back as they came.
    updates, new_state = tx.update(grads, packed_state, packed_params)
    if rates is not None:  # an update, decoupled decay included, is in proportion to its rate
        updates = jax.tree.map(jnp.multiply, updates, rates)
    new_params = optax.apply_updates(packed_params, updates)
    new_params, new_state = jax.tree.map(
        lambda new, old: jnp.where(apply, new, old),
        (new_params, new_state),
        (packed_params, packed_state),
    )
    norms = jax.tree.map(lambda r, g: r.norms(g), rows, grads, is_leaf=is_slices)
    whole = _scatter(rows, params, new_params)
    return Updated(whole, _scatter(state_rows, opt_state, new_state), norms)


def _refusal(optimizer: Optimizer, params: PyTree) -> str | None:
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(params)}
    if optimizer.rule is None:
        return "it knows the optimizers of make_optimizer, and this is another"
    if dtypes != {"float32"}:
        return f"parameters are {', '.join(sorted(dtypes))}: must be float32"
    return None


ROW_UPDATE = dispatch.Kernel("the optimizer", _refusal)


def _update_in_place(
    optimizer: Optimizer, grads, opt_state, params, rows, apply, rates: PyTree | None
) -> Updated:
    """`update_rows` by the kernel where there are rows, and by the same rule elsewhere."""
    rule = optimizer.rule
    assert rule is not None
    # Adam's count and the schedule's agree, and a step that is not applied does not count.
    _, count = optax.tree.get_all_with_path(opt_state, "count")[0]
    steps = optax.safe_increment(count)
    scale = jnp.ones((), jnp.float32)
    if optimizer.clip_norm is not None:
        scale = jnp.minimum(scale, optimizer.clip_norm / optimizer.norm(grads))
    now = Scalars(
        apply=apply.astype(jnp.float32),
        rate=optimizer.schedule(count),
        scale=scale,
        correction1=1 - rule.b1 ** steps.astype(jnp.float32),
        correction2=1 - rule.b2 ** steps.astype(jnp.float32),
    )

    def update(path, selected, param, grad, factor, *moments):
        own = rule if is_kernel(path) else rule._replace(weight_decay=0.0)
        mine = now if factor is None else now._replace(rate=now.rate * factor)
        if isinstance(selected, Rows):
            return _update_slices(own, mine, selected, param, grad, moments)
        parts = [selected.gather(leaf) for leaf in (param, *moments)]
        new, sums = own.new(parts[0], grad * scale, tuple(parts[1:]), mine)
        moved = [jnp.where(apply, *pair) for pair in zip((new, *sums), parts, strict=True)]
        whole = map(selected.scatter, (param, *moments), moved)
        return selected.norms(grad), *whole

    # Leaf by leaf over trees of one structure; the results become trees again.
    structure: Any
    leaves, structure = jax.tree_util.tree_flatten_with_path(rows, is_leaf=is_slices)
    trees = params, grads, *(optax.tree.get(opt_state, name) for name in rule.moments)
    columns = [structure.flatten_up_to(tree) for tree in trees]
    columns.insert(2, [None] * len(leaves) if rates is None else structure.flatten_up_to(rates))
    updated = [update(*leaf, *own) for leaf, *own in zip(leaves, *columns, strict=True)]
    norms, new_params, *sums = (structure.unflatten(part) for part in zip(*updated, strict=True))
    new_state = optax.tree.set(
        opt_state,
        count=jnp.where(apply, steps, count),
        **dict(zip(rule.moments, sums, strict=True)),
    )
    return Updated(new_params, new_state, norms)


def _update_slices(rule: Rule, now: Scalars, selected: Rows, param, grad, moments) -> tuple:
    """Norms of the gradient's slices, parameter and moments; a slice may be several rows."""
    if selected.slots.size == 0:  # the kernel takes no empty grid
        return jnp.zeros(selected.slots.shape, jnp.float32), param, *moments
    # The kernel sees a matrix, in which a slice is `each` rows that lie side by side.
    each = math.prod(param.shape[selected.slots.ndim : -1])
    slots = selected.slots.reshape(-1, 1) * each + jnp.arange(each, dtype=jnp.int32)[None]
    new, sums, norms = row_update.update_rows(
        rule,
        now,
        slots.reshape(-1),
        as_matrix(grad),
        as_matrix(param),
        tuple(as_matrix(moment) for moment in moments),
        interpret=dispatch.interpreting(),
    )
    norms = jnp.sum(norms.reshape(*selected.slots.shape, each), axis=-1)
    return norms, *(array.reshape(param.shape) for array in (new, *sums))


def _of_moments(rows: Slices) -> Slices:
    return rows.whole if isinstance(rows, Share) else rows


def _gather(rows: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda r, leaf: r.gather(leaf), rows, tree, is_leaf=is_slices)


def _scatter(rows: PyTree, tree: PyTree, packed: PyTree) -> PyTree:
    return jax.tree.map(
        lambda r, leaf, p: r.scatter(leaf, p), rows, tree, packed, is_leaf=is_slices
    )
