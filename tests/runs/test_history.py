"""Snapshots of the policies in `pruning.npz`."""

import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax.pruning import PolicyState
from pbr_jax.report.page import read_columns
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
