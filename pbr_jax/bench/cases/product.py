"""Benchmark cases of dense matrix products: XLA's library at the shapes of a step.

With 77 and 308 kept columns rather than 80 and 312 it shows what a multiple of 8 is worth.
"""

import jax
import jax.numpy as jnp

from pbr_jax.bench.cases.case import BenchCase, num_bytes
from pbr_jax.bench.cases.shapes import HIDDEN, LAYERS, VIT, WIDTH

_TOKENS = VIT.batch * VIT.tokens


def bench_cases() -> list[BenchCase]:
    """Forward, input gradient and weight gradients of ViT-B/16, bfloat16."""
    return [
        *(_case(f"{site}, forward", (_TOKENS, d), (d, f)) for site, (d, f) in LAYERS.items()),
        *(_case(f"{site}, backward", (_TOKENS, f), (f, d)) for site, (d, f) in LAYERS.items()),
        *(_weight_gradient(site, d, f) for site, (d, f) in LAYERS.items()),
        *(_weight_gradient(f"fc1, K = {k}", k, HIDDEN) for k in (77, 80)),
        *(_weight_gradient(f"fc2, K = {k}", k, WIDTH) for k in (308, 312)),
    ]


def _case(name: str, left: tuple[int, int], right: tuple[int, int]) -> BenchCase:
    """`x y` in bfloat16."""
    x, y = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (left, right))

    def run(x, y, *, implementation):
        return x @ y

    name, moved = f"{name} of {VIT.name}", num_bytes(x, y) + 2 * left[0] * right[1]
    flops = 2 * x.size * right[1]
    return BenchCase("matrix product, x y", name, run, (x, y), moved, flops, kernel="xla")


def _weight_gradient(name: str, rows: int, features: int) -> BenchCase:
    """`x^T dy`, accumulated and written in float32."""
    x, dy = (jax.ShapeDtypeStruct((_TOKENS, size), jnp.bfloat16) for size in (rows, features))

    def run(x, dy, *, implementation):
        return jnp.einsum("tk,tf->kf", x, dy, preferred_element_type=jnp.float32)

    name, moved = f"{name} of {VIT.name}", num_bytes(x, dy) + 4 * rows * features
    flops = 2 * x.size * features
    return BenchCase("matrix product, x^T dy", name, run, (x, dy), moved, flops, kernel="xla")
