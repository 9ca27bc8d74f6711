"""A task: the loss that training descends, and the figures by which a model is judged."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Batch = Mapping[str, Any]
Figures = dict[str, jax.Array]


class Task(NamedTuple):
    """Pure functions of a model's outputs `[B, ...]` and a batch."""

    # `(outputs, batch) -> float32 [B]`, one for each example; training descends the mean.
    losses: Callable[[Any, Batch], jax.Array]
    # `(outputs, batch) -> {name: [B]}`, further values of each example, in [0, 1]; their means are
    # shares, logged and evaluated beside the loss.
    figures: Callable[[Any, Batch], Figures]
    # `batch_size -> {name: shape and dtype}` of what `losses` reads of a batch.
    targets: Callable[[int], dict[str, jax.ShapeDtypeStruct]]
    best: str  # name of the figure whose highest value makes the best checkpoint


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels
CLASSIFICATION = Task(
    losses=lambda logits, batch: _cross_entropy(logits, batch["label"]),
    figures=lambda logits, batch: {"accuracy": jnp.argmax(logits, axis=-1) == batch["label"]},
    targets=lambda batch_size: {"label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)},
    best="accuracy",
)
"""One class of `num_classes` for each example: cross-entropy, and the share that is right."""
