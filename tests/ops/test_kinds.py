"""Kinds of residual of a linear layer: what they say of themselves."""

import jax
import jax.numpy as jnp
import pytest

from pbr_jax import plans
from pbr_jax.ops.linear import Settings
from pbr_jax.plans import KINDS, budget_for

B, N, D = 3, 10, 150
SETTINGS = Settings(keep=0.3)


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("name", KINDS["linear"])
def test_kept_columns_are_the_rows_of_the_weight_gradient(name):
    kind, x = plans.kind("linear", name), spec(B, N, D)
    params = (
        {"columns": spec(budget_for(SETTINGS.keep, D), dtype=jnp.int32)} if kind.selects else {}
    )

    def factor(x, params):
        return kind.restore(kind.save(x, params, SETTINGS), x.shape, x.dtype)

    assert jax.eval_shape(factor, x, params).shape[-1] == kind.kept_columns(D, SETTINGS.keep)
