"""What is of value in a folder is never overwritten without --force."""

import json

import pytest
from fakes import config

from pbr_jax.files import write_json
from pbr_jax.runs.claim import look
from pbr_jax.settings import saved as settings


@pytest.fixture
def run(tmp_path):
    """A run that has just begun."""
    write_json(tmp_path / "config.json", settings.to_dict(config(checkpoint_every=10)))
    write_json(tmp_path / "classes.json", {"0": "a"})
    return tmp_path


def write_metrics(folder, *records):
    lines = [json.dumps({"split": split, "step": step}) + "\n" for split, step in records]
    (folder / "metrics.jsonl").write_text("".join(lines))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(folder, steps, *words):
    """The folder is refused with these words, and given up with --force; what that removes."""
    before = content(folder)
    with pytest.raises(ValueError, match="or add --force, which ") as error:
        look(folder, steps, False)
    for word in words:
        assert word in str(error.value)
    assert content(folder) == before
    claim = look(folder, steps, True)
    assert claim.saved is None
    assert content(folder) == before  # until the run begins
    claim.clear()
    return before.keys() - content(folder).keys()


def test_an_empty_folder_is_free_and_so_are_logs_and_hidden_files(tmp_path):
    for name in ("run.lock", ".DS_Store", "slurm-17.out", "train.log", "config.json.3-4.tmp"):
        (tmp_path / name).touch()
    assert look(tmp_path, [], False) == (None, (), [])


def test_a_run_with_checkpoints_goes_on_even_with_force(run):
    for force in (False, True):
        claim = look(run, [3], force)
        assert claim.saved["checkpoint_every"] == 10
        assert (claim.replaced, claim.notes) == ((), [])


@pytest.mark.parametrize("records", [[], [("train", 5), ("train", 10)]])
def test_a_run_killed_before_its_first_checkpoint_begins_anew(run, records):
    write_metrics(run, *records)
    (run / "notes.txt").touch()
    (run / "events.out.tfevents.1.host").touch()
    (run / "inputs").mkdir()
    claim = look(run, [], False)
    assert claim.saved is None
    (note,) = claim.notes
    assert note == f"the run that was begun in {run} has no checkpoint: it begins anew"
    claim.clear()
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_a_finished_run_without_its_checkpoints_is_refused(run):
    write_json(run / "summary.json", {})
    (run / "report.html").touch()
    (run / "own.txt").touch()
    removed = refused(
        run, [], "holds a finished run, but", "checkpoints, its checkpoints, is missing or empty"
    )
    assert removed == {"config.json", "classes.json", "summary.json", "report.html"}


@pytest.mark.parametrize("records", [[("train", 11)], [("train", 5), ("test", 5)]])
def test_metrics_of_a_run_that_had_checkpoints_are_of_value(run, records):
    write_metrics(run, *records)
    refused(run, [], f"metrics up to step {records[-1][1]}, but", "put them back")


def test_an_interrupted_first_save_is_no_checkpoint(run):
    write_metrics(run, ("train", 11))
    (run / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
    claim = look(run, [], False)
    assert claim.notes and run / "checkpoints" in claim.replaced


@pytest.mark.parametrize(
    ("files", "words", "removed"),
    [
        ({"thesis.tex": ""}, ["not empty: thesis.tex", "puts the run beside them"], set()),
        (
            {"config.json": '{"model_type": "vit"}', "a.py": ""},
            ["config.json: it lacks", "replaces config.json"],
            {"config.json"},
        ),
        ({"config.json": ""}, ["is empty", "replaces config.json"], {"config.json"}),
        ({"metrics.jsonl": "1"}, ["is no work directory of ours"], {"metrics.jsonl"}),
        ({"summary.json": "[]", "report.html": ""}, ["ours"], {"summary.json", "report.html"}),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path, files, words, removed):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert refused(tmp_path, [], *words) == removed


def test_checkpoints_of_unknown_origin_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    refused(tmp_path, [3], "has checkpoints but no config.json, so they may be of another run")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("checkpoint_every", "ten"), ("method", "none"), ("memory_budget", [1])),
        *(("data", {"mean": [1]}), ("data", {"mean": "abc"}), ("data", {"mean": {"a": 1}})),
        *(("pruning", {"keep": {"default": {}}}), ("plan", 3), ("another_versions", 1)),
    ],
)
def test_settings_with_a_wrong_value_are_refused_by_name(run, key, value):
    saved = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", saved | {key: value})
    refused(run, [3], str(run / "config.json"), key)
