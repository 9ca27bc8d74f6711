"""Examination of every example of a data set: counts of classes, sizes, and broken examples."""

import collections
import hashlib
from typing import NamedTuple

import numpy as np

from pbr_jax.data.images import image_size
from pbr_jax.data.loader import dropped_threads
from pbr_jax.data.records import ImageRecord, Records, TextRecord, content
from pbr_jax.datasets import SOURCES
from pbr_jax.files import user_path


class Findings(NamedTuple):
    """Contents of a split."""

    counts: collections.Counter[int]  # label -> usable examples
    sizes: np.ndarray  # width and height of each usable image, or words of each usable text
    faults: tuple[str, ...]  # a line for each example that cannot be used
    digests: tuple[bytes, ...]  # of the content of each usable example


def guess_name(path: str) -> str | None:
    """Name, for `pbr_jax.data.load`, of the data set at a path of the user's; None if unknown."""
    place = user_path(path)
    found = (name for name, source in SOURCES.items() if source.is_at and source.is_at(place))
    return next(found, None)


def examine(records: Records) -> Findings:
    """Reads and decodes all records."""
    with dropped_threads() as threads:
        found = list(threads.map(lambda row: _examine(records, row), range(len(records))))
    usable = [one for one in found if not isinstance(one, str)]
    labels, sizes, digests = zip(*usable, strict=True) if usable else ((), (), ())
    faults = tuple(one for one in found if isinstance(one, str))
    return Findings(collections.Counter(labels), np.array(sizes), faults, digests)


def _examine(records: Records, row: int) -> tuple[int, tuple[int, ...], bytes] | str:
    """Label, size and digest of a usable example, or what is wrong with it."""
    try:
        record = records[row]
        # Undecoded so far, an image can still turn out broken.
        size = image_size(record) if isinstance(record, ImageRecord) else _words(record)
    except ValueError as error:
        return str(error)
    return record.label, size, hashlib.blake2b(content(record), digest_size=16).digest()


def _words(record: TextRecord) -> tuple[int]:
    return (len(f"{record.text_a} {record.text_b or ''}".split()),)


def shared(train: Findings, test: Findings) -> int:
    """Number of test examples with the content of a training example."""
    seen = {*train.digests}
    return sum(digest in seen for digest in test.digests)
