"""What the trainer asks of a model that `transform` prunes: selected rows of its parameters.

`dense` and `columns` make those fields of a `PrunedModel` that say what a step trains.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.ops.arrays import squared_norms
from pbr_jax.training.own_blocks import Blocks
from pbr_jax.training.selection import SelectorState
from pbr_jax.training.slices import ALL, Rows, Slices
from pbr_jax.transform.attach import Layout
from pbr_jax.transform.packing import Packing
from pbr_jax.transform.pruned import Pruned

PyTree = Any


class LayoutRows(NamedTuple):
    """Selected rows of a parameter whose axes lie in any order; see `Slices`."""

    layout: Layout
    columns: jax.Array  # int32 [*stack, K]

    @property
    def slots(self) -> jax.Array:
        """The columns."""
        return self.columns

    def gather(self, leaf: jax.Array) -> jax.Array:
        return self.layout.gather(leaf, self.columns)

    def scatter(self, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return self.layout.scatter(leaf, rows, self.columns)

    def norms(self, grad: jax.Array) -> jax.Array:
        return squared_norms(grad, self.columns.ndim)


def dense(loss: Callable[..., Any]) -> dict[str, Any]:
    """All of a model is trained, by `(params, extra, batch, key) -> (loss, (figures, extra))`."""

    def whole(trained, frozen, extra, selection, batch, key, part=None):
        return loss(trained, extra, batch, key)

    return {
        "policies": lambda: SelectorState({}, {}),
        "select": lambda key, state, step: (state, {}),
        "split": lambda params, selection: (params, {}),
        "loss": whole,
        "slices": lambda selection, params: jax.tree.map(lambda _: ALL, params),
        "pack": lambda selection, grads: grads,
        "unbias": lambda state, selection, grads: grads,
        "learn": lambda state, *rest: state,
    }


def loss_of_rows(pruned: Pruned, loss: Callable[..., Any]) -> Callable[..., Any]:
    """Such a loss of a pruned model, as `PrunedModel.loss` is."""
    packed_loss = pruned.differentiable(loss, has_aux=True)

    def packed(trained, frozen, extra, selection, batch, key, part=None):
        value, (aux, *_) = packed_loss(trained, frozen, (), selection, extra, batch, key)
        return value, aux

    return packed


def columns(packing: Packing, loss: Callable[..., Any]) -> dict[str, Any]:
    """Selected rows of the pruned parameters, all of the others; `loss` is a `PrunedModel`'s."""
    blocks, policies, plan = Blocks(packing.plan.groups), packing.policies, packing.plan

    def slices(selection, params):
        leaves, structure = jax.tree.flatten(params)
        rows: list[Slices] = [ALL] * len(leaves)
        for i, name in plan.group_of.items():
            rows[i] = _rows(plan.layouts[i], selection[name])
        return jax.tree.unflatten(structure, rows)

    def learn(state, selection, grads, step, norms=None, added=None):
        if norms is None:
            seen = policies.norms(dict(enumerate(jax.tree.leaves(grads))), selection)
        else:
            leaves = jax.tree.leaves(norms, is_leaf=lambda leaf: leaf is None)
            seen = {
                name: sum(leaves[i].reshape(selection[name].shape) for i in group.leaves)
                for name, group in plan.groups.items()
            }
        return blocks.joined(policies.learn(blocks.apart(state), selection, seen))

    return {
        "policies": lambda: blocks.joined(policies.init()),
        "select": lambda key, state, step: (state, policies.select(blocks.apart(state), key)),
        "split": packing.split,
        "loss": loss,
        "slices": slices,
        "pack": lambda selection, grads: grads,
        "unbias": lambda state, *rest: packing.unbias(blocks.apart(state), *rest),
        "learn": learn,
    }


def _rows(layout: Layout, drawn: jax.Array) -> Slices:
    """The rows of a parameter; `Rows`, which the optimizer's kernel takes, where they lie so."""
    depth = len(layout.stack)
    if layout.stack != (*range(depth),) or layout.rows != (depth,):
        return LayoutRows(layout, drawn)
    # Rows are numbered through the leading axes [*stack, D].
    width, size = layout.num_columns, jnp.size(drawn) // drawn.shape[-1]
    first = width * jnp.arange(size, dtype=jnp.int32).reshape(*drawn.shape[:-1], 1)
    return Rows(first + drawn)
