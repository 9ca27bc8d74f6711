"""What cannot be written is named with its cause, and spares what is there."""

import errno
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from checkpointed import assert_bit_equal, fill, make_state, restore

from pbr_jax.runs import manifest
from pbr_jax.runs.checkpoints import Checkpointer, CheckpointError


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(directory)]
    result = subprocess.run(mount, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"needs the right to mount a file system: {result.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_disk_is_named_and_spares_what_is_there(small_disk):
    def state(step):
        return {"w": jax.random.normal(jax.random.key(step), (300_000,))}  # 1.2 MB

    with Checkpointer(small_disk / "checkpoints", 3) as checkpointer:
        with pytest.raises(CheckpointError, match=r"6\.00 MB needed, .* free") as error:
            checkpointer.check_space(checkpointer.bytes_needed(state(1), saves=10**9))
        assert str(small_disk) in str(error.value)
        # As many as it keeps, or can still save.
        assert checkpointer.bytes_needed(state(1), saves=2) == 2_400_000
        checkpointer.check_space(1_000_000)
        checkpointer.save(1, state(1), {"batch": 1})
        checkpointer.save(2, state(2), {"batch": 2})
        checkpointer.save(3, state(3), {"batch": 3})
        with pytest.raises(CheckpointError, match="the disk is full") as error:
            checkpointer.wait()
        assert "1.20 MB needed" in str(error.value) and "Checkpoint 2 is intact" in str(error.value)
        assert sorted(os.listdir(small_disk / "checkpoints")) == ["1", "2"]
        restored = checkpointer.restore(state(0))
        assert restored.step == 2
        assert_bit_equal(restored.state, state(2))
        # With room made, the same object saves again.
        subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
        checkpointer.save(3, state(3), {"batch": 3})
        checkpointer.wait()
        assert checkpointer.restore(state(0)).step == 3


def test_a_manifest_that_cannot_be_written_fails_the_save(tmp_path, monkeypatch):
    fill(tmp_path, steps=(1,))

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest, "write", fail)
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(2, make_state(2), {})
        with pytest.raises(CheckpointError, match="Input/output error") as error:
            checkpointer.wait()
    assert "Checkpoint 1 is intact" in str(error.value)
    assert restore(tmp_path)[0].step == 1


@pytest.mark.parametrize(
    ("number", "why", "advice"),
    [
        (errno.EACCES, "cannot be written (Permission denied)", "make it writable and resume"),
        (errno.EROFS, "cannot be written (Read-only file system)", "make it writable and resume"),
        (errno.EDQUOT, "the disk is full", "free some space and resume"),
        (errno.EIO, "Input/output error", "mend that and resume"),
    ],
)
def test_the_advice_fits_the_cause_and_is_all_that_is_printed(
    tmp_path, monkeypatch, capfd, number, why, advice
):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(manifest, "write", fail)
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(2, {"w": jnp.zeros(3)}, {})
        with pytest.raises(CheckpointError) as error:
            checkpointer.wait()
    assert why in str(error.value) and str(error.value).endswith(f"{advice}.")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch):
    def gone(*args):
        shutil.rmtree(tmp_path / "run")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(manifest, "write", gone)
    with Checkpointer(tmp_path / "run" / "checkpoints", 1) as checkpointer:
        checkpointer.save(2, {"w": jnp.zeros(3)}, {})
        with pytest.raises(CheckpointError, match="the folder is no longer there"):
            checkpointer.wait()


def test_a_folder_that_cannot_be_made_fails_the_save(tmp_path):
    (tmp_path / "file").touch()
    with Checkpointer(tmp_path / "file" / "checkpoints", 1) as checkpointer:
        with pytest.raises(CheckpointError, match="checkpoint 1 was not saved"):
            checkpointer.save(1, {"w": jnp.zeros(3)}, {})


def test_closing_does_not_replace_what_is_wrong(tmp_path, monkeypatch):
    """On a disk that is quite full, Orbax raises the fault of a save a second time."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    monkeypatch.setattr(ocp.CheckpointManager, "close", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        with Checkpointer(tmp_path, 1) as checkpointer:
            checkpointer.save(1, make_state(1), {})
            checkpointer.wait()
