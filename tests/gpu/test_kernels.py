"""Registers, spills and shared memory of kernels, read without a GPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.gpu import CARDS
from pbr_jax.gpu.kernels import kernel_use

pytestmark = pytest.mark.gpu_compile

SIDE, STEPS = 64, 4


def product(a, b, *, warps, name):
    """`a @ b` in one block, bf16 `[S, STEPS * S], [STEPS * S, S] -> f32 [S, S]`."""

    def kernel(a_ref, b_ref, out_ref):
        def add(i, total):
            part = pl.ds(i * SIDE, SIDE)
            return total + triton.dot(a_ref[:, part], b_ref[part, :])

        zeros = jnp.zeros((SIDE, SIDE), jnp.float32)
        out_ref[...] = jax.lax.fori_loop(0, STEPS, add, zeros)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
        name=name,
    )(a, b)


SPECS = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    for shape in ((SIDE, STEPS * SIDE), (STEPS * SIDE, SIDE))
]


def test_kernels_are_reported_in_the_order_of_launch():
    def two(a, b):
        first = product(a, b, warps=4, name="first")
        wide = jnp.concatenate([first.astype(a.dtype)] * STEPS, axis=1)
        return jnp.sin(product(wide, b, warps=4, name="second"))

    found = kernel_use(two, SPECS, CARDS["rtx4090"])
    assert [use.name for use in found] == ["first", "second"]
    for use in found:
        assert use.threads == 128 and use.blocks == 1
        assert SIDE * SIDE // 128 <= use.registers <= 255  # at least the accumulator
        assert use.shared_bytes >= 2 * SIDE * SIDE  # an operand
        assert use.spill_bytes == 0


def test_a_spill_is_seen():
    def narrow(a, b):
        return product(a, b, warps=1, name="narrow")  # 128 registers of sums, and the operands

    (use,) = kernel_use(narrow, SPECS, CARDS["rtx4090"])
    assert use.registers == 255
    assert use.spill_bytes > 0


def test_what_xla_generates_itself_is_left_out():
    assert kernel_use(jnp.sin, [jax.ShapeDtypeStruct((8,), jnp.float32)], CARDS["h200"]) == []


@pytest.mark.parametrize("card", ["a100", "rtx3090", "h100"])
def test_kernels_compile_for_every_card_that_can_run_them(card):
    """Also on JAX 0.11, where Pallas knows the cards that are not there by their names."""
    (use,) = kernel_use(lambda a, b: product(a, b, warps=4, name="any"), SPECS, CARDS[card])
    assert use.name == "any"
