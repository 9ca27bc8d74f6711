"""Splits by origin: all examples of one source are in one split, whichever they are.

A source is a document, or a series of drawings. It goes to a split by a hash of its name, so that a
split depends on nothing else, and an example never shares its source with one of another split.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

SHARES = {"train": 0.45, "val": 0.15, "test": 0.4}  # of the sources
T = TypeVar("T")


class Sentence(NamedTuple):
    """An example of a text task."""

    text: str
    label: str
    origin: str


def place(name: str) -> float:
    """A number in [0, 1) that a hash of the name gives."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def split_of(origin: str) -> str:
    """The split of a source."""
    at, end = place(origin), 0.0
    for name, share in SHARES.items():
        end += share
        if at < end:
            return name
    return "test"


def by_origin(
    examples: Iterable[T], origin: Callable[[T], str], text: Callable[[T], str]
) -> dict[str, list[T]]:
    """`{split: examples}`, each in the order of a hash of its `text`, which no two have alike."""
    parts: dict[str, list[T]] = {name: [] for name in SHARES}
    for example in examples:
        parts[split_of(origin(example))].append(example)
    return {name: sorted(found, key=lambda e: place(text(e))) for name, found in parts.items()}


def at_most(
    examples: Sequence[T],
    label: Callable[[T], str],
    most: int,
    origin: Callable[[T], str],
    each: int,
) -> list[T]:
    """The first `most` of every label, of which at most `each` are of one source."""
    of_label: dict[str, int] = {}
    of_origin: dict[str, int] = {}
    kept = []
    for example in examples:
        mine, source = label(example), origin(example)
        if of_label.get(mine, 0) < most and of_origin.get(source, 0) < each:
            of_label[mine] = of_label.get(mine, 0) + 1
            of_origin[source] = of_origin.get(source, 0) + 1
            kept.append(example)
    return kept


def write(folder: Path, parts: Mapping[str, Sequence[Sentence]], origins: str) -> None:
    """Writes `{split}.csv` for `--config.data.name=csv`, and prints what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("text", "label"), *((s.text, s.label) for s in part)])
        fewest = min(Counter(s.label for s in part).values())
        count = len({s.origin for s in part})
        print(f"{name}: {len(part)} sentences of {count} {origins}, at least {fewest} of a class")


def digest_of(folder: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of names and contents below a folder."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(folder)}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def check_digest(folder: Path, expected: str) -> None:
    """Prints the digest of a folder.

    Raises:
      SystemExit: it is another than the one that figures are of.
    """
    found = digest_of(folder)
    print(f"{folder}: {found}")
    if found != expected:
        raise SystemExit(
            f"{folder}: its digest is {found}, and the figures of this repository are of {expected}"
        )
