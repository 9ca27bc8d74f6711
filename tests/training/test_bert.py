"""The trainer with BERT: every method, dropout from the key of the step, metrics, shapes."""

import jax
import numpy as np
import pytest
from fakes import CLASSES, bert_config, config, quick_jit, token_batch

from pbr_jax.methods import METHODS
from pbr_jax.training import from_config


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def start(settings):
    """The parts and the first state of a run from fresh parameters."""
    parts = from_config.build(settings)
    params = from_config.random_params(settings, parts.model)
    return parts, from_config.new_state(settings, parts, params)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_a_batch(name):
    parts, state = start(bert_config(name))
    step, losses = quick_jit(parts.train_step), []
    for _ in range(25):
        state, metrics = step(state, token_batch())
        losses.append(float(metrics.loss))
        assert bool(metrics.finite)
    assert losses[-1] < 0.7 * losses[0]
    assert step._cache_size() == 1


def test_batches_have_the_shapes_that_training_compiles_for():
    for settings, names in (
        (bert_config(), {"tokens", "token_types", "lengths", "label"}),
        (config(), {"image", "label"}),
    ):
        assert set(from_config.batch_specs(settings)) == names
    actual = jax.tree.map(lambda a: (a.shape, a.dtype), token_batch())
    assert actual == jax.tree.map(
        lambda s: (s.shape, np.dtype(s.dtype)), from_config.batch_specs(bert_config())
    )
    assert token_batch()["label"].max() == CLASSES - 1
