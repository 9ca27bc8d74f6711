"""LayerNorm: every residual against the NumPy oracle."""

import functools

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import (
    as_jax,
    assert_close,
    normal,
    relative_error,
    saved_bytes,
    unchecked,
    value_and_pullback,
)

from pbr_jax.ops.layer_norm import layer_norm
from pbr_jax.ops.layer_norm_kinds import dequantize, quantize

B, N, D = 3, 5, 24
EPSILON, KEEP = 1e-5, 0.25
X, SCALE, BIAS = 1 + 2 * normal(0, B, N, D), 1 + 0.3 * normal(1, D), normal(2, D)
DY = normal(3, B, N, D)
ROUNDING = 2e-6
KINDS = ["dense", "elements"]


def run(kind, keep=KEEP, dtype=jnp.float32, x=X, dy=DY):
    """Output and gradients; scale and bias stay float32, as master weights do."""
    op = functools.partial(layer_norm, epsilon=EPSILON, kind=kind, keep=keep)
    y, grads = value_and_pullback(
        op, as_jax(dy, dtype), as_jax(x, dtype), as_jax(SCALE), as_jax(BIAS)
    )
    return y, dict(zip(("x", "scale", "bias"), grads, strict=True))


def oracle(x=X, dy=DY, save=lambda x: x):
    y, mean, rstd = oracles.layer_norm(x, SCALE, BIAS, EPSILON)
    return y, oracles.layer_norm_gradients(save(x), mean, rstd, SCALE, dy)


def plain(x, scale, bias):
    """What one would write without thinking of precision."""
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    x_hat = centered / jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + EPSILON)
    return x_hat * scale[None, None] + bias[None, None]


@pytest.mark.parametrize("kind", KINDS)
class TestLayerNorm:
    def test_equals_the_oracle(self, kind):
        save = {"dense": lambda x: x, "elements": lambda x: oracles.largest_elements(x, KEEP)}[kind]
        y, grads = run(kind)
        expected_y, expected = oracle(save=save)
        assert_close(y, expected_y, ROUNDING)
        assert_close(grads, expected, ROUNDING)

    def test_keeping_everything_is_exact(self, kind):
        _, grads = run(kind, keep=1.0)
        assert_close(grads, oracle()[1], ROUNDING)

    def test_one_leading_axis(self, kind):
        x, dy = normal(5, 7, D), normal(6, 7, D)
        y, grads = run(kind, keep=1.0, x=x, dy=dy)
        expected_y, expected = oracle(x, dy)
        assert_close(y, expected_y, ROUNDING)
        assert_close(grads, expected, ROUNDING)

    def test_bfloat16_error_is_that_of_plain_code(self, kind):
        low = [as_jax(a, jnp.bfloat16) for a in (DY, X, SCALE, BIAS)]
        plain_y, plain_grads = value_and_pullback(plain, *low)
        y, grads = run(kind, keep=1.0, dtype=jnp.bfloat16)
        assert (y.dtype, grads["x"].dtype, grads["scale"].dtype) == (
            jnp.bfloat16,
            jnp.bfloat16,
            jnp.float32,
        )
        exact_y, exact = oracle()
        assert relative_error(y, exact_y) <= 2 * relative_error(plain_y, exact_y)
        for name, plain_gradient in zip(("x", "scale", "bias"), plain_grads, strict=True):
            assert relative_error(grads[name], exact[name]) <= 3 * relative_error(
                plain_gradient, exact[name]
            ), name

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_saved_bytes(self, kind, dtype):
        x, scale, bias = as_jax(X, dtype), as_jax(SCALE), as_jax(BIAS)
        itemsize, statistic = x.dtype.itemsize, 4 * B * N
        expected = {
            "dense": B * N * D * itemsize + statistic,
            "elements": B * (round(KEEP * N * D) * itemsize + N * D // 8) + 2 * statistic,
        }[kind]
        assert (
            saved_bytes(lambda x: layer_norm(x, scale, bias, kind=kind, keep=KEEP), x) == expected
        )


class TestInt8:
    """The normalised input in 8 bits, one scale for 64 channels."""

    def test_gradients_are_within_one_percent(self):
        y, grads = run("int8")
        expected_y, expected = oracle()
        assert_close(y, expected_y, ROUNDING)
        assert_close(grads["bias"], expected["bias"], ROUNDING)
        for name in ("x", "scale"):
            assert 1e-4 < relative_error(grads[name], expected[name]) < 0.01

    def test_every_entry_is_within_half_a_step_and_an_outlier_stays_in_its_group(self):
        x_hat = normal(8, 50, 150)  # groups of 64, 64 and 22
        x_hat[:, 3] = 60
        x_hat[7, 64:128] = 0
        restored = np.asarray(dequantize(*quantize(as_jax(x_hat))))
        for group in (slice(0, 64), slice(64, 128), slice(128, 150)):
            largest = np.abs(x_hat[:, group]).max(axis=1, keepdims=True)
            error = np.abs(restored - x_hat)[:, group]
            # Half a step of 1/127, widened by the rounding of the scale to bfloat16.
            assert (error <= 1.02 * largest / 254 + 1e-7).all()

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_saved_bytes(self, dtype):
        x, ones = jnp.ones((B, N, 150), dtype), jnp.ones(150)
        saved = saved_bytes(lambda x: layer_norm(x, ones, ones, kind="int8"), x)
        assert saved == B * N * (150 + 3 * 2 + 4)


def test_a_large_mean_costs_no_accuracy():
    """The variance is that of the centred input; a difference of squares is 5 % off."""
    x = np.float32(1000 + normal(7, 2, 3, D)).astype(np.float64)
    y, grads = run("dense", x=x, dy=DY[:2, :3])
    expected_y, expected = oracle(x, DY[:2, :3])
    assert_close(y, expected_y, 1e-3)
    assert_close(grads, expected, 1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": jnp.ones(3)}, r"scale has shape \(3,\): must be \[D\] = \(24,\)"),
        ({"bias": jnp.ones((1, 24))}, r"bias has shape \(1, 24\): must be \[D\] = \(24,\)"),
        ({"kind": "dens"}, r"layer_norm = 'dens': must be .*dense.*elements"),
        ({"kind": "elements", "keep": 2.0}, r"keep = 2\.0: must be in \(0, 1\]"),
    ],
)
def test_errors_name_argument_value_and_rule(arguments, message):
    given = {"scale": jnp.ones(D), "bias": jnp.ones(D)} | arguments
    with pytest.raises(ValueError, match=message):
        unchecked(layer_norm)(jnp.ones((B, N, D)), **given)
