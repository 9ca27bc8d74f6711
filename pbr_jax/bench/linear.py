"""One linear layer, forward and backward: dense, pruned columns, and BackRazor in three ways.

BackRazor keeps the largest elements of its input. They are found by sorting, as its authors do, by
counting, which is this package in plain JAX, or by this package's kernel.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.measure import timing
from pbr_jax.memory.use import tree_bytes
from pbr_jax.ops import linear, residuals
from pbr_jax.ops.pair import Pair
from pbr_jax.plans import Implementation, budget_for
from pbr_jax.runs.progress import progress

VARIANTS = ("dense", "pruned", "backrazor sort", "backrazor counting", "backrazor kernel")
PASSES = ("forward", "forward and backward")


class LayerShape(NamedTuple):
    """Sizes of a problem: input `[B, N, D]`, F output features."""

    batch: int
    tokens: int
    width: int
    features: int


class Variant(NamedTuple):
    """A way to run the layer: a pair of forward and backward, and the parameters that it takes."""

    pair: Pair
    params: dict[str, jax.Array]


def pack_by_sorting(x: jax.Array, keep: float, dtype: jax.typing.DTypeLike) -> residuals.Elements:
    """Does what `residuals.pack_elements` does, by a sort of all elements of a sample."""
    flat = x.reshape(x.shape[0], -1)
    count = max(1, round(keep * flat.shape[1]))
    order = jnp.argsort(-jnp.abs(flat), axis=1, stable=True)
    places = jnp.sort(order[:, :count], axis=1)
    kept = jax.vmap(lambda at: jnp.zeros(flat.shape[1], bool).at[at].set(True))(places)
    largest = float(jnp.finfo(dtype).max)
    values = jnp.clip(jnp.take_along_axis(flat, places, axis=1), -largest, largest)
    return residuals.Elements(jnp.packbits(kept, axis=1), values.astype(dtype))


def variants(
    shape: LayerShape, keep: float
) -> dict[str, Callable[[jax.Array, jax.Array], Variant]]:
    """By name, made from kernel and bias: what differs at this keep, so not the dense layer."""

    # Columns are chosen before either pass, as in a train step.
    def pruned(kernel: jax.Array, bias: jax.Array) -> Variant:
        count = budget_for(keep, shape.width)
        chosen = jax.random.permutation(jax.random.key(3), shape.width)[:count]
        rows = jnp.zeros((count, shape.features), kernel.dtype)
        params = {"kernel": kernel, "bias": bias, "rows": rows}
        params["columns"] = jnp.sort(chosen).astype(jnp.int32)
        return Variant(linear.linear_pair(linear.Settings("columns")), params)

    # The three differ in how they find what they keep, and share their backward pass.
    def backrazor(pack: Callable[..., residuals.Elements]):
        def forward(params, x, aux):
            saved = pack(x, keep, residuals.half_precision(x.dtype))
            return linear.project(x, params["kernel"], params["bias"]), saved

        def made(kernel: jax.Array, bias: jax.Array) -> Variant:
            backward = linear.linear_pair(linear.Settings("elements", keep)).backward
            return Variant(Pair(forward, backward), {"kernel": kernel, "bias": bias})

        return made

    def packed(implementation: Implementation):
        return functools.partial(residuals.pack_elements, implementation=implementation)

    return {
        "pruned": pruned,
        "backrazor sort": backrazor(pack_by_sorting),
        "backrazor counting": backrazor(packed("xla")),
        "backrazor kernel": backrazor(packed("jax_triton")),
    }


def measure(
    shape: LayerShape, keeps: list[float], dtype: jax.typing.DTypeLike, rounds: int
) -> dict[str, Any]:
    """Measures times of both passes, each keep in turn with the dense layer, and bytes saved.

    Returns:
      `{"shape", "dtype", "ceilings", "rows": [{"keep", "pass", "seconds": {variant: [...]},
      "saved_bytes": {variant: ...}, "refused": {variant: reason}}, ...]}`.

    Raises:
      ValueError: a keep is out of range.
    """
    for keep in keeps:  # raises before anything is measured
        budget_for(keep, shape.width)
    kernel = timing.random_like(jax.ShapeDtypeStruct((shape.width, shape.features), dtype), 0)
    kernel, bias = kernel / shape.width**0.5, jnp.ones((shape.features,), dtype)
    x = timing.random_like(jax.ShapeDtypeStruct(shape[:3], dtype), 1)
    dy = timing.random_like(jax.ShapeDtypeStruct((*shape[:2], shape.features), dtype), 2)
    dense = Variant(linear.linear_pair(linear.Settings("dense")), {"kernel": kernel, "bias": bias})
    rows = []
    samples = len(keeps) * len(PASSES) * len(VARIANTS) * (rounds + 2)
    with progress("linear layer", samples) as done:
        for keep, one in itertools.product(keeps, PASSES):
            others = {n: variant(kernel, bias) for n, variant in variants(shape, keep).items()}
            made = {"dense": dense, **others}
            given = (x,) if one == "forward" else (x, dy)
            runs = {
                name: timing.same(jax.jit(functools.partial(_run, pair)), params, *given)
                for name, (pair, params) in made.items()
            }
            seconds, refused = timing.in_turn(runs, rounds, done)
            saved = {name: _saved_bytes(*made[name], x) for name in seconds}
            row = {"keep": keep, "pass": one, "seconds": seconds, "saved_bytes": saved}
            rows.append(row | {"refused": refused})
    ceilings = timing.ceilings(dtype, rounds)._asdict()
    return {"shape": shape, "dtype": dtype, "ceilings": ceilings, "rows": rows}


def _saved_bytes(pair: Pair, params: dict, x: jax.Array) -> int:
    return tree_bytes(jax.eval_shape(pair.forward, params, x, None)[1])


def _run(pair: Pair, params: dict, x: jax.Array, dy: jax.Array | None = None):
    """Runs one pass: the output with what is saved, or with the gradients."""
    y, saved = pair.forward(params, x, None)
    if dy is None:
        return timing.new_leaves((y, saved), params, x)
    return y, pair.backward(params, saved, None, dy)


def table(found: Mapping[str, Any], one: str) -> Iterator[dict[str, Any]]:
    """A line for each keep of one pass: milliseconds, the pruned layer's speed, megabytes saved."""
    short = {name: name.removeprefix("backrazor ") for name in VARIANTS}
    for row in found["rows"]:
        if row["pass"] != one:
            continue
        seconds, saved = row["seconds"], row["saved_bytes"]
        # A variant that was refused has hyphens.
        line = {"keep": f"{row['keep']:g}"} | {f"{short[n]}, ms": "-" for n in VARIANTS}
        line |= {f"{short[n]} / pruned": "-" for n in VARIANTS if n != "pruned"}
        for name, spent in seconds.items():
            line[f"{short[name]}, ms"] = f"{1e3 * timing.spread(spent).median:.3g}"
            if name != "pruned":
                speedup = timing.ratio(spent, seconds["pruned"]).median
                line[f"{short[name]} / pruned"] = f"{speedup:.2f}"
        several = (saved[name] / 1e6 for name in ("dense", "pruned", "backrazor sort"))
        line["MB saved"] = ", ".join(f"{size:.3g}" for size in several)
        yield line
