"""Folders of a user's own: their splits, their classes and their broken examples.

    PATH/train...    PATH/test... (or val, validation, dev)    PATH/classes.txt (optional)

`train` and the others are folders of images or files of text. `classes.txt` has one class a line,
in the order of their labels; without it the classes are sorted, as numbers if all of them are.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from pbr_jax.data.records import Skipped
from pbr_jax.datasets import OnError
from pbr_jax.files import user_path

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
        kind = "is a file" if folder.is_file() else "no such folder"
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


def class_names(found: Iterable[str], folder: Path) -> tuple[str, ...]:
    """The classes in the order of their labels: those of `classes.txt`, or `found`, sorted.

    Raises:
      ValueError: `classes.txt` lists a class twice, or lacks one that was found.
    """
    labels = set(found)
    listed = folder / "classes.txt"
    if not listed.is_file():
        # Labels that are all numbers are sorted by value: 2 before 10.
        numbers = all(label.isascii() and label.isdigit() for label in labels)
        return tuple(sorted(labels, key=lambda label: (int(label) if numbers else 0, label)))
    names = tuple(line.strip() for line in listed.read_text("utf-8").splitlines() if line.strip())
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{listed}: lists {', '.join(twice)} more than once")
    if missing := sorted(labels - set(names)):
        raise ValueError(f"{listed}: does not list {', '.join(missing)}; add or remove them")
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
        raise ValueError(
            f"{faults[0]}{count}\n"
            f"{len(faults)} of {total} {what} of {where} cannot be used\n"
            "Repair or remove them, or leave them out with data.on_error=skip."
        )
    if len(faults) == total:
        shown = "".join(f"\n{fault}" for fault in faults[:3])
        raise ValueError(f"{where}: has no {what} that can be used{shown}")
    return Skipped(tuple(faults), total, what, str(where))
