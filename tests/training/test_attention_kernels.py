"""A train step with attention's kernels, interpreted, is the one that XLA computes alone."""

import jax
import pytest
from fakes import batch, bert_config, config, quick_jit, random_params, token_batch
from measures import assert_close, implemented

from pbr_jax.configs.common import Optimizer
from pbr_jax.ops import attention, attention_triton
from pbr_jax.training import from_config

SGD = Optimizer(name="sgd", learning_rate=0.05, schedule="constant")  # AdamW would amplify rounding
BERT = bert_config("lean", optimizer=SGD)  # with padding and dropout


def two_steps(settings, examples):
    """Changes of the parameters, and the loss of the second step."""
    parts = from_config.build(settings)
    params = random_params(parts.model)
    state = from_config.new_state(settings, parts, params)
    step = quick_jit(parts.train_step)
    for _ in range(2):
        state, metrics = step(state, examples)
    return jax.tree.map(lambda new, old: new - old, state.params, params), metrics.loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "examples"),
    [(config("prebackrazor++", optimizer=SGD), batch()), (BERT, token_batch())],
    ids=["prebackrazor++", "lean bert"],
)
def test_kernels_change_nothing(settings, examples, monkeypatch):
    changes, loss = two_steps(settings, examples)
    monkeypatch.setattr(
        attention.Settings, "implementation_for", lambda self, x, visibility: attention_triton
    )
    with implemented():
        changes_with_kernels, loss_with_kernels = two_steps(settings, examples)
    assert float(loss_with_kernels) == pytest.approx(float(loss), rel=1e-5)
    assert_close(changes_with_kernels, changes, 1e-4)
