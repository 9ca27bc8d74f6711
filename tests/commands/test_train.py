"""`train.py` from its command line to its files, in this process."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_data import truncate, write_image_folder

from pbr_jax import cli, data
from pbr_jax.commands import train as train_command
from pbr_jax.files import write_json
from pbr_jax.runs.metrics import SUMMARY_KEYS, read_metrics
from pbr_jax.runs.ownership import Ownership
from pbr_jax.settings.load import load
from pbr_jax.settings.saved import to_dict

PROGRAM = Path(__file__).parents[2] / "train.py"
TINY = ["--config", f"{PROGRAM.parent / 'configs' / 'digits.py'}:tiny", "--config.steps=4"]


@pytest.fixture(scope="module")
def start():
    """Runs `pbr train` in a work directory with further flags; returns its exit code.

    The report has its figures only if they are asked for: drawing takes a third of such a run.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)  # tests mostly compile

    def train(workdir, *flags, figures=False):
        with pytest.MonkeyPatch.context() as patch:
            for name in () if figures else ("curves", "columns", "memory"):
                patch.setattr(f"pbr_jax.reports.figures.{name}", lambda *arrays: "")
            return cli.main(["train", *TINY, "--workdir", str(workdir), *flags])

    yield train
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """The work directory of a run that reached its end."""
    workdir = tmp_path_factory.mktemp("finished")
    assert start(workdir, figures=True) == 0
    return workdir


def files(workdir):
    """Every file but those of checkpoints, with its content."""
    return {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}


def test_a_run_leaves_its_files(finished):
    names = set(files(finished))
    expected = {
        "config.json",
        "classes.json",
        "metrics.jsonl",
        "metrics.csv",
        "summary.json",
        "report.html",
    }
    assert expected | {"pruning.npz"} <= names
    assert any(name.startswith("events.out.tfevents.") for name in names)
    assert (finished / "checkpoints" / "4").is_dir()
    assert (finished / "checkpoints" / "best").resolve().is_dir()


def test_the_summary_is_that_of_the_run(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert set(SUMMARY_KEYS) <= set(summary)
    tests = [record for record in read_metrics(finished) if record["split"] == "test"]
    assert [record["step"] for record in tests] == [4]
    assert summary["accuracy"] == tests[-1]["accuracy"] == summary["best_accuracy"]
    assert (summary["method"], summary["steps"]) == ("prebackrazor", 4)
    memory = summary["memory"]
    assert summary["activation_bytes"] == memory["activations"]
    assert memory["activations"] < summary["full_memory"]["activations"]
    # What the compiler plans holds at least the state, which is there before and after.
    assert summary["compiled_peak_bytes"] > memory["parameters"] + memory["optimizer"]
    assert 0 < summary["seconds_per_step"] < summary["seconds"]
    trained = [record["step"] for record in read_metrics(finished) if record["split"] == "train"]
    assert trained == [2, 4]


def test_prediction_has_the_accuracy_of_the_evaluation(finished, tmp_path, capsys):
    test = data.load("digits").test
    np.savez(tmp_path / "test.npz", images=test.images)
    assert cli.main(["predict", str(finished), str(tmp_path / "test.npz")]) == 0
    predicted = [line.split(",")[1] for line in capsys.readouterr().out.splitlines()[1:]]
    right = [name == str(label) for name, label in zip(predicted, test.labels, strict=True)]
    accuracy = np.mean(right)
    assert accuracy == json.loads((finished / "summary.json").read_text())["accuracy"]


def test_an_export_starts_another_run(start, finished, tmp_path, capsys):
    for form in ("npz", "safetensors", "orbax"):
        out = tmp_path / form
        assert cli.main(["export", str(finished), "--to", form, "--out", str(out)]) == 0
        assert cli.main(["weights", "check", str(out), *TINY[:2]]) == 0
    assert "It fits" in capsys.readouterr().out


def test_the_same_command_on_a_finished_run_says_so(start, finished, capsys):
    before = files(finished)
    assert start(finished) == 0
    printed = capsys.readouterr().out
    assert "this run is complete" in printed
    summary = json.loads((finished / "summary.json").read_text())
    assert f"accuracy  {summary['accuracy']:.1%} on the test split" in printed
    assert files(finished) == before


def test_a_finished_run_whose_files_are_damaged_is_summarised_anew(
    start, finished, tmp_path, capsys
):
    """Without its metrics, too; before, it had "no median for empty data" for ever."""
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir, symlinks=True)
    whole = json.loads((workdir / "summary.json").read_text())
    (workdir / "summary.json").write_text("{}")
    (workdir / "metrics.jsonl").unlink()
    os.truncate(workdir / "pruning.npz", 100)
    (workdir / "checkpoints" / "best").unlink()
    (workdir / "checkpoints" / "best").mkdir()
    assert start(workdir) == 0
    printed = capsys.readouterr().out
    assert "summary.json: it lacks 'method'" in printed
    assert f"It is now {workdir / 'pruning.npz.broken'}" in printed
    again = json.loads((workdir / "summary.json").read_text())
    for name in ("accuracy", "best_accuracy", "steps", "memory"):
        assert again[name] == whole[name]
    # What the processes before this one took is not known.
    assert again["seconds_per_step"] is None and again["seconds"] is None
    assert "report.html" in files(workdir)
    assert start(workdir) == 0 and "this run is complete" in capsys.readouterr().out


