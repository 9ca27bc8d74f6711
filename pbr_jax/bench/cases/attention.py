"""Benchmark cases of attention: the shapes of a ViT-B/16, a BERT-base and a decoder."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.bench.cases.case import BenchCase
from pbr_jax.bench.cases.shapes import BERTS, HEADS, VIT, WIDTH
from pbr_jax.ops.attention import attention
from pbr_jax.ops.visibility import Visibility, dropout_seeds
from pbr_jax.plans import budget_for

_HEAD = WIDTH // HEADS
_KEEP = 0.2


def bench_cases() -> list[BenchCase]:
    """Forward alone, and forward and backward with each residual that has a kernel; bfloat16."""
    return [
        *(_forward(*load) for load in (VIT, *BERTS)),
        *(_both(*VIT, kind=kind) for kind in ("flash", "qkv", "channels")),
        *(_both(*load, kind="flash", padded=padded) for load in BERTS for padded in (False, True)),
        _decoder(),
    ]


def _forward(shape: str, batch: int, tokens: int) -> BenchCase:
    x = jax.ShapeDtypeStruct((batch, HEADS, tokens, _HEAD), jnp.bfloat16)
    cost = {"num_bytes": 4 * 2 * x.size, "flops": 2 * _product(x)}
    rivals = {"cudnn": cudnn}
    return BenchCase("attention, forward", shape, attention, (x, x, x), **cost, rivals=rivals)


def _both(shape: str, batch: int, tokens: int, *, kind: str, padded: bool = False) -> BenchCase:
    """Forward and backward; `padded` adds lengths, all of them full, and dropout, as BERT has."""
    x = jax.ShapeDtypeStruct((batch, HEADS, tokens, _HEAD), jnp.bfloat16)

    def run(q, k, v, do, implementation=None, kind=kind):
        told: dict[str, Any] = {}
        if padded:
            lengths = jnp.full((batch,), tokens, jnp.int32)
            seeds = dropout_seeds(jax.random.split(jax.random.key(0), batch))
            told = {"visibility": Visibility(lengths=lengths, seeds=seeds), "dropout": 0.1}
        told |= {"kind": kind, "keep": _KEEP, "implementation": implementation}
        return with_gradients(functools.partial(attention, **told), q, k, v, do)

    # Seven products: q k^T and p v, then q k^T again, and one for each of dp, dv, dq and dk. With
    # few channels those of dp, dq, dk and the second q k^T shrink.
    share = budget_for(_KEEP, _HEAD) / _HEAD if kind == "channels" else 1.0
    return BenchCase(
        op=f"attention, forward and backward, {kind}",
        shape=f"{shape}, lengths and dropout" if padded else shape,
        run=run,
        args=(x, x, x, x),
        flops=int((3 + 4 * share) * _product(x)),
        # q, k, v in and the output; what was kept of them and the cotangent in, three gradients.
        num_bytes=int((4 + 3 * share + 4) * 2 * x.size),
        rivals={} if padded else {"cudnn": functools.partial(with_gradients, cudnn)},
        figures=functools.partial(_cosines, run) if kind == "channels" else None,
    )


def _decoder() -> BenchCase:
    """Forward and backward of 4 x 2048 tokens with the heads of Qwen3-4B, 8 of k and v for 32."""
    batch, tokens, head = 4, 2048, 128
    q, k = (jax.ShapeDtypeStruct((batch, h, tokens, head), jnp.bfloat16) for h in (32, 8))

    def run(q, k, v, do, implementation=None):
        # One text to a row: no block is skipped but by causality.
        told = Visibility(segment_ids=jnp.zeros((batch, tokens), jnp.int32))
        rules: dict[str, Any] = {"causal": True, "implementation": implementation}
        return with_gradients(functools.partial(attention, visibility=told, **rules), q, k, v, do)

    return BenchCase(
        op="attention, forward and backward, flash",
        shape="decoder, 4 x 2048, 8 of 32 heads, causal, segments",
        run=run,
        args=(q, k, k, q),
        # Seven products and bytes as above; causality hides half of the scores.
        flops=7 * _product(q) // 2,
        num_bytes=2 * (5 * q.size + 6 * k.size),
    )


def _product(x: jax.ShapeDtypeStruct) -> int:
    """Operations of a product with all scores, N x N x head of every head."""
    return 2 * x.size * x.shape[2]


def with_gradients(op, q, k, v, do):
    """The output of `op(q, k, v)` and its gradients for the cotangent `do`."""
    out, pullback = jax.vjp(op, q, k, v)
    return out, *pullback(do)


def cudnn(q, k, v):
    """Attention by cuDNN; each head is a sample of one head, which is how these arrays lie."""
    flat = (x.reshape(-1, x.shape[2], 1, x.shape[3]) for x in (q, k, v))
    return jax.nn.dot_product_attention(*flat, implementation="cudnn").reshape(q.shape)


def _cosines(run, q, k, v, do) -> dict[str, jax.Array]:
    """Cosines of the gradients of q, k and v with the exact ones, over all samples."""
    approximate, exact = (run(q, k, v, do, kind=kind)[1:] for kind in ("channels", "qkv"))
    each = zip(("dq", "dk", "dv"), approximate, exact, strict=True)
    return {f"cosine of {name}": cosine(a, b) for name, a, b in each}


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the angle between two arrays, float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.sum(a * b) / (jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel()))
