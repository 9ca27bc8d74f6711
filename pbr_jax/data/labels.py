"""Labels of a table as they are written: scores, names of rows, two spellings of one name."""

import collections
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pbr_jax.data.folders import composed, repeated
from pbr_jax.reading import excerpt, few

_POINT = re.compile(r"[+-]?[0-9]*\.[0-9]+(e[+-]?[0-9]+)?", re.IGNORECASE)
_MANY = 20  # classes; fewer may well be as many as there are rows


def label_fault(labels: Sequence[str]) -> str | None:
    """What speaks against classes by these labels, one for each row; None if nothing does."""
    points = [label for label in labels if _POINT.fullmatch(label)]
    if 2 * len(points) > len(labels) and not all(float(label).is_integer() for label in points):
        return (
            f"labels look like scores ({_some(points)}): regression is not supported; round or bin "
            "them into classes"
        )
    distinct = dict.fromkeys(labels)
    if len(distinct) >= _MANY and 10 * len(distinct) > 8 * len(labels):
        return (
            f"{len(labels)} rows have {len(distinct)} different labels ({_some(labels)}), as names "
            "or numbers of rows would; take a column of classes as label"
        )
    return None


def label_remarks(folder: Path, labels: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """Lines for the user about classes, by their `names`, that may not be what was meant."""
    remarks = []
    if several := repeated(map(composed, {*labels})):
        remarks.append(
            f"{folder}: {_some(several)} is written with composed and with decomposed accents; "
            "both are one class"
        )
    cases = collections.Counter(name.casefold() for name in names)
    if several := [name for name in names if cases[name.casefold()] > 1]:
        remarks.append(
            f"{folder}: {_some(several)} are different classes: they differ in capital letters"
        )
    whole = [name for name in names if _POINT.fullmatch(name) and float(name).is_integer()]
    if whole:
        remarks.append(
            f"{folder}: label {excerpt(whole[0])} is a class as it is written; "
            f"{float(whole[0]):.0f} would be another one"
        )
    return tuple(remarks)


def _some(labels: Sequence[str]) -> str:
    return few([excerpt(label, 30) for label in dict.fromkeys(labels)], 4)
