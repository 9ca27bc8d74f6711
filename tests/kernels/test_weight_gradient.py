"""The kernel of the weight gradient: interpreted against float64, compiled for its targets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measures import as_jax, assert_close, normal, relative_error

from pbr_jax.gpu import CARDS
from pbr_jax.gpu.cards import for_capability
from pbr_jax.gpu.kernels import kernel_use
from pbr_jax.kernels.tiles import Blocks
from pbr_jax.kernels.weight_gradient import TILES, weight_gradient
from pbr_jax.ops import weight_gradient as op
from pbr_jax.ops.dispatch import interpreted

# Small tiles, so that small arrays have several, some of them ragged.
SMALL = Blocks(rows=16, columns=16, depth=16, num_stages=2, num_blocks=12)
ROUNDING = 3e-6
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


@functools.partial(jax.jit, static_argnames=("blocks",))
def run(x, dy, blocks=SMALL):
    interpret = jax.default_backend() != "gpu"
    return weight_gradient(x, dy, blocks=blocks, interpret=interpret)


@pytest.mark.parametrize(
    ("tokens", "kept", "features", "dtype"),
    [
        (1, 1, 1, jnp.float32),
        (197, 80, 3, jnp.float32),
        (64, 16, 16, jnp.float32),
        *((197, 24, 40, dtype) for dtype in DTYPES),
    ],
)
def test_equals_the_product_of_any_shape(tokens, kept, features, dtype):
    x, dy = normal(0, tokens, kept), normal(1, tokens, features)
    low = as_jax((x, dy), dtype)
    dw, db = run(*low)
    assert dw.dtype == db.dtype == jnp.float32
    x, dy = (np.asarray(a, np.float64) for a in low)
    assert_close(dw, x.T @ dy, ROUNDING)
    assert_close(db, dy.sum(axis=0), ROUNDING)


@pytest.mark.parametrize("num_blocks", [1, 5, 1000])
def test_any_number_of_shares_gives_the_same(num_blocks):
    x, dy = as_jax((normal(0, 150, 20), normal(1, 150, 20)))
    expected = np.asarray(x, np.float64).T @ np.asarray(dy, np.float64)
    dw, _ = run(x, dy, blocks=SMALL._replace(num_blocks=num_blocks))
    assert_close(dw, expected, ROUNDING)


def test_a_token_behind_the_end_would_be_seen():
    x, dy = np.ones((17, 16)), np.ones((17, 16))
    dw, _ = run(*as_jax((x, dy)))
    assert relative_error(dw, x.T @ dy * 18 / 17) > 0.05


class TestOp:
    """What `pbr_jax.ops.weight_gradient` makes of the kernel."""

    def test_what_the_kernel_cannot_take_is_refused(self):
        spec = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
        with interpreted():
            with pytest.raises(ValueError, match="x has dtype bfloat16 and dy float32: must be"):
                op.KERNEL.choose("triton", spec((4, 8)), jax.ShapeDtypeStruct((4, 8), jnp.float32))
            with pytest.raises(ValueError, match=r"and fewer than 2\^31"):
                op.KERNEL.choose("triton", spec((2**20, 8)), spec((2**20, 2**11)))

    def test_few_columns_are_for_the_kernel_and_many_for_xla(self, monkeypatch):
        where = op.dispatch.Target("gpu", "NVIDIA H200", (9, 0))
        monkeypatch.setattr(op.dispatch, "target", lambda *args: where)
        spec = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
        dy = spec((1000, 768))
        chosen = {k: op.KERNEL.choose(None, spec((1000, k)), dy) for k in (80, 312, 768)}
        assert chosen == {80: "triton", 312: "triton", 768: "xla"}


@pytest.mark.gpu_compile
@pytest.mark.parametrize("card", ["h200", "rtx4090"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(((25216, 80, 3072), dtype) for dtype in DTYPES),
        ((25216, 312, 768), jnp.bfloat16),
        ((1, 80, 768), jnp.bfloat16),
        ((197, 33, 50), jnp.bfloat16),
    ],
    ids=str,
)
def test_compiles_without_spills(shape, dtype, card):
    """`shape` is tokens, kept columns, features."""
    tokens, kept, features = shape
    blocks = for_capability(TILES, CARDS[card].capability)[jnp.dtype(dtype).itemsize]
    args = [jax.ShapeDtypeStruct((tokens, size), dtype) for size in (kept, features)]
    (use,) = kernel_use(functools.partial(weight_gradient, blocks=blocks), args, CARDS[card])
    assert use.spill_bytes == 0
    assert use.blocks <= blocks.num_blocks
    # Two blocks of threads fit a multiprocessor.
    assert 2 * use.registers * use.threads <= 65536
    assert 2 * (use.shared_bytes + 1024) <= CARDS[card].shared_per_core
