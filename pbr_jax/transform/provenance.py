"""What a value is made of: a parameter, seen through casts, transposes and reshapes.

Every axis of such a value is a product of *atoms*, pieces of the parameter's axes. With the index
along a parameter's axis written as a sum of digits times strides, an atom is one digit.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Atom(NamedTuple):
    """A piece of a parameter's axis: the digit `index // stride % size` of the index along it."""

    axis: int
    stride: int
    size: int


Axes = tuple[tuple[Atom, ...], ...]


class Provenance(NamedTuple):
    """How a value comes from a parameter.

    Attributes:
      leaf: number of the parameter.
      axes: the atoms of every axis of the value, the slowest first; none where its size is 1.
      stack: axes of the parameter that enclosing scans have taken, the outermost first.
    """

    leaf: int
    axes: Axes
    stack: tuple[int, ...] = ()


# They change neither the place of an element nor, but for rounding, its value.
_SAME = (
    "convert_element_type",
    "copy",
    "copy_p",
    "sharding_constraint",
    "optimization_barrier",
    "pvary",
)


def whole(leaf: int, shape: Sequence[int]) -> Provenance:
    """The parameter itself."""
    return Provenance(leaf, tuple((Atom(axis, 1, size),) for axis, size in enumerate(shape)))


def derive(eqn: Any, given: Provenance) -> Provenance | None:
    """Provenance of the result of an equation with one operand, or None where it has none."""
    name, params = eqn.primitive.name, eqn.params
    axes = given.axes
    if len(eqn.invars) != 1 or len(eqn.outvars) != 1:
        return None
    if name in _SAME:
        return given
    if name == "transpose":
        return given._replace(axes=tuple(axes[a] for a in params["permutation"]))
    if name == "squeeze":
        gone = params["dimensions"]
        return given._replace(axes=tuple(a for i, a in enumerate(axes) if i not in gone))
    if name == "expand_dims":
        return _broadcast(given, params["dimensions"], eqn.outvars[0].aval.shape)
    if name == "reshape" and params.get("dimensions") is None:
        split = reshape(axes, params["new_sizes"])
        return None if split is None else given._replace(axes=split)
    if name == "broadcast_in_dim":
        places = params["broadcast_dimensions"]
        added = [i for i in range(len(params["shape"])) if i not in places]
        return _broadcast(given, added, params["shape"])
    return None


def _broadcast(given: Provenance, added: Sequence[int], shape: Sequence[int]) -> Provenance | None:
    """With more axes of size 1; None where an axis would repeat the parameter."""
    rest = iter(given.axes)
    axes = tuple(() if i in added else next(rest) for i in range(len(shape)))
    same = all(math.prod(a.size for a in atoms) == n for atoms, n in zip(axes, shape, strict=True))
    return given._replace(axes=axes) if same else None


def reshape(axes: Axes, sizes: Sequence[int]) -> Axes | None:
    """The atoms of every axis after a reshape to `sizes`; None where they do not divide it."""
    # Atoms that wait, the next one last.
    waiting = [atom for atoms in reversed(axes) for atom in reversed(atoms)]
    found = []
    for size in sizes:
        taken: list[Atom] = []
        if size == 1 and waiting and waiting[-1].size == 1:
            taken.append(waiting.pop())
        missing = size
        while missing > 1:
            if not waiting:
                return None
            atom = waiting.pop()
            if missing % atom.size == 0:
                taken.append(atom)
                missing //= atom.size
            elif atom.size % missing == 0:
                # The slower digit goes here, and the faster one waits on.
                faster = atom.size // missing
                taken.append(Atom(atom.axis, atom.stride * faster, missing))
                waiting.append(Atom(atom.axis, atom.stride, faster))
                missing = 1
            else:
                return None
        found.append(joined([a for a in taken if a.size > 1 or size == 1]))
    return tuple(found)


def joined(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Neighbouring digits of one axis as one atom."""
    found: list[Atom] = []
    for atom in atoms:
        if found and found[-1].axis == atom.axis and found[-1].stride == atom.stride * atom.size:
            found[-1] = Atom(atom.axis, atom.stride, found[-1].size * atom.size)
        else:
            found.append(atom)
    return tuple(found)


def in_order(atoms: Sequence[Atom]) -> list[Atom]:
    """Atoms as they lie in the parameter, the slowest first."""
    return sorted(atoms, key=lambda atom: (atom.axis, -atom.stride))
