"""Data sets by name, and the batches that training and evaluation see.

    dataset = data.load("digits")
    inputs = data.ImageInputs(size=8, channels=1, augment="affine")
    batches = data.TrainBatches(dataset.train, inputs, batch_size=64, seed=0)

Reading and preparing are apart: `load` gives records, and a `Prepare` such as `ImageInputs` makes
the arrays of a batch of them.
"""

import difflib
from collections.abc import Sequence

from pbr_jax.data import digits, npz
from pbr_jax.data.images import ImageInputs
from pbr_jax.data.loader import TrainBatches, eval_batches
from pbr_jax.data.records import Batch, Dataset, Prepare, Records, check_labels

NAMES = ("digits", "npz")

__all__ = [
    "NAMES",
    "Batch",
    "Dataset",
    "ImageInputs",
    "Prepare",
    "Records",
    "TrainBatches",
    "check_labels",
    "eval_batches",
    "load",
]


def load(name: str, path: str | None = None, classes: Sequence[int] | None = None) -> Dataset:
    """Reads a data set and checks its labels.

    Args:
      name: "digits", or "npz" for your own arrays.
      path: the file of "npz"; digits need none.
      classes: digits only: the digits to keep.

    Raises:
      ValueError: an unknown name (with the nearest one), a wrong argument, or wrong data.
    """
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"data set {name!r} is unknown: must be one of {', '.join(NAMES)}{hint}")
    if name == "digits":
        if path is not None:
            raise ValueError(f"path = {path}: digits come with scikit-learn and take no path")
        dataset = digits.load(classes)
    else:
        if path is None or classes is not None:
            raise ValueError(f"path = {path}, classes = {classes}: npz needs a path and no classes")
        dataset = npz.load(path)
    check_labels(dataset)
    return dataset
