"""A task: the loss that training descends, and the figures by which a model is judged."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Batch = Mapping[str, Any]
Figures = dict[str, jax.Array]
LOSS = "loss"
SCALE = "scale"  # the entry of a batch, float32 [B], by which a step multiplies sums; see `scaled`


class Task(NamedTuple):
    """Pure functions of a model's outputs `[B, ...]` and a batch.

    An example is one thing to be right about, or has `weights` of them: the loss and the figures
    are means over the things of a whole batch, however it is split, or of a whole test split.
    """

    # `(outputs, batch) -> float32 [B]`, of each example the sum over its things; training descends
    # the mean.
    losses: Callable[[Any, Batch], jax.Array]
    # `(outputs, batch) -> {name: [B]}`, further sums, of values in [0, 1]; their means are shares,
    # logged and evaluated beside the loss.
    figures: Callable[[Any, Batch], Figures]
    # `batch_size -> {name: shape and dtype}` of what `losses` reads of a batch and no module does.
    targets: Callable[[int], dict[str, jax.ShapeDtypeStruct]]
    best: str  # the figure whose highest value, or "loss", whose lowest makes the best checkpoint
    weights: Callable[[Batch], jax.Array] | None = None  # `batch -> float32 [B]`; None: one each
    # `means of a test split -> what is reported of it besides`.
    derived: Callable[[Mapping[str, float]], dict[str, float]] = lambda means: {}


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels
CLASSIFICATION = Task(
    losses=lambda logits, batch: _cross_entropy(logits, batch["label"]),
    figures=lambda logits, batch: {"accuracy": jnp.argmax(logits, axis=-1) == batch["label"]},
    targets=lambda batch_size: {"label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)},
    best="accuracy",
)
"""One class of `num_classes` for each example: cross-entropy, and the share that is right."""


def _over_scored(values: jax.Array, batch: Batch) -> jax.Array:
    return jnp.sum(jnp.where(batch["scored"], values.astype(jnp.float32), 0.0), axis=1)


LANGUAGE = Task(
    losses=lambda outputs, batch: _over_scored(outputs[0], batch),
    figures=lambda outputs, batch: {"accuracy": _over_scored(outputs[1], batch)},
    targets=lambda batch_size: {},
    best=LOSS,
    weights=lambda batch: jnp.sum(batch["scored"], axis=1, dtype=jnp.float32),
    derived=lambda means: {"perplexity": math.exp(min(means[LOSS], 700.0))},
)
"""The next token of each `scored` one: cross-entropy, and the share that is right.

The outputs of a model are `(nll [B, N], right [B, N])`, see `ops.vocabulary`; a module reads all of
a batch, `targets` and `scored` included.
"""


def scaled(task: Task, batch: Batch, mean: Callable[[jax.Array], jax.Array] = lambda x: x) -> Batch:
    """A whole batch with the scale that makes a mean over examples the mean over their things.

    It is the number of examples by that of things, and goes wherever parts of the batch go. `mean`
    is that over devices, each of which has equally many examples.
    """
    if task.weights is None or SCALE in batch:
        return batch
    weights = task.weights(batch)
    scale = 1 / jnp.maximum(mean(jnp.mean(weights)), 1e-30)
    return {**batch, SCALE: jnp.broadcast_to(scale, weights.shape)}


def objective(task: Task, outputs: Any, batch: Batch) -> tuple[jax.Array, Figures]:
    """The loss that training descends, and the figures beside it: means over the batch."""
    whole = scaled(task, batch)

    def mean(sums: jax.Array) -> jax.Array:
        return jnp.mean(sums if SCALE not in whole else whole[SCALE] * sums)

    return mean(task.losses(outputs, batch)), jax.tree.map(mean, task.figures(outputs, batch))


def token_weights(batch: Batch) -> jax.Array:
    """Float32 `[B, N]`: of each target of `LANGUAGE` in the loss of a batch, or of its part."""
    scored = batch["scored"]
    scale = scaled(LANGUAGE, batch)[SCALE] / scored.shape[0]
    return jnp.where(scored, jnp.expand_dims(scale, 1), 0.0)


def better(name: str, value: float, than: float | None) -> bool:
    """Whether a figure is better than another, or than none: a lower loss, more of the others."""
    if than is None:
        return not math.isnan(value)
    return value < than if name == LOSS else value > than
