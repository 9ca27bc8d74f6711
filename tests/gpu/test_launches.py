"""Kernels of a compiled program: how often, how many bytes, how much arithmetic."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from pbr_jax.gpu import CARDS, compile_for
from pbr_jax.gpu.launches import launches

pytestmark = pytest.mark.gpu_compile

LAYERS, SIDE = 3, 256
BYTES = 2 * SIDE * SIDE  # of one matrix


def layers(weights, x):
    """A loop that reads a slice of `weights` and writes a slice of a stack at each turn."""

    def layer(x, weight):
        y = jnp.tanh(x @ weight)
        return y, y

    return lax.scan(layer, x, weights)


@pytest.fixture(scope="module")
def found():
    specs = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((LAYERS, SIDE, SIDE), (SIDE, SIDE))
    ]
    return launches(compile_for(layers, specs, CARDS["h200"]).as_text())


def test_matrix_products_are_counted_with_their_loop(found):
    (product,) = [one for one in found if one.kind == "gemm"]
    assert product.times == LAYERS
    assert [loop.trips for loop in product.loops] == [LAYERS]
    assert product.flops == 2 * SIDE**3
    # The workspace of the library is no traffic; newer compilers fuse the slice: its index is read.
    assert product.bytes - 3 * BYTES in (0, 4)
    assert product.source.endswith("dot_general")


def test_of_a_stack_only_the_slice_moves(found):
    """Whatever XLA fuses: a slice is read, one is written, and never the whole stack."""
    moved = {one.name: one.bytes for one in found if one.loops and one.kind == "fusion"}
    assert moved
    assert max(moved.values()) <= 3 * BYTES
    assert sum(moved.values()) >= 2 * BYTES


def test_the_floor_is_the_slower_of_bytes_and_arithmetic(found):
    (product,) = [one for one in found if one.kind == "gemm"]
    assert product.floor(bandwidth=1.0, flops=1e30) == LAYERS * product.bytes
    assert product.floor(bandwidth=1e30, flops=1.0) == LAYERS * product.flops
