"""Implementations of attention: time forward and backward, bytes saved, accuracy of gradients.

"vanilla" is plain autodiff, which keeps the N x N probabilities. The others are residuals of this
package's attention, by XLA and by its kernels, and cuDNN's.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.bench.cases.attention import cosine, cudnn
from pbr_jax.gpu import memory
from pbr_jax.measure import timing
from pbr_jax.memory.use import saved_bytes
from pbr_jax.ops import attention as op
from pbr_jax.plans import Implementation

PASSES = ("forward", "forward and backward")
EXACT = "flash, xla"  # whose gradients all others are compared with


class AttentionShape(NamedTuple):
    """Sizes of q, k and v, `[B, H, N, head]`."""

    batch: int
    heads: int
    tokens: int
    head: int


def variants(keeps: list[float]) -> dict[str, Callable[..., jax.Array]]:
    """Functions of q, k and v by name; the names of the sparse ones say what they keep."""
    found: dict[str, Callable[..., jax.Array]] = {"vanilla": _vanilla, "cudnn": cudnn}
    kinds = ("flash", "qkv")
    implementations: tuple[Implementation, ...] = ("xla", "triton")
    for kind in kinds:
        for by in implementations:
            found[f"{kind}, {by}"] = functools.partial(op.attention, kind=kind, implementation=by)
    for keep in keeps:
        name = f"backrazor {keep:g}"
        found[name] = functools.partial(op.attention, kind="elements", keep=keep)
        for by in implementations:
            found[f"sparse flash {keep:g}, {by}"] = functools.partial(
                op.attention, kind="channels", keep=keep, implementation=by
            )
    return found


def _vanilla(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scores = jnp.einsum("bhnc,bhmc->bhnm", q, k, preferred_element_type=jnp.float32)
    p = jax.nn.softmax(scores / q.shape[-1] ** 0.5, axis=-1).astype(q.dtype)
    return jnp.einsum("bhnm,bhmc->bhnc", p, v)


def measure(
    shape: AttentionShape,
    keeps: list[float],
    dtype: jax.typing.DTypeLike,
    rounds: int,
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Measures time, memory and gradients of all variants, timed in turn.

    Returns:
      `{"ceilings", "flops": {pass: ...}, "seconds": {pass: {variant: [...]}}, "saved_bytes",
      "temp_bytes", "cosines": {variant: [dq, dk, dv]}, "refused": {variant: reason}}`; `flops`
      count 2 products forward and 7 in all, as few as there can be.
    """
    spec = jax.ShapeDtypeStruct(shape, dtype)
    q, k, v, do = (timing.random_like(spec, seed) for seed in range(4))
    functions = variants(keeps)
    # A variant that cannot be compiled for this device drops out, and its reason stays.
    forward, refused = timing.compile_each(
        {name: functools.partial(_forward, f) for name, f in functions.items()}, q, k, v
    )
    both, refused_both = timing.compile_each(
        {name: functools.partial(_gradients, functions[name]) for name in forward}, q, k, v, do
    )
    times = {
        one: timing.in_turn(
            {name: timing.same(run, *args) for name, run in runs.items()}, rounds, done
        )
        for one, runs, args in (
            (PASSES[0], forward, (q, k, v)),
            (PASSES[1], both, (q, k, v, do)),
        )
    }
    # What is left ran in both passes; gradients are compared with the exact ones.
    ran = [name for name in both if all(name in times[one].seconds for one in PASSES)]
    exact = both[EXACT](q, k, v, do)[1:]
    product = 2 * q.size * shape.tokens
    return {
        "ceilings": timing.ceilings(dtype, rounds)._asdict(),
        "flops": dict(zip(PASSES, (2 * product, 7 * product), strict=True)),
        "seconds": {one: {name: times[one].seconds[name] for name in ran} for one in PASSES},
        "saved_bytes": {name: _saved(functions[name], q) for name in ran},
        "temp_bytes": {name: memory(both[name]).temp_bytes for name in ran},
        "cosines": {
            name: [
                float(cosine(a, b)) for a, b in zip(both[name](q, k, v, do)[1:], exact, strict=True)
            ]
            for name in ran
        },
        "refused": refused | refused_both | times[PASSES[0]].refused | times[PASSES[1]].refused,
    }


def _forward(function, *qkv):
    """Runs the forward pass: its output, and what it keeps for the backward pass."""
    return timing.new_leaves(jax.vjp(function, *qkv), *qkv)


def _gradients(function, q, k, v, do):
    out, pullback = jax.vjp(function, q, k, v)
    return out, *pullback(do)


def _saved(function, q: jax.Array) -> int:
    """Bytes kept for the backward pass, q, k and v included where they are."""
    return saved_bytes(lambda qkv: function(*map(jnp.negative, qkv)), (q, q, q))


def table(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each variant that ran; speed-ups are over vanilla, taken within rounds."""
    of = found["seconds"]
    for name, saved in found["saved_bytes"].items():
        line = {"attention": name}
        for one, short in zip(PASSES, ("forward", "both"), strict=True):
            median = timing.spread(of[one][name]).median
            line[f"{short} ms"] = f"{1e3 * median:.3g}"
            line[f"{short} TFLOP/s"] = f"{found['flops'][one] / median / 1e12:.3g}"
            speedup = timing.ratio(of[one]["vanilla"], of[one][name]).median
            line[f"{short} speed-up"] = f"{speedup:.2f}"
        line["MB saved"] = f"{saved / 1e6:.4g}"
        line["MB temp"] = f"{found['temp_bytes'][name] / 1e6:.4g}"
        line["cosine of dq, dk, dv"] = ", ".join(f"{c:.3f}" for c in found["cosines"][name])
        yield line
