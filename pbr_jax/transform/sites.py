"""Sites: matrix products between an activation and a parameter, found in a jaxpr.

`Analysis` walks the equations, without running them, and notes how every parameter is used. The
same three questions are asked again where `rewrite` evaluates them, by the same functions:
`site_of`, `scan_entry` and `provenance.derive`.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from pbr_jax.transform import jaxprs
from pbr_jax.transform.provenance import Atom, Axes, Provenance, derive, in_order, joined, whole


class Site(NamedTuple):
    """A `dot_general` of an activation x and a value w of known provenance, all of it static.

    Attributes:
      leaf: number of the parameter.
      stack: axes of the parameter that scans have taken, the outermost first.
      rows: axes of the parameter that are contracted, increasing; their indices, flattened, are the
        columns of the activation.
      num_columns: D.
      w_first: whether w is the left operand.
      x_axes, w_axes: the contracted axes in the order of `rows`.
      x_batch, w_batch: batch axes.
      rest: atoms of the batch axes of w and then of its remaining axes, in order.
    """

    leaf: int
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    num_columns: int
    w_first: bool
    x_axes: tuple[int, ...]
    w_axes: tuple[int, ...]
    x_batch: tuple[int, ...]
    w_batch: tuple[int, ...]
    rest: Axes

    @property
    def layout(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What all sites of a parameter must agree on, since they share its rows."""
        return self.stack, self.rows


class Use(NamedTuple):
    """A site as it was met.

    Attributes:
      site: its description.
      input: what is equal for sites that read one activation along the same axes.
      x, y: shape and dtype of the activation and of the product.
      repeats: how often it runs, by the lengths of enclosing scans.
    """

    site: Site
    input: Hashable
    x: Any
    y: Any
    repeats: int


REASONS = {
    "gather": "read by index (an embedding)",
    "conv_general_dilated": "a convolution",
    "custom_jvp_call": "used inside a function with a derivative of its own (custom_jvp)",
    "custom_vjp_call": "used inside a function with a derivative of its own (custom_vjp)",
    "custom_vjp_call_jaxpr": "used inside a function with a derivative of its own (custom_vjp)",
    "while": "used inside a while loop",
    "cond": "used inside a cond",
    "shard_map": "used inside a shard_map",
    "stop_gradient": "behind a stop_gradient",
}
"""Uses that leave a parameter dense, by primitive; others are called by the primitive's name."""

ACROSS = "the kernel is reshaped or cut across the contracted axis"
BOTH = "a product of two parameters"


def reason(name: str) -> str:
    """Why a use by the primitive `name` leaves a parameter dense."""
    return REASONS.get(name, f"used by `{name}`")


def site_of(
    eqn: Any, given: Sequence[Provenance | None], shapes: Sequence[tuple[int, ...]]
) -> Site | str:
    """The site of a `dot_general`, or the reason why it is none.

    Args:
      eqn: the equation.
      given: provenance of its two operands; of one at least.
      shapes: shapes of the parameters.
    """
    left, right = given
    if left is not None and right is not None:
        return BOTH
    w_first = left is not None
    w = left if left is not None else right
    assert w is not None
    (left_axes, right_axes), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    w_axes, x_axes = (left_axes, right_axes) if w_first else (right_axes, left_axes)
    w_batch, x_batch = (left_batch, right_batch) if w_first else (right_batch, left_batch)
    # Columns are numbered as the parameter lies, whatever the order of the product's axes.
    pairs = sorted(zip(w_axes, x_axes, strict=True), key=lambda pair: in_order(w.axes[pair[0]])[:1])
    atoms = joined([atom for axis, _ in pairs for atom in w.axes[axis]])
    rows = tuple(atom.axis for atom in atoms)
    if not rows or list(atoms) != [Atom(axis, 1, shapes[w.leaf][axis]) for axis in sorted(rows)]:
        return ACROSS
    others = [*w_batch, *(a for a in range(len(w.axes)) if a not in w_axes and a not in w_batch)]
    return Site(
        leaf=w.leaf,
        stack=w.stack,
        rows=rows,
        num_columns=math.prod(atom.size for atom in atoms),
        w_first=w_first,
        x_axes=tuple(x for _, x in pairs),
        w_axes=tuple(axis for axis, _ in pairs),
        x_batch=tuple(x_batch),
        w_batch=tuple(w_batch),
        rest=tuple(w.axes[axis] for axis in others),
    )


def scan_entry(given: Provenance, shapes: Sequence[tuple[int, ...]]) -> Provenance | None:
    """What a scan's body sees of a value that the scan walks along; None where that is no axis."""
    first, *rest = given.axes
    if len(first) != 1 or first[0] != Atom(first[0].axis, 1, shapes[given.leaf][first[0].axis]):
        return None
    return Provenance(given.leaf, tuple(rest), (*given.stack, first[0].axis))


