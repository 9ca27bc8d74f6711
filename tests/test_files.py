"""Paths as users type them, and files that are whole whatever happens while they are written."""

import threading
from pathlib import Path

import pytest

from pbr_jax.files import user_path, write_json, write_text


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")

    def fails(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_the_same_time_do_not_mix(tmp_path):
    path = tmp_path / "file"
    texts = [letter * 100_000 for letter in "abcd"]
    writers = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_cannot_say_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert path.read_text() == '{\n  "loss": 1.0\n}\n'


def test_a_tilde_is_a_home_folder_and_a_variable_is_not(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert user_path("~/x.npz") == Path("/home/ada/x.npz")
    assert user_path("~root/x.npz") == Path("~root").expanduser() / "x.npz"
    for text in ("$HOME/x.npz", "a/~/x.npz", "x~", "/~/x"):
        assert user_path(text) == Path(text)


def test_a_home_folder_that_nobody_knows_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^~nobody-here/x: .* for ~nobody-here; write the"):
        user_path("~nobody-here/x")
    # Without HOME the password file is asked, which need not know the user of a container.
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(FileNotFoundError, match=r"~/x: no home folder .* set HOME"):
        user_path("~/x")
    # A file that is called so is taken as it is.
    Path("~$draft.csv").touch()
    assert user_path("~$draft.csv") == Path("~$draft.csv")
