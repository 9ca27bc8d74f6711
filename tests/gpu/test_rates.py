"""Rates of cards against their makers' data sheets."""

import pytest

from pbr_jax.gpu import CARDS
from pbr_jax.gpu.rates import matrix_rate


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [  # of the data sheets, at boost clock, without sparsity
        ("a100", "bfloat16", 312),
        ("a100", "float32", 156),
        ("rtx4090", "bfloat16", 165.2),
        ("rtx3090", "bfloat16", 71.2),
        ("rtx2080ti", "bfloat16", 13.4),
        ("rtx2080ti", "float32", 13.4),
    ],
)
def test_matrix_rates_follow_the_data_sheets(name, dtype, tera):
    assert matrix_rate(CARDS[name], dtype) == pytest.approx(0.74 * tera * 1e12, rel=0.01)
