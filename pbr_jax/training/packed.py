"""An optimizer of the drawn rows alone: what belongs to a row lives until the next draw.

Columns that stay for many steps need moments for themselves only, and, where parameters have fewer
bits than float32, float32 masters too: `[K, F]` in the place of `[D, F]`. PaCA and S2FT draw once
(arXiv 2503.01905, 2412.06289). At a draw a row that stays keeps its moments and its master; a new
one begins with no moments and with the parameter itself. Parameters always hold the masters,
rounded once, so that a row which leaves needs no writing back.

The moments of a row are as old as the row: Adam's bias correction counts its own steps.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pbr_jax.kernels.row_update import Rule, Scalars
from pbr_jax.training.devices import ONE, Devices
from pbr_jax.training.mover import Drawn, Mover, draw_key
from pbr_jax.training.optimizer import Optimizer, Updated, is_kernel
from pbr_jax.training.pruned_model import PrunedModel
from pbr_jax.training.slices import Slices, is_slices

PyTree = Any
_AGE = "age"  # a level of its own, so that no path of an age ends in that of a parameter


class PackedState(NamedTuple):
    """What the optimizer keeps.

    Attributes:
      steps: int32 scalar, steps of the schedule.
      selection: what the last draw trains.
      ages: like the parameters, `{"age": int32}`, steps that each row has moments of: the shape of
        its slots; a scalar for a parameter that is trained whole.
      masters: float32 slices, like packed gradients; of size 0 where the parameter is float32.
      moments: float32 slices, a tree for each of the rule's moments.
    """

    steps: jax.Array
    selection: PyTree
    ages: PyTree
    masters: PyTree
    moments: tuple[PyTree, ...]


def packed(
    model: PrunedModel,
    optimizer: Optimizer,
    *,
    interval: int | None,
    devices: Devices = ONE,
) -> Mover:
    """Moments, and masters, of the drawn rows alone.

    Args:
      model: what is trained. Its `select` changes no state of policies.
      optimizer: described by a rule (`make_optimizer`).
      interval: steps between two draws; None draws once.
      devices: those of the step.
    """
    rule = optimizer.rule
    assert rule is not None  # every optimizer that a configuration names has one

    def init(key, params, pruning):
        start = jnp.zeros((), jnp.int32)
        _, selection = model.select(draw_key(key, start), pruning, start)
        return _fresh(rule, start, selection, model.slices(selection, params), params)

    def draw(state):
        return Drawn(state.opt_state.selection, state.pruning, state.opt_state)

    def end(state):
        # At the end of a step, when nothing else is in memory: both ways out of a condition have
        # a copy of what they may change.
        kept, params = state.opt_state, state.params

        def anew():
            _, selection = model.select(draw_key(state.key, state.step), state.pruning, state.step)
            old, new = (
                devices.own(model.slices(drawn, params)) for drawn in (kept.selection, selection)
            )
            return _carried(kept, old, new, _fresh(rule, kept.steps, selection, new, params))

        return (
            kept if interval is None else lax.cond(state.step % interval == 0, anew, lambda: kept)
        )

    def norm(grads):
        return optimizer.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))

    def update(grads, drawn, params, slices, apply, factors=None):
        scale = jnp.ones((), jnp.float32)
        if optimizer.clip_norm is not None:
            scale = jnp.minimum(scale, optimizer.clip_norm / norm(grads))
        return _moved(optimizer, drawn.opt_state, grads, params, slices, apply, scale, factors)

    return Mover(init, draw, update, norm, end)


def _fresh(rule: Rule, steps: jax.Array, selection, slices, params) -> PackedState:
    """The state of a draw whose rows have no past."""

    def of_slices(function, *trees):
        return jax.tree.map(function, slices, *trees, is_leaf=is_slices)

    def age(part):
        return {_AGE: jnp.zeros(() if part.slots is None else part.slots.shape, jnp.int32)}

    def master(part, param):
        if param.dtype == jnp.float32:
            return jnp.zeros((0,), jnp.float32)
        return part.gather(param).astype(jnp.float32)

    shapes = of_slices(lambda part, param: jax.eval_shape(part.gather, param), params)
    moments = tuple(
        jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes) for _ in rule.moments
    )
    return PackedState(steps, selection, of_slices(age), of_slices(master, params), moments)


def _carried(kept: PackedState, old: PyTree, new: PyTree, fresh: PackedState) -> PackedState:
    """The state `fresh` of the slices `new`, with what those of them that were `old` have."""

    def stay(before, after, has, begins):
        if after.slots is None:  # trained whole before and after
            return has
        both = functools.partial(_rows_that_stay, before, after)
        return jax.tree.map(both, has, begins)

    def of_slices(has, begins):
        return jax.tree.map(stay, old, new, has, begins, is_leaf=is_slices)

    ages, masters = (of_slices(getattr(kept, n), getattr(fresh, n)) for n in ("ages", "masters"))
    return fresh._replace(
        ages=ages, masters=masters, moments=tuple(map(of_slices, kept.moments, fresh.moments))
    )


def _rows_that_stay(before: Slices, after: Slices, has: jax.Array, begins: jax.Array) -> jax.Array:
    """`begins` with the values of `has` in the slots that were there before."""
    assert before.slots is not None and after.slots is not None
    if has.size == 0:  # no masters
        return has
    depth, width = after.slots.ndim, after.slots.shape[-1]
    was, now = (slots.reshape(-1, width) for slots in (before.slots, after.slots))
    # Slots increase, so that each finds its place by bisection.
    places = jnp.minimum(jax.vmap(jnp.searchsorted)(was, now), width - 1)
    stays = jnp.take_along_axis(was, places, axis=1) == now
    flat = has.reshape(*was.shape, *has.shape[depth:])
    moved = jax.vmap(lambda rows, at: rows[at])(flat, places).reshape(has.shape)
    stays = stays.reshape(*after.slots.shape, *(1 for _ in has.shape[depth:]))
    return jnp.where(stays, moved, begins)


def _moved(
    optimizer: Optimizer, state: PackedState, grads, params, slices, apply, scale, factors
) -> Updated:
    """One step of the rule on the slices; `scale` is that of clipping."""
    rule, rate = optimizer.rule, optimizer.schedule(state.steps)
    assert rule is not None

    def update(path, part, param, factor, grad, age, master, *moments):
        mine = rule if is_kernel(path) else rule._replace(weight_decay=0.0)
        old = master if master.size else part.gather(param).astype(jnp.float32)
        older = optax.safe_increment(age[_AGE])
        # The age of a row, along the axes of what the row holds.
        since = older.reshape(*older.shape, *(1,) * (grad.ndim - older.ndim)).astype(jnp.float32)
        now = Scalars(apply, rate * factor, scale, 1 - rule.b1**since, 1 - rule.b2**since)
        new, sums = mine.new(old, grad.astype(jnp.float32) * scale, moments, now)
        before, after = (old, age[_AGE], *moments), (new, older, *sums)
        new, older, *sums = (jnp.where(apply, *pair) for pair in zip(after, before, strict=True))
        whole = part.scatter(param, new.astype(param.dtype))
        return whole, {_AGE: older}, new if master.size else master, part.norms(grad), *sums

    # Leaf by leaf over trees of one structure; the results become trees again.
    structure: Any
    leaves, structure = jax.tree_util.tree_flatten_with_path(slices, is_leaf=is_slices)
    ones = structure.unflatten([1.0] * len(leaves))
    trees = params, factors or ones, grads, state.ages, state.masters, *state.moments
    columns = [structure.flatten_up_to(tree) for tree in trees]
    updated = [update(*leaf, *own) for leaf, *own in zip(leaves, *columns, strict=True)]
    params, ages, masters, norms, *moments = (
        structure.unflatten(part) for part in zip(*updated, strict=True)
    )
    steps = jnp.where(apply, optax.safe_increment(state.steps), state.steps)
    moved = PackedState(steps, state.selection, ages, masters, tuple(moments))
    return Updated(params, moved, norms)
