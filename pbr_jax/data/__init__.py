"""Data sets by name, and the batches that training and evaluation see.

    dataset = data.load("digits")
    inputs = data.ImageInputs(size=8, channels=1, augment="affine")
    batches = data.TrainBatches(dataset.train, inputs, batch_size=64, seed=0)

Reading and preparing are apart: `load` gives records, and a `Prepare` such as `ImageInputs` makes
the arrays of a batch of them.
"""

import importlib
from pathlib import Path
from typing import Any

from pbr_jax.data.images import ImageInputs
from pbr_jax.data.language_tokens import LanguageTokenizer
from pbr_jax.data.loader import TrainBatches, eval_batches
from pbr_jax.data.packing import packed, stack_rows
from pbr_jax.data.records import (
    Batch,
    ChosenRecords,
    Dataset,
    Prepare,
    Records,
    Request,
    check_labels,
)
from pbr_jax.data.sample import sample
from pbr_jax.data.text import TextInputs
from pbr_jax.datasets import SOURCES, OnError
from pbr_jax.names import nearest

__all__ = [
    "SOURCES",
    "Batch",
    "ChosenRecords",
    "Dataset",
    "ImageInputs",
    "LanguageTokenizer",
    "OnError",
    "Prepare",
    "Records",
    "TextInputs",
    "TrainBatches",
    "check_labels",
    "eval_batches",
    "load",
    "packed",
    "prepare",
    "sample",
    "stack_rows",
]


def load(
    name: str,
    path: str | None = None,
    *,
    test_split: str | None = None,
    on_error: OnError = "stop",
    any_labels: bool = False,
) -> Dataset:
    """Reads a data set, or finds its examples where reading them all would take long.

    Args:
      name: one of `SOURCES`.
      path: the file or folder of the user's own, or the folder of prepared data sets.
      test_split: the split that evaluation reads; None is the usual one, or the only one.
      on_error: what is done about images and rows that cannot be used.
      any_labels: reads labels of which no classifier can be trained, too.

    Raises:
      ValueError: an unknown name (with the nearest one), a data set that is not there (with the
        command that prepares it), or wrong data (with file and line).
    """
    dataset: Dataset = _reader(name).load(Request(name, path, test_split, on_error))
    if not any_labels and SOURCES[name].kind != "language":
        check_labels(dataset)
    return dataset


def prepare(name: str, path: str | None = None, archive: str | None = None) -> Path:
    """Downloads or unpacks a data set, unless that was done; returns its folder.

    Args:
      name: one of `SOURCES`.
      path: the folder of prepared data sets; None is that of TFDS.
      archive: the file to unpack, for a data set that cannot be downloaded.

    Raises:
      ValueError: an unknown name, a data set that needs no preparation, or a wrong archive.
      OSError: the download or the preparation fails.
    """
    reader = _reader(name)
    if not SOURCES[name].prepared:
        raise ValueError(f"{name}: needs no preparation; `pbr data check` looks at it")
    folder: Path = reader.prepare(name, path, archive)
    return folder


def _reader(name: str) -> Any:
    """The module that reads a data set, imported only when it is needed."""
    if name not in SOURCES:
        raise ValueError(unknown(name))
    return importlib.import_module(f"{__name__}.{SOURCES[name].module}")


def unknown(name: str) -> str:
    """The fault of a name that is not one of `SOURCES`, with the nearest name."""
    close = nearest(name, SOURCES)
    hint = f"; did you mean {close!r}?" if close else ""
    return f"data set {name!r} is unknown: must be one of {', '.join(SOURCES)}{hint}"
