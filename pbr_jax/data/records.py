"""Data sets as they are read: examples by number, before they become arrays for the model."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from pbr_jax.datasets import OnError
from pbr_jax.reading import excerpt, few

# What the model sees. Images: image Float32[B, H, W, C]. Text: tokens and token_types Int32[B, N],
# lengths Int32[B]. Both: label Int32[B]. Language: see `packing.LanguageRow`. Evaluation adds mask
# Bool[B], false for filling.
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

    def __getitem__(self, index: int, /) -> Any:
        """A `Record`, or another that the `Prepare` of the data set reads."""


class ChosenRecords:
    """Some rows of other records."""

    def __init__(self, records: Records, rows: Int[np.ndarray, " N"]) -> None:
        self._all, self._rows = records, rows

    @property
    def labels(self) -> Int[np.ndarray, " N"] | None:
        """Labels of the chosen rows, or None where those of all are unknown."""
        labels = self._all.labels
        return None if labels is None else labels[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self._all[int(self._rows[index])]

    def identity(self, index: int) -> Identity:
        return identity(self._all, int(self._rows[index]))


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


# Source of the random changes of a batch: one for each record, so that none depends on the others.
Generators = Sequence[np.random.Generator]
# Records to the arrays of a batch; changed at random when generators are given.
Prepare = Callable[[Sequence[Any], Generators | None], Batch]


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
    remarks: tuple[str, ...] = ()  # lines about the classes, and about what is no example

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def notes(self) -> list[str]:
        """Lines for the user about what was left out, and about the classes."""
        return [*(str(skipped) for skipped in self.skipped if skipped.faults), *self.remarks]


def label_faults(
    class_names: Sequence[str], train: Mapping[int, int], test: Mapping[int, int]
) -> list[str]:
    """Lines that say why labels are of no use: one class alone, or one that training never shows.

    Args:
      class_names: of all labels.
      train, test: the examples of each label; a label that is not there has none.
    """
    if len(class_names) < 2:
        return [
            f"all labels are {', '.join(map(excerpt, class_names)) or 'missing'}: a classifier "
            "needs two classes or more; add examples of another class to both splits"
        ]
    unseen = sorted(label for label, count in test.items() if count and not train.get(label))
    if not unseen:
        return []
    named = [f"{excerpt(class_names[label])} ({test[label]} examples)" for label in unseen]
    return [
        f"test labels never seen in training: {few(named, 10)}; move examples of them to the "
        "training split, or leave them out of the test split"
    ]


def check_labels(dataset: Dataset) -> None:
    """Raises `ValueError` with the `label_faults` of a data set, and with what was left out of it.

    Labels that are not known before everything is read are not counted.
    """
    splits = (dataset.train.labels, dataset.test.labels)
    train, test = (Counter([] if one is None else one.tolist()) for one in splits)
    faults = label_faults(dataset.class_names, train, test if train else {})
    if faults:
        # An example that was left out may be why a class is missing.
        raise ValueError("\n".join([*faults, *dataset.notes]))
