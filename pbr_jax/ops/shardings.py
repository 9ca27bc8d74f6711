"""Meshes: what an op has to know of the devices that its arrays lie on.

With *explicit* axes the sharding of an array is part of its type. What a gradient of selected rows
computes is left to the compiler all the same (`jax.sharding.auto_axes`); only its results get a
sharding, those of the parameters or of the activation without the selected axis.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from pbr_jax.kernels.varying import ARRAYS
from pbr_jax.kernels.varying import alike as alike  # of functions with derivatives of their own

PyTree = Any


def mesh_of(*trees: PyTree) -> AbstractMesh:
    """The mesh in scope; where there is none, that of the first array which has one, or empty."""
    scope = jax.sharding.get_abstract_mesh()
    if not scope.empty:
        return scope
    for leaf in jax.tree.leaves(trees):
        known = isinstance(leaf, ARRAYS)
        sharding = getattr(jax.typeof(leaf), "sharding", None) if known else None
        if sharding is not None and not sharding.mesh.empty:
            return sharding.mesh
    return scope


def spec_of(array: Any) -> tuple[Any, ...] | None:
    """The sharding of each axis, or None where the mesh has no explicit axis."""
    sharding: Any = getattr(jax.typeof(array), "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    if mesh is None or mesh.empty or AxisType.Explicit not in mesh.axis_types:
        return None
    return tuple(sharding.spec) + (None,) * (array.ndim - len(sharding.spec))


def without_repeats(spec: Sequence[Any]) -> tuple[Any, ...]:
    """The spec with each axis of the mesh where it comes first: an array is split by it once.

    A batch and a kernel that are split by one axis (FSDP) make an output that is split as the batch
    is.
    """
    seen: set[str] = set()
    found: list[Any] = []
    for entry in spec:
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        new = tuple(name for name in names if name not in seen)
        seen |= set(new)
        found.append(entry if new == names else new or None)
    return tuple(found)


def placed(function: Callable[..., Any], spec: Sequence[Any] | None, *args: Any) -> Any:
    """`function(*args)`, whose result lies as `spec` says; as it comes where that is None."""
    return all_placed(lambda *args: [function(*args)], None if spec is None else [spec], *args)[0]


def all_placed(
    function: Callable[..., list[Any]], specs: Sequence[Sequence[Any]] | None, *args: Any
) -> list[Any]:
    """`function(*args)`, a list, each of which lies as its spec says; as they come with None."""
    if specs is None:
        return function(*args)
    # What no explicit axis splits leaves nothing to the compiler. Without a mesh in scope, though,
    # what is made of nothing would not lie on it.
    mesh = mesh_of(args)
    given = [spec_of(leaf) for leaf in jax.tree.leaves(args) if isinstance(leaf, ARRAYS)]
    split = any(any(spec or ()) for spec in [*given, *specs])
    if not split and mesh == jax.sharding.get_abstract_mesh():
        return function(*args)
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in types if kind == AxisType.Explicit)
    out = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=out)(*args)
