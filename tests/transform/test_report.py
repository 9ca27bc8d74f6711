"""What `report` says: sites, reasons, bytes kept, and the line that mends the rest."""

import jax
import jax.numpy as jnp
import pytest
from rewritten import numbers, weights

from pbr_jax import prune, report

D = 64


def model(params, x):
    x = jnp.tanh(x @ params["q"]) * (x @ params["k"])
    return params["table"][jnp.arange(4)] + x @ params["out"]


@pytest.fixture(scope="module")
def params():
    return weights(0, q=(D, D), k=(D, D), out=(D, D), table=(9, D))


@pytest.fixture(scope="module")
def found(params):
    x = numbers(0, 4, D)
    return report(prune(model, params, x, keep=0.25), params, x)


def test_lines(found):
    k, q, out = found.lines
    assert (k.path, q.path, out.path) == ("k", "q", "out")
    assert (k.group, q.group, k.num_kept, k.num_columns) == ("k", "k", 16, D)
    assert (k.flops, k.flops_pruned) == (2 * 4 * D * D, 2 * 4 * D * 16)
    # q reads what k reads, and it is kept once.
    assert (k.input_bytes, k.input_bytes_pruned, q.input_bytes) == (4 * D * 4, 4 * 16 * 4, 0)


def test_bytes_kept(found):
    """The input x of the model is no residual; its selected columns are 4 x 16 numbers."""
    assert found.residual_bytes - found.residual_bytes_pruned == 4 * (D - 16) * 4 - 4 * 16 * 4
    assert sum(kept.num_bytes for kept in found.kept) == found.residual_bytes_pruned


def test_text(found):
    text = str(found)
    assert "| k         | 16 / 64 |" in text
    assert "table (2.30 kB): read by index (an embedding)" in text
    assert "nn.remat" in text


@pytest.mark.gpu_compile
def test_memory_on_a_card(params):
    x = jax.ShapeDtypeStruct((4, D), jnp.float32)
    found = report(prune(model, params, x, keep=0.25), params, x, card="rtx4090")
    assert found.temp_bytes > 0 and found.temp_bytes_pruned > 0
    assert "Compiled, temp memory" in str(found)
    with pytest.raises(ValueError, match="no such card"):
        report(prune(model, params, x), params, x, card="riva128")
