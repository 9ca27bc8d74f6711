"""Data sets as they are read: examples by number, before they become arrays for the model."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from pbr_jax.datasets import OnError

# What the model sees. Images: image Float32[B, H, W, C]. Text: tokens and token_types Int32[B, N],
# lengths Int32[B]. Both: label Int32[B]; evaluation adds mask Bool[B], false for filling.
Batch = dict[str, np.ndarray]


class ImageRecord(NamedTuple):
    """An image as pixels [H, W, C] (uint8, or floats in [0, 1]) or as the bytes of its file."""

    image: np.ndarray | bytes
    label: int
    name: str  # where it is from, for messages


class TextRecord(NamedTuple):
    """A text, or a pair of texts."""

    text_a: str
    text_b: str | None
    label: int
    name: str


Record = ImageRecord | TextRecord


class Identity(NamedTuple):
    """An example, told apart from the others of its split."""

    name: str  # where it is from, for messages
    key: bytes  # what it is known by
    value: bytes  # what it must still have, to be the same example


class Records(Protocol):
    """The examples of one split, read one by one; safe to read from several threads."""

    @property
    def labels(self) -> Int[np.ndarray, " N"] | None:
        """All labels, or None where finding them means reading everything."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class FirstRecords:
    """The first `number` of other records, or all of them where there are no more."""

    def __init__(self, records: Records, number: int) -> None:
        self._records, self._number = records, min(number, len(records))

    @property
    def labels(self) -> Int[np.ndarray, " N"] | None:
        """Labels of the first records, or None where those of all are unknown."""
        labels = self._records.labels
        return None if labels is None else labels[: self._number]

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def identity(self, index: int) -> Identity:
        return identity(self._records, index)


def identity(records: Records, row: int) -> Identity:
    """Identity of an example: as its records say it, or by its content where reading it is cheap.

    Records whose examples are costly to read have a method `identity(row)`.
    """
    if (own := getattr(records, "identity", None)) is not None:
        found: Identity = own(row)
        return found
    record = records[row]
    return Identity(record.name, content(record) + b"\0" + str(record.label).encode(), b"")


def content(record: Record) -> bytes:
    """The content of an example, apart from its label; that of pixels with their shape."""
    if isinstance(record, ImageRecord):
        if isinstance(record.image, bytes):
            return record.image
        return f"{record.image.dtype} {record.image.shape}\0".encode() + record.image.tobytes()
    # The zero byte keeps the pairs (ab, c) and (a, bc) apart; a text alone is not one with "".
    texts = (record.text_a,) if record.text_b is None else (record.text_a, record.text_b)
    return "\0".join(texts).encode("utf-8", "surrogatepass")


# Records to the arrays of a batch; changed at random when a generator is given.
Prepare = Callable[[Sequence[Any], np.random.Generator | None], Batch]


class Request(NamedTuple):
    """A data set as it is asked for: the arguments of `pbr_jax.data.load`."""

    name: str
    path: str | None
    test_split: str | None
    on_error: OnError

    def refuse_other_splits(self) -> None:
        """Raises `ValueError` if the test split is not "test", the only one there is."""
        if self.test_split not in (None, "test"):
            raise ValueError(f"data.test_split = {self.test_split}: {self.name} has train and test")


class Skipped(NamedTuple):
    """Examples that were left out, each with what is wrong with it."""

    faults: tuple[str, ...]
    total: int  # with those that were left out
    what: str  # rows or images
    where: str

    def __str__(self) -> str:
        more = f"; and {len(self.faults) - 3} more" if len(self.faults) > 3 else ""
        return (
            f"skipped {len(self.faults)} of {self.total} {self.what} of {self.where}: "
            f"{'; '.join(self.faults[:3])}{more}"
        )


class Dataset(NamedTuple):
    """A data set with its two splits; label i means `class_names[i]`."""

    train: Records
    test: Records
    class_names: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def notes(self) -> list[str]:
        """Lines for the user about what was left out."""
        return [str(skipped) for skipped in self.skipped if skipped.faults]


def check_labels(dataset: Dataset) -> None:
    """Raises `ValueError` if the test split has classes that training never shows.

    Labels that are not known before everything is read are not checked.
    """
    train, test = dataset.train.labels, dataset.test.labels
    if train is None or test is None:
        return
    unseen, counts = np.unique(test[~np.isin(test, train)], return_counts=True)
    if len(unseen):
        named = ", ".join(
            f"{dataset.class_names[label]} ({count} examples)"
            for label, count in zip(unseen, counts, strict=True)
        )
        raise ValueError(
            f"test labels never seen in training: {named}; move examples of them to the training "
            "split, or leave them out of the test split"
        )
