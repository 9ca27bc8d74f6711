"""An Optax update of the selected rows alone."""

from typing import Any

import jax
import optax

from pbr_jax.transform.packing import Packing
from pbr_jax.transform.policies import Selection

PyTree = Any


def packed_update(
    packing: Packing,
    tx: optax.GradientTransformation,
    grads: PyTree,
    opt_state: optax.OptState,
    params: PyTree,
    selection: Selection,
) -> tuple[PyTree, optax.OptState]:
    """Parameters and optimizer state after a step in which `tx` sees packed trees alone.

    For transformations that treat every element alike, or look at the global norm: SGD, momentum,
    Adam, decoupled decay, clipping. Rows that are not selected, and their moments, are not read.

    Args:
      packing: of the model that was pruned.
      tx, opt_state: the state was made for `params`.
      grads: packed.
      params: whole.
      selection: of the gradients.
    """
    layouts, columns = packing.plan.layouts, packing.columns(selection)
    # Moments lie as their parameters do: the number of its parameter in the place of each, and -1
    # in the place of what is whole, such as a counter.
    leaves, structure = jax.tree.flatten(params)
    numbers = optax.tree_utils.tree_map_params(
        tx,
        lambda _, number: number,
        opt_state,
        jax.tree.unflatten(structure, range(len(leaves))),
        transform_non_params=lambda _: -1,
    )

    def gather(i: int, leaf: jax.Array) -> jax.Array:
        return layouts[i].gather(leaf, columns[i]) if i in layouts else leaf

    def scatter(i: int, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return layouts[i].scatter(leaf, rows, columns[i]) if i in layouts else rows

    packed = packing.gather(params, selection)
    updates, moved = tx.update(grads, jax.tree.map(gather, numbers, opt_state), packed)
    new = packing.scatter(params, optax.apply_updates(packed, updates), selection)
    return new, jax.tree.map(scatter, numbers, opt_state, moved)
