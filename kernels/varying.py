"""Manual axes of a mesh, as inside `jax.shard_map`: what varies along them, by its type.

There an array is the same on every device or varies, and with `check_vma=True` that is part of its
type. JAX lets the operands of its own operations vary alike. A function with a derivative of its
own, or a kernel, has to ask for it.
"""

from typing import Any

import jax
import numpy as np

PyTree = Any
ARRAYS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray)
"""What has a type and may vary, among the leaves of a tree."""


def alike(*trees: PyTree) -> tuple[PyTree, ...]:
    """The trees, whose arrays vary along the axes along which any of them does.

    The cotangent of an array that is made to vary is summed over the devices.
    """
    axes = varying(trees)

    def vary(leaf):
        missing = axes - varying(leaf) if isinstance(leaf, ARRAYS) else ()
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(vary, trees)


def varying(tree: PyTree) -> frozenset[str]:
    """Manual axes along which an array of `tree` varies."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, ARRAYS)]
    kinds = [getattr(jax.typeof(leaf), "manual_axis_type", None) for leaf in leaves]
    return frozenset(name for kind in kinds if kind is not None for name in kind.varying)
