"""Snapshots of the policies in `pruning.npz`."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax.files import DamagedFile
from pbr_jax.pruning import PolicyState
from pbr_jax.reports.page import read_columns
from pbr_jax.runs.history import FILE, PruningHistory
from pbr_jax.training.selection import SelectorState


def state(value, sites=("qkv", "fc2")):
    """Policies of two blocks and four columns whose probabilities and counts tell `value`."""
    policy = PolicyState(
        probs=jnp.full((2, 4), value / 100, jnp.float32),
        counts=jnp.full((2, 4), value, jnp.int32),
        energy=jnp.zeros((2, 0), jnp.float32),
    )
    return SelectorState(dict.fromkeys(sites, policy), {})


def content(workdir):
    with np.load(workdir / FILE) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def recorded(tmp_path):
    """A work directory with snapshots of the steps 0, 10 and 20."""
    history = PruningHistory(tmp_path, None)
    for step in (0, 10, 20):
        history.record(step, state(step))
    return tmp_path


def test_every_snapshot_is_on_disk(recorded):
    arrays = content(recorded)
    assert set(arrays) == {"steps", "probs/qkv", "probs/fc2", "counts/qkv", "counts/fc2"}
    np.testing.assert_array_equal(arrays["steps"], [0, 10, 20])
    assert arrays["probs/qkv"].shape == (3, 2, 4) and arrays["probs/qkv"].dtype == np.float16
    np.testing.assert_allclose(arrays["probs/qkv"][:, 1, 3], [0.0, 0.1, 0.2], atol=1e-3)
    np.testing.assert_array_equal(arrays["counts/fc2"], np.full((2, 4), 20))
    assert [path.name for path in recorded.iterdir()] == [FILE]


def test_the_report_can_read_it(recorded):
    columns = read_columns(recorded)
    np.testing.assert_array_equal(columns.steps, [0, 10, 20])
    assert set(columns.probs) == {"qkv", "fc2"}


def test_a_step_has_one_snapshot(recorded):
    history = PruningHistory(recorded, 20)
    history.record(20, state(99))
    history.record(30, state(30))
    arrays = content(recorded)
    np.testing.assert_array_equal(arrays["steps"], [0, 10, 20, 30])
    np.testing.assert_allclose(arrays["probs/fc2"][2:, 0, 0], [0.2, 0.3], atol=1e-3)


def test_resuming_drops_later_snapshots(recorded):
    history = PruningHistory(recorded, 15)
    history.record(17, state(17))
    arrays = content(recorded)
    np.testing.assert_array_equal(arrays["steps"], [0, 10, 17])
    np.testing.assert_allclose(arrays["probs/qkv"][:, 0, 0], [0.0, 0.1, 0.17], atol=1e-3)


def test_a_new_run_starts_afresh(recorded):
    history = PruningHistory(recorded, None)
    assert not (recorded / FILE).exists()
    history.record(0, state(5))
    np.testing.assert_array_equal(content(recorded)["steps"], [0])


def test_nothing_is_written_without_policies(tmp_path):
    PruningHistory(tmp_path, None).record(0, state(0, sites=()))
    assert list(tmp_path.iterdir()) == []


def damaged(recorded):
    whole = (recorded / FILE).read_bytes()
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    words, square = io.BytesIO(), io.BytesIO()
    np.savez(words, steps=np.array(["a"]), **{"probs/qkv": [1], "counts/qkv": [1]})
    np.savez(square, steps=np.zeros((1, 1)), **{"probs/qkv": [1], "counts/qkv": [1]})
    cuts = (whole[: len(whole) // 2], whole[:-1], whole[:10], b"", b"\0" * 500, b"noise" * 99)
    torn = whole[:200] + bytes(len(whole) - 400) + whole[-200:]
    return [*cuts, torn, array.getvalue(), words.getvalue(), square.getvalue()]


def test_a_damaged_file_is_set_aside_and_the_history_begins_anew(recorded):
    for number, bad in enumerate(damaged(recorded), start=1):
        (recorded / FILE).write_bytes(bad)
        with pytest.raises(DamagedFile, match=r"pruning\.npz: "):
            read_columns(recorded)
        said = []
        PruningHistory(recorded, 20, said.append).record(30, state(30))
        assert ".broken" in said[0] and len(said) == 1
        np.testing.assert_array_equal(content(recorded)["steps"], [30])
        assert len(list(recorded.glob("*.broken"))) == number


def test_a_folder_in_its_place_is_set_aside(tmp_path):
    (tmp_path / FILE).mkdir()
    PruningHistory(tmp_path, None, lambda text: None).record(0, state(5))
    assert {path.name for path in tmp_path.iterdir()} == {FILE, f"{FILE}.broken"}
