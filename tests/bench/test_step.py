"""The step benchmark: memory by method, the table."""

import json

import fakes
import pytest

from pbr_jax import cli
from pbr_jax.bench import step


@pytest.fixture(scope="module")
def found():
    """Of a batch that rematerialisation, if in 4 parts, cannot take."""
    methods = ["full", "prebackrazor", "remat/chunks4"]
    return step.measure(fakes.config("full", batch_size=6), methods, rounds=2)


def test_methods_step_in_turn_and_their_memory_is_the_compilers(found):
    pruned = "prebackrazor"
    assert {name: len(s) for name, s in found["seconds"].items()} == {"full": 2, pruned: 2}
    full, pruned = found["memory"]["full"], found["memory"][pruned]
    assert 0 < pruned["saved_bytes"] < full["saved_bytes"]
    for need in (full, pruned):
        parts = (need["argument_bytes"], need["output_bytes"], need["temp_bytes"])
        assert need["peak_bytes"] == sum(parts) - need["alias_bytes"]


def test_what_cannot_run_is_named_and_the_others_are_timed(found):
    assert list(found["refused"]) == ["remat/chunks4"]
    assert "must divide the batch of 6" in found["refused"]["remat/chunks4"]


def test_the_command_takes_settings_and_writes_what_was_measured(
    found, monkeypatch, tmp_path, capsys
):
    def measure(config, methods, rounds):
        assert (config.model.size, config.batch_size, rounds) == ("B", 3, 4)
        assert methods == ["full", "remat"]
        return found

    monkeypatch.setattr(step, "measure", measure)
    words = ["--config", "configs/vit_b16.py", "--config.batch_size=3", "--rounds", "4"]
    words += ["--methods", "full,remat,full", "--out", str(tmp_path / "folder/step.json")]
    assert cli.main(["bench", "step", *words]) == 0
    out = capsys.readouterr().out
    assert "| prebackrazor |" in out and "Not run: remat/chunks4: batch_chunks = 4" in out
    written = json.loads((tmp_path / "folder/step.json").read_text())
    assert written["seconds"] == found["seconds"]
    assert written["command"].startswith("pbr bench step --config configs/vit_b16.py ")


def test_dense_flops_are_six_for_each_weight_and_token_and_attention():
    config = fakes.config("full")  # 2 blocks of width 16, hidden 32; 5 tokens
    layers = 6 * (4 * 16 * 16 + 2 * 16 * 32) * 5
    attention = 7 * 2 * 5 * 5 * 16
    assert step.dense_flops(config) == 2 * 8 * (layers + attention)


def test_the_table_compares_with_full_and_backrazor():
    need = {"saved_bytes": 10**6, "temp_bytes": 2 * 10**6, "peak_bytes": 4 * 10**6}
    found = {
        "batch": 8,
        "seconds": {"full": [1.0, 2.0, 4.0], "backrazor": [2.0, 4.0, 8.0], "fast": [0.5, 1.0, 4.0]},
        "memory": {"full": need, "backrazor": need, "fast": need | {"peak_bytes": 10**6}},
        "arithmetic": {"full": 2.0, "backrazor": 3.0, "fast": 1.5},
    }
    full, _, fast = step.table(found)
    assert full["arithmetic"] == "1.00" and full["examples/s"] == "4"
    assert fast == {
        "method": "fast",
        "ms": "1000 ±8.8e+02",
        "/ full": "0.50 (0.50-0.75)",
        "/ backrazor": "0.25",
        "examples/s": "8",
        "saved": "1.00 MB",
        "temp": "2.00 MB",
        "peak": "1.00 MB",
        "peak / full": "0.25",
        "arithmetic": "0.75",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "fast"], "full must be among them"),
        (["--methods", "full,quick"], "--methods quick: "),
        (["--rounds", "0"], "--rounds 0"),
    ],
)
def test_errors(words, message, capsys):
    assert cli.main(["bench", "step", *words]) == 2
    assert message in capsys.readouterr().err
