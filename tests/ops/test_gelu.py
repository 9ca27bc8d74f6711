"""GELU against the NumPy oracle, and that it keeps one array."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import (
    as_jax,
    assert_close,
    exact_jit,
    normal,
    relative_error,
    saved_bytes,
    unchecked,
    value_and_pullback,
)

from pbr_jax.ops import gelu_codes
from pbr_jax.ops.gelu import derivative, gelu

U = np.concatenate(
    [3 * normal(0, 500), np.linspace(-12, 12, 99).astype(np.float32).astype(np.float64)]
)
DY = normal(1, *U.shape)
BOTH_FORMS = pytest.mark.parametrize("approximate", [False, True])


@BOTH_FORMS
class TestGelu:
    TOLERANCE: ClassVar = {False: 1e-6, True: 4e-6}  # 1 - tanh^2 cancels in the tails

    def test_equals_the_oracle(self, approximate):
        y, (du,) = value_and_pullback(
            lambda u: gelu(u, approximate=approximate), as_jax(DY), as_jax(U)
        )
        assert_close(y, oracles.gelu(U, approximate), 1e-6)
        assert_close(du, DY * oracles.gelu_derivative(U, approximate), self.TOLERANCE[approximate])

    def test_derivative_is_accurate_point_by_point(self, approximate):
        # tanh is that of LLVM's optimiser; the suite's set-up turns it off again.
        jax.config.update("jax_disable_most_optimizations", False)
        slope = exact_jit(functools.partial(derivative, approximate=approximate))(as_jax(U))
        error = np.abs(np.asarray(slope) - oracles.gelu_derivative(U, approximate))
        assert error.max() <= self.TOLERANCE[approximate]

    def test_finite_far_out(self, approximate):
        far = jnp.array([-1e4, -50.0, 50.0, 1e4])
        np.testing.assert_array_equal(derivative(far, approximate=approximate), [0, 0, 1, 1])

    def test_bfloat16_error_is_that_of_plain_code(self, approximate):
        u, dy = as_jax(U, jnp.bfloat16), as_jax(DY, jnp.bfloat16)
        plain_y, (plain_du,) = value_and_pullback(
            lambda u: jax.nn.gelu(u, approximate=approximate), dy, u
        )
        y, (du,) = value_and_pullback(lambda u: gelu(u, approximate=approximate), dy, u)
        assert y.dtype == du.dtype == jnp.bfloat16
        exact_y, exact_du = (
            oracles.gelu(U, approximate),
            DY * oracles.gelu_derivative(U, approximate),
        )
        assert relative_error(y, exact_y) <= 2 * relative_error(plain_y, exact_y)
        assert relative_error(du, exact_du) <= 3 * relative_error(plain_du, exact_du)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_saves_one_array(self, approximate, dtype):
        u = jnp.ones((2, 3, 10), dtype)
        assert saved_bytes(lambda u: gelu(u, approximate=approximate), u) == 60 * u.dtype.itemsize


class TestCodes:
    """The derivative in a few bits; errors relative to its root mean square for u ~ N(0, 1)."""

    U = normal(5, 40, 1000)

    def slope(self, bits, key=None, approximate=False, u=U):
        """What the backward pass multiplies with."""
        y, (du,) = value_and_pullback(
            lambda u: gelu(u, approximate=approximate, kind=f"code{bits}", key=key),
            jnp.ones(u.shape),
            as_jax(u),
        )
        assert_close(y, oracles.gelu(u, approximate), 1e-6)
        return du

    @BOTH_FORMS
    @pytest.mark.parametrize(("bits", "error"), [(2, 0.13), (3, 0.065), (4, 0.032)])
    def test_error_of_nearest_rounding(self, bits, error, approximate):
        slope = self.slope(bits, approximate=approximate)
        assert len(np.unique(slope)) == 2**bits
        exact = oracles.gelu_derivative(self.U, approximate)
        assert relative_error(slope, exact) == pytest.approx(error, rel=0.05)

    @BOTH_FORMS
    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_the_code_is_that_of_the_nearest_level(self, bits, approximate):
        u = np.linspace(-9, 9, 20011).astype(np.float32).astype(np.float64)
        levels = gelu_codes.codebook(bits, False, approximate).astype(np.float64)
        distance = np.abs(oracles.gelu_derivative(u, approximate)[:, None] - levels)
        chosen = np.asarray(gelu_codes.nearest(as_jax(u), bits, approximate))
        taken = np.take_along_axis(distance, chosen[:, None], axis=1)[:, 0]
        assert np.all(taken <= distance.min(axis=1) + 1e-6)
        assert set(chosen) == set(range(2**bits))

    @pytest.mark.parametrize(("bits", "error"), [(2, 0.228), (3, 0.10), (4, 0.047)])
    def test_error_of_random_rounding(self, bits, error):
        slope = self.slope(bits, jax.random.key(0))
        assert relative_error(slope, oracles.gelu_derivative(self.U)) == pytest.approx(
            error, rel=0.06
        )

    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_random_rounding_is_unbiased_and_differs_between_samples(self, bits):
        points = np.concatenate([np.linspace(-4, 4, 33), [-0.7518, 1.4142]])
        draws = 4000
        slopes = self.slope(bits, jax.random.key(1), u=np.tile(points, (draws, 1)))
        mean = np.asarray(slopes, np.float64).mean(axis=0)
        largest_step = 0.55  # between levels: of 2 bits
        deviation = np.abs(mean - oracles.gelu_derivative(points))
        assert deviation.max() <= 4 * 0.5 * largest_step / draws**0.5

    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_saved_bytes(self, bits):
        u = jnp.ones((3, 5, 20))  # 20 bits need 3 bytes
        saved = saved_bytes(lambda u: gelu(u, kind=f"code{bits}"), u)
        assert saved == 3 * 5 * 3 * bits

    def test_errors_name_argument_value_and_rule(self):
        with pytest.raises(ValueError, match=r"gelu = 'code5': must be one of dense, code2"):
            unchecked(gelu)(jnp.ones((2, 8)), kind="code5")
        with pytest.raises(ValueError, match="key given with kind = 'dense'"):
            unchecked(gelu)(jnp.ones((2, 8)), key=jax.random.key(0))
