"""The LayerNorm kernels: interpreted against float64 and XLA's code, compiled for their targets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import as_jax, assert_close, normal, relative_error

from pbr_jax.gpu import CARDS
from pbr_jax.gpu.cards import for_capability
from pbr_jax.gpu.kernels import kernel_use
from pbr_jax.kernels import layer_norm as kernel
from pbr_jax.kernels.tiles import Blocks
from pbr_jax.ops import dispatch
from pbr_jax.ops import layer_norm as op
from pbr_jax.ops.layer_norm_kinds import Quantized, quantize

EPSILON, ROUNDING = 1e-5, 2e-6
SMALL = Blocks(rows=1, columns=512, num_blocks=3)


@functools.partial(jax.jit, static_argnames=("int8",))
def run(x, scale, bias, dy, skip=None, int8=False):
    """Output, the normalised input and its scales, and all gradients."""
    interpret = jax.default_backend() != "gpu"
    y, x_hat, rstd, scales = kernel.forward(
        x, scale, bias, epsilon=EPSILON, int8=int8, blocks=SMALL, interpret=interpret
    )
    grads = kernel.backward(dy, x_hat, rstd, scale, skip, scales, blocks=SMALL, interpret=interpret)
    return y, (x_hat, scales), rstd, grads


def inputs(tokens, width):
    arrays = (normal(s, tokens, width) for s in (0, 3, 4))
    x, dy, skip = arrays
    return 1 + 2 * x, 1 + 0.3 * normal(1, width), normal(2, width), dy, skip


@pytest.mark.parametrize(
    ("tokens", "width", "dtype"),
    [
        (1, 1, jnp.float32),
        (23, 24, jnp.float32),
        (9, 200, jnp.float32),
        (9, 64, jnp.bfloat16),
        (9, 64, jnp.float16),
    ],
)
def test_equals_the_oracle_for_any_shape(tokens, width, dtype):
    x, scale, bias, dy, skip = inputs(tokens, width)
    low = as_jax((x, dy, skip), dtype)
    x, dy, skip = (np.asarray(a, np.float64) for a in low)
    scale32, bias32 = as_jax((scale, bias))
    y, _, _, (dx, dscale, dbias) = run(low[0], scale32, bias32, low[1], low[2])
    expected_y, mean, rstd = oracles.layer_norm(x, scale, bias, EPSILON)
    expected = oracles.layer_norm_gradients(x, mean, rstd, scale, dy)
    rounding = ROUNDING if dtype == jnp.float32 else 2 * float(jnp.finfo(dtype).eps)
    assert y.dtype == dx.dtype == dtype
    assert_close(y, expected_y, rounding)
    assert_close(dx, expected["x"] + skip, rounding)
    if width > 1:
        assert_close(dscale, expected["scale"], rounding)
    assert_close(dbias, expected["bias"], ROUNDING)


@pytest.mark.parametrize("width", [64, 150])
def test_int8_codes_and_gradients_are_those_of_xla(width):
    x, scale, bias, dy, skip = as_jax(inputs(11, width))
    _, (codes, scales), rstd, grads = run(x, scale, bias, dy, skip, int8=True)
    x_hat, _, exact_rstd = op.normalize(x, EPSILON)
    expected_codes, expected_scales = quantize(x_hat)
    difference = np.asarray(codes, np.int32) - np.asarray(expected_codes, np.int32)
    assert np.abs(difference).max() <= 1  # at a tie
    assert np.mean(difference != 0) < 0.01
    np.testing.assert_array_equal(scales, expected_scales)
    saved = Quantized(codes, scales, exact_rstd)
    params = {"scale": scale, "bias": bias}
    expected, dx = op.backward(params, saved, dy, op.Settings("int8", implementation="xla"), skip)
    assert_close(grads[0], dx, ROUNDING)
    assert_close(grads[1], expected["scale"], 5e-6)
    assert_close(grads[2], expected["bias"], ROUNDING)
    assert_close(rstd, exact_rstd[:, 0], ROUNDING)


def test_a_large_mean_costs_no_accuracy():
    x, scale, bias, dy, _ = inputs(5, 64)
    x = np.float32(1000 + x).astype(np.float64)
    y, _, _, _ = run(*as_jax((x, scale, bias, dy)))
    assert_close(y, oracles.layer_norm(x, scale, bias, EPSILON)[0], 1e-3)


class TestOp:
    """What `pbr_jax.ops.layer_norm` makes of the kernels."""

    @pytest.mark.parametrize("kind", ["dense", "int8"])
    def test_the_op_differentiates_as_xla_does(self, kind):
        x, scale, bias, dy, _ = as_jax(inputs(6, 40))
        x, dy = x.reshape(2, 3, 40), dy.reshape(2, 3, 40)

        def both(implementation):
            norm = functools.partial(op.layer_norm, kind=kind, implementation=implementation)
            y, pullback = jax.vjp(norm, x, scale, bias)
            return y, *pullback(dy)

        expected = jax.jit(lambda: both("xla"))()
        with dispatch.interpreted():
            found = jax.jit(lambda: both("triton"))()
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert relative_error(one, other) <= 5e-6

    @pytest.mark.parametrize(
        ("card", "chosen"), [("h200", "triton"), ("rtx4090", "triton"), ("rtx2080ti", "xla")]
    )
    def test_the_device_decides(self, card, chosen, monkeypatch):
        where = dispatch.Target("gpu", CARDS[card].description, CARDS[card].capability)
        monkeypatch.setattr(dispatch, "target", lambda *args: where)
        x = jax.ShapeDtypeStruct((2, 8), jnp.bfloat16)
        found = {kind: op.KERNEL.choose(None, x, kind) for kind in ("int8", "dense", "elements")}
        assert found == {"int8": chosen, "dense": chosen, "elements": "xla"}

    @pytest.mark.parametrize(
        ("width", "kind", "message"),
        [
            (8, "elements", "its residual is 'elements'"),
            (5000, "dense", "D = 5000: must be at most 4096"),
            (0, "dense", "0 elements: must be at least 1 and fewer than"),
        ],
    )
    def test_what_the_kernels_cannot_take_is_refused(self, width, kind, message):
        x = jax.ShapeDtypeStruct((3, width), jnp.float32)
        with dispatch.interpreted(), pytest.raises(ValueError, match=message):
            op.KERNEL.choose("triton", x, kind)


@pytest.mark.gpu_compile
@pytest.mark.parametrize("card", ["h200", "rtx4090"])
@pytest.mark.parametrize(
    ("shape", "int8", "dtype"),
    [
        ((6304, 768), True, jnp.bfloat16),
        ((6304, 4096), True, jnp.float32),
        *(
            pytest.param(shape, int8, dtype, marks=pytest.mark.exhaustive)
            for shape, int8, dtype in (
                ((6304, 768), True, jnp.float16),
                ((6304, 768), True, jnp.float32),
                ((6304, 768), False, jnp.bfloat16),
                ((3, 50), True, jnp.bfloat16),
            )
        ),
    ],
    ids=str,
)
def test_compiles_without_spills(shape, int8, dtype, card):
    width = shape[1]
    blocks = for_capability(kernel.TILES, CARDS[card].capability)
    spec = jax.ShapeDtypeStruct

    def both(x, scale, dy):
        y, x_hat, rstd, scales = kernel.forward(
            x, scale, scale, epsilon=1e-6, int8=int8, blocks=blocks
        )
        return y, kernel.backward(dy, x_hat, rstd, scale, x, scales, blocks=blocks)

    args = [spec(shape, dtype), spec((width,), jnp.float32), spec(shape, dtype)]
    forward, backward = kernel_use(both, args, CARDS[card])
    assert (forward.name, backward.name) == ("layer_norm", "layer_norm_backward")
    assert forward.spill_bytes == backward.spill_bytes == 0
    assert backward.blocks <= blocks.num_blocks
