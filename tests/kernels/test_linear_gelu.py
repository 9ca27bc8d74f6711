"""GELU in the products around it: interpreted against float64 and XLA's code, and compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import as_jax, assert_close, implemented, normal, relative_error

from pbr_jax.gpu import CARDS
from pbr_jax.gpu.cards import for_capability
from pbr_jax.gpu.kernels import kernel_use
from pbr_jax.kernels import linear_gelu as kernel
from pbr_jax.kernels.linear_tiles import TILES, for_features
from pbr_jax.kernels.tiles import Blocks
from pbr_jax.ops import dispatch, gelu, gelu_codes, linear_gelu

# Small tiles, so that small arrays have several, some of them ragged.
SMALL = Blocks(rows=16, columns=2, depth=16, parts=2, num_stages=2)
SHAPES = [  # tokens, inputs, features, bits of a code, tanh form, dtype
    (1, 1, 1, 2, False, jnp.float32),
    (37, 20, 50, 3, False, jnp.float32),
    (32, 16, 64, 4, True, jnp.float32),
    (40, 24, 72, 2, False, jnp.bfloat16),
    (9, 40, 33, 2, False, jnp.float16),
]
ON_GPU = jax.default_backend() == "gpu"


def rounding(dtype):
    return 1e-6 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)


def exact(seed, *shape):
    """Sums of products of these are exact in float32, in any order: quarters of small integers."""
    return np.clip(np.round(2 * normal(seed, *shape)), -8, 8) / 4


@functools.partial(jax.jit, static_argnames=("bits", "approximate"))
def forward(x, w, bias, columns=None, *, bits, approximate=False):
    steps = gelu_codes.nearest_steps(bits, approximate) if bits else None
    return kernel.linear_gelu(
        x, w, bias, steps, columns, approximate=approximate, blocks=SMALL, interpret=not ON_GPU
    )


@functools.partial(jax.jit, static_argnames=("levels", "approximate"))
def gradient(dy, w, saved, *, levels, approximate=False):
    return kernel.linear_gelu_gradient(
        dy, w, saved, levels, approximate=approximate, blocks=SMALL, interpret=not ON_GPU
    )


@pytest.mark.parametrize(("tokens", "inner", "features", "bits", "approximate", "dtype"), SHAPES)
class TestKernels:
    def test_forward(self, tokens, inner, features, bits, approximate, dtype):
        x, w, bias = exact(0, tokens, inner), exact(1, inner, features), exact(2, features)
        columns = np.random.default_rng(0).permutation(features)[: max(1, features // 2)]
        columns[2::5] = features  # unused slots
        u = x @ w + bias
        args = (as_jax(x, dtype), as_jax(w, dtype), as_jax(bias))
        a, planes, packed = forward(
            *args, columns.astype(np.int32), bits=bits, approximate=approximate
        )
        assert a.dtype == packed.dtype == dtype
        assert_close(a, oracles.gelu(u, approximate), rounding(dtype))
        codes = gelu_codes.nearest(as_jax(u), bits, approximate)
        np.testing.assert_array_equal(planes, gelu_codes.pack(codes, bits))
        padded = np.pad(np.asarray(a, np.float32), ((0, 0), (0, 1)))
        np.testing.assert_array_equal(np.asarray(packed, np.float32), padded[:, columns])

    def test_forward_that_keeps_u(self, tokens, inner, features, bits, approximate, dtype):
        x, w, bias = exact(0, tokens, inner), exact(1, inner, features), exact(2, features)
        a, u, packed = forward(
            as_jax(x, dtype), as_jax(w, dtype), as_jax(bias), bits=0, approximate=approximate
        )
        assert packed is None and u.dtype == dtype
        assert_close(u, x @ w + bias, rounding(dtype))
        assert_close(a, oracles.gelu(x @ w + bias, approximate), rounding(dtype))

    def test_gradient(self, tokens, inner, features, bits, approximate, dtype):
        dy, w, u = exact(3, tokens, inner), exact(4, features, inner), 2 * normal(5, 1, features)
        u = np.asarray(as_jax(np.repeat(u, tokens, 0), dtype), np.float64)
        args = (as_jax(dy, dtype), as_jax(w, dtype))
        levels = tuple(map(float, gelu_codes.codebook(bits, False, approximate)))
        codes = gelu_codes.nearest(as_jax(u), bits, approximate)
        planes = gelu_codes.pack(codes, bits)
        du = gradient(*args, planes, levels=levels, approximate=approximate)
        assert du.dtype == dtype
        assert_close(du, (dy @ w.T) * np.asarray(levels)[codes], rounding(dtype))
        du = gradient(*args, as_jax(u, dtype), levels=None, approximate=approximate)
        slope = oracles.gelu_derivative(u, approximate)
        assert_close(du, (dy @ w.T) * slope, 4 * rounding(dtype))


class TestOp:
    """What `pbr_jax.ops.linear_gelu` makes of the kernels."""

    X, W, BIAS = normal(0, 2, 3, 24), normal(1, 24, 40) / 5, normal(2, 40)
    COLUMNS = jnp.asarray([5, 39, 0, 40], jnp.int32)

    def run(self, implementation, kind, dtype=jnp.float32):
        def both(x, w, bias, columns):
            settings = gelu.Settings(kind, False, implementation)
            a, saved, packed = linear_gelu.forward(x, w, bias, settings, columns=columns)
            du = linear_gelu.input_gradient(x, w.T, saved, settings)
            return a, saved, packed, du

        with implemented():
            args = (as_jax(self.X, dtype), as_jax(self.W), as_jax(self.BIAS), self.COLUMNS)
            return jax.jit(both)(*args)

    @pytest.mark.parametrize("kind", ["dense", "code2", "code3"])
    def test_equals_the_code_of_xla(self, kind):
        found, expected = (self.run(name, kind) for name in ("triton", "xla"))
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert relative_error(one, other) <= 1e-5

    def test_bfloat16_error_is_that_of_plain_code(self):
        found, plain = (self.run(name, "dense", jnp.bfloat16) for name in ("triton", "xla"))
        u = self.X @ self.W + self.BIAS
        exact_du = (self.X @ self.W) * oracles.gelu_derivative(u)
        assert relative_error(found[0], oracles.gelu(u)) <= 2 * relative_error(
            plain[0], oracles.gelu(u)
        )
        assert relative_error(found[3], exact_du) <= 3 * relative_error(plain[3], exact_du)

    @pytest.mark.parametrize(
        ("card", "kind", "chosen"),
        [
            ("rtx4090", "code2", "triton"),
            ("rtx4090", "dense", "xla"),
            ("h200", "code2", "xla"),
            ("rtx2080ti", "code2", "xla"),
        ],
    )
    def test_the_device_decides(self, card, kind, chosen, monkeypatch):
        where = dispatch.Target("gpu", CARDS[card].description, CARDS[card].capability)
        monkeypatch.setattr(dispatch, "target", lambda *args: where)
        x = jax.ShapeDtypeStruct((2, 8), jnp.bfloat16)
        assert linear_gelu.KERNEL.choose(None, x, 32, kind, None) == chosen
        if card == "h200":  # by name it is taken all the same
            assert linear_gelu.KERNEL.choose("triton", x, 32, kind, None) == "triton"

    def test_what_the_kernels_cannot_take_is_refused(self):
        x = as_jax(normal(0, 2, 8))
        keys = jax.random.split(jax.random.key(0), 2)
        with dispatch.interpreted():
            with pytest.raises(ValueError, match="rounds codes to the nearest level only"):
                settings = gelu.Settings("code2", False, "triton")
                linear_gelu.forward(x, jnp.ones((8, 4)), jnp.ones(4), settings, keys=keys)
            with pytest.raises(ValueError, match="0 elements: must be at least 1 and fewer than"):
                linear_gelu.KERNEL.choose("triton", x[:0], 4, "code2", None)

    def test_codes_rounded_at_random_have_levels_of_their_own(self):
        u = as_jax(normal(0, 2, 3, 16))
        codes = gelu_codes.nearest(u, 2, False)
        saved = gelu_codes.pack(codes, 2)
        dy, w = as_jax(normal(1, 2, 3, 8)), as_jax(normal(2, 16, 8))
        with implemented():
            settings = gelu.Settings("code2", False, "triton")
            du = linear_gelu.input_gradient(dy, w, saved, settings, stochastic=True)
        levels = gelu_codes.codebook(2, True, False)
        assert_close(du, (np.asarray(dy) @ np.asarray(w).T) * levels[np.asarray(codes)], 1e-5)


@pytest.mark.gpu_compile
@pytest.mark.parametrize("card", ["h200", "rtx4090"])
@pytest.mark.parametrize(
    ("tokens", "inner", "features", "kept", "bits", "dtype"),
    [
        (6304, 768, 3072, 312, 2, jnp.bfloat16),
        pytest.param(6304, 768, 3072, 0, 0, jnp.bfloat16, marks=pytest.mark.exhaustive),
        pytest.param(6304, 768, 3072, 312, 4, jnp.float32, marks=pytest.mark.exhaustive),
        (197, 50, 100, 33, 3, jnp.float16),
    ],
    ids=str,
)
def test_compile_without_spills(tokens, inner, features, kept, bits, dtype, card):
    blocks = for_capability(TILES, CARDS[card].capability)[jnp.dtype(dtype).itemsize]
    blocks = for_features(blocks, features)
    levels = tuple(map(float, gelu_codes.codebook(bits, False, False))) if bits else None

    def both(x, w, bias, *columns):
        steps = gelu_codes.nearest_steps(bits, False) if bits else None
        a, saved, packed = kernel.linear_gelu(x, w, bias, steps, *columns, blocks=blocks)
        return a, packed, kernel.linear_gelu_gradient(x, w.T, saved, levels, blocks=blocks)

    spec = jax.ShapeDtypeStruct
    args = [spec((tokens, inner), dtype), spec((inner, features), dtype)]
    args += [spec((features,), jnp.float32), *([spec((kept,), jnp.int32)] if kept else [])]
    uses = kernel_use(both, args, CARDS[card])
    assert [use.name for use in uses] == ["linear_gelu", "linear_gelu_gradient"]
    for use in uses:
        assert use.spill_bytes == 0
        if card == "rtx4090" and features == 3072:  # two blocks of threads on a multiprocessor
            assert 2 * use.registers * use.threads <= 65536
            assert 2 * use.shared_bytes <= 99 * 1024
