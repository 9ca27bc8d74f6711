"""A task whose examples weigh differently: means over tokens, however a batch is split."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax.training.devices import Devices
from pbr_jax.training.mover import whole
from pbr_jax.training.optimizer import make_optimizer
from pbr_jax.training.pruned_model import PrunedModel
from pbr_jax.training.slices import ALL
from pbr_jax.training.state import TrainState
from pbr_jax.training.step import make_eval_step, make_train_step
from pbr_jax.training.task import (
    CLASSIFICATION,
    LANGUAGE,
    better,
    objective,
    scaled,
    token_weights,
)

B, N, V = 4, 6, 5
RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(V, V)), jnp.float32)
SCORED = np.arange(N) < np.array([[6], [1], [0], [3]])  # of one example nothing, of another all
BATCH = {
    "tokens": jnp.asarray(RNG.integers(0, V, (B, N)), jnp.int32),
    "targets": jnp.asarray(RNG.integers(0, V, (B, N)), jnp.int32),
    "scored": jnp.asarray(SCORED),
}


def outputs(table, batch):
    """A language model that reads the last word alone."""
    logits = jnp.take(table, batch["tokens"], axis=0)
    own = jnp.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    nll = jax.nn.logsumexp(logits, axis=-1) - own
    return nll, jnp.argmax(logits, axis=-1) == batch["targets"]


def by_weights(table, batch):
    """The loss as its weights make it, one for each token."""
    return jnp.sum(token_weights(batch) * outputs(table, batch)[0])


def token_mean(table):
    nll, right = (np.asarray(one, np.float64)[SCORED] for one in outputs(table, BATCH))
    return nll.mean(), right.mean()


def model():
    """The parts of a `PrunedModel` that a step calls, of a model without anything pruned."""
    own = dict.fromkeys(PrunedModel._fields)
    own |= {
        "select": lambda key, state, step: (state, ()),
        "split": lambda params, selection: (params, ()),
        "pack": lambda selection, grads: grads,
        "slices": lambda selection, params: jax.tree.map(lambda _: ALL, params),
        "learn": lambda state, *_: state,
        "outputs": lambda variables, batch, part: outputs(variables[0]["table"], batch),
    }

    def loss(trained, frozen, extra, selection, batch, key, part=None):
        value, figures = objective(LANGUAGE, outputs(trained["table"], batch), batch)
        return value, (figures, extra)

    return PrunedModel(**own | {"loss": loss})


@functools.cache
def stepped(accumulation_steps):
    optimizer = make_optimizer("sgd", lambda step: 1.0, momentum=0.0, clip_norm=None)
    mover = whole(model(), optimizer)
    step = make_train_step(model(), mover, accumulation_steps=accumulation_steps, task=LANGUAGE)
    params = {"table": TABLE}
    state = TrainState(jnp.int32(0), jax.random.key(0), params, optimizer.init(params), (), ())
    after, metrics = jax.jit(step)(state, BATCH)
    return after.params["table"] - TABLE, metrics


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_step_descends_the_mean_over_the_tokens_of_the_whole_batch(parts):
    moved, metrics = stepped(parts)
    loss, accuracy = token_mean(TABLE)
    assert float(metrics.loss) == pytest.approx(loss, rel=1e-6)
    assert float(metrics.figures["accuracy"]) == pytest.approx(accuracy, rel=1e-6)
    gradient = jax.grad(by_weights)(TABLE, BATCH)
    np.testing.assert_allclose(moved, -gradient, rtol=1e-5, atol=1e-7)


def test_devices_agree_on_the_number_of_tokens():
    """Each knows its own half of the batch, and their mean."""
    halves = [jax.tree.map(lambda a, i=i: a[2 * i : 2 * i + 2], BATCH) for i in (0, 1)]
    mean = sum(float(jnp.mean(LANGUAGE.weights(half))) for half in halves) / 2
    devices = Devices(
        lambda tree: jax.tree.map(lambda _: jnp.float32(mean), tree), None, None, None
    )
    losses = [by_weights(TABLE, scaled(LANGUAGE, half, devices.mean)) for half in halves]
    assert float(sum(losses)) / 2 == pytest.approx(token_mean(TABLE)[0], rel=1e-6)


def test_evaluation_sums_tokens_of_the_examples_that_count():
    evaluate = jax.jit(make_eval_step(model(), LANGUAGE))
    mask = np.array([True, True, True, False])
    sums = evaluate(({"table": TABLE}, ()), BATCH | {"mask": mask})
    counted = SCORED & mask[:, None]
    nll, right = (np.asarray(one)[counted] for one in outputs(TABLE, BATCH))
    assert float(sums["weight"]) == counted.sum()
    assert float(sums["loss"]) == pytest.approx(nll.sum(), rel=1e-6)
    assert float(sums["accuracy"]) == right.sum()


def test_perplexity_is_derived_of_the_mean_loss():
    assert LANGUAGE.derived({"loss": 2.0}) == {"perplexity": math.exp(2)}
    assert math.isfinite(LANGUAGE.derived({"loss": 1e6})["perplexity"])
    assert CLASSIFICATION.derived({"loss": 2.0}) == {}


def test_a_lower_loss_and_more_of_anything_else_is_better():
    assert better("loss", 1.0, 2.0) and not better("loss", 2.0, 2.0)
    assert better("accuracy", 0.2, 0.1) and not better("accuracy", 0.1, 0.1)
    for name in ("loss", "accuracy"):
        assert better(name, 0.0, None) and not better(name, math.nan, None)
