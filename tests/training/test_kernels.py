"""A train step with all its kernels, interpreted, is the one that XLA computes alone."""

import dataclasses

import jax
import pytest
from fakes import batch, bert_config, config, random_params, token_batch
from measures import assert_close, equations, implemented

from pbr_jax.configs.common import Optimizer
from pbr_jax.training import from_config

SGD = Optimizer(name="sgd", learning_rate=0.05, schedule="constant")  # AdamW would amplify rounding
BERT = bert_config("lean", optimizer=SGD)  # with padding and dropout


def two_steps(settings, examples, implementation):
    """Changes of the parameters, the loss of the second step, and the kernels that ran."""
    plan = dataclasses.replace(settings.plan, implementation=implementation)
    settings = dataclasses.replace(settings, plan=plan)
    parts = from_config.build(settings)
    params = random_params(parts.model.module)
    state = from_config.new_state(settings, parts, params)
    jaxpr = jax.make_jaxpr(parts.train_step)(state, examples)
    kernels = {
        str(e.params["name"]) for e in equations(jaxpr.jaxpr) if "pallas" in str(e.primitive)
    }
    step = jax.jit(parts.train_step)
    for _ in range(2):
        state, metrics = step(state, examples)
    return jax.tree.map(lambda new, old: new - old, state.params, params), metrics.loss, kernels


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("settings", "examples"),
    [
        (config("prebackrazor++", optimizer=SGD), batch()),
        (config("fast/js50", optimizer=SGD), batch()),
        (BERT, token_batch()),
    ],
    ids=["prebackrazor++", "fast/js50", "lean bert"],
)
def test_kernels_change_nothing(settings, examples):
    changes, loss, without = two_steps(settings, examples, "xla")
    with implemented():
        changes_with_kernels, loss_with_kernels, kernels = two_steps(settings, examples, "triton")
    assert not without
    assert {"weight_gradient", "row_update_sgd", "attention_forward"} <= kernels
    assert {"linear_gelu", "linear_gelu_gradient"} <= kernels
    assert float(loss_with_kernels) == pytest.approx(float(loss), rel=1e-5)
    assert_close(changes_with_kernels, changes, 1e-4)
