"""Classes of examples by a trained model."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from pbr_jax.data import Batch, Prepare
from pbr_jax.data.loader import dropped_threads
from pbr_jax.data.unlabelled import Unlabelled


class Prediction(NamedTuple):
    """The model's prediction for one example."""

    name: str
    probabilities: Float32[np.ndarray, " classes"]

    def best(self, count: int) -> list[tuple[int, float]]:
        """The most probable labels, each with its probability; the lower label of equals first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(label), float(self.probabilities[label])) for label in order]


def predict(
    probabilities: Callable[[Any, Batch], jax.Array],
    variables: Any,
    examples: Unlabelled,
    prepare: Prepare,
    batch_size: int,
    skip: Callable[[str], None] | None = None,
) -> Iterator[Prediction]:
    """Predicts examples in their order, prepared as for evaluation, in batches of one shape.

    `probabilities` are `(variables, batch) -> [B, classes]`, jitted. An example that cannot be used
    is left out, and `skip` called with what is wrong with it.

    Raises:
      ValueError: an example cannot be used, and there is no `skip`; names it.
    """

    def read(row: int) -> tuple[str, Batch] | ValueError:
        try:
            record = examples[row]
            return record.name, prepare([record], None)
        except ValueError as error:
            return error

    with dropped_threads() as threads:
        for start in range(0, len(examples), batch_size):
            # Examples are read and prepared on threads, and stay in their order.
            rows = range(len(examples))[start : start + batch_size]
            usable = []
            for found in threads.map(read, rows):
                if not isinstance(found, ValueError):
                    usable.append(found)
                elif skip is None:
                    raise found
                else:
                    skip(str(found))
            # Copies of the last one fill up a batch; they have no name, and are dropped.
            if usable:
                arrays = [arrays for _, arrays in usable]
                arrays += [arrays[-1]] * (batch_size - len(arrays))
                batch = {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]}
                result = np.asarray(probabilities(variables, batch))
                for (name, _), row in zip(usable, result, strict=False):
                    yield Prediction(name, row)
