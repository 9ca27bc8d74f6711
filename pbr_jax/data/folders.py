"""Folders of a user's own: their splits, their classes and their broken examples.

    PATH/train...    PATH/test... (or val, validation, dev)    PATH/classes.txt (optional)

`train` and the others are folders of images or files of text. `classes.txt` has one class a line,
in the order of their labels; without it the classes are sorted, as numbers if all of them are.
Names that differ only in how their accents are written are one class.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from pbr_jax.data.records import Skipped
from pbr_jax.datasets import OnError
from pbr_jax.files import user_path
from pbr_jax.reading import few, read_lines

_EVALUATION = ("test", "val", "validation", "valid", "dev")


def existing_folder(path: str | None, holds: str) -> Path:
    """The folder at `data.path`, which `holds` the files of a data set of the user's.

    Raises:
      ValueError: there is no path, or no folder at it.
    """
    if path is None:
        raise ValueError(f"data.path = none: must be a folder that holds {holds}")
    folder = user_path(path)
    if not folder.is_dir():
        kind = "is no folder" if folder.exists() else "no such folder"
        raise ValueError(f"data.path = {path}: {kind}; must be a folder that holds {holds}")
    return folder


def evaluation_split(found: Collection[str], wanted: str | None, where: str) -> str:
    """The split that evaluation reads: the one that is `wanted`, or the only one beside `train`.

    Raises:
      ValueError: there is no `train`, or nothing, or too much, to choose from; names `where`.
    """
    listed = ", ".join(found) or "none"
    if "train" not in found:
        raise ValueError(f"{where}: has no split train; its splits: {listed}")
    if wanted is not None:
        if wanted not in found:
            raise ValueError(
                f"data.test_split = {wanted}: {where} has no such split; it has {listed}"
            )
        return wanted
    # Of several, the user must choose: figures of one split mean little on another.
    candidates = [name for name in found if name in _EVALUATION]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(
            f"data.test_split = none: {where} has {' and '.join(candidates)}; choose the one that "
            f"evaluation reads, such as data.test_split={candidates[-1]}"
        )
    raise ValueError(
        f"{where}: has no split to evaluate on; add one named test or val (it has {listed})"
    )


def composed(name: str) -> str:
    """The form of a class's name by which classes are told apart.

    An accent is one character with its letter, or one of its own, as the system likes; both look
    the same.
    """
    return unicodedata.normalize("NFC", name)


def repeated(names: Iterable[str]) -> list[str]:
    """Those that are there more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def class_names(found: Iterable[str], folder: Path) -> tuple[str, ...]:
    """The classes in the order of their labels: those of `classes.txt`, or `found`, sorted.

    Raises:
      ValueError: `classes.txt` is not UTF-8, lists a class twice, or lacks one that was found.
    """
    # Of several spellings of a name one is taken, whatever their order.
    labels: dict[str, str] = {}
    for label in found:
        labels[composed(label)] = min(label, labels.get(composed(label), label))
    listed = folder / "classes.txt"
    if not listed.exists():
        # Labels that are all numbers are sorted by value: 2 before 10.
        numbers = all(label.isascii() and label.isdigit() for label in labels)
        values = labels.values()
        return tuple(sorted(values, key=lambda name: (int(name) if numbers else 0, name)))
    names = tuple(line.strip() for line in read_lines(listed) if line.strip())
    known = [composed(name) for name in names]
    if twice := repeated(known):
        raise ValueError(f"{listed}: lists {few(twice, 20)} more than once")
    if missing := sorted(labels.keys() - set(known)):
        raise ValueError(f"{listed}: does not list {few(missing, 20)}; add or remove them")
    return names


def settle(
    faults: Sequence[str], total: int, what: str, where: object, on_error: OnError
) -> Skipped:
    """Record of the examples that are left out because of their faults, a line each.

    They are among a `total` of `what`, "images" or "rows", from the file or folder `where`.

    Raises:
      ValueError: `on_error` is "stop" and there are faults, or nothing is left.
    """
    if on_error == "stop" and faults:
        count = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        # Where nothing would be left, to leave them out is no advice.
        skip = ", or leave them out with data.on_error=skip" if len(faults) < total else ""
        raise ValueError(
            f"{faults[0]}{count}\n"
            f"{len(faults)} of {total} {what} of {where} cannot be used\n"
            f"Repair or remove them{skip}."
        )
    if len(faults) == total:
        shown = "".join(f"\n{fault}" for fault in faults[:3])
        raise ValueError(f"{where}: has no {what} that can be used{shown}")
    return Skipped(tuple(faults), total, what, str(where))
