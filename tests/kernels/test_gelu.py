"""The GELU kernel: interpreted against float64 and XLA's code, compiled for its targets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.special
from measures import as_jax, assert_close, normal, relative_error

from pbr_jax.gpu import CARDS
from pbr_jax.gpu.cards import for_capability
from pbr_jax.gpu.kernels import kernel_use
from pbr_jax.kernels import gelu as kernel
from pbr_jax.kernels.tiles import Blocks
from pbr_jax.ops import dispatch, gelu, gelu_codes

# Small tiles, so that small arrays have several, some of them ragged.
SMALL = Blocks(rows=4, columns=8)
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


@functools.partial(jax.jit, static_argnames=("bits", "approximate"))
def run(u, columns=None, *, bits=2, approximate=False):
    return kernel.gelu(
        u,
        gelu_codes.nearest_steps(bits, approximate),
        columns,
        approximate=approximate,
        blocks=SMALL,
        interpret=jax.default_backend() != "gpu",
    )


def test_erf_is_accurate_to_rounding():
    x = np.linspace(-6, 6, 10001).astype(np.float32)
    error = np.abs(np.asarray(kernel.erf(jnp.asarray(x)), np.float64) - scipy.special.erf(x))
    assert error.max() <= 5e-7


@pytest.mark.parametrize(
    ("shape", "bits", "approximate", "dtype"),
    [
        ((1, 1), 2, False, jnp.float32),
        ((7, 100), 3, False, jnp.float32),
        ((6, 64), 4, True, jnp.float32),
        *(((9, 72), 2, False, dtype) for dtype in DTYPES[1:]),
    ],
)
def test_value_and_codes_of_any_shape(shape, bits, approximate, dtype):
    u = as_jax(3 * normal(0, *shape), dtype)
    a, planes, packed = run(u, bits=bits, approximate=approximate)
    wide = np.asarray(u, np.float64)
    rounding = 1e-6 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
    assert a.dtype == dtype
    assert packed is None
    assert_close(a, oracles.gelu(wide, approximate), rounding)
    codes = gelu_codes.nearest(u.astype(jnp.float32), bits, approximate)
    np.testing.assert_array_equal(planes, gelu_codes.pack(codes, bits))
    np.testing.assert_array_equal(gelu_codes.unpack(planes, shape[1]), codes)


def test_packed_columns_are_those_of_the_output_and_unused_slots_zero():
    u = as_jax(normal(1, 5, 50), jnp.bfloat16)
    columns = np.random.default_rng(0).permutation(50)[:20].astype(np.int32)
    columns[[3, 17]] = 50
    a, _, packed = run(u, jnp.asarray(columns))
    expected = np.pad(np.asarray(a, np.float32), ((0, 0), (0, 1)))[:, columns]
    np.testing.assert_array_equal(np.asarray(packed, np.float32), expected)


class TestOp:
    """What `pbr_jax.ops.gelu` makes of the kernel."""

    def test_equals_the_code_of_xla(self):
        u, columns = as_jax(normal(2, 2, 3, 40)), jnp.asarray([5, 39, 0, 40], jnp.int32)

        def forward(name):
            return gelu.forward(u, gelu.Settings("code2", False, name), columns=columns)

        expected = jax.jit(lambda: forward("xla"))()
        with dispatch.interpreted():
            found = jax.jit(lambda: forward("triton"))()
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert relative_error(one, other) <= 1e-6

    @pytest.mark.parametrize(
        ("card", "chosen"), [("h200", "triton"), ("rtx4090", "triton"), ("rtx2080ti", "xla")]
    )
    def test_the_device_decides(self, card, chosen, monkeypatch):
        where = dispatch.Target("gpu", CARDS[card].description, CARDS[card].capability)
        monkeypatch.setattr(dispatch, "target", lambda *args: where)
        u = jax.ShapeDtypeStruct((2, 8), jnp.bfloat16)
        assert gelu.KERNEL.choose(None, u, None) == chosen
        assert gelu.KERNEL.choose(None, u, jax.random.split(jax.random.key(0), 2)) == "xla"

    def test_what_the_kernel_cannot_take_is_refused(self):
        u = jax.ShapeDtypeStruct((2, 8), jnp.float32)
        with dispatch.interpreted():
            with pytest.raises(ValueError, match="rounds codes to the nearest level only"):
                gelu.KERNEL.choose("triton", u, jax.random.split(jax.random.key(0), 2))
            with pytest.raises(ValueError, match="0 elements: must be at least 1 and fewer than"):
                gelu.KERNEL.choose("triton", jax.ShapeDtypeStruct((0, 8), jnp.float32), None)


@pytest.mark.gpu_compile
@pytest.mark.parametrize("card", ["h200", "rtx4090"])
@pytest.mark.parametrize(
    ("shape", "kept", "bits", "dtype"),
    [
        ((6304, 3072), 312, 2, jnp.bfloat16),
        ((197, 50), 33, 3, jnp.float32),
        *(
            pytest.param((6304, 3072), kept, bits, dtype, marks=pytest.mark.exhaustive)
            for kept, bits, dtype in (
                (312, 2, jnp.float16),
                (312, 2, jnp.float32),
                (0, 4, jnp.bfloat16),
            )
        ),
    ],
    ids=str,
)
def test_compiles_without_spills(shape, kept, bits, dtype, card):
    compiled = functools.partial(
        kernel.gelu,
        steps=gelu_codes.nearest_steps(bits, False),
        blocks=for_capability(kernel.TILES, CARDS[card].capability)[jnp.dtype(dtype).itemsize],
    )
    columns = jax.ShapeDtypeStruct((kept,), jnp.int32) if kept else None
    args = [jax.ShapeDtypeStruct(shape, dtype), *([columns] if kept else [])]
    (use,) = kernel_use(lambda u, *c: compiled(u, columns=c[0] if c else None), args, CARDS[card])
    assert use.spill_bytes == 0
    assert use.registers <= 128
