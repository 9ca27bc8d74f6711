"""`pbr_jax.report`: what pruning a model saves, and what it leaves."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from pbr_jax.gpu import compile_for, find_card, memory
from pbr_jax.measure.text import format_bytes, markdown
from pbr_jax.transform.jaxprs import is_variable
from pbr_jax.transform.pruned import Pruned

PyTree = Any
_ADVICE = (
    "Pruning saves time and communication. For memory, compose it: wrap the blocks in nn.remat or"
    " jax.checkpoint, which prune walks into"
)


class Line(NamedTuple):
    """A pruned parameter.

    Attributes:
      path, group: of it.
      num_kept, num_columns: K and D.
      flops, flops_pruned: of its weight gradient in one step.
      input_bytes, input_bytes_pruned: of the activation that is kept for it; that of a group counts
        at its first parameter. `jax.checkpoint` can keep less.
    """

    path: str
    group: str
    num_kept: int
    num_columns: int
    flops: int
    flops_pruned: int
    input_bytes: int
    input_bytes_pruned: int


class Kept(NamedTuple):
    """Arrays of one kind that the pruned model still keeps for its backward pass.

    Attributes:
      cause: what computed them, by primitive.
      shape: text, `float32[8,16]`.
      number: how many.
      num_bytes: of all.
    """

    cause: str
    shape: str
    number: int
    num_bytes: int


class Report(NamedTuple):
    """What `report` found; its text is for readers.

    Attributes:
      lines: pruned parameters.
      unpruned: `{path: reason}`.
      residual_bytes, residual_bytes_pruned: what one forward pass keeps for the backward pass,
        parameters not counted.
      kept: what that is of the pruned model, the largest first.
      temp_bytes, temp_bytes_pruned: of the compiled gradient for the card, if one was named.
      sizes: bytes of the parameters in `unpruned`.
    """

    lines: list[Line]
    unpruned: dict[str, str]
    residual_bytes: int
    residual_bytes_pruned: int
    kept: list[Kept]
    temp_bytes: int | None
    temp_bytes_pruned: int | None
    sizes: Mapping[str, int]

    def __str__(self) -> str:
        titles = ["parameter", "K / D", "weight gradient, GFLOP", "input kept"]
        rows = [
            [
                line.path,
                f"{line.num_kept} / {line.num_columns}",
                f"{line.flops / 1e9:.3g} -> {line.flops_pruned / 1e9:.3g}",
                f"{format_bytes(line.input_bytes)} -> {format_bytes(line.input_bytes_pruned)}"
                if line.input_bytes
                else "shared",
            ]
            for line in self.lines
        ]
        text = [markdown([titles, *rows]), "", "Not pruned, the largest first:"]
        dense = sorted(self.unpruned, key=lambda path: -self.sizes[path])
        text += [
            f"  {path} ({format_bytes(self.sizes[path])}): {self.unpruned[path]}"
            for path in dense[:10]
        ]
        if len(dense) > 10:
            text.append(f"  and {len(dense) - 10} more, see .unpruned")
        before, after = format_bytes(self.residual_bytes), format_bytes(self.residual_bytes_pruned)
        text += ["", f"Kept for the backward pass: {before} -> {after}; of it"]
        text += [
            f"  {format_bytes(k.num_bytes)} in {k.number} of {k.shape}, by `{k.cause}`"
            for k in self.kept[:6]
        ]
        if self.temp_bytes is not None and self.temp_bytes_pruned is not None:
            temp = format_bytes(self.temp_bytes), format_bytes(self.temp_bytes_pruned)
            text.append(f"Compiled, temp memory: {temp[0]} -> {temp[1]}")
        return "\n".join([*text, _ADVICE + "."])


def report(pruned: Pruned, *example: Any, card: str | None = None, **kwargs: Any) -> Report:
    """What pruning saves of a model, found by shapes alone.

    Args:
      pruned: from `pbr_jax.prune`.
      *example: as it was given there, or of other sizes; `kwargs` too.
      card: also compiles the gradient of a sum of the outputs for a card that need not be there, a
        name of `pbr_jax.gpu.CARDS`.

    Raises:
      ValueError: no such card.
      GpuCompilerMissing: `card` without the extra `gpu-compiler`.
    """
    shown = pruned.example(*example, **kwargs)
    trace, leaves, arrays = shown.trace, shown.leaves, shown.arrays
    selection = jax.eval_shape(lambda: pruned.select(pruned.init(), jax.random.key(0)))

    def dense(leaves, arrays, selection):
        return _floats(jaxpr_as_fun(trace.closed)(*leaves, *arrays))

    def mine(leaves, arrays, selection):
        return _floats(pruned.evaluate_packed(trace, leaves, arrays, selection))

    args = (leaves, arrays, selection)
    full, own = _residuals(dense, *args), _residuals(mine, *args)
    temps: tuple[int | None, int | None] = (None, None)
    if card is not None:
        found = find_card(card)
        temps = tuple(  # type: ignore[assignment]
            memory(compile_for(_gradient(function), args, found)).temp_bytes
            for function in (dense, mine)
        )
    plan = pruned.plan
    sizes = {
        path: math.prod(shape) * jnp.dtype(dtype).itemsize
        for path, shape, dtype in zip(plan.paths, plan.shapes, plan.dtypes, strict=True)
    }
    return Report(
        _lines(pruned, trace.analysis),
        pruned.unpruned,
        sum(kept.num_bytes for kept in full),
        sum(kept.num_bytes for kept in own),
        own,
        *temps,
        {path: sizes[path] for path in pruned.unpruned},
    )


def _lines(pruned: Pruned, analysis: Any) -> list[Line]:
    lines = []
    for group in pruned.groups.values():
        seen = set()
        for leaf, path in zip(group.leaves, group.paths, strict=True):
            flops = num_bytes = 0
            for use in analysis.uses.get(leaf, ()):
                flops += 2 * use.repeats * use.y.size * group.num_columns
                if use.input not in seen:
                    seen.add(use.input)
                    num_bytes += use.repeats * use.x.size * use.x.dtype.itemsize
            # Every figure is a multiple of D.
            kept = group.num_kept, group.num_columns
            pruned_figures = [figure // kept[1] * kept[0] for figure in (flops, num_bytes)]
            lines.append(
                Line(
                    path, group.name, *kept, flops, pruned_figures[0], num_bytes, pruned_figures[1]
                )
            )
    return lines


def _floats(outs: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(outs) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def _gradient(function: Callable[..., list[jax.Array]]) -> Callable[..., PyTree]:
    def loss(leaves, arrays, selection):
        return sum(jnp.sum(out.astype(jnp.float32)) for out in function(leaves, arrays, selection))

    return jax.grad(loss)


def _residuals(function: Callable[..., list[jax.Array]], *args: Any) -> list[Kept]:
    """What the function keeps for its backward pass and is no input, by kind and size."""

    def pullback(leaves, arrays, selection):
        return jax.tree.leaves(jax.vjp(lambda own: function(own, arrays, selection), leaves)[1])

    jaxpr = jax.make_jaxpr(pullback)(*args).jaxpr
    made = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    kept: dict[tuple[str, str], list[int]] = {}
    sources = [_source(var, made) for var in jaxpr.outvars if is_variable(var)]
    for var in {id(v): v for v in sources if v in made}.values():
        eqn = made[var]
        cause = str(eqn.params.get("name", eqn.primitive.name))
        kept.setdefault((cause, var.aval.str_short()), []).append(
            var.aval.size * getattr(var.aval.dtype, "itemsize", 4)
        )
    found = [Kept(*kind, len(each), sum(each)) for kind, each in kept.items()]
    return sorted(found, key=lambda own: -own.num_bytes)


def _source(var: Any, made: Mapping[Any, Any]) -> Any:
    """The variable behind a `stop_gradient`, which is no array of its own."""
    while var in made and made[var].primitive.name == "stop_gradient":
        var = made[var].invars[0]
    return var
