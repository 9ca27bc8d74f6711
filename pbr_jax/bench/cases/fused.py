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

    op = "LayerNorm, backward and residual addition"
    moved = num_bytes(dy, dy, dy, dy, rstd)  # three are read, the gradient is written
    return BenchCase(op, _VIT, run, (dy, dy, dy, rstd, scale), moved)


def _gelu() -> BenchCase:
    u = _SPEC((_BATCH, _TOKENS, HIDDEN), jnp.bfloat16)
    columns = _SPEC((budget_for(0.1, HIDDEN),), jnp.int32)

    def run(u, columns, *, implementation):
        return gelu.forward(u, gelu.Settings("code2", False, implementation), columns=columns)

    op = "GELU, 2-bit codes and packed columns"
    moved = num_bytes(u, *results(run, u, columns))
    return BenchCase(op, _VIT, run, (u, columns), moved, index_limit=HIDDEN)


def _linear_gelu() -> BenchCase:
    x, w = _SPEC((_BATCH, _TOKENS, WIDTH), jnp.bfloat16), _SPEC((WIDTH, HIDDEN), jnp.bfloat16)
    bias = _SPEC((HIDDEN,), jnp.float32)
    columns = _SPEC((budget_for(0.1, HIDDEN),), jnp.int32)

    def run(x, w, bias, columns, *, implementation):
        settings = gelu.Settings("code2", False, implementation)
        return linear_gelu.forward(x, w, bias, settings, columns=columns)

    # What fusing the two is worth.
    def product_then_kernel(x, w, bias, columns):
        u = linear.project(x, w, bias)
        return gelu.forward(u, gelu.Settings("code2", False, "triton"), columns=columns)

    args = (x, w, bias, columns)
    return BenchCase(
        "fc1 with GELU, 2-bit codes and packed columns",
        _VIT,
        run,
        args,
        num_bytes(x, w, *results(run, *args)),
        flops=2 * x.size * HIDDEN,
        index_limit=HIDDEN,
        rivals={"xla product, GELU kernel": product_then_kernel},
    )


def _linear_gelu_gradient() -> BenchCase:
    dy, w = _SPEC((_BATCH, _TOKENS, WIDTH), jnp.bfloat16), _SPEC((HIDDEN, WIDTH), jnp.bfloat16)
    # Two planes of bits for each channel, eight channels a byte.
    planes = _SPEC((_BATCH, _TOKENS, 2, HIDDEN // 8), jnp.uint8)

    def run(dy, w, planes, *, implementation):
        settings = gelu.Settings("code2", False, implementation)
        return linear_gelu.input_gradient(dy, w, planes, settings)

    op = "input gradient of fc2 times that of GELU, 2-bit codes"
    moved = num_bytes(dy, w, planes, _SPEC((_BATCH, _TOKENS, HIDDEN), jnp.bfloat16))
    return BenchCase(op, _VIT, run, (dy, w, planes), moved, flops=2 * dy.size * HIDDEN)


def _elements(name: str, shape: tuple[int, ...]) -> BenchCase:
    x = _SPEC((_BATCH, *shape), jnp.bfloat16)

    def run(x, *, implementation):
        return residuals.pack_elements(x, 0.1, implementation=implementation)

    moved = num_bytes(x, *results(run, x))
    name = f"{name} of {_VIT}"
    return BenchCase("BackRazor's selection", name, run, (x,), moved, kernel="jax_triton")
