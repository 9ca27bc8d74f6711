"""Any file of a run damaged in any way: the run is opened and goes on, or is refused by name."""

import functools
import shutil

import numpy as np
import pytest
from fakes import config
from saved_runs import vit_run

from pbr_jax.report import figures
from pbr_jax.report.page import write_report
from pbr_jax.runs import run
from pbr_jax.runs.checkpoints import Checkpointer, CheckpointError
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
    write_csv(workdir)
    known = {"method": "lean", "steps": 2, "activation_bytes": 9, "accuracy": 0.5}
    write_summary(workdir, dict.fromkeys(SUMMARY_KEYS) | known)
    arrays = {"probs/qkv": np.full((1, 2, 4), 0.5), "counts/qkv": np.ones((2, 4), int)}
    np.savez(workdir / "pruning.npz", steps=[2], **arrays)
    (workdir / "report.html").write_text("<html>")
    return workdir


def cut(size, path):
    path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])


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
    "one byte lost": functools.partial(cut, 0.9999),
    "emptied": functools.partial(fill, b""),
    "noise": functools.partial(fill, np.random.default_rng(0).bytes(300)),
    "zeros": functools.partial(fill, bytes(300)),
    "nothing in it": functools.partial(fill, b"{}\n"),
    "of another kind": functools.partial(fill, b'{"body": 3, "0": 7, "name": [], "split": "x"}\n'),
    "a folder": become_a_folder,
    "removed": remove,
}
FILES = (
    *("config.json", "classes.json", "metrics.jsonl", "metrics.csv", "summary.json"),
    *("pruning.npz", "report.html", "events.out.tfevents.*", "checkpoints/best"),
    *("checkpoints/2/manifest.json", "checkpoints/2/state/*", "checkpoints/2/data/*"),
)


def refusal(action):
    """What `action` refused, if it did; any other error passes."""
    try:
        action()
    except (ValueError, CheckpointError) as error:
        return str(error)
    return ""


def resume(workdir, said):
    """All that a training reads before it goes on, but for the data."""
    run.saved_settings(workdir)
    with Checkpointer(workdir / "checkpoints", 2, said.append) as checkpoints:
        run.finished(SETTINGS, workdir, checkpoints, said.append)
        assert checkpoints.restore(SHAPES()).step in (1, 2)
        checkpoints._link_best()
    for observer in (MetricsWriter, PruningHistory):
        observer(workdir, 2, said.append)
    Events(workdir, 2).close()


@functools.cache
def SHAPES():
    return from_config.state_shapes(SETTINGS, from_config.build(SETTINGS))


@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_goes_on_or_is_refused_by_name(made, tmp_path, monkeypatch, pattern, damage):
    for name in ("curves", "memory", "columns"):  # drawing takes most of the time of a page
        monkeypatch.setattr(figures, name, lambda *args: "")
    workdir = tmp_path / "run"
    shutil.copytree(made, workdir, symlinks=True)
    path = max(workdir.glob(pattern), key=lambda path: path.stat().st_size)
    if path.is_dir() and damage not in ("a folder", "removed"):
        pytest.skip("it is a folder")
    DAMAGES[damage](path)
    said = []
    refused = [
        refusal(functools.partial(write_report, workdir)),
        refusal(functools.partial(run.open_run, workdir, "last", said.append)),
        refusal(functools.partial(run.open_run, workdir, "best", said.append)),
        refusal(functools.partial(resume, workdir, said)),
    ]
    for text in filter(None, refused):
        assert path.name in text
    # What only accompanies a run never stops it.
    if pattern not in ("config.json", "classes.json"):
        assert refused[1:] == ["", "", ""]
