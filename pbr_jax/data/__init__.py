"""Data sets by name, and the batches that training and evaluation see."""

import difflib
from collections.abc import Sequence

from pbr_jax.data import digits, npz
from pbr_jax.data.arrays import (
    ArrayLoader,
    Augment,
    Batch,
    Dataset,
    Source,
    check_labels,
    check_source,
    test_batches,
)
from pbr_jax.data.augment import affine

NAMES = ("digits", "npz")

__all__ = [
    "NAMES",
    "ArrayLoader",
    "Augment",
    "Batch",
    "Dataset",
    "Source",
    "affine",
    "check_labels",
    "check_source",
    "load",
    "test_batches",
    "train_batches",
]


def train_batches(source: Source, batch_size: int, seed: int, augment: bool) -> ArrayLoader:
    """Endless shuffled batches, augmented by `affine()` or not at all."""
    return ArrayLoader(*source, batch_size, seed, affine() if augment else None)


def load(name: str, path: str | None = None, classes: Sequence[int] | None = None) -> Dataset:
    """Loads a data set and checks its arrays and labels.

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
    check_source("training", dataset.train, dataset.num_classes)
    check_source("test", dataset.test, dataset.num_classes)
    if dataset.train.images.shape[1:] != dataset.test.images.shape[1:]:
        raise ValueError(
            f"training images are {list(dataset.train.images.shape[1:])} and test images "
            f"{list(dataset.test.images.shape[1:])}: must agree in height, width and channels"
        )
    check_labels(dataset)
    return dataset
