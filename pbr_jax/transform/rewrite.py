"""Evaluates a jaxpr with the weight gradients of selected rows alone.

Every pruned parameter goes through the equations together with its columns and its rows, whose
cotangent is the gradient. Calls are walked into, remat and scan are made anew around the walk, and
all other equations are bound as they stand.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax

from pbr_jax.ops.shardings import alike, spec_of
from pbr_jax.transform import jaxprs
from pbr_jax.transform.attach import Layout, Product, attach, live, pack
from pbr_jax.transform.provenance import Provenance, derive, whole
from pbr_jax.transform.sites import Analysis, Site, scan_entry, site_of


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "columns", "rows", "live"],
    meta_fields=["provenance"],
)
class Tracked:
    """A value that comes from a pruned parameter.

    Attributes:
      value: held constant, for sites.
      columns: int32 `[*stack, K]`, of the axes that scans have still to take.
      rows: `[*stack, K, *rest]`, the differentiated argument.
      live: the same value for all other uses, whose cotangent reaches `rows` too; None where
        there are none.
      provenance: how the value comes from the parameter.
    """

    def __init__(self, value, columns, rows, live, provenance):
        self.value, self.columns, self.rows, self.live = value, columns, rows, live
        self.provenance: Provenance = provenance

    def plain(self) -> Any:
        """What uses other than sites read."""
        return self.value if self.live is None else self.live

    def through(self, function: Callable[[Any], Any], provenance: Provenance) -> "Tracked":
        """Both values after an equation."""
        other = None if self.live is None else function(self.live)
        return Tracked(function(self.value), self.columns, self.rows, other, provenance)


class _Memo:
    """Packed activations of one body, so that sites with one input share one array."""

    def __init__(self) -> None:
        self._behind_cast: dict[int, tuple[Any, Any]] = {}
        self._packed: dict[tuple, tuple] = {}

    def cast(self, out: Any, operand: Any) -> None:
        # The value is kept with its number, which Python gives again to what comes after it.
        self._behind_cast[id(out)] = (out, self._root(operand))

    def _root(self, value: Any) -> Any:
        return self._behind_cast.get(id(value), (value, value))[1]

    def pack(self, x: Any, site: Site, columns: Any) -> Any:
        root = self._root(x)
        key = (id(root), x.dtype, site.x_axes, id(columns))
        if key not in self._packed:
            self._packed[key] = (pack(x, site, columns), root, columns)
        return self._packed[key][0]


class _Evaluation:
    def __init__(self, shapes: Sequence[tuple[int, ...]], layouts: Mapping[int, Layout]) -> None:
        self.shapes, self.layouts = shapes, layouts

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], memo: _Memo) -> list[Any]:
        values: dict[Any, Any] = {}

        def read(atom):
            return values[atom] if jaxprs.is_variable(atom) else atom.val

        values.update(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            with jaxprs.context(eqn):
                outs = self._equation(eqn, operands, memo)
            values.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn, operands, memo):
        tracked = [o for o in operands if isinstance(o, Tracked)]
        if not tracked:
            outs = jaxprs.bind(eqn, operands)
            if eqn.primitive.name in ("convert_element_type", "copy"):
                memo.cast(outs[0], operands[0])
            return outs
        kind = jaxprs.kind(eqn)
        if kind == "call":
            inside, outside = jaxprs.call_constraints(eqn)
            inner, consts = jaxprs.inner(eqn)
            operands = _constrained(operands, inside)
            return _constrained(self.run(inner, consts, operands, memo), outside)
        if kind == "remat":
            return self._remat(eqn, operands)
        if kind == "scan":
            return self._scan(eqn, operands)
        if kind == "dot":
            given = [o.provenance if isinstance(o, Tracked) else None for o in operands]
            site = site_of(eqn, given, self.shapes)
            if isinstance(site, Site) and _fits(site, self.layouts[site.leaf]):
                return [self._dot(eqn, operands, site, memo)]
        elif len(operands) == 1:
            derived = derive(eqn, tracked[0].provenance)
            if derived is not None:
                return [tracked[0].through(lambda value: jaxprs.bind(eqn, [value])[0], derived)]
        return jaxprs.bind(eqn, _plain(operands))

    def _dot(self, eqn, operands, site, memo):
        w, x = operands if site.w_first else operands[::-1]
        (y,) = jaxprs.bind(eqn, (w.value, x) if site.w_first else (x, w.value))
        product = Product(
            site,
            w.value.shape,
            w.value.dtype,
            self.layouts[site.leaf].rest_shape,
            w.rows.dtype,
            spec_of(w.rows),
            tuple((k, v) for k, v in eqn.params.items() if k != "dimension_numbers"),
        )
        return attach(product, *alike(y, w.rows, memo.pack(x, site, w.columns)))

    def _remat(self, eqn, operands):
        inner, consts = jaxprs.inner(eqn)
        arrays, rebuild = _once(operands)

        handed_on: dict[int, int] = {}

        def body(*arrays):
            args = rebuild(arrays)
            outs = self.run(inner, consts, args, _Memo())
            return _without(outs, args, handed_on)

        params = {"policy": eqn.params["policy"], "prevent_cse": eqn.params["prevent_cse"]}
        outs = jax.checkpoint(body, **params)(*arrays)
        return [operands[handed_on[i]] if i in handed_on else out for i, out in enumerate(outs)]

    def _scan(self, eqn, operands):
        num_consts, num_carry = jaxprs.scan_split(eqn)
        inner, inner_consts = jaxprs.inner(eqn)
        consts = operands[:num_consts]
        carry = _plain(operands[num_consts : num_consts + num_carry])
        # The body takes one step of a stacked parameter, of its columns and of its rows.
        steps = [self._step(o) for o in operands[num_consts + num_carry :]]
        arrays, rebuild = _once(steps)

        def body(carry, arrays):
            steps = [
                Tracked(s.value, s.columns, s.rows, s.live, scan_entry(s.provenance, self.shapes))
                if isinstance(s, Tracked)
                else s
                for s in rebuild(arrays)
            ]
            outs = self.run(inner, inner_consts, [*consts, *carry, *steps], _Memo())
            ys = _without(outs[num_carry:], steps, handed_on)
            return _plain(outs[:num_carry]), ys

        handed_on: dict[int, int] = {}
        params = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = lax.scan(body, carry, arrays, **params)
        whole = operands[num_consts + num_carry :]
        ys = [whole[handed_on[i]] if i in handed_on else y for i, y in enumerate(ys)]
        return [*carry, *ys]

    def _step(self, operand):
        """What a scan walks along: a parameter with its rows, if it is that axis of its layout."""
        if not isinstance(operand, Tracked):
            return operand
        entered = scan_entry(operand.provenance, self.shapes)
        if entered is None:
            return operand.plain()
        stack = self.layouts[entered.leaf].stack
        return operand if entered.stack == stack[: len(entered.stack)] else operand.plain()


def evaluate(
    closed: Any,
    shapes: Sequence[tuple[int, ...]],
    layouts: Mapping[int, Layout],
    leaves: Sequence[Any],
    columns: Mapping[int, Any],
    rows: Mapping[int, Any],
    args: Sequence[Any],
    analysis: Analysis,
) -> list[Any]:
    """The outputs of a jaxpr of `(*leaves, *args)` with the gradients of pruned leaves in `rows`.

    Args:
      closed: what `jax.make_jaxpr` returned.
      shapes: of the leaves.
      layouts: by number, of the leaves that are pruned.
      leaves: values of the parameters.
      columns: int32 `[*stack, K]` of every pruned leaf; one object for those that share them.
      rows: zeros `[*stack, K, *rest]` of every pruned leaf.
      args: the other inputs.
      analysis: of the same jaxpr.
    """
    given = list(leaves)
    for i, layout in layouts.items():
        held = lax.stop_gradient(leaves[i])
        other = None
        if needs_live(analysis, i, layout):
            other = live(layout, *alike(held, rows[i], columns[i]))
        given[i] = Tracked(held, columns[i], rows[i], other, whole(i, shapes[i]))
    run = _Evaluation(shapes, layouts).run
    return _plain(run(closed.jaxpr, closed.consts, [*given, *args], _Memo()))


def needs_live(analysis: Analysis, leaf: int, layout: Layout) -> bool:
    """Whether something beside its sites uses the parameter in this jaxpr."""
    sites = [use.site for use in analysis.uses.get(leaf, ())]
    return bool(analysis.other.get(leaf)) or not all(_fits(site, layout) for site in sites)


def _fits(site: Site, layout: Layout) -> bool:
    return site.layout == (layout.stack, layout.rows)


def _plain(values: Sequence[Any]) -> list[Any]:
    return [v.plain() if isinstance(v, Tracked) else v for v in values]


def _without(outs: Sequence[Any], given: Sequence[Any], handed_on: dict[int, int]) -> list[Any]:
    """Plain outputs, and None for a parameter that a body hands on as it got it.

    The number of that output and of its input go to `handed_on`: outside, the operand stands for
    it. So do NNX's remat and scan return the parameters of their module.
    """
    found: list[Any] = []
    for i, out in enumerate(outs):
        same = [j for j, value in enumerate(given) if value is out and isinstance(out, Tracked)]
        if same:
            handed_on[i] = same[0]
            found.append(None)
        else:
            found.append(out.plain() if isinstance(out, Tracked) else out)
    return found


def _constrained(values: Sequence[Any], shardings: Sequence[Any]) -> list[Any]:
    """With the shardings that a jitted function demanded."""
    if all(sharding is None for sharding in shardings):
        return list(values)
    found: list[Any] = []
    for value, sharding in zip(values, shardings, strict=True):
        if sharding is not None:
            place = functools.partial(lax.with_sharding_constraint, shardings=sharding)
            same = isinstance(value, Tracked)
            value = value.through(place, value.provenance) if same else place(value)
        found.append(value)
    return found


def _once(values: Sequence[Any]) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
    """The arrays in a tree, each once, and a function that builds the tree of their like.

    So columns that several parameters share are still one array inside a remat or a scan.
    """
    leaves, tree = jax.tree.flatten(list(values))
    unique = {id(leaf): leaf for leaf in leaves}
    numbers = {key: i for i, key in enumerate(unique)}
    order = [numbers[id(leaf)] for leaf in leaves]

    def rebuild(arrays):
        return jax.tree.unflatten(tree, [arrays[i] for i in order])

    return list(unique.values()), rebuild
