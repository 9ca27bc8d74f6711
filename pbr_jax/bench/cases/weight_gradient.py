"""Benchmark cases of weight gradients: the layers of ViT-B/16 and BERT-base."""

import jax
import jax.numpy as jnp

from pbr_jax.bench.cases.case import BenchCase, num_bytes
from pbr_jax.bench.cases.shapes import BERTS, LAYERS, VIT
from pbr_jax.ops.weight_gradient import gradients
from pbr_jax.plans import budget_for


def bench_cases() -> list[BenchCase]:
    """The linear layers at keep 0.1, bfloat16."""
    return [
        _bench_case(f"{site} of {load.name}", load.batch * load.tokens, budget_for(0.1, d), f)
        for load in (VIT, BERTS[-1])
        for site, (d, f) in LAYERS.items()
    ]


def _bench_case(shape: str, tokens: int, kept: int, features: int) -> BenchCase:
    x, dy = (jax.ShapeDtypeStruct((tokens, size), jnp.bfloat16) for size in (kept, features))
    # The gradients of the kernel's rows, and that of the bias.
    moved = num_bytes(x, dy, jax.ShapeDtypeStruct((kept + 1, features), jnp.float32))
    flops = 2 * tokens * kept * features
    return BenchCase("weight gradient", shape, gradients, (x, dy), moved, flops)
