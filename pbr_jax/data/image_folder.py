"""Image files of the user's own: `PATH/train/CLASS/*.jpg` and `PATH/test/CLASS/*.jpg`."""

import collections
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pbr_jax.data.folders import class_names, composed, evaluation_split, existing_folder, settle
from pbr_jax.data.image_files import (
    ENDINGS,
    LeftOut,
    entries,
    find_images,
    hidden,
    is_hidden,
    notes,
    read_image,
)
from pbr_jax.data.images import image_size
from pbr_jax.data.loader import dropped_threads
from pbr_jax.data.records import Dataset, Identity, ImageRecord, Request, Skipped
from pbr_jax.datasets import OnError
from pbr_jax.reading import shown


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


def load(request: Request) -> Dataset:
    """Lists the images of both splits, in the order of their names.

    With `on_error` "skip" every file is read once, and those that are no sound image are left out;
    with "stop" a broken one is an error when its turn comes. What is no image is counted.

    Raises:
      ValueError: a split, a class or its images are missing.
    """
    folder = existing_folder(request.path, "train/CLASS/*.jpg and test/CLASS/*.jpg")
    splits = [
        e.name for e in entries(folder) if (folder / e.name).is_dir() and not is_hidden(e.name)
    ]
    test = evaluation_split(splits, request.test_split, str(folder))
    found = {part: _classes(folder / part) for part in ("train", test)}
    # The label of a class is its place among the names of both splits.
    names = class_names((name for files, _ in found.values() for name in files), folder)
    number = {composed(name): label for label, name in enumerate(names)}

    def records(part: str) -> tuple[FileRecords, Skipped]:
        files, _ = found[part]
        listed = [(file, number[composed(name)]) for name, own in files.items() for file in own]
        return sound(FileRecords(*zip(*listed, strict=True)), folder / part, request.on_error)

    (train, train_skipped), (tested, test_skipped) = records("train"), records(test)
    remarks = [note for part, (_, others) in found.items() for note in notes(folder / part, others)]
    return Dataset(train, tested, names, (train_skipped, test_skipped), tuple(remarks))


def _classes(folder: Path) -> tuple[dict[str, list[Path]], LeftOut]:
    """Class -> its image files, from its folder and the folders in it; and what is left out.

    Raises:
      ValueError: there is no folder, or one without an image; names it.
    """
    found: dict[str, list[Path]] = {}
    left_out: LeftOut = collections.Counter()
    home = Path(os.path.realpath(folder))
    for entry in entries(folder):
        place = folder / entry.name
        if is_hidden(entry.name):
            left_out += hidden(entry)
        elif not place.is_dir():
            left_out["file beside the class folders", entry.name] += 1
        elif home.is_relative_to(os.path.realpath(place)):  # all classes as one
            left_out["link to a folder that is read already", entry.name] += 1
        else:
            files, others = find_images(place)
            if not files:
                what = f"holds no image; fill or remove it (images end in {ENDINGS})"
                raise ValueError("\n".join([f"{shown(place)}: {what}", *notes(place, others)]))
            found[shown(entry.name)] = files
            left_out += others
    if not found:
        what = "has no folder; put the images of each class in one of its own"
        raise ValueError("\n".join([f"{shown(folder)}: {what}", *notes(folder, left_out)]))
    return found, left_out


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
        with dropped_threads() as threads:
            list(threads.map(examine, range(len(records))))
    named = [faults[row] for row in sorted(faults)]  # threads find them in any order
    skipped = settle(named, len(records), "images", where, on_error)
    return records.take([row for row in range(len(records)) if row not in faults]), skipped
