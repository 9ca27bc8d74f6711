"""The attention benchmark: bytes, cosines and the table."""

import json

import pytest

from pbr_jax import cli
from pbr_jax.bench import attention


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "attention.json"
    words = ["--shape", "1", "2", "20", "16", "--keeps", "0.5", "--dtype", "float32"]
    assert cli.main(["bench", "attention", *words, "--rounds", "2", "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_without_a_gpu_the_rest_is_measured_and_all_else_named(found):
    ran = {"vanilla", "flash, xla", "qkv, xla", "backrazor 0.5", "sparse flash 0.5, xla"}
    for one in attention.PASSES:
        assert set(found["seconds"][one]) == ran
        assert all(len(seconds) == 2 for seconds in found["seconds"][one].values())
    refused = {"cudnn", "flash, triton", "qkv, triton", "sparse flash 0.5, triton"}
    assert set(found["refused"]) == refused
    assert "needs a GPU" in found["refused"]["flash, triton"]


def test_saved_bytes_are_those_of_the_residual(found):
    saved, x = found["saved_bytes"], 4 * 2 * 20 * 16  # bytes of q
    assert saved["qkv, xla"] == 3 * x
    assert saved["flash, xla"] == 4 * x + 4 * 2 * 20
    assert saved["vanilla"] >= 3 * x + 4 * 2 * 20 * 20
    assert saved["backrazor 0.5"] < saved["sparse flash 0.5, xla"] < saved["qkv, xla"]


def test_exact_gradients_are_told_from_coarse_ones(found):
    cosines = found["cosines"]
    for name in ("vanilla", "qkv, xla"):
        assert cosines[name] == pytest.approx([1, 1, 1], abs=1e-5)
    for name in ("backrazor 0.5", "sparse flash 0.5, xla"):
        assert all(0.2 < cosine < 0.99 for cosine in cosines[name])


def test_the_table_has_rates_and_speed_ups():
    one, both = attention.PASSES
    found = {
        "flops": {one: 2e9, both: 7e9},
        "seconds": {
            one: {"vanilla": [2e-3, 2e-3], "flash": [1e-3, 1e-3]},
            both: {"vanilla": [6e-3, 9e-3], "flash": [2e-3, 3e-3]},
        },
        "saved_bytes": {"vanilla": 3_000_000, "flash": 1_000_000},
        "temp_bytes": {"vanilla": 5_000_000, "flash": 2_000_000},
        "cosines": {"vanilla": [1, 1, 1], "flash": [1, 0.5, 1]},
    }
    _, line = attention.table(found)
    assert list(line.values()) == [
        *("flash", "1", "2", "2.00", "2.5", "2.8", "3.00", "1", "2"),
        "1.000, 0.500, 1.000",
    ]


def test_errors(capsys):
    assert cli.main(["bench", "attention", "--shape", "1", "0", "1", "1"]) == 2
    assert "--shape 1 0 1 1: must be from 1 to 1e6 each" in capsys.readouterr().err
