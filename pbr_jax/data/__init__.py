"""Data sets by name, and the batches that training and evaluation see.

    dataset = data.load("digits")
    inputs = data.ImageInputs(size=8, channels=1, augment="affine")
    batches = data.TrainBatches(dataset.train, inputs, batch_size=64, seed=0)

Reading and preparing are apart: `load` gives records, and a `Prepare` such as `ImageInputs` makes
the arrays of a batch of them.
"""

import difflib

from pbr_jax.data import cub200, digits, image_folder, npz, tables, tfds
from pbr_jax.data.folders import OnError
from pbr_jax.data.images import ImageInputs
from pbr_jax.data.loader import TrainBatches, eval_batches
from pbr_jax.data.records import (
    Batch,
    Dataset,
    FirstRecords,
    Prepare,
    Records,
    check_labels,
)
from pbr_jax.data.text import TextInputs

NAMES = ("digits", "npz", "image_folder", "csv", "jsonl", *sorted(tfds.SETS))

__all__ = [
    "NAMES",
    "Batch",
    "Dataset",
    "FirstRecords",
    "ImageInputs",
    "OnError",
    "Prepare",
    "Records",
    "TextInputs",
    "TrainBatches",
    "check_labels",
    "eval_batches",
    "load",
]


def load(
    name: str,
    path: str | None = None,
    *,
    test_split: str | None = None,
    on_error: OnError = "stop",
) -> Dataset:
    """Reads a data set, or finds its examples where reading them all would take long.

    Args:
      name: one of `NAMES`.
      path: the file of "npz"; the folder of "image_folder", "csv" and "jsonl", or the one that
        holds the prepared data sets.
      test_split: the split that evaluation reads; None is the usual one, or the only one.
      on_error: what is done about images and rows that cannot be used.

    Raises:
      ValueError: an unknown name (with the nearest one), a data set that is not there (with the
        command that prepares it), or wrong data (with file and line).
    """
    if name in ("digits", "npz") and test_split not in (None, "test"):
        raise ValueError(f"data.test_split = {test_split}: {name} has train and test")
    if name == "digits":
        if path is not None:
            raise ValueError(f"data.path = {path}: digits come with scikit-learn and take no path")
        dataset = digits.load()
    elif name == "npz":
        dataset = npz.load(path)
    elif name == "image_folder":
        dataset = image_folder.load(path, test_split, on_error)
    elif name == "csv" or name == "jsonl":
        dataset = tables.load(path, name, test_split, on_error)
    elif name == "cub200":
        dataset = cub200.load(path, test_split, on_error)
    elif name in tfds.SETS:
        dataset = tfds.load(name, path, test_split)
    else:
        raise ValueError(unknown(name))
    check_labels(dataset)
    return dataset


def unknown(name: str) -> str:
    """What is wrong with a name that is not one of `NAMES`."""
    nearest = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"data set {name!r} is unknown: must be one of {', '.join(NAMES)}{hint}"
