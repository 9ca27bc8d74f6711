"""`pbr compare` on a tiny run: its table, its files, and a second call."""

import json

import pytest

from pbr_jax import cli
from pbr_jax.compare import steps, trials

WORDS = ["compare", "--config", "configs/digits.py:tiny", "--config.steps=3", "--seeds", "2"]
WORDS += ["--config.pruning.keep=0.2"]  # which full fine-tuning has no use for
WORDS += ["--config.data.max_test=100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


def compare(folder, *words):
    return cli.main([*WORDS, "--methods", "full,fast", "--out", str(folder), *words])


@pytest.fixture(scope="module")
def finished(folder):
    (folder / "checkpoints" / "4").mkdir(parents=True)  # of a run that is there, too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_SECONDS", 0.0)
        assert compare(folder) == 0
    (folder / "checkpoints" / "4").rmdir()
    (folder / "checkpoints").rmdir()
    return folder


@pytest.mark.slow
def test_the_folder_holds_every_form_of_the_table(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        f"comparison.{kind}" for kind in ("csv", "json", "md")
    } | {"curves.png", "frontier.png"}  # fmt: skip
    lines = (finished / "comparison.md").read_text().splitlines()
    assert [line.split()[1] for line in lines[2:4]] == ["full", "fast"]
    assert all((finished / name).stat().st_size > 10_000 for name in ("curves.png", "frontier.png"))


@pytest.mark.slow
def test_a_second_call_measures_nothing_again(finished, monkeypatch, capsys):
    monkeypatch.setattr(trials, "prepare", None)
    assert compare(finished, "--json") == 0
    printed = capsys.readouterr()
    table = json.loads(printed.out)
    assert "evaluation on 100 of" in printed.err  # a note on the data
    full, fast = table["rows"]
    assert (full["seeds"], fast["seeds"], full["time_to_full"]) == (2, 2, 1.0)
    assert fast["memory_to_full"] < 1
    assert fast["gap"] is not None and full["gap"] is None


@pytest.mark.slow
def test_another_setting_needs_another_folder(finished, capsys):
    assert compare(finished, "--config.steps=4") == 2
    assert "a comparison with other config" in capsys.readouterr().err


def test_faults_of_the_arguments_are_named_together(capsys):
    assert cli.main(["compare", "--methods", "ful,fast/js0", "--seeds", "0"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ("the nearest is full", "fast/js0", "--seeds 0"))


def test_a_method_that_cannot_take_the_batch_is_named_before_anything_is_measured(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(trials, "prepare", None)
    assert cli.main([*WORDS, "--methods", "full,remat/chunks3", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--methods remat/chunks3: plan.batch_chunks = 3 of method remat/chunks3" in error