class Analysis:
    """How a jaxpr uses its parameters, the first of its inputs.

    Attributes:
      uses: sites of every parameter that has any.
      other: what else uses a parameter, in words.
    """

    def __init__(self, jaxpr: Any, shapes: Sequence[tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.uses: dict[int, list[Use]] = {}
        self.other: dict[int, set[str]] = {}
        given: list[Provenance | None] = [whole(i, shape) for i, shape in enumerate(shapes)]
        given += [None] * (len(jaxpr.invars) - len(shapes))
        roots = [("input", i) for i in range(len(given))]
        for made in self._walk(jaxpr, given, roots, (), 1)[0]:
            self._note(made, "returned as it is")

    def _note(self, given: Provenance | None, why: str) -> None:
        if given is not None:
            self.other.setdefault(given.leaf, set()).add(why)

    def _walk(self, jaxpr, given, roots, scope, repeats):
        """Provenance, roots and sources of the outputs.

        A root names the activation behind casts. A source is the number of the input that an output
        hands on as it is, or None.
        """
        made: dict[Any, Provenance | None] = dict(zip(jaxpr.invars, given, strict=True))
        root: dict[Any, Hashable] = dict(zip(jaxpr.invars, roots, strict=True))
        source: dict[Any, int | None] = {var: i for i, var in enumerate(jaxpr.invars)}
        read = {v for eqn in jaxpr.eqns for v in eqn.invars if jaxprs.is_variable(v)}
        read |= {v for v in jaxpr.outvars if jaxprs.is_variable(v)}

        def of(atom):
            return made.get(atom) if jaxprs.is_variable(atom) else None

        def root_of(atom):
            if not jaxprs.is_variable(atom):
                return (scope, "literal")
            return root.get(atom, (scope, id(atom)))

        def source_of(atom):
            return source.get(atom) if jaxprs.is_variable(atom) else None

        def leave(eqn, outs, sources, why):
            """What comes out of a body: an input as it is, or something that nothing reads."""
            left: list[Provenance | None] = [None] * len(outs)
            for i, (var, out) in enumerate(zip(eqn.outvars, outs, strict=True)):
                if out is not None and sources[i] is not None:
                    left[i] = of(eqn.invars[sources[i]])
                elif var in read:
                    self._note(out, why)
            return left

        for i, eqn in enumerate(jaxpr.eqns):
            here = (*scope, i)
            operands = [of(v) for v in eqn.invars]
            outs: Sequence[Provenance | None] = [None] * len(eqn.outvars)
            sources: Sequence[int | None] = outs  # type: ignore[assignment]
            if not any(operands):
                if eqn.primitive.name in ("convert_element_type", "copy"):
                    root[eqn.outvars[0]] = root_of(eqn.invars[0])
                continue
            kind = jaxprs.kind(eqn)
            if kind in ("call", "remat"):
                inner, _ = jaxprs.inner(eqn)
                inputs = [root_of(v) for v in eqn.invars]
                outs, out_roots, sources = self._walk(inner, operands, inputs, here, repeats)
                root.update(zip(eqn.outvars, out_roots, strict=True))
                if kind == "remat":
                    outs = leave(eqn, outs, sources, "returned by a remat")
            elif kind == "scan":
                outs, sources = self._scan(eqn, operands, here, repeats)
                outs = leave(eqn, outs, sources, "returned by a scan")
            elif kind == "dot":
                self._dot(eqn, operands, root_of, repeats)
            else:
                only = [o for o in operands if o is not None]
                derived = derive(eqn, only[0])
                if derived is not None:
                    outs = [derived]
                else:
                    for operand in only:
                        self._note(operand, reason(eqn.primitive.name))
            made.update(zip(eqn.outvars, outs, strict=True))
            for var, number in zip(eqn.outvars, sources, strict=True):
                source[var] = None if number is None else source_of(eqn.invars[number])
        outs, out_roots, sources = [], [], []
        for atom in jaxpr.outvars:
            outs.append(of(atom))
            out_roots.append(root_of(atom))
            sources.append(source_of(atom))
        return outs, out_roots, sources

    def _scan(self, eqn, operands, here, repeats):
        num_consts, num_carry = jaxprs.scan_split(eqn)
        inside = list(operands)
        for i, operand in enumerate(operands):
            if operand is None or i < num_consts:
                continue
            inside[i] = None
            if i < num_consts + num_carry:
                self._note(operand, "carried by a scan")
                continue
            inside[i] = scan_entry(operand, self.shapes)
            if inside[i] is None:
                self._note(operand, "a scan walks over part of an axis")
        inner, _ = jaxprs.inner(eqn)
        roots = [(here, "input", i) for i in range(len(inside))]
        outs, _, sources = self._walk(inner, inside, roots, here, repeats * eqn.params["length"])
        # What is walked along and returned at every step is itself again.
        first = num_consts + num_carry
        return outs, [s if s is not None and s >= first else None for s in sources]

    def _dot(self, eqn, operands, root_of, repeats):
        found = site_of(eqn, operands, self.shapes)
        if isinstance(found, str):
            for operand in operands:
                self._note(operand, found)
            return
        x, y = eqn.invars[1 if found.w_first else 0], eqn.outvars[0]
        sizes = tuple(self.shapes[found.leaf][axis] for axis in found.stack)
        read = (root_of(x), found.x_axes, sizes)
        self.uses.setdefault(found.leaf, []).append(Use(found, read, x.aval, y.aval, repeats))
