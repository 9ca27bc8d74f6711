"""Benchmark cases of LayerNorm, GELU with codes, and BackRazor's selection, bfloat16."""

import jax
import jax.numpy as jnp

from pbr_jax.bench.cases.case import BenchCase, num_bytes, results
from pbr_jax.bench.cases.shapes import HIDDEN, VIT, WIDTH
from pbr_jax.ops import gelu, layer_norm, linear, linear_gelu, residuals
from pbr_jax.ops.layer_norm_kinds import Normalized
from pbr_jax.plans import budget_for

_SPEC = jax.ShapeDtypeStruct
_VIT, _BATCH, _TOKENS = VIT


def bench_cases() -> list[BenchCase]:
    """The shapes of a ViT-B/16, keep 0.1."""
    return [
        _layer_norm_forward(),
        _layer_norm_backward(),
        _gelu(),
        _linear_gelu(),
        _linear_gelu_gradient(),
        _elements("input of fc1", (_TOKENS, WIDTH)),
        _elements("input of fc2", (_TOKENS, HIDDEN)),
    ]


def _layer_norm_forward() -> BenchCase:
    x, scale = _SPEC((_BATCH, _TOKENS, WIDTH), jnp.bfloat16), _SPEC((WIDTH,), jnp.float32)

    def run(x, scale, bias, *, implementation):
        settings = layer_norm.Settings("int8", implementation=implementation)
        return layer_norm.forward({"scale": scale, "bias": bias}, x, settings)

    moved = num_bytes(x, *results(run, x, scale, scale))
    return BenchCase("LayerNorm, forward, int8", _VIT, run, (x, scale, scale), moved)


def _layer_norm_backward() -> BenchCase:
    dy, scale = _SPEC((_BATCH, _TOKENS, WIDTH), jnp.bfloat16), _SPEC((WIDTH,), jnp.float32)
    rstd = _SPEC((_BATCH, _TOKENS, 1), jnp.float32)

    def run(dy, skip, x_hat, rstd, scale, *, implementation):
        settings = layer_norm.Settings("dense", implementation=implementation)
        residual = Normalized(x_hat, rstd)
        return layer_norm.backward({"scale": scale, "bias": scale}, residual, dy, settings, skip)

    return BenchCase(
        op="LayerNorm, backward and residual addition",
        shape=_VIT,
        run=run,
        args=(dy, dy, dy, rstd, scale),
        num_bytes=num_bytes(dy, dy, dy, dy, rstd),
    )


def _gelu() -> BenchCase:
    u = _SPEC((_BATCH, _TOKENS, HIDDEN), jnp.bfloat16)
    columns = _SPEC((budget_for(0.1, u.shape[-1]),), jnp.int32)

    def run(u, columns, *, implementation):
        return gelu.forward(u, "code2", columns=columns, implementation=implementation)

    return BenchCase(
        op="GELU, 2-bit codes and packed columns",
        shape=_VIT,
        run=run,
        args=(u, columns),
        num_bytes=num_bytes(u, *results(run, u, columns)),
        index_limit=u.shape[-1],
    )


def _linear_gelu() -> BenchCase:
    x, w = _SPEC((_BATCH, _TOKENS, WIDTH), jnp.bfloat16), _SPEC((WIDTH, HIDDEN), jnp.bfloat16)
    bias = _SPEC((HIDDEN,), jnp.float32)
    columns = _SPEC((budget_for(0.1, HIDDEN),), jnp.int32)

    def run(x, w, bias, columns, *, implementation):
        given = {"columns": columns, "implementation": implementation}
        return linear_gelu.forward(x, w, bias, "code2", **given)

    def product_then_kernel(x, w, bias, columns):
        u = linear.project(x, w, bias)
        return gelu.forward(u, "code2", columns=columns, implementation="triton")

    return BenchCase(
        op="fc1 with GELU, 2-bit codes and packed columns",
        shape=_VIT,
        run=run,
        args=(x, w, bias, columns),
        flops=2 * x.size * HIDDEN,
        num_bytes=num_bytes(x, w, *results(run, x, w, bias, columns)),
        index_limit=HIDDEN,
        rivals={"xla product, GELU kernel": product_then_kernel},
    )


def _linear_gelu_gradient() -> BenchCase:
    dy, w = _SPEC((_BATCH, _TOKENS, WIDTH), jnp.bfloat16), _SPEC((HIDDEN, WIDTH), jnp.bfloat16)
    planes = _SPEC((_BATCH, _TOKENS, 2, HIDDEN // 8), jnp.uint8)

    def run(dy, w, planes, *, implementation):
        return linear_gelu.input_gradient(dy, w, planes, "code2", implementation=implementation)

    result = _SPEC((_BATCH, _TOKENS, HIDDEN), jnp.bfloat16)
    return BenchCase(
        op="input gradient of fc2 times that of GELU, 2-bit codes",
        shape=_VIT,
        run=run,
        args=(dy, w, planes),
        flops=2 * dy.size * HIDDEN,
        num_bytes=num_bytes(dy, w, planes, result),
    )


def _elements(name: str, shape: tuple[int, ...]) -> BenchCase:
    x = _SPEC((_BATCH, *shape), jnp.bfloat16)

    def run(x, *, implementation):
        return residuals.pack_elements(x, 0.1, implementation=implementation)

    moved = num_bytes(x, *results(run, x))
    name = f"{name} of {_VIT}"
    return BenchCase("BackRazor's selection", name, run, (x,), moved, kernel="jax_triton")
