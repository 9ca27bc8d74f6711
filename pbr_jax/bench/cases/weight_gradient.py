"""What `pbr bench kernels` runs of weight gradients: the layers of ViT-B/16 and BERT-base."""

import jax
import jax.numpy as jnp

from pbr_jax.bench.cases.case import BenchCase, num_bytes
from pbr_jax.ops.weight_gradient import Unpacked, gradients
from pbr_jax.plans import budget_for


def bench_cases() -> list[BenchCase]:
    """The linear layers of a ViT-B/16 and a BERT-base at keep 0.1, bfloat16."""
    vit, bert = ("ViT-B/16, batch 128", 128 * 197), ("BERT-base, 32 x 512", 32 * 512)
    layers = {"qkv": (768, 2304), "proj": (768, 768), "fc1": (768, 3072), "fc2": (3072, 768)}
    cases = [
        _bench_case(f"{site} of {name}", tokens, budget_for(0.1, d), f)
        for name, tokens in (vit, bert)
        for site, (d, f) in layers.items()
    ]
    return [*cases, _bench_case(f"64 features from unpacked 768, {vit[0]}", vit[1], 80, 64, 768)]


def _bench_case(shape: str, tokens: int, kept: int, features: int, width: int = 0) -> BenchCase:
    dtype = jnp.bfloat16
    x = jax.ShapeDtypeStruct((tokens, width or kept), dtype)
    dy = jax.ShapeDtypeStruct((tokens, features), dtype)
    columns = (jax.ShapeDtypeStruct((kept,), jnp.int32),) if width else ()
    packed = jax.ShapeDtypeStruct((tokens, kept), dtype)
    results = jax.ShapeDtypeStruct((kept + 1, features), jnp.float32)

    def run(x, dy, *columns, implementation):
        return gradients(Unpacked(x, *columns) if columns else x, dy, implementation=implementation)

    return BenchCase(
        op="weight gradient",
        shape=shape,
        run=run,
        args=(x, dy, *columns),
        flops=2 * tokens * kept * features,
        num_bytes=num_bytes(packed, dy, results),
        index_limit=width,
    )
