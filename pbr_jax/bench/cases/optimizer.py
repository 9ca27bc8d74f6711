"""Benchmark cases of the optimizer: the pruned kernels of ViT-B/16 and BERT-base."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from pbr_jax.bench.cases.case import BenchCase, num_bytes
from pbr_jax.bench.cases.shapes import BLOCKS, LAYERS
from pbr_jax.plans import budget_for
from pbr_jax.training.optimizer import make_optimizer, update_rows
from pbr_jax.training.slices import Rows

_KEEP = 0.1


def bench_cases() -> list[BenchCase]:
    """One step of a stacked kernel at keep 0.1, float32."""
    return [*(_case("sgd", site) for site in LAYERS), *(_case("adamw", site) for site in LAYERS)]


def _case(name: Literal["sgd", "adamw"], site: str) -> BenchCase:
    columns, features = LAYERS[site]
    shape = (BLOCKS, budget_for(_KEEP, columns))
    tx = make_optimizer(name, lambda count: jnp.asarray(1e-3, jnp.float32), clip_norm=None)
    kernel = jax.ShapeDtypeStruct((BLOCKS, columns, features), jnp.float32)
    assert tx.rule is not None
    names = tx.rule.moments
    moments = (kernel,) * len(names)
    slots = jax.ShapeDtypeStruct(shape, jnp.int32)
    grad = jax.ShapeDtypeStruct((*shape, features), jnp.float32)

    # Rows are given as slots of all blocks together, as the step gives them.
    def run(slots, grad, param, *moments, implementation):
        params, rows = {"kernel": param}, {"kernel": Rows(slots)}
        given = {n: {"kernel": m} for n, m in zip(names, moments, strict=True)}
        state = optax.tree.set(tx.init(params), **given)
        grads, apply = {"kernel": grad}, jnp.asarray(True)
        return update_rows(tx, grads, state, params, rows, apply, implementation)

    return BenchCase(
        op=f"{name} of selected rows",
        shape=f"{site} of ViT-B/16 or BERT-base, 12 blocks",
        run=run,
        args=(slots, grad, kernel, *moments),
        num_bytes=num_bytes(slots, grad) + 2 * (1 + len(moments)) * num_bytes(grad),
        index_limit=BLOCKS * columns,
        donate=tuple(range(2, 3 + len(moments))),
    )
