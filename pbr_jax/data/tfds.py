"""Data sets of TensorFlow Datasets (TFDS), prepared and read without TensorFlow.

`prepare` downloads one and stores it as array_record files, which are read at random; `load` reads
these and never touches the network.
"""

import contextlib
import io
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pbr_jax.data.folders import evaluation_split
from pbr_jax.data.records import Dataset, Identity, ImageRecord, Record, Request, TextRecord
from pbr_jax.datasets import SOURCES, Tfds
from pbr_jax.files import user_path


def data_dir(path: str | None) -> Path:
    """The folder of prepared data sets: `path`, or where TFDS has it."""
    return user_path(path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def load(request: Request) -> Dataset:
    """Opens a data set that `prepare` has prepared; labels are not known before all is read.

    Raises:
      ValueError: it is not there, with the command that prepares it, or has another format.
    """
    name, path, test_split, _ = request
    wanted, folder = _in_tfds(name), find_prepared(name, path)
    command = f"pbr data prepare {name}" + (f" --path {path}" if path else "")
    if folder is None:
        raise ValueError(
            f"data set {name}: not prepared in {data_dir(path)}\n"
            f"`{command}` downloads and prepares it there; a training run downloads nothing.\n"
            "Or set data.path to the folder where it is. Without network there are the digits:\n"
            "`python train.py` needs nothing."
        )
    # What was prepared by TensorFlow may need it to be read.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"data set {name}: {folder} holds {builder.info.file_format.value} files, which only "
            f"TensorFlow reads\n`{command}` makes array_record files; remove {folder} first, or "
            "choose another --path and data.path."
        )
    if wanted.texts and (test_split or "").startswith("test"):
        raise ValueError(f"data.test_split = {test_split}: GLUE does not publish the labels of it")
    test = evaluation_split(builder.info.splits, test_split or wanted.test_split, str(folder))
    names = tuple(builder.info.features["label"].names)

    # What the files hold is known by their names and sizes; reading all of it would take long.
    shards = sorted(folder.glob("*.array_record*"))
    mark = "\0".join(f"{file.name} {file.stat().st_size}" for file in shards).encode()

    # An image stays as the bytes of its file: `ImageInputs` decodes it at the size that it needs.
    decoders = None if wanted.texts else {"image": tfds.decode.SkipDecoding()}

    def split(part: str) -> TfdsRecords:
        source = builder.as_data_source(part, decoders=decoders)
        return TfdsRecords(source, wanted.texts, f"{name} {part}", mark)

    return Dataset(split("train"), split(test), names)


def _in_tfds(name: str) -> Tfds:
    found = SOURCES[name].tfds
    assert found is not None
    return found


def find_prepared(name: str, path: str | None) -> Path | None:
    """The folder of the newest prepared version, if there is one."""

    def version(folder: Path) -> list[int]:
        return [int(part) for part in folder.name.split(".") if part.isdigit()]

    found = (data_dir(path) / _in_tfds(name).name).glob("*/dataset_info.json")
    return max((file.parent for file in found), key=version, default=None)


class TfdsRecords:
    """A TFDS split, as `Records`: undecoded images, or one or two features that hold texts."""

    labels = None

    def __init__(self, source: Any, texts: tuple[str, ...], name: str, mark: bytes) -> None:
        self._source, self._texts, self._name = source, texts, name
        self._mark = mark  # of the files that hold them

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        example = self._source[index]
        label, name = int(example["label"]), f"{self._name} example {index}"
        if not self._texts:
            return ImageRecord(example["image"], label, name)
        text_a, *text_b = (example[text].decode("utf-8") for text in self._texts)
        return TextRecord(text_a, text_b[0] if text_b else None, label, name)

    def identity(self, index: int) -> Identity:
        name = f"{self._name} example {index}"
        return Identity(name, name.encode(), self._mark)


def prepare(name: str, path: str | None = None, archive: str | None = None) -> Path:
    """Downloads and prepares a data set, unless it is there; returns its folder.

    Raises:
      ValueError: an archive is given, which these data sets do not have.
      OSError: the place that it comes from cannot be reached, or the preparation fails.
    """
    if archive is not None:
        raise ValueError(f"--archive {archive}: {name} is downloaded; cub200 has archives")
    if (folder := find_prepared(name, path)) is not None:
        return folder
    wanted = _in_tfds(name)
    _check_reachable(wanted.host, name)
    # TFDS finds a builder by its name only when the builder's module is imported.
    import tensorflow_datasets as tfds
    import tensorflow_datasets.image_classification.cifar
    import tensorflow_datasets.text

    builder = tfds.builder(wanted.name, data_dir=data_dir(path), file_format="array_record")
    try:
        with _cifar_without_tensorflow():
            builder.download_and_prepare()
    except Exception as error:  # of the network, the disk, or of TFDS's own kinds
        raise OSError(
            f"data set {name}: not prepared, {type(error).__name__}: {str(error).strip()[:400]}\n"
            "The same command starts again; what was downloaded whole is kept."
        ) from error
    return Path(builder.data_dir)


def _check_reachable(url: str, name: str) -> None:
    # TFDS itself would retry for more than three minutes.
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
    except urllib.error.HTTPError:
        pass  # an answer, whatever it says
    except OSError as error:
        raise OSError(
            f"data set {name}: {url} cannot be reached ({error})\n"
            "Run this command on a machine with network access, and copy the folder that it names."
        ) from error


@contextlib.contextmanager
def _cifar_without_tensorflow() -> Iterator[None]:
    """Lets TFDS read the files of CIFAR by `_cifar_examples`, inside the context only."""
    from tensorflow_datasets.image_classification import cifar

    theirs, cifar._load_data = cifar._load_data, _cifar_examples
    try:
        yield
    finally:
        cifar._load_data = theirs


def _cifar_examples(path: str, num_labels: int = 1) -> Iterator[tuple[np.ndarray, bytes]]:
    """Yields labels and PNG of each record of a CIFAR file.

    The reader of TFDS opens the file with TensorFlow, and gives arrays, which only TensorFlow
    encodes.
    """
    from PIL import Image

    for row in np.fromfile(path, np.uint8).reshape(-1, num_labels + 3 * 32 * 32):
        file = io.BytesIO()
        # A record has its labels, then the planes of red, green and blue.
        pixels = row[num_labels:].reshape(3, 32, 32).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
        yield row[:num_labels], file.getvalue()
