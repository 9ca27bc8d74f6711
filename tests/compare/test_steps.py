"""Steps on random data: batches of the model's shapes, times in turn, memory in use."""

import fakes
import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax.compare import steps
from pbr_jax.compare.trials import prepare
from pbr_jax.training import from_config


@pytest.fixture(scope="module")
def prepared():
    return prepare(fakes.config("full", batch_size=2))


@pytest.mark.parametrize("config", [fakes.config("full"), fakes.bert_config("full")])
def test_a_batch_is_random_and_of_the_models_shapes(config):
    batch = steps.random_batch(config)
    for name, spec in from_config.batch_specs(config).items():
        assert batch[name].shape == spec.shape and batch[name].dtype == spec.dtype
    assert np.unique(batch["label"]).size > 1
    assert int(jnp.max(batch["label"])) < config.model.num_classes
    if config.model.family == "bert":
        np.testing.assert_array_equal(batch["lengths"], config.model.max_length)
        assert np.unique(batch["tokens"]).size > 5


def test_a_padded_batch_has_sequences_of_half_the_length_and_more():
    config = fakes.bert_config("full", batch_size=64)
    lengths = steps.random_batch(config, padded=True)["lengths"]
    longest = config.model.max_length
    np.testing.assert_array_equal(np.unique(lengths), np.arange(longest // 2, longest + 1))


def test_times_are_ratios_within_rounds(prepared, monkeypatch):
    monkeypatch.setattr(steps, "_SECONDS", 0.0)
    batch = steps.random_batch(prepared.config)
    seconds, to_full = steps.time_against(prepared, prepared, batch)
    assert 0 < seconds.low <= seconds.median <= seconds.high
    assert to_full.low <= to_full.median <= to_full.high


def test_what_cannot_run_is_named(prepared):
    def fails(state, batch):
        raise RuntimeError("out of memory")

    batch = steps.random_batch(prepared.config)
    with pytest.raises(RuntimeError, match="full: out of memory"):
        steps.time_against(prepared, prepared._replace(step=fails), batch)


def test_the_plan_of_a_step_is_bytes_by_purpose(prepared):
    planned = prepared.planned
    assert planned["saved_bytes"] == prepared.use.activations > 0
    assert planned["peak_bytes"] == prepared.peak_bytes > planned["temp_bytes"] > 0


def test_without_a_device_that_reports_it_only_the_plan_is_known():
    found = steps.memory_here(fakes.config("full", batch_size=2))
    assert found["running"] is None and found["compiling"] is None
    assert found["peak_bytes"] > found["temp_bytes"] > 0 and found["saved_bytes"] > 0
