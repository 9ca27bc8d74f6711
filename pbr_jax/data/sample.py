"""A part of a split that stands for all of it."""

import numpy as np
from jaxtyping import Int

from pbr_jax.data.records import ChosenRecords, Records


def sample(records: Records, number: int) -> tuple[Records, str]:
    """At most `number` of the records, in their order, and a line that says which.

    Every class is there, with a share as large as in all records, and its examples are spread
    evenly over them. The same records give the same sample. Where labels are unknown before
    everything is read, it is the first records.

    Raises:
      ValueError: `number` is below that of the classes.
    """
    labels, total = records.labels, len(records)
    if number >= total:
        return records, f"evaluation on all {total} test examples: there are no more"
    if labels is None:
        return (
            ChosenRecords(records, np.arange(number)),
            f"evaluation on the first {number} of {total} test examples: their classes are not "
            "known before all are read",
        )
    classes, counts = np.unique(labels, return_counts=True)
    if number < len(classes):
        raise ValueError(
            f"data.max_test = {number}: the test split has {len(classes)} classes; must be "
            f"{len(classes)} or more, so that each has an example"
        )
    # One of each class, and the others in proportion to what is left of each.
    wanted = 1 + shares(counts - 1, number - len(classes))
    rows = []
    for label, count, some in zip(classes, counts, wanted, strict=True):
        rows.append(np.flatnonzero(labels == label)[np.arange(some) * count // some])
    chosen = ChosenRecords(records, np.sort(np.concatenate(rows)))
    of_all = f", of all {len(classes)} classes" if len(classes) > 1 else ""
    return chosen, f"evaluation on {number} of {total} test examples{of_all}"


def shares(counts: Int[np.ndarray, " C"], number: int) -> Int[np.ndarray, " C"]:
    """Whole numbers in proportion to `counts` that add up to `number`, at most the sum of these.

    Shares are rounded down, and what is left goes to those with the largest remainders.
    """
    exact, total = number * counts, max(1, counts.sum())
    found: np.ndarray = exact // total
    largest_remainders = np.argsort(-(exact % total), kind="stable")
    found[largest_remainders[: number - found.sum()]] += 1
    return found
