"""Rows that were not selected stay as they are, under any Optax optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Path = tuple[str, ...]


def freeze_unselected(
    tx: optax.GradientTransformation, pruned: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Wraps `tx` so that a kernel's unselected rows, and their moments, do not move.

    "Halts the updating of corresponding weights" (section 4.1): their gradient is zero, but
    momentum, Adam and weight decay would move them all the same.

        tx = pbr_jax.freeze_unselected(optax.adamw(1e-3), pruned)
        updates, opt_state = tx.update(grads, opt_state, params, selection=selection)

    An array of the optimizer's state belongs to a parameter when its path ends in the parameter's
    and it has its shape, whatever `chain`, `masked`, `multi_transform` or `MultiSteps` lie around
    it. Arrays of other shapes, as Adafactor's factored statistics, move as a whole. Under
    `MultiSteps`, rows that were selected in any of the steps move; one whose gradients were all
    zero counts as not selected.

    Args:
      tx: any transformation whose state is elementwise in the parameters.
      pruned: what `pbr_jax.prune` returned, of a model of its own. None: a model of
        `pbr_jax.layers`.

    Returns:
      A transformation whose `update` takes dense gradients and `selection`: the columns that
      `pruned.select` drew; or, without `pruned`, the collection of that name that a model of
      `pbr_jax.layers` returns when it is mutable: where a `kernel` of `params` has a mask
      `selected` beside it, bool over the kernel's leading axes, only these slices move. It raises
      ValueError for a mask that fits no kernel, and for a selection without masks.
    """
    tx = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, *, selection, **extra):
        leaves = _by_path(updates)
        if pruned is None:
            masks = _of_collection(selection, leaves)
        else:
            named = pruned.masks(selection).items()
            masks = {_stripped(tuple(path.split("/"))): mask for path, mask in named}
            masks = _checked(masks, leaves)
        masks = _with_accumulated(masks, leaves, state)
        new_updates, new_state = tx.update(updates, state, params, **extra)

        def own(keys, new):
            mask = masks.get(_path(keys))
            return new if mask is None else jnp.where(mask, new, jnp.zeros_like(new))

        def moment(keys, new, old):
            path = _path(keys)
            mask = masks.get(_owner(path, leaves))
            # An accumulator takes what it is given, zeros for rows that were not selected.
            if mask is None or "acc_grads" in path or not _alike(new, leaves[_owner(path, leaves)]):
                return new
            return jnp.where(mask, new, old)

        updates = jax.tree_util.tree_map_with_path(own, new_updates)
        return updates, jax.tree_util.tree_map_with_path(moment, new_state, state)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _path(keys: Sequence[Any]) -> Path:
    """The names along a path; NNX adds that of the field which holds a variable's value."""
    names = jax.tree_util.keystr(tuple(keys), simple=True, separator="/").split("/")
    return _stripped(tuple(names))


def _stripped(path: Path) -> Path:
    return path[:-1] if path[-1] == "value" else path


def _by_path(tree: PyTree) -> dict[Path, Any]:
    return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _alike(leaf: Any, other: Any) -> bool:
    return jnp.shape(leaf) == jnp.shape(other)


def _owner(path: Path, params: Mapping[Path, Any]) -> Path:
    """The parameter whose path ends this one, the longest of several; () where there is none."""
    return next((path[i:] for i in range(len(path)) if path[i:] in params), ())


def _with_accumulated(masks: Mapping[Path, Any], params: Mapping[Path, Any], state: PyTree) -> dict:
    """Masks that also hold the rows in which `MultiSteps` has gathered a gradient."""
    found = dict(masks)
    for path, leaf in _by_path(state).items():
        owner = _owner(path, params) if "acc_grads" in path else ()
        if owner in masks:
            mask = masks[owner]
            axes = tuple(a for a in range(leaf.ndim) if mask.shape[a] == 1)
            found[owner] = mask | jnp.any(leaf != 0, axis=axes, keepdims=True)
    return found


def _of_collection(selection: PyTree, leaves: Mapping[Path, Any]) -> dict[Path, Any]:
    """Masks of kernels with all their axes, from a collection of `pbr_jax.layers`."""
    masks = {}
    for keys, mask in jax.tree_util.tree_leaves_with_path(selection):
        path = _path(keys)
        if path[-1] != "selected":
            continue
        kernel = (*path[:-1], "kernel")
        if kernel in leaves:
            shape = jnp.shape(leaves[kernel])
            if mask.shape != shape[: mask.ndim]:
                raise ValueError(
                    f"selection of {'/'.join(kernel)} has a mask of shape {mask.shape}: must be the"
                    f" leading axes of the kernel {shape}"
                )
            mask = mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
        masks[kernel] = mask
    if not masks:
        raise ValueError(
            "selection holds no mask `selected`, and every row would move: pass the collection that"
            ' apply returns with mutable=["selection"]; under nn.scan, "selection" must be in'
            " variable_axes, not in split_rngs alone. A model that keeps all columns needs no"
            " freeze_unselected"
        )
    return _checked(masks, leaves)


def _checked(masks: dict[Path, Any], leaves: Mapping[Path, Any]) -> dict[Path, Any]:
    unknown = [path for path in masks if path not in leaves]
    if unknown:
        named = ", ".join("/".join(path[:-1]) or path[-1] for path in unknown)
        raise ValueError(
            f"selection names {named}: params has no such kernel; pass the model's own selection"
        )
    for path, mask in masks.items():
        shape = jnp.shape(leaves[path])
        fits = [m in (1, n) for m, n in zip(jnp.shape(mask), shape, strict=False)]
        if len(shape) != jnp.ndim(mask) or not all(fits):
            raise ValueError(
                f"the gradient of {'/'.join(path)} has shape {shape}: must be the parameter's;"
                " unpack it with pruned.dense(grads, selection)"
            )
    return masks
