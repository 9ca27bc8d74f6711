"""Rows that were not selected stay as they are, under any Optax optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any


def freeze_unselected(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wraps `tx` so that a kernel's unselected rows, and their moments, do not move.

    "Halts the updating of corresponding weights" (section 4.1): their gradient is zero, but
    momentum, Adam and weight decay would move them all the same.

        tx = pbr_jax.freeze_unselected(optax.adamw(1e-3))
        updates, opt_state = tx.update(grads, opt_state, params, selection=drawn["selection"])

    Args:
      tx: any transformation whose state is elementwise in the parameters.

    Returns:
      A transformation whose `update` takes `selection`, the collection of that name that a model of
      `pbr_jax.layers` returns when it is mutable: where a `kernel` of `params` has a mask
      `selected` beside it, bool over the kernel's leading axes, only these slices move. It raises
      ValueError for a mask that fits no kernel.
    """
    tx = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, *, selection, **extra):
        masks = _masks(updates, selection)
        new_updates, new_state = tx.update(updates, state, params, **extra)
        frozen = jax.tree.map(jnp.zeros_like, new_updates)
        # Moments follow the mask of their parameter; counters always move.
        state_masks = optax.tree_utils.tree_map_params(
            tx, lambda _, mask: mask, state, masks, transform_non_params=lambda _: True
        )
        updates = jax.tree.map(_where, masks, new_updates, frozen)
        return updates, jax.tree.map(_where, state_masks, new_state, state)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _where(mask: jax.Array | bool, new: jax.Array, old: jax.Array) -> jax.Array:
    axes = tuple(range(jnp.ndim(mask), new.ndim))  # those behind the mask's
    return jnp.where(jnp.expand_dims(mask, axes), new, old)


def _masks(params: PyTree, selection: PyTree) -> PyTree:
    """Like `params`: the mask of each pruned kernel, and True for all else."""
    named = {
        tuple(str(k.key) for k in path[:-1]): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(selection)[0]
        if path[-1].key == "selected"
    }

    def mask(path, leaf):
        keys = tuple(str(getattr(k, "key", k)) for k in path)
        found = named.pop(keys[:-1], None) if keys[-1:] == ("kernel",) else None
        if found is None:
            return True
        if found.shape != leaf.shape[: found.ndim]:
            raise ValueError(
                f"selection of {'/'.join(keys)} has a mask of shape {found.shape}: must be the"
                f" leading axes of the kernel {leaf.shape}"
            )
        return found

    masks = jax.tree_util.tree_map_with_path(mask, params)
    if named:  # a mask that no kernel took
        unknown = ", ".join("/".join(path) for path in named)
        raise ValueError(
            f"selection names {unknown}: params has no such kernel; pass the model's own collection"
        )
    return masks
