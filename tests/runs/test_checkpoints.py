"""Checkpoints are restored bit for bit, or not at all and said so."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from pbr_jax.runs import manifest
from pbr_jax.runs.checkpoints import Checkpointer, CheckpointError

TX = optax.chain(optax.clip(1.0), optax.adamw(1e-3))


def make_state(seed, width=64):
    """A state with every kind of leaf that training has: moments, typed keys, counts, bfloat16."""
    key = jax.random.key(seed)
    params = {
        "dense": {"kernel": jax.random.normal(key, (width, width)), "bias": jnp.zeros(width)},
        "scale": jnp.full(8, seed, jnp.bfloat16),
    }
    grads = jax.tree.map(lambda p: p + jnp.asarray(1, p.dtype), params)
    with jax.numpy_dtype_promotion("standard"):  # optax.adamw needs it
        _, opt_state = TX.update(grads, TX.init(params), params)
    return {
        "step": jnp.int32(seed),
        "key": key,
        "site_keys": jax.random.split(key, 3),
        "params": params,
        "opt_state": opt_state,
        "counts": jnp.arange(5, dtype=jnp.int32),
        "energy": jnp.zeros((2, 0), jnp.float32),  # the bandit keeps none
        "nothing": None,
    }


def assert_bit_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape, a.sharding) == (b.dtype, b.shape, b.sharding)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def fill(directory, steps=(1, 2, 3), keep=3):
    """Saves `make_state(step)` for each step; returns the directory."""
    with Checkpointer(directory, keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), {"batch": 10 * step})
    return directory


def largest_file(step_directory: Path) -> Path:
    """The file that holds most of the array data."""
    return max(
        (p for p in step_directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def restore(directory, **kwargs):
    messages = []
    with Checkpointer(directory, 3, messages.append) as checkpointer:
        return checkpointer.restore(make_state(0), **kwargs), messages


def test_round_trip_is_bit_equal_in_the_same_types(tmp_path):
    restored, messages = restore(fill(tmp_path))
    assert (restored.step, restored.data_state, messages) == (3, {"batch": 30}, [])
    assert_bit_equal(restored.state, make_state(3))
    assert isinstance(restored.state["opt_state"][1][0], optax.ScaleByAdamState)


def test_the_comparison_can_fail(tmp_path):
    restored, _ = restore(fill(tmp_path))
    with pytest.raises(AssertionError):
        assert_bit_equal(restored.state, make_state(2))


def test_restores_from_shapes_alone(tmp_path):
    fill(tmp_path, steps=(3,))
    with Checkpointer(tmp_path, 1) as checkpointer:
        restored = checkpointer.restore(jax.eval_shape(lambda: make_state(0)))
    assert_bit_equal(restored.state, make_state(3))


def test_restored_state_continues_like_the_saved_one(tmp_path):
    def step(state):
        noise = jax.random.normal(state["key"], (64, 64))
        grads = jax.tree.map(jnp.ones_like, state["params"]) | {
            "dense": {"kernel": noise, "bias": jnp.ones(64)}
        }
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = TX.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {**state, "params": params, "opt_state": opt_state}

    restored, _ = restore(fill(tmp_path, steps=(3,)))
    assert_bit_equal(jax.jit(step)(restored.state), jax.jit(step)(make_state(3)))


def test_a_state_that_is_donated_after_save_is_saved_unharmed(tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: -x, s), donate_argnums=0)
    state = {"w": jnp.arange(2_000_000, dtype=jnp.float32)}
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(1, state, {})
        for _ in range(4):
            state = overwrite(state)
        jax.block_until_ready(state)
    with Checkpointer(tmp_path, 1) as checkpointer:
        restored = checkpointer.restore(jax.eval_shape(lambda: state))
    np.testing.assert_array_equal(restored.state["w"], np.arange(2_000_000, dtype=np.float32))


def test_no_checkpoints_restore_as_none(tmp_path):
    assert restore(tmp_path / "absent") == (None, [])
    assert restore(tmp_path) == (None, [])


def truncate(step_directory):
    path = largest_file(step_directory)
    os.truncate(path, path.stat().st_size // 2)
    return path.name, "bytes instead of"


def flip_one_bit(step_directory):
    path = largest_file(step_directory)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path.name, "sha256 differs"


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


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: {**s, "opt_state": optax.sgd(0.1).init(s["params"])}, "opt_state/1/0/mu/scale"),
        (lambda s: {**s, "slots": jnp.zeros(3)}, "not in the checkpoint (1): slots"),
        (
            lambda s: {**s, "counts": jnp.zeros(6, jnp.int32)},
            "counts is int32[5] in the checkpoint",
        ),
        (lambda s: {**s, "counts": jnp.zeros(5)}, "float32[5] here"),
        (lambda s: {**s, "energy": jnp.zeros((2, 7))}, "energy is float32[2,0]"),
    ],
)
def test_another_state_is_an_error_that_names_the_paths(tmp_path, change, expected):
    fill(tmp_path, steps=(1,))
    with Checkpointer(tmp_path, 1) as checkpointer:
        with pytest.raises(ValueError, match="does not fit this run") as error:
            checkpointer.restore(change(make_state(0)))
    assert expected in str(error.value)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="keep = 0: must be at least 1"):
        Checkpointer(tmp_path, 0)
    with Checkpointer(tmp_path, 1) as checkpointer:
        with pytest.raises(ValueError, match="leaf b/0 is a float32"):
            checkpointer.save(1, {"a": jnp.zeros(3), "b": [np.float32(1)]}, {})
        with pytest.raises(ValueError, match="must have 'accuracy'"):
            checkpointer.save(1, {"a": jnp.zeros(3)}, {}, {"loss": 1.0})
        with pytest.raises(TypeError, match="JSON"):
            checkpointer.save(1, {"a": jnp.zeros(3)}, {"batch": object()})
        assert checkpointer.restore({"a": jnp.zeros(3)}) is None
        checkpointer.save(1, {"a": jnp.zeros(3)}, {})
        with pytest.raises(ValueError, match="step = 1: already saved"):
            checkpointer.save(1, {"a": jnp.zeros(3)}, {})


KILLED = """
import sys, jax
from pbr_jax.runs.checkpoints import Checkpointer
if {slow_manifest}:
    from pbr_jax.runs import manifest
    write = manifest.write
    def slow(directory, step, *args):
        if step == 2:
            print("hashing", flush=True)
            __import__("time").sleep(60)
        write(directory, step, *args)
    manifest.write = slow
