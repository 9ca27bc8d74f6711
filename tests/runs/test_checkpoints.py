"""A checkpoint is proved before it is used: a damaged one is passed over, and said so."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpointed import assert_bit_equal, fill, flip_one_bit, largest_file, make_state, restore

from pbr_jax.runs import manifest
from pbr_jax.runs.checkpoints import Checkpointer, CheckpointError


def truncate(step_directory):
    path = largest_file(step_directory)
    os.truncate(path, path.stat().st_size // 2)
    return path.name, "bytes instead of"


def delete_a_file(step_directory):
    path = largest_file(step_directory)
    path.unlink()
    return path.name, "is missing"


def delete_everything(step_directory):
    for path in sorted(step_directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return "manifest.json", "the directory is empty"


def delete_the_manifest(step_directory):
    (step_directory / "manifest.json").unlink()
    return "manifest.json", "it cannot be verified"


def damage_the_manifest(step_directory):
    path = step_directory / "manifest.json"
    path.write_text(path.read_text().replace('"step": 3', '"step": 4'))
    return "manifest.json", "damaged"


def truncate_the_manifest(step_directory):
    os.truncate(step_directory / "manifest.json", 100)
    return "manifest.json", "damaged"


DAMAGES = [
    truncate,
    flip_one_bit,
    delete_a_file,
    delete_everything,
    delete_the_manifest,
    damage_the_manifest,
    truncate_the_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage):
    fill(tmp_path)
    file_name, what = damage(tmp_path / "3")
    restored, messages = restore(tmp_path)
    assert restored.step == 2
    assert_bit_equal(restored.state, make_state(2))
    (message,) = messages
    assert file_name in message and what in message
    assert message.startswith("checkpoint 3 is not used") and "using checkpoint 2" in message


@pytest.mark.parametrize("damage", DAMAGES)
def test_only_damaged_checkpoints_are_an_error_not_a_new_start(tmp_path, damage):
    fill(tmp_path, steps=(3,))
    file_name, what = damage(tmp_path / "3")
    with pytest.raises(CheckpointError, match="no checkpoint to be trusted") as error:
        restore(tmp_path)
    assert file_name in str(error.value) and what in str(error.value)


def test_every_single_bit_counts(tmp_path):
    """Flips a bit in each file that restoring reads; none goes unnoticed."""
    fill(tmp_path, steps=(1, 2))
    checked = [tmp_path / "2" / name for name in manifest.read(tmp_path / "2").files]
    assert any("ocdbt.process_0/d" in str(path) for path in checked) and len(checked) > 8
    for path in checked:
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 0x10]))
        restored, messages = restore(tmp_path)
        assert restored.step == 1 and path.name in messages[0]
        path.write_bytes(original)
    assert restore(tmp_path)[0].step == 2


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
def test_files_outside_the_manifest_are_not_needed(tmp_path, name):
    fill(tmp_path, steps=(1, 2))
    for content in (b"", b"\xff{garbage"):
        (tmp_path / "2" / name).write_bytes(content)
        restored, messages = restore(tmp_path)
        assert (restored.step, messages) == (2, [])
        assert_bit_equal(restored.state, make_state(2))


def test_orbax_alone_restores_a_flipped_bit_silently(tmp_path):
    """Why there is a manifest; if this fails, Orbax has learnt to check."""
    with Checkpointer(tmp_path, 1) as checkpointer:
        state = {"w": jax.random.bits(jax.random.key(0), (100_000,))}
        checkpointer.save(1, state, {})
        checkpointer.wait()
        flip_one_bit(tmp_path / "1")
        with pytest.raises(CheckpointError):
            checkpointer.restore(state)
        # The manifest, made anew, vouches for the damaged file.
        manifest.write(tmp_path / "1", 1, None, manifest.describe(state))
        restored = checkpointer.restore(state)
    assert np.sum(np.asarray(restored.state["w"]) != np.asarray(state["w"])) == 1


def test_training_goes_on_past_a_broken_checkpoint(tmp_path):
    fill(tmp_path)
    truncate(tmp_path / "3")
    messages = []
    with Checkpointer(tmp_path, 1, messages.append) as checkpointer:
        assert checkpointer.restore(make_state(0)).step == 2
        checkpointer.save(3, make_state(33), {"batch": 30})
        checkpointer.wait()
        assert checkpointer.steps() == [3]
    assert (tmp_path / "3.broken").is_dir() and "3.broken" in messages[-1]
    assert_bit_equal(restore(tmp_path)[0].state, make_state(33))


def test_restore_of_a_given_step_does_not_fall_back(tmp_path):
    fill(tmp_path)
    assert restore(tmp_path, step=1)[0].step == 1
    flip_one_bit(tmp_path / "1")
    with pytest.raises(CheckpointError, match="sha256 differs"):
        restore(tmp_path, step=1)
    with pytest.raises(CheckpointError, match="9 does not exist"):
        restore(tmp_path, step=9)


def test_the_best_survives_rotation_and_restarts(tmp_path):
    accuracies = {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: float("nan"), 6: 0.8}
    for step, accuracy in accuracies.items():
        with Checkpointer(tmp_path, 2) as checkpointer:
            metrics = None if accuracy is None else {"accuracy": accuracy, "loss": 1.0}
            checkpointer.save(step, make_state(step), {}, metrics)
    with Checkpointer(tmp_path, 2) as checkpointer:
        assert checkpointer.steps() == [2, 5, 6]
        assert checkpointer.best_step() == 2
        assert os.readlink(tmp_path / "best") == "2"
        restored = checkpointer.restore(make_state(0), step=2)
        assert_bit_equal(restored.state, make_state(2))
        checkpointer.save(7, make_state(7), {}, {"accuracy": 0.9})
        checkpointer.wait()
        assert (checkpointer.steps(), checkpointer.best_step()) == ([6, 7], 7)


def test_rotation_without_a_best_keeps_the_last(tmp_path):
    assert sorted(p.name for p in fill(tmp_path, (1, 2, 3, 4), keep=2).iterdir()) == ["3", "4"]


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="keep = 0: must be at least 1"):
        Checkpointer(tmp_path, 0)
    with Checkpointer(tmp_path, 1) as checkpointer:
        with pytest.raises(ValueError, match="leaf b/0 is a float32"):
            checkpointer.save(1, {"a": jnp.zeros(3), "b": [np.float32(1)]}, {})
        with pytest.raises(ValueError, match="must have 'accuracy' or 'loss'"):
            checkpointer.save(1, {"a": jnp.zeros(3)}, {}, {"f1": 1.0})
        with pytest.raises(TypeError, match="JSON"):
            checkpointer.save(1, {"a": jnp.zeros(3)}, {"batch": object()})
        assert checkpointer.restore({"a": jnp.zeros(3)}) is None
        checkpointer.save(1, {"a": jnp.zeros(3)}, {})
        with pytest.raises(ValueError, match="step = 1: already saved"):
            checkpointer.save(1, {"a": jnp.zeros(3)}, {})


def vouch_for(step_directory, tree):
    """A manifest for what is there, as if it had been saved so."""
    written = manifest.read(step_directory)
    (step_directory / "manifest.json").unlink()
    unlisted = frozenset({"_CHECKPOINT_METADATA", "commit_success.txt"})
    manifest.write(step_directory, written.step, None, {**written.tree, **tree}, unlisted)


@pytest.mark.parametrize(
    ("file", "tree", "what"),
    [
        ("state/manifest.ocdbt", {}, "is missing"),
        ("state/_METADATA", {}, "its arrays cannot be read"),
        (None, {"more/w": "float32[3]"}, "its array more/w is missing"),
        (None, {"counts": "int32[6]"}, "its array counts is int32[5] instead of int32[6]"),
        (None, {"counts": "int8[5]"}, "its array counts is int32[5] instead of int8[5]"),
        (None, {"site_keys": "key<fry>[4]"}, "its array site_keys is uint32[3, 2] instead of"),
    ],
)
def test_sound_bytes_that_cannot_be_restored_are_no_checkpoint(tmp_path, file, tree, what):
    fill(tmp_path, steps=(1, 2))
    if file is not None:
        (tmp_path / "2" / file).unlink()
    vouch_for(tmp_path / "2", tree)
    manifest.verify(tmp_path / "2")
    restored, (message,) = restore(tmp_path)
    assert restored.step == 1
    assert message.startswith("checkpoint 2 is not used") and what in message


def test_what_orbax_could_not_restore_is_not_published(tmp_path, monkeypatch):
    """As if an array had been lost while it was written."""
    describe = manifest.describe
    monkeypatch.setattr(manifest, "describe", lambda s: {**describe(s), "lost": "float32[2]"})
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(1, make_state(1), {})
        with pytest.raises(CheckpointError, match="not saved: its array lost is missing"):
            checkpointer.wait()
        assert checkpointer.steps() == []
