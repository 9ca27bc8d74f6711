"""The linear benchmark: its variants compute what they are called, its table is right."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import assert_close

from pbr_jax import cli
from pbr_jax.bench import linear
from pbr_jax.ops import residuals

SHAPE = linear.LayerShape(2, 5, 16, 8)


def arrays():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((2, 5, 16), (16, 8), (8,), (2, 5, 8))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def test_sorting_packs_the_same_elements():
    x = jnp.round(4 * arrays()[0]) / 4  # with ties
    sort = jax.jit(lambda x: linear.pack_by_sorting(x, 0.3, jnp.float16))
    count = jax.jit(lambda x: residuals.pack_elements(x, 0.3, jnp.float16))
    found, expected = sort(x), count(x)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["pruned", "backrazor sort", "backrazor counting"])
def test_a_variant_has_the_weight_gradient_of_its_method(name):
    x, kernel, bias, dy = arrays()
    variant = linear.variants(SHAPE, 0.5)[name](kernel, bias)
    run = jax.jit(lambda *args: linear._run(variant.pair, *args))
    y, (grads, dx) = run(variant.params, x, dy)
    x64, kernel64, dy64 = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    assert_close(y, x64 @ kernel64 + np.asarray(bias, np.float64), 1e-6)
    if name == "pruned":
        columns = np.asarray(variant.params["columns"])
        assert len(columns) == 8
        saved, dw = oracles.only_columns(x64, columns), grads["rows"]
        expected = oracles.linear_gradients(saved, kernel64, dy64)
        expected["kernel"] = expected["kernel"][columns]
    else:
        saved, dw = oracles.largest_elements(x64, 0.5, np.float16), grads["kernel"]
        expected = oracles.linear_gradients(saved, kernel64, dy64)
    assert_close(dw, expected["kernel"], 1e-6)
    assert_close(dx, expected["x"], 1e-6)


def test_the_table_divides_within_rounds():
    seconds = {"dense": [2e-3, 8e-3, 9e-3], "pruned": [1e-3, 2e-3, 9e-3]}
    seconds["backrazor sort"] = [6e-3] * 3
    saved = {"dense": 10_000_000, "pruned": 1_000_000, "backrazor sort": 1_250_000}
    row = {"keep": 0.1, "pass": "forward", "seconds": seconds, "saved_bytes": saved}
    (line,) = linear.table({"rows": [row, row | {"pass": "other"}]}, "forward")
    assert line["dense, ms"] == "8" and line["kernel, ms"] == "-"
    assert line["dense / pruned"] == "2.00"
    assert line["sort / pruned"] == "3.00" and line["kernel / pruned"] == "-"
    assert line["MB saved"] == "10, 1, 1.25"


def test_the_command_measures_every_keep_and_says_how(tmp_path, capsys):
    out = tmp_path / "linear.json"
    words = ["bench", "linear", "--shape", "2", "3", "16", "8", "--keeps", "0.5"]
    words += ["--rounds", "2", "--out", str(out), "--figure", str(tmp_path / "figure.png")]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "forward and backward" in printed and "Not run: backrazor kernel: " in printed
    found = json.loads(out.read_text())
    assert found["command"].startswith("pbr bench linear --shape 2 3 16 8 --keeps 0.5")
    assert found["versions"]["jax"] == jax.__version__ and found["ceilings"]["bandwidth"] > 0
    assert [row["pass"] for row in found["rows"]] == list(linear.PASSES)
    for row in found["rows"]:
        assert {name: len(s) for name, s in row["seconds"].items()} == dict.fromkeys(
            linear.VARIANTS[:-1], 2
        )
        # Columns in float32; half of 48 elements in float16, and their bits.
        assert row["saved_bytes"]["dense"] == 4 * 2 * 3 * 16
        assert row["saved_bytes"]["pruned"] == 4 * 2 * 3 * 8
        assert row["saved_bytes"]["backrazor sort"] == 2 * (2 * 24 + 48 // 8)
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds 0: must be from 1 to"),
        (["--shape", "0", "1", "1", "1"], "--shape 0 1 1 1: must be from 1 to 1e6 each"),
        (["--keeps", "1.5", "--shape", "1", "1", "8", "8"], "keep = 1.5: must be in (0, 1]"),
    ],
)
def test_errors(words, message, capsys):
    assert cli.main(["bench", "linear", *words]) == 2
    assert message in capsys.readouterr().err
