"""A folder has one owner at a time; a lock that a dead process left behind is no owner."""

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from pbr_jax.runs import ownership
from pbr_jax.runs.ownership import LOCK, Gone, Guest, Owned, Ownership, Unusable

HOLDER = """
import sys, time, types
from pathlib import Path
# Without JAX, which takes seconds to import.
sys.modules["pbr_jax.training.loop"] = types.SimpleNamespace(Observer=type("Observer", (), {}))
from pbr_jax.runs.ownership import Ownership
with Ownership(Path(sys.argv[1])):
    print("owns", flush=True)
    time.sleep(60)
"""


def held(folder) -> subprocess.Popen:
    """A process that owns the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout.readline() == "owns\n"
    return process


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_second_process_is_refused_and_a_dead_one_is_not(tmp_path):
    with held(tmp_path) as process:
        before = content(tmp_path)
        with pytest.raises(Owned) as error, Ownership(tmp_path):
            pass
        assert f"process {process.pid} on {socket.gethostname()}, since 2" in str(error.value)
        assert "Wait until it ends, stop it (it saves first)" in str(error.value)
        assert content(tmp_path) == before
        process.kill()
    with Ownership(tmp_path) as owner:
        (note,) = owner.notes
        assert f"was left by process {process.pid} on" in note and "which has ended" in note
    assert content(tmp_path) == {}


def test_two_owners_in_one_process_are_two(tmp_path):
    with Ownership(tmp_path / "run"):
        with pytest.raises(Owned, match=f"process {os.getpid()} on"), Ownership(tmp_path / "run"):
            pass
        # The refused one took nothing away.
        with pytest.raises(Owned), Ownership(tmp_path / "run"):
            pass


def without_locks(*args):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("change", "owned"),
    [
        ({}, True),
        ({"host": "elsewhere"}, True),  # its processes cannot be seen
        ({"boot": "another"}, False),
        ({"started": 12345}, False),  # the pid came again
        ({"pid": 2**22 + 7}, False),
        ({"pid": "x"}, False),  # not written by us
    ],
)
def test_where_a_file_system_has_no_locks_their_content_decides(
    tmp_path, monkeypatch, change, owned
):
    monkeypatch.setattr(ownership.fcntl, "flock", without_locks)
    owner = ownership._this_process()._asdict() | change
    (tmp_path / LOCK).write_text(json.dumps(owner))
    if owned:
        with pytest.raises(Owned, match=rf"if that process has ended, delete .*{LOCK}"):
            Ownership(tmp_path).__enter__()
    else:
        with Ownership(tmp_path):
            pass


def test_folders_that_were_made_for_nothing_go_again(tmp_path):
    with Ownership(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert not (tmp_path / "a").exists()
    with Ownership(tmp_path / "a" / "b") as owner:
        (owner.folder / "config.json").touch()
    assert content(tmp_path / "a" / "b") == {"config.json": b""}


def test_a_folder_that_is_removed_moved_or_replaced_is_noticed(tmp_path):
    folder, line = tmp_path / "run", {"step": 1}
    with Ownership(folder) as owner:
        owner.logged(line)
        (folder / LOCK).unlink()
        owner.logged(line)  # it is ours again
        assert (folder / LOCK).is_file()
        folder.rename(tmp_path / "moved")
        for _ in range(2):
            with pytest.raises(
                Gone, match=r"run was removed or moved(.|\n)*with its new --workdir"
            ):
                owner.logged(line)
            folder.mkdir(exist_ok=True)  # another one of that name
    with Ownership(folder) as owner:
        (folder / LOCK).unlink()
        with Ownership(folder), pytest.raises(Owned):
            owner.logged(line)


def fail_with(monkeypatch, number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ownership.os, "open", fail)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "cannot be written into (Permission denied); make it writable for you, or"),
        (errno.EROFS, "cannot be written into (Read-only file system); take another --workdir"),
        (errno.ENOSPC, "(No space left on device); free some space, or take another --workdir"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, number, message):
    fail_with(monkeypatch, number)
    with pytest.raises(Unusable) as error:
        Ownership(tmp_path / "new" / "run").__enter__()
    monkeypatch.undo()
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_file_and_a_place_that_is_gone_are_no_folders(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(Unusable, match="a file is in its way: take another --workdir"):
            Ownership(path).__enter__()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(Unusable, match="the current directory was removed: change to one that is"):
        Ownership(ownership.Path("run")).__enter__()
    monkeypatch.chdir(tmp_path)


def test_a_guest_finds_the_mark_of_the_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "_SEEN", 0.0)
    with Ownership(tmp_path / "run") as owner:
        Guest(tmp_path / "run").check_shared(owner.mark)
        owner.check_shared(owner.mark)
        with pytest.raises(Unusable, match="is another folder than that of the first process"):
            Guest(tmp_path).check_shared(owner.mark)
