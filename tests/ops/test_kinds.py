"""Kinds of residual: what each says of its bytes is what its op keeps."""

import jax
import jax.numpy as jnp
import pytest

from pbr_jax import plans
from pbr_jax.ops import attention, gelu, layer_norm, linear
from pbr_jax.ops.visibility import Visibility
from pbr_jax.plans import KINDS, budget_for

B, N, M, D, H, HEAD = 3, 10, 13, 150, 2, 20
KEEP = 0.3
DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def num_bytes(make, *args):
    """Bytes of what `make` returns, by shapes alone."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(make, *args)))


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@DTYPES
@pytest.mark.parametrize("name", KINDS["linear"])
def test_linear(name, dtype):
    kind, x = plans.kind("linear", name), spec(B, N, D, dtype=dtype)
    params = {"columns": spec(budget_for(KEEP, D), dtype=jnp.int32)} if kind.selects else {}
    settings = linear.Settings(name, KEEP)
    kept = num_bytes(lambda x, params: linear.save_input(x, params, settings), x, params)
    assert kept == kind.saved_bytes(x.shape, dtype, KEEP)


@DTYPES
@pytest.mark.parametrize("name", KINDS["layer_norm"])
def test_layer_norm(name, dtype):
    x, params = spec(B, N, D, dtype=dtype), {"scale": spec(D), "bias": spec(D)}
    settings = layer_norm.Settings(name, KEEP)
    kept = num_bytes(lambda p, x: layer_norm.forward(p, x, settings)[1], params, x)
    assert kept == plans.kind("layer_norm", name).saved_bytes(x.shape, dtype, KEEP)


@DTYPES
@pytest.mark.parametrize("name", KINDS["attention"])
def test_attention(name, dtype):
    q, k = spec(B, H, N, HEAD, dtype=dtype), spec(B, H, M, HEAD, dtype=dtype)
    settings = attention.Settings(name, KEEP)
    kept = num_bytes(lambda *qkv: attention.forward(qkv, Visibility(), settings)[1], q, k, k)
    assert kept == plans.kind("attention", name).saved_bytes(q.shape, M, dtype, KEEP)


@DTYPES
@pytest.mark.parametrize("name", KINDS["gelu"])
def test_gelu(name, dtype):
    u = spec(B, N, D, dtype=dtype)
    kept = num_bytes(lambda u: gelu.forward(u, name)[1], u)
    assert kept == plans.kind("gelu", name).saved_bytes(u.shape, dtype)


@pytest.mark.parametrize("name", KINDS["linear"])
def test_kept_columns_are_the_rows_of_the_weight_gradient(name):
    kind, x = plans.kind("linear", name), spec(B, N, D)
    params = {"columns": spec(budget_for(KEEP, D), dtype=jnp.int32)} if kind.selects else {}

    def factor(x, params):
        return kind.restore(kind.save(x, params, KEEP), x.shape, x.dtype)

    assert jax.eval_shape(factor, x, params).shape[-1] == kind.kept_columns(D, KEEP)
