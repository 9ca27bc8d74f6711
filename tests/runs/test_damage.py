"""Any file of a run damaged in any way: the run is opened and goes on, or is refused by name."""

import functools
import shutil

import numpy as np
import pytest
from fakes import config
from saved_runs import vit_run

from pbr_jax.files import DamagedFile
from pbr_jax.reports import figures
from pbr_jax.reports.page import write_report
from pbr_jax.runs import run
from pbr_jax.runs.checkpoints import Checkpointer, Restored
from pbr_jax.runs.events import Events
from pbr_jax.runs.history import PruningHistory
from pbr_jax.runs.metrics import SUMMARY_KEYS, MetricsWriter, write_csv, write_summary
from pbr_jax.training import from_config

SETTINGS = config(steps=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run with every file that a training leaves."""
    workdir = tmp_path_factory.mktemp("made") / "run"
    vit_run(workdir, steps=2)
    metrics, events = MetricsWriter(workdir), Events(workdir)
    for writer in (metrics, events):
        writer.logged({"step": 2, "loss": 1.0, "accuracy": 0.5, "seconds_per_step": 0.1})
        writer.evaluated(2, None, {"loss": 1.0, "accuracy": 0.5}, True)
        writer.close()
    written = next(workdir.glob("events.out.tfevents.*"))
    written.rename(f"{written}.earlier")  # another process would have chosen another name
    write_csv(workdir)
    known = {"method": "lean", "steps": 2, "activation_bytes": 9, "accuracy": 0.5}
    write_summary(workdir, dict.fromkeys(SUMMARY_KEYS) | known)
    arrays = {"probs/qkv": np.full((1, 2, 4), 0.5), "counts/qkv": np.ones((2, 4), int)}
    np.savez(workdir / "pruning.npz", steps=[2], **arrays)
    (workdir / "report.html").write_text("<html>")
    return workdir


def cut(share, path):
    """Leaves a share of the file, and at least its last two bytes out."""
    content = path.read_bytes()
    path.write_bytes(content[: min(int(share * len(content)), len(content) - 2)])


def fill(content, path):
    path.write_bytes(content)


def remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def become_a_folder(path):
    remove(path)
    path.mkdir()


DAMAGES = {
    "truncated early": functools.partial(cut, 0.1),
    "truncated": functools.partial(cut, 0.6),
    "its end lost": functools.partial(cut, 1.0),
    "emptied": functools.partial(fill, b""),
    "noise": functools.partial(fill, np.random.default_rng(0).bytes(300)),
    "zeros": functools.partial(fill, bytes(300)),
    "nothing in it": functools.partial(fill, b"{}\n"),
    "of another kind": functools.partial(fill, b'{"body": 3, "0": 7, "name": [], "split": "x"}\n'),
    "a folder": become_a_folder,
    "removed": remove,
}
BESIDE = (
    *("metrics.jsonl", "metrics.csv", "summary.json", "pruning.npz", "report.html"),
    *("events.out.tfevents.*", "checkpoints/best"),
)
OF_A_CHECKPOINT = ("manifest.json", "state/*", "data/*")


def copy(made, folder, pattern, damage, arrays=False):
    """A copy of the run with its largest file of `pattern` damaged; returns both."""
    workdir = folder / damage
    skipped = () if arrays else ("state", "data")
    shutil.copytree(made, workdir, symlinks=True, ignore=shutil.ignore_patterns(*skipped))
    path = max(workdir.glob(pattern), key=lambda path: path.stat().st_size)
    if not path.is_dir() or DAMAGES[damage] in (become_a_folder, remove):
        DAMAGES[damage](path)
    return workdir, path


@pytest.mark.parametrize("pattern", BESIDE)
def test_what_lies_beside_the_checkpoints_never_stops_a_run(made, tmp_path, monkeypatch, pattern):
    """The report may be refused, by the name of the file; as a file of a run it may fail, too."""
    for name in ("curves", "memory", "columns"):  # drawing takes most of the time of a page
        monkeypatch.setattr(figures, name, lambda *args: "")
    for damage in DAMAGES:
        workdir, path = copy(made, tmp_path, pattern, damage)
        try:
            write_report(workdir)
        except (DamagedFile, IsADirectoryError) as error:
            assert path.name in str(error), damage  # noqa: PT017
        said = []
        with Checkpointer(workdir / "checkpoints", 2, said.append) as checkpoints:
            run.finished(SETTINGS, workdir, checkpoints, said.append)
            checkpoints._link_best()
        for observer in (MetricsWriter, PruningHistory):
            observer(workdir, 2, said.append)
        Events(workdir, 2).close()
        assert not said or path.name in said[0], damage


@pytest.mark.parametrize("pattern", ["config.json", "classes.json"])
def test_settings_and_classes_that_are_damaged_are_refused_by_name(
    made, tmp_path, monkeypatch, pattern
):
    monkeypatch.setattr(from_config, "build", lambda config: None)
    monkeypatch.setattr(from_config, "state_shapes", lambda config, parts: None)
    restored = Restored(2, None, {})
    monkeypatch.setattr(Checkpointer, "restore", lambda self, shapes, step: restored)
    for damage in DAMAGES:
        workdir, _ = copy(made, tmp_path, pattern, damage)
        if (pattern, damage) == ("classes.json", "removed"):
            assert run.open_run(workdir).class_names == ("0", "1", "2", "3")
            continue
        with pytest.raises(ValueError, match=pattern):
            run.open_run(workdir)
        if pattern == "config.json":
            with pytest.raises(ValueError, match=pattern):
                run.saved_settings(workdir)


@pytest.mark.parametrize("pattern", OF_A_CHECKPOINT)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(made, tmp_path, pattern):
    for damage in DAMAGES:
        workdir, path = copy(made, tmp_path, f"checkpoints/2/{pattern}", damage, True)
        with Checkpointer(workdir / "checkpoints", 2) as checkpoints:
            found, faults = checkpoints._newest_verified()
        assert found.step == 1
        if not path.is_dir() or pattern == "manifest.json":  # of a folder a file within is named
            assert path.name in str(faults[2]), damage
