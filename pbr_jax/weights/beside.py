"""What `config.json` beside weights says of the model and of its classes."""

import os
import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pbr_jax.files import read_json
from pbr_jax.reading import few, regular_size

CONFIG = "config.json"
ARCHITECTURE = "architecture.json"  # beside an Orbax checkpoint of ours
_OF_HUGGING_FACE = {"model_type", "architectures", "id2label", "label2id"}
_LARGEST = 2**26  # bytes of an index of a hundred thousand arrays, and more
_PLACEHOLDER = re.compile(r"LABEL_\d+")  # Hugging Face's, where nobody named the classes


def folder_of(path: Path) -> Path:
    """Where files lie that are beside the weights at `path`, a file or a directory."""
    return path if os.path.isdir(path) else path.parent


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file beside weights, empty where there is no file.

    Raises:
      ValueError: it is damaged; names it.
    """
    if not os.path.isfile(file):
        return {}
    return read_small_json(
        file, {}, "take it anew from where the weights are from, or move it away"
    )


def read_small_json(file: Path, form: Mapping[Any, Any], advice: str) -> dict[str, Any]:
    """As `read_json`, of a file that has no more than `_LARGEST` bytes."""
    try:
        size = regular_size(file)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    if size > _LARGEST:
        raise ValueError(f"{file}: has {size} bytes, more than any such file; {advice}")
    return read_json(file, form, advice)


def model_config(path: Path) -> dict[str, Any]:
    """Hugging Face's `config.json` beside the weights at `path`, empty where there is none."""
    config = read_object(folder_of(path) / CONFIG)
    # A run of ours also has a config.json, in other words.
    return config if _OF_HUGGING_FACE & config.keys() else {}


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Label -> name of its class; empty where nobody named them.

    Raises:
      ValueError: what it says gives no name, or two, to a label, or two labels one name.
    """
    for key, name_first in (("id2label", False), ("label2id", True)):
        if not (table := config.get(key)):
            continue
        try:
            pairs = [(b, a) if name_first else (a, b) for a, b in table.items()]
            named = {int(label): str(name) for label, name in pairs}
            names = tuple(named[label] for label in range(len(pairs)))
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{key} = {reprlib.repr(table)}: gives no name to each label"
            ) from error
        if len({*names}) < len(names):
            raise ValueError(f"{key} = {reprlib.repr(table)}: gives two labels one name")
        if not all(map(_PLACEHOLDER.fullmatch, names)):
            return names
    return ()


class Rows(NamedTuple):
    """What becomes of the rows of a head, one for each class; by default they stay as they are."""

    order: Sequence[int] = ()  # label of ours -> row of theirs; empty where that is the same
    note: str = ""  # what a reader should know
    fresh: bool = False  # whether the head starts afresh


def rows(theirs: Sequence[str], ours: Sequence[str] | None) -> Rows:
    """The rows of a head for data whose classes are called otherwise, or lie in another order.

    Args:
      theirs: label -> name of the weights, empty where they name no class.
      ours: label -> name of the data, as many; None where that is not known.
    """
    as_they_are = list(range(len(theirs)))
    numbers = list(map(str, as_they_are))  # what an export has where nobody named a class
    if ours is not None and (order := _order(theirs, ours)) is not None:
        note = (
            f"its classes lie in another order, {few(theirs, 6)}; the rows of its head are put into"
            f" that of the data, {few(ours, 6)}"
        )
        return Rows() if order == as_they_are else Rows(order, note)
    if not theirs or list(theirs) == numbers:
        return Rows()
    if ours is None or list(ours) == numbers:
        unknown = "are not known here" if ours is None else "are numbers"
        note = (
            f"the classes of its head are {few(theirs, 6)}; the names of the data's {unknown}, so"
            " they are taken to have this order"
        )
        return Rows(note=note)
    known = {*map(_alike, theirs)}
    same = [name for name in ours if _alike(name) in known]
    note = (
        f"a head of other classes, {few(theirs, 6)}; of the data's, {few(ours, 6)}, it has"
        f" {few(same, 6) if same else 'none'}; the head of {len(ours)} classes starts afresh"
    )
    return Rows(note=note, fresh=True)


def _order(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Label of ours -> row of theirs where both name the same classes, else None."""
    for form in (str, _alike):  # to the letter, or else however they are written
        place = {form(name): row for row, name in enumerate(theirs)}
        order = [place.get(form(name), -1) for name in ours]
        if len(place) == len(theirs) and sorted(order) == list(range(len(theirs))):
            return order
    return None


def _alike(name: str) -> str:
    """A name without what often differs: case, composed accents, underscores for spaces."""
    return unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").strip()
