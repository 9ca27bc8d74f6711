"""Paths as users type them; files that are whole whatever happens, and named when they are not."""

import errno
import os
import threading
from pathlib import Path

import pytest
from full_disk import full_at

from pbr_jax.files import (
    Appended,
    DamagedFile,
    read_json,
    set_aside,
    user_path,
    write_json,
    write_text,
)


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


def test_a_full_disk_costs_the_records_that_come_while_it_is_full_and_no_part_of_others(tmp_path):
    file = Appended(tmp_path / "file")
    file.append(b"first\n")
    with full_at(10), pytest.raises(OSError, match="too large") as caught:
        file.append(b"second\n")  # four of its bytes fit
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "file")
    file.append(b"third\n")
    file.close()
    file.close()
    assert (tmp_path / "file").read_bytes() == b"first\nthird\n"


def test_a_file_that_cannot_be_replaced_is_named_and_not_its_temporary_part(tmp_path):
    with full_at(10), pytest.raises(OSError, match="too large") as caught:
        write_text(tmp_path / "file", "x" * 100)
    assert caught.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


FORM = {"name": str, "sizes": [int], "runs": {...: {"accuracy": (int, float)}}}
WHOLE = b'{"name": "x", "sizes": [1, 2], "runs": {"0": {"accuracy": 0.5}}, "newer": null}'
DAMAGED = {
    b"": ": is empty",
    b" \n": ": is empty",
    WHOLE[:30]: "line 1: is not JSON",
    b"[]": "its content must be an object, not []",
    b"{}": "it lacks 'name', 'sizes', 'runs'",
    b"null": "must be an object",
    b"\x80\x81": "is not UTF-8, at byte 0",
    b"[" * 100_000: "is not JSON that we wrote",
    b'{"name": ' + b"9" * 5000 + b"}": "is not JSON that we wrote",
    WHOLE.replace(b'"x"', b"1"): "name has a wrong value, 1",
    WHOLE.replace(b"[1, 2]", b"{}"): "sizes must be a list, not {}",
    WHOLE.replace(b"2]", b"2.5]"): "sizes.1 has a wrong value, 2.5",
    WHOLE.replace(b"0.5", b"null"): "runs.0.accuracy has a wrong value, None",
    WHOLE.replace(b"accuracy", b"accurate"): "runs.0 lacks 'accuracy'",
}


@pytest.mark.parametrize("content", DAMAGED, ids=DAMAGED.get)
def test_a_damaged_file_is_named_with_what_is_wrong_and_what_to_do(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        read_json(path, FORM, "remove it")
    assert str(caught.value).startswith(str(path)) and str(caught.value).endswith("; remove it")
    assert DAMAGED[content] in str(caught.value) and len(str(caught.value)) < 400


def test_a_whole_file_is_read_and_may_hold_more_than_its_form(tmp_path):
    (tmp_path / "file.json").write_bytes(b"\xef\xbb\xbf" + WHOLE)
    assert read_json(tmp_path / "file.json", FORM, "")["newer"] is None


def test_what_is_no_file_is_named_with_the_cause(tmp_path):
    with pytest.raises(
        DamagedFile, match=r"^\S+/nothing: cannot be read \(No such file or directory\); remove it$"
    ):
        read_json(tmp_path / "nothing", {}, "remove it")
    with pytest.raises(DamagedFile, match="is a folder, not a file; remove it"):
        read_json(tmp_path, {}, "remove it")
    os.mkfifo(tmp_path / "pipe")  # which would be waited for without end
    with pytest.raises(DamagedFile, match="is a named pipe, not a file; remove it"):
        read_json(tmp_path / "pipe", {}, "remove it")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    path = tmp_path / "file.json"
    path.touch(mode=0)
    with pytest.raises(DamagedFile, match=r"file\.json: cannot be read \(Permission denied\)"):
        read_json(path, {}, "remove it")


def test_an_empty_path_is_not_the_current_folder():
    """As `--workdir "$OUT"` gives it where OUT is not set."""
    with pytest.raises(FileNotFoundError, match="an empty path"):
        user_path("")


def test_what_is_set_aside_replaces_nothing(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "file").write_text(content)
        set_aside(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.2.broken", "file.broken"]
    assert (tmp_path / "file.broken").read_text() == "one"
