"""Meshes with explicit axes: the few operations that need to be told where their result lies.

On such a mesh the sharding of an array is part of its type. What `attach` computes is left to the
compiler all the same (`jax.sharding.auto_axes`); only its result gets a sharding, that of the
parameter or of the activation without the selected axis.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def spec_of(array: Any) -> tuple[Any, ...] | None:
    """The sharding of each axis, or None where the mesh has no explicit axis."""
    sharding: Any = getattr(jax.typeof(array), "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    if mesh is None or mesh.empty or AxisType.Explicit not in mesh.axis_types:
        return None
    return tuple(sharding.spec) + (None,) * (array.ndim - len(sharding.spec))


def placed(function: Callable[..., Any], spec: Sequence[Any] | None, *args: Any) -> Any:
    """`function(*args)`, whose result lies as `spec` says; as it comes where that is None."""
    if spec is None:
        return function(*args)
    out = PartitionSpec(*spec)
    return jax.sharding.auto_axes(function, out_sharding=out)(*args)