def test_helper_files_that_cannot_be_written_do_not_stop_a_run(
    start, tmp_path, capsys, monkeypatch
):
    """Each is said once, and all at the end; only checkpoints and settings are written."""

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pbr_jax.files.Appended.append", full)
    for place in ("runs.metrics.write_text", "runs.metrics.write_json", "runs.history.write_bytes"):
        monkeypatch.setattr(f"pbr_jax.{place}", full)
    monkeypatch.setattr("pbr_jax.reports.page.write_text", full)
    monkeypatch.setattr("pathlib.Path.symlink_to", full)
    assert start(tmp_path, "--config.log_every=1") == 0
    printed = capsys.readouterr().out
    names = ["metrics.jsonl", "TensorBoard's events", "pruning.npz", "metrics.csv"]
    names += ["summary.json", "report.html"]
    for name in [*names, f"{tmp_path / 'checkpoints' / 'best'}"]:
        assert printed.count(f"{name} cannot be written: No space left") == 1, name
    last = printed.splitlines()[-1]
    assert last.startswith("not written, or not all of it: ") and all(n in last for n in names)
    assert (tmp_path / "checkpoints" / "4").is_dir()


def test_a_finished_run_does_not_become_another(start, finished, capsys):
    before = files(finished)
    assert start(finished, "--config.optimizer.learning_rate=0.5") == 2
    assert "optimizer.learning_rate = 0.5: was 0.03" in capsys.readouterr().err
    assert files(finished) == before


def test_harmless_changes_are_named_and_allowed(start, finished, capsys):
    assert start(finished, "--config.log_every=1") == 0
    assert "this run is complete" in capsys.readouterr().out


def test_what_is_of_value_is_not_overwritten_without_force(start, finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    shutil.rmtree(run / "checkpoints")
    (run / "mine.txt").touch()
    before = files(run)
    assert start(run) == 2
    printed = capsys.readouterr().err
    assert "holds a finished run, but" in printed and "or add --force, which replaces" in printed
    assert files(run) == before
    # A mistake replaces nothing either.
    assert start(run, "--force", "--config.model.weights=nowhere.npz") == 2
    assert files(run) == before


def test_a_run_that_trains_is_not_trained_twice(start, finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    with Ownership(run):
        before = files(run)
        assert start(run) == 2
        assert f"{run} is in use: process {os.getpid()} on " in capsys.readouterr().err
        assert files(run) == before
        # Those that only read need no lock.
        out = tmp_path / "model.npz"
        assert cli.main(["export", str(run), "--to", "npz", "--out", str(out)]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "a file is in its way: take another --workdir"),
        ("file/run", "a file is in its way: take another --workdir"),
        ("", "the current directory was removed: change to one that is there, or take another"),
    ],
)
def test_a_work_directory_that_cannot_be_one_is_found_before_compiling(
    start, tmp_path, capsys, monkeypatch, name, message
):
    (tmp_path / "file").touch()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert start(tmp_path / name if name else "run") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert message in captured.err
    monkeypatch.chdir(tmp_path)


def image_words(images, **keys):
    keys = {"data.name": "image_folder", "data.path": images, "data.augment": "none"} | keys
    return [f"--config.{key}={value}" for key, value in ({"model.num_classes": 2} | keys).items()]


def test_a_broken_image_found_late_can_be_skipped_and_the_run_goes_on(start, tmp_path, capsys):
    images = write_image_folder(tmp_path / "images", count=9)
    records = data.load("image_folder", str(images)).train
    order = data.TrainBatches(records, lambda records, _: records, 4, 0)
    broken = truncate(Path(order.batch(2)[0].name))
    words = image_words(images, batch_size=4, checkpoint_every=1, eval_every=9)
    assert start(tmp_path / "run", *words) == 2
    assert f"{broken}: not a readable image" in capsys.readouterr().err
    assert start(tmp_path / "run", *words, "--config.data.on_error=skip") == 0
    lost = f"train: 1 lost ({broken}) since the run began; from step 3 on batches are drawn from"
    assert lost in capsys.readouterr().out


