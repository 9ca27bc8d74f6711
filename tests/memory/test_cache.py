"""The cache of compiled needs: what it depends on, and that a broken one is as good as none."""

import dataclasses

import pytest
from fakes import config

from pbr_jax.configs.common import Optimizer
from pbr_jax.gpu import CARDS, MemoryReport
from pbr_jax.memory import cache as fit_cache
from pbr_jax.memory.cache import cache_folder, cache_key, cached

REPORT = MemoryReport(1, 2, 3, 4)
CARD = CARDS["h200"]


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A measure with a cache, and the batches for which it was really called."""
    monkeypatch.setattr(fit_cache.importlib.metadata, "version", lambda name: "1.2.3")
    calls = []

    def measure(run):
        calls.append(run.batch_size)
        return REPORT

    return cached(measure, CARD, tmp_path / "cache"), calls, tmp_path / "cache"


def test_what_was_measured_is_remembered(counted):
    measure, calls, folder = counted
    assert measure(config()) == measure(config()) == REPORT
    assert calls == [8]
    measure(config(batch_size=16))
    assert calls == [8, 16]
    assert [path.suffix for path in folder.iterdir()] == [".json", ".json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', '{"key": null, "report": {}}'])
def test_a_damaged_file_is_measured_and_written_again(counted, content):
    measure, calls, folder = counted
    measure(config())
    (path,) = folder.iterdir()
    whole = path.read_text()
    path.write_text(content)
    assert measure(config()) == REPORT
    assert calls == [8, 8]
    assert path.read_text() == whole


def test_a_report_that_is_not_whole_is_not_used(counted):
    measure, calls, folder = counted
    measure(config())
    (path,) = folder.iterdir()
    path.write_text(path.read_text().replace('"temp_bytes": 3, ', ""))
    assert measure(config()) == REPORT
    assert calls == [8, 8]


def test_a_folder_that_cannot_be_written_remembers_nothing_and_says_so_once(counted, tmp_path):
    measure, calls, folder = counted
    folder.write_text("a file in its place")
    assert measure(config()) == measure(config()) == REPORT
    assert calls == [8, 8]
    said = []
    measure = cached(lambda run: REPORT, CARD, folder, said.append)
    assert measure(config()) == measure(config(batch_size=16)) == REPORT
    assert said == [f"{folder}: File exists; what is compiled is not kept"]


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert cache_folder() is None


def test_a_measure_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_cache.importlib.metadata, "version", lambda name: "1.2.3")

    def measure(run):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached(measure, CARD, tmp_path / "cache")(config())
    assert not (tmp_path / "cache").exists()


def test_the_key_has_all_that_shapes_the_program(monkeypatch):
    monkeypatch.setattr(fit_cache.importlib.metadata, "version", lambda name: "1.2.3")
    run = config()
    key = cache_key(run, CARD)
    for same in (
        dataclasses.replace(run, name="other", seed=3, log_every=7, memory_budget="8GiB"),
        dataclasses.replace(run, data=dataclasses.replace(run.data, path="elsewhere")),
    ):
        assert cache_key(same, CARD) == key
    for other in (
        dataclasses.replace(run, method="lean"),
        dataclasses.replace(run, model=dataclasses.replace(run.model, dtype="bfloat16")),
        dataclasses.replace(run, optimizer=Optimizer(name="adamw")),
    ):
        assert cache_key(other, CARD) != key
    assert cache_key(run, CARDS["h100"]) != key
    monkeypatch.setattr(fit_cache.importlib.metadata, "version", lambda name: "1.2.4")
    assert cache_key(run, CARD) != key
    monkeypatch.setattr(fit_cache.importlib.metadata, "version", lambda name: "1.2.3")
    monkeypatch.setattr(fit_cache, "source_digest", lambda: "other sources")
    assert cache_key(run, CARD) != key


def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pbr_jax" / "fit"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder().parts[-3:] == (".cache", "pbr_jax", "fit")