checkpointer = Checkpointer(sys.argv[1], 2)
for step in (1, 2):
    state = {{"w": jax.random.normal(jax.random.key(step), ({size},))}}
    checkpointer.save(step, state, {{"batch": step}})
    if step == 1:
        checkpointer.wait()
    print("saving", step, flush=True)
checkpointer.wait()
print("done", flush=True)
"""


def kill_during_second_save(directory, size, slow_manifest):
    """Kills a process that saves twice: in the middle of writing, or before the manifest."""
    command = [
        sys.executable,
        "-c",
        KILLED.format(size=size, slow_manifest=slow_manifest),
        str(directory),
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        awaited = "hashing" if slow_manifest else "saving 2"
        for line in process.stdout:
            if line.strip() == awaited:
                break
        deadline = time.monotonic() + 30
        while not list(directory.glob("2*/**/d/*")) and time.monotonic() < deadline:
            time.sleep(0.001)  # until array data of step 2 is there
        process.send_signal(signal.SIGKILL)
        assert "done" not in process.stdout.read()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("slow_manifest", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_kill_in_the_middle_of_a_save(tmp_path, slow_manifest):
    size = 1_000 if slow_manifest else 4_000_000  # large enough to be caught at writing
    kill_during_second_save(tmp_path, size, slow_manifest)
    (leftover,) = tmp_path.glob("2*")
    assert leftover.name != "2" and not (leftover / "manifest.json").exists()
    like = {"w": jax.ShapeDtypeStruct((size,), jnp.float32)}
    with Checkpointer(tmp_path, 2) as checkpointer:
        restored = checkpointer.restore(like)
        assert (restored.step, restored.data_state) == (1, {"batch": 1})
        expected = jax.random.normal(jax.random.key(1), (size,))
        np.testing.assert_array_equal(restored.state["w"], expected)
        checkpointer.save(2, restored.state, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("name", ["\u00b2", "\u0663", "03"])
def test_other_folders_are_no_steps(tmp_path, name):
    (tmp_path / name).mkdir()
    assert restore(tmp_path) == (None, [])


def test_a_first_save_that_was_interrupted_is_no_checkpoint(tmp_path):
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    restored, (message,) = restore(tmp_path)
    assert restored is None and "7.orbax-checkpoint-tmp is an interrupted save" in message


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
    "name",
    [
        *("[x]", "x[lr=0.1]", "back\\slash", "a*b?", "{a,b}", "100%41", "new\nline", "~", "gs:"),
        *("in spaces", "caf\u00e9", "\udcff", "#?&", "n" * 200),
    ],
)
def test_any_name_of_a_folder_will_do(tmp_path, name):
    state = {"w": jnp.arange(3.0), "key": jax.random.key(0)}
    with Checkpointer(tmp_path / name / "checkpoints", 1) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state, {})
        checkpointer.wait()
        assert checkpointer.restore(state).step == 2
        assert_bit_equal(checkpointer.restore(state).state, state)
    assert sorted(os.listdir(tmp_path / name / "checkpoints")) == ["2"]


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