def test_classes_that_were_renamed_are_refused(start, tmp_path, capsys):
    images, run = write_image_folder(tmp_path / "images", count=2), tmp_path / "run"
    words = image_words(images, batch_size=4)
    # Classes are looked at before the checkpoint is.
    (run / "checkpoints" / "1").mkdir(parents=True)
    given = [word.removeprefix("--config.") for word in (TINY[2], *words)]
    write_json(run / "config.json", to_dict(load(TINY[1], given)))
    write_json(run / "classes.json", {"0": "ant", "1": "bee"})
    before = files(run)
    for split in ("train", "test"):
        (images / split / "ant").rename(images / split / "zebra")
    assert start(run, *words) == 2
    printed = capsys.readouterr().err
    assert "before: ant, bee\n" in printed and "now:    bee, zebra\n" in printed
    # A class more is a change of the data, and model.num_classes would not help.
    for split in ("train", "test"):
        (images / split / "zebra").rename(images / split / "ant")
        shutil.copytree(images / split / "ant", images / split / "cat")
    assert start(run, *words) == 2
    assert "now:    ant, bee, cat\n" in capsys.readouterr().err
    assert files(run) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.model.weights=nowhere.npz"], "weights nowhere.npz: no such file"),
        (["--config.method=full", "--config.pruning.keep=0.1"], "method 'full' prunes nothing"),
        (["--config.method=full", "--config.plan.linear=columns"], "has no policy to choose"),
        (
            ["--config.method=remat/chunks4", "--config.batch_size=6"],
            "4 of method remat/chunks4: does not divide",
        ),
    ],
)
def test_a_mistake_ends_with_2_and_claims_no_work_directory(
    start, tmp_path, capsys, flags, message
):
    """Nothing is left behind, so that the corrected command can have the same directory."""
    assert start(tmp_path / "run", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_running_out_of_memory_ends_with_2_and_the_options(start, tmp_path, capsys, monkeypatch):
    def train(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes")

    monkeypatch.setattr(train_command, "train", train)
    assert start(tmp_path) == 2
    printed = capsys.readouterr()
    assert "compiled step       temp " in printed.out
    assert "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 12345" in printed.err
    assert "--config.method=lean" in printed.err and "Traceback" not in printed.err


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_2_and_can_be_started_anew(start, tmp_path, capsys):
    """With nothing saved, another learning rate may take the same work directory."""
    flags = ["--config.method=full", "--config.optimizer.clip_norm=none"]
    assert start(tmp_path, *flags, "--config.optimizer.learning_rate=1e6") == 2
    assert "was not applied" in capsys.readouterr().err
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    assert start(tmp_path, *flags) == 0
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] == 0.03


@pytest.mark.slow
def test_image_files_are_trained_on_and_broken_ones_counted(start, tmp_path, capsys):
    images = write_image_folder(tmp_path / "images", count=9)
    broken = truncate(images / "train" / "ant" / "3.jpg")
    flags = {
        "data.name": "image_folder",
        "data.path": images,
        "data.augment": "crop",
        "data.workers": 2,
        "model.num_classes": 2,
        "steps": 2,
        "eval_every": 2,
        "optimizer.warmup_steps": 0,
    }
    words = [f"--config.{name}={value}" for name, value in flags.items()]
    assert start(tmp_path / "skip", *words, "--config.data.on_error=skip") == 0
    assert f"skipped 1 of 18 images of {images / 'train'}" in capsys.readouterr().out
    # Both batches hold 16 of the 18, this one among them.
    assert start(tmp_path / "stop", *words) == 2
    assert (
        f"{broken}: not a readable image (cut short: image file is truncated"
        in capsys.readouterr().err
    )


def test_the_program_beside_the_package_is_the_same_command(finished):
    command = [sys.executable, str(PROGRAM), *TINY, "--workdir", str(finished)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "this run is complete" in done.stdout


def test_settings_that_do_nothing_are_said(start, finished, tmp_path, capsys):
    flags = ["--config.optimizer.b1=0.5", "--config.model.vocab_size=7", "--config.steps=1"]
    assert start(tmp_path, *flags, "--config.optimizer.warmup_steps=0") == 0
    printed = capsys.readouterr().out
    assert "optimizer.b1 = 0.5 does nothing: optimizer.name is sgd" in printed
    assert "model.vocab_size = 7 does nothing: a vit has no vocab_size" in printed
