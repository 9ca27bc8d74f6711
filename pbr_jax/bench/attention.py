"""Implementations of attention: time forward and backward, bytes saved, accuracy of gradients.

"vanilla" is plain autodiff, which keeps the N x N probabilities. The others are residuals of this
package's attention, by XLA and by its kernels, and cuDNN's.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.bench.cases.attention import cosine, cudnn, with_gradients
from pbr_jax.gpu import memory
from pbr_jax.measure import timing
from pbr_jax.memory.use import saved_bytes
from pbr_jax.ops import attention as op
from pbr_jax.plans import Implementation
from pbr_jax.runs.progress import progress

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
    implementations: tuple[Implementation, ...] = ("xla", "triton")
    for kind, by in itertools.product(("flash", "qkv"), implementations):
        found[f"{kind}, {by}"] = functools.partial(op.attention, kind=kind, implementation=by)
    # BackRazor's has no kernel of its own.
    for keep in keeps:
        sparse = functools.partial(op.attention, keep=keep)
        found[f"backrazor {keep:g}"] = functools.partial(sparse, kind="elements")
        for by in implementations:
            name = f"sparse flash {keep:g}, {by}"
            found[name] = functools.partial(sparse, kind="channels", implementation=by)
    return found


def _vanilla(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scores = jnp.einsum("bhnc,bhmc->bhnm", q, k, preferred_element_type=jnp.float32)
    p = jax.nn.softmax(scores / q.shape[-1] ** 0.5, axis=-1).astype(q.dtype)
    return jnp.einsum("bhnm,bhmc->bhnc", p, v)


def measure(
    shape: AttentionShape, keeps: list[float], dtype: jax.typing.DTypeLike, rounds: int
) -> dict[str, Any]:
    """Measures time, memory and gradients of all variants, timed in turn.

    Returns:
      `{"shape", "dtype", "ceilings", "flops": {pass: ...}, "seconds": {pass: {variant: [...]}},
      "saved_bytes", "temp_bytes", "cosines": {variant: [dq, dk, dv]}, "refused": {variant:
      reason}}`; `flops` count 2 products forward and 7 in all, as few as there can be.
    """
    spec = jax.ShapeDtypeStruct(shape, dtype)
    q, k, v, do = (timing.random_like(spec, seed) for seed in range(4))
    functions = variants(keeps)
    # A variant that cannot be compiled for this device drops out, and its reason stays.
    forward, refused = timing.compile_each(
        {name: functools.partial(_forward, f) for name, f in functions.items()}, q, k, v
    )
    both, refused_both = timing.compile_each(
        {name: functools.partial(with_gradients, functions[name]) for name in forward}, q, k, v, do
    )
    with progress("attention", (len(forward) + len(both)) * (rounds + 2)) as done:
        once = {name: timing.same(run, q, k, v) for name, run in forward.items()}
        twice = {name: timing.same(run, q, k, v, do) for name, run in both.items()}
        times = [timing.in_turn(runs, rounds, done) for runs in (once, twice)]

    # What is left ran in both passes; gradients are compared with the exact ones.
    ran = [name for name in both if all(name in one.seconds for one in times)]
    gradients = {name: both[name](q, k, v, do)[1:] for name in ran}
    product = 2 * q.size * shape.tokens
    return {
        "shape": shape,
        "dtype": dtype,
        "ceilings": timing.ceilings(dtype, rounds)._asdict(),
        "flops": dict(zip(PASSES, (2 * product, 7 * product), strict=True)),
        "seconds": {
            one: {name: spent.seconds[name] for name in ran}
            for one, spent in zip(PASSES, times, strict=True)
        },
        "saved_bytes": {name: _saved(functions[name], q) for name in ran},  # q, k and v, too
        "temp_bytes": {name: memory(both[name]).temp_bytes for name in ran},
        "cosines": {
            name: [float(x) for x in map(cosine, own, gradients[EXACT])]
            for name, own in gradients.items()
        },
        "refused": refused | refused_both | times[0].refused | times[1].refused,
    }


def _forward(function, *qkv):
    """Runs the forward pass: its output, and what it keeps for the backward pass."""
    return timing.new_leaves(jax.vjp(function, *qkv), *qkv)


def _saved(function, q: jax.Array) -> int:
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
