"""Image files of the user's own: `PATH/train/CLASS/*.jpg` and `PATH/test/CLASS/*.jpg`."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pbr_jax.data.folders import class_names, evaluation_split, existing_folder, settle
from pbr_jax.data.images import image_size
from pbr_jax.data.records import Dataset, Identity, ImageRecord, Request, Skipped
from pbr_jax.datasets import OnError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


class FileRecords:
    """Image files, read when they are asked for, as `Records`."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int]) -> None:
        self._files = [str(file) for file in files]
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> ImageRecord:
        return read_image(self._files[index], int(self.labels[index]))

    def identity(self, index: int) -> Identity:
        """Identity by name, size and label; a file that is gone has no size."""
        file = self._files[index]
        size = os.path.getsize(file) if os.path.isfile(file) else -1
        return Identity(file, os.fsencode(file), f"{size} {self.labels[index]}".encode())

    def take(self, rows: Sequence[int]) -> "FileRecords":
        """Records of these rows only."""
        files = [Path(self._files[row]) for row in rows]
        return FileRecords(files, [int(self.labels[row]) for row in rows])


def read_image(file: str, label: int = 0) -> ImageRecord:
    """Reads an image file, without decoding it.

    Raises:
      ValueError: it cannot be read; names it.
    """
    try:
        return ImageRecord(Path(file).read_bytes(), label, file)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error


def load(request: Request) -> Dataset:
    """Lists the images of both splits, in the order of their names.

    With `on_error` "skip" every file is read once, and those that are no sound image are left out;
    with "stop" a broken one is an error when its turn comes.

    Raises:
      ValueError: a split, a class or its images are missing.
    """
    folder = existing_folder(request.path, "train/CLASS/*.jpg and test/CLASS/*.jpg")
    splits = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    test = evaluation_split(splits, request.test_split, str(folder))
    files = {split: _files(folder / split) for split in ("train", test)}
    # The label of a class is its place among the names of both splits.
    names = class_names({name for found in files.values() for name in found}, folder)

    def records(split: str) -> tuple[FileRecords, Skipped]:
        listed = [(file, names.index(c)) for c, own in files[split].items() for file in own]
        return sound(FileRecords(*zip(*listed, strict=True)), folder / split, request.on_error)

    (train, train_skipped), (tested, test_skipped) = records("train"), records(test)
    return Dataset(train, tested, names, (train_skipped, test_skipped))


def _files(folder: Path) -> dict[str, list[Path]]:
    """Class -> its image files, from its folder and the folders in it; no hidden ones."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = {entry.name: sorted(filter(is_image, entry.rglob("*"))) for entry in classes}
    if not found:
        raise ValueError(f"{folder}: has no folder; put the images of each class in one of its own")
    for name, files in found.items():
        if not files:
            raise ValueError(
                f"{folder / name}: holds no image; fill or remove it (images end in "
                f"{', '.join(sorted(SUFFIXES))})"
            )
    return found


def is_image(path: Path) -> bool:
    """Whether a file is named like an image, and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def sound(records: FileRecords, where: Path, on_error: OnError) -> tuple[FileRecords, Skipped]:
    """Records that can be used, and those that are left out.

    With `on_error` "skip" every file is decoded once; with "stop" nothing is, and all are kept.
    """
    faults: dict[int, str] = {}

    def examine(row: int) -> None:
        try:
            image_size(records[row])
        except ValueError as error:
            faults[row] = str(error)

    if on_error == "skip":
        with ThreadPoolExecutor() as threads:
            list(threads.map(examine, range(len(records))))
    named = [faults[row] for row in sorted(faults)]  # threads find them in any order
    skipped = settle(named, len(records), "images", where, on_error)
    return records.take([row for row in range(len(records)) if row not in faults]), skipped
