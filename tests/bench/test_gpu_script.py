"""`benchmarks/gpu.py`: its commands exist, it goes on where it stopped, and keeps to its time."""

import importlib
import importlib.util
import json
import pathlib
import sys

import pytest

from pbr_jax import cli
from pbr_jax.bench.kernels import find_cases
from pbr_jax.methods import OF_HALF_BLOCKS
from pbr_jax.settings import flags

FILE = pathlib.Path(__file__).parents[2] / "benchmarks/gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_script", FILE)
    module = sys.modules["gpu_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STEPS = {
    "vit, plans": {
        "result": {
            "seconds": {"full": [1.0, 2.0, 2.0], "fast": [1.0, 2.0, 2.0], "tiny": [2.0, 2.4, 2.6]},
            "arithmetic": {"full": 1.0, "fast": 0.75, "tiny": 1.0},
        }
    },
}


@pytest.mark.parametrize("tiny", [False, True])
def test_every_item_is_a_command_that_takes_its_words(gpu, tiny, monkeypatch):
    """Parsed as `pbr` would parse it, its configuration checked; nothing is measured."""
    steps = {"tiny, plans" if tiny else "vit-tf32, plans": STEPS["vit, plans"]}
    listed = list(gpu.items({"step": steps}, tiny))
    assert {item.stage for item in listed} == set(gpu.STAGES)
    assert len({(item.stage, item.name) for item in listed}) == len(listed)
    called = []
    for item in listed:
        name = " ".join(item.words[:2])
        module = importlib.import_module(f"pbr_jax.commands.{name.replace(' ', '_')}")
        monkeypatch.setattr(module, "main", lambda args: called.append(args) or 0)
        assert cli.main([*item.words, "--out", "file.json"]) == 0, item
        arguments = getattr(called[-1], "arguments", None)
        assert arguments is None or isinstance(arguments, flags.Arguments)
        assert find_cases(getattr(called[-1], "only", ""))
    assert len(called) == len(listed)


def test_every_method_is_in_a_group(gpu):
    listed = ",".join([gpu._BASELINES, *gpu._GROUPS.values()]).split(",")
    assert {*OF_HALF_BLOCKS} == {name.partition("/")[0] for name in listed}


def test_the_worst_step_misses_its_arithmetic_most(gpu):
    assert gpu.worst({}) is None
    assert gpu.worst(STEPS) == ("vit", "fast")  # 1.0 of full where 0.75 is expected
    result = STEPS["vit, plans"]["result"] | {"arithmetic": {}}
    assert gpu.worst({"vit, plans": {"result": result}}) == ("vit", "tiny")


@pytest.fixture
def runs(gpu, monkeypatch):
    """What would have been run, with limits; "bfloat16" fails the first time."""
    runs = []

    def run(item, limit, cache):
        first = item.name not in [name for name, _ in runs]
        runs.append((item.name, limit))
        if item.name == "bfloat16" and first:
            return "failed", {"reason": "took more than 9 s", "said": ["last line"]}
        return "items", {"exit_code": 0, "result": {}}

    monkeypatch.setattr(gpu, "run", run)
    return runs


def test_a_second_run_goes_on_and_repeats_what_failed(gpu, runs, tmp_path, capsys):
    words = ["--stages", "linear", "--out", str(tmp_path), "--minutes", "100"]
    assert gpu.main(words) == 1
    assert "FAILED: took more than 9 s\nlast line" in capsys.readouterr().out
    stage = json.loads((tmp_path / "linear.json").read_text())
    assert list(stage["items"]) == ["float32"] and list(stage["failed"]) == ["bfloat16"]
    assert gpu.main(words) == 0
    stage = json.loads((tmp_path / "linear.json").read_text())
    assert list(stage["items"]) == ["float32", "bfloat16"] and not stage["failed"]
    assert [name for name, _ in runs] == ["float32", "bfloat16", "bfloat16"]
    assert gpu.main(words) == 0 and len(runs) == 3


def test_an_item_gets_no_more_time_than_is_left(gpu, runs, tmp_path, capsys):
    gpu.main(["--stages", "attention", "--out", str(tmp_path), "--minutes", "1"])
    assert all(50 < limit <= 60 for _, limit in runs)
    runs.clear()
    assert gpu.main(["--stages", "linear", "--out", str(tmp_path), "--minutes", "0.1"]) == 0
    assert not runs and "no time left, run again" in capsys.readouterr().out


def test_the_list_runs_nothing(gpu, runs, tmp_path, capsys):
    assert gpu.main(["--list", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert not runs and out.count("\n") > 40 and "pbr bench step --config configs/vit_b16.py" in out


def test_the_command_that_breaks_or_hangs_is_noted(gpu, tmp_path):
    broken = gpu.Item("linear", "broken", ("bench", "linear", "--rounds", "0"), 100)
    kind, content = gpu.run(broken, 100, tmp_path)
    assert kind == "failed" and content["reason"] == "exit code 2"
    assert "--rounds 0: must be from 1 to" in content["said"][-1]
    assert content["command"] == "pbr bench linear --rounds 0"
    kind, content = gpu.run(broken, 0.01, tmp_path)
    assert kind == "failed" and content["reason"] == "took more than 0 s"


@pytest.mark.slow
def test_tiny_items_run(gpu, tmp_path):
    """Of one stage: every item is a command of the program, which has tests of its own."""
    stages = "linear"
    assert gpu.main(["--tiny", "--minutes", "30", "--stages", stages, "--out", str(tmp_path)]) == 0
    for stage in stages.split(","):
        content = json.loads((tmp_path / f"{stage}.json").read_text())
        assert content["items"] and not content["failed"], stage
        for item in content["items"].values():
            assert item["result"]["versions"] and item["commit"] and item["command"]
            assert "--out" not in item["result"]["command"]
