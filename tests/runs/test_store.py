"""States are written and read back bit for bit, whatever else is in the folder."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpointed import TX, assert_bit_equal, fill, make_state, restore

from pbr_jax.runs.checkpoints import Checkpointer


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


@pytest.mark.parametrize("name", ["\u00b2", "\u0663", "03"])
def test_other_folders_are_no_steps(tmp_path, name):
    (tmp_path / name).mkdir()
    assert restore(tmp_path) == (None, [])


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


def test_a_first_save_that_was_interrupted_is_no_checkpoint(tmp_path):
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    restored, (message,) = restore(tmp_path)
    assert restored is None and "7.orbax-checkpoint-tmp is an interrupted save" in message
