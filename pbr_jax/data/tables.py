"""Tables of texts of the user's own, in CSV or JSON lines.

    PATH/train.csv    text,label            or  text_a,text_b,label
    PATH/train.jsonl  {"text": "...", "label": "..."}, and so on

Other columns are ignored. Files are UTF-8. Labels are text or whole numbers.
"""

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pbr_jax.data.csv_rows import read_csv
from pbr_jax.data.folders import class_names, composed, evaluation_split, existing_folder, settle
from pbr_jax.data.labels import label_fault, label_remarks
from pbr_jax.data.lines import Line, json_rows, read_lines
from pbr_jax.data.records import Dataset, Request, Skipped, TextRecord
from pbr_jax.datasets import OnError
from pbr_jax.reading import excerpt

_LONGEST_LABEL = 1000  # characters


class Row(NamedTuple):
    """A row whose label is not a number yet; `name` is FILE:LINE."""

    text_a: str
    text_b: str | None
    label: str
    name: str


class Fault(NamedTuple):
    """A row that cannot be used: its file, line or lines, and what is wrong with it."""

    text: str
    lines: int
    label: str = ""  # a label that is a number with a point


class TextRecords:
    """Texts in memory, as `Records`."""

    def __init__(self, rows: list[Row], classes: tuple[str, ...]) -> None:
        number = {composed(name): label for label, name in enumerate(classes)}
        self._rows = rows
        self.labels = np.array([number[composed(row.label)] for row in rows], np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TextRecord:
        text_a, text_b, _, name = self._rows[index]
        return TextRecord(text_a, text_b, int(self.labels[index]), name)


def load(request: Request) -> Dataset:
    """Reads `PATH/train.NAME` and one file beside it; the name is "csv" or "jsonl".

    Raises:
      ValueError: a file is missing, its labels are no classes, or a row cannot be used and
        `on_error` is "stop": its file and line are named.
    """
    train_file, test_file = split_files(request, request.name)
    folder, on_error = train_file.parent, request.on_error
    train_rows, train_skipped = _read(train_file, on_error)
    test_rows, test_skipped = _read(test_file, on_error)
    # Rows first: the number of a label is its place among those of both splits.
    labels = {row.label for row in (*train_rows, *test_rows)}
    names = class_names(labels, folder)
    train, tested = TextRecords(train_rows, names), TextRecords(test_rows, names)
    skipped = (train_skipped, test_skipped)
    return Dataset(train, tested, names, skipped, label_remarks(folder, labels, names))


def split_files(request: Request, suffix: str) -> tuple[Path, Path]:
    """The files of training and of evaluation in a folder of the user's: `train.SUFFIX` and one.

    Raises:
      ValueError: one of them is not there, or several could be the second.
    """
    folder = existing_folder(request.path, f"train.{suffix} and test.{suffix}")
    found = sorted(file.stem for file in folder.glob(f"*.{suffix}"))
    # A file of another name or format is probably the one that was meant.
    near = sorted(p.name for p in folder.iterdir() if p.name.lower().startswith("train"))
    if "train" not in found and near:
        raise ValueError(
            f"{folder}: has {excerpt(near[0])}, but no train.{suffix}; rename or convert it"
        )
    test = evaluation_split(found, request.test_split, str(folder))
    return folder / f"train.{suffix}", folder / f"{test}.{suffix}"


def _read(file: Path, on_error: OnError) -> tuple[list[Row], Skipped]:
    found = read_rows(file)
    rows = [row for row in found if isinstance(row, Row)]
    faults = [row for row in found if isinstance(row, Fault)]
    # What the labels are goes before single rows: to leave those out would lead nowhere.
    labels = [row.label for row in found if row.label]
    listed = file.parent / "classes.txt"
    if file.stem == "train" and not listed.is_file() and (fault := label_fault(labels)):
        raise ValueError(f"{file}: {fault}, or keep them as text and list them in {listed}")
    lost, where = sum(fault.lines for fault in faults), str(file)
    if lost > len(faults):
        where += f" ({lost} lines)"
    return rows, settle([fault.text for fault in faults], len(found), "rows", where, on_error)


def read_rows(file: Path, labelled: bool = True) -> list[Row | Fault]:
    """All rows of a file, and in their place the faults of those that cannot be used.

    Rows that are not `labelled` have an empty label, whatever the file has.

    Raises:
      ValueError: no text in UTF-8, a CSV file without a header that names the columns, or JSON
        that is not one object a line.
    """
    lines = read_lines(file)
    if file.suffix.lower() == ".csv":
        rows = read_csv(file, lines, labelled)
    else:
        rows = list(json_rows(file, lines))
    return [_row_or_fault(line, file, labelled) for line in rows]


def _row_or_fault(line: Line, file: Path, labelled: bool) -> Row | Fault:
    lines = f"{line.first}-{line.last}" if line.last > line.first else f"{line.first}"
    try:
        return _row(line.content, file, f"{file}:{line.first}", labelled)
    except ValueError as error:
        number = line.content.get("label") if isinstance(line.content, dict) else None
        label = str(number) if isinstance(number, float) else ""
        return Fault(f"{file}:{lines}: {error}", line.last - line.first + 1, label)


def _row(fields: Any, file: Path, name: str, labelled: bool) -> Row:
    """Makes a row of its fields; raises `ValueError` with what is wrong with them."""
    if isinstance(fields, Exception):
        raise ValueError(str(fields))
    if not isinstance(fields, dict):
        raise ValueError("not an object with the keys text and label")
    if not {"text", "text_a"} & fields.keys():
        keys = excerpt(", ".join(fields), 200)
        raise ValueError(f"has neither text nor text_a, but {keys or 'nothing'}")
    if "text_b" in fields and "text_a" not in fields:
        raise ValueError("has text and text_b: a pair is text_a and text_b")
    # A text alone, or a pair whose second text a file may lack.
    alone = "text" in fields
    text_a = text_of(fields, "text" if alone else "text_a", file)
    text_b = None if alone or "text_b" not in fields else text_of(fields, "text_b", file)
    return Row(text_a, text_b, _label(fields, file) if labelled else "", name)


def _label(fields: dict[str, Any], file: Path) -> str:
    label = fields.get("label")
    # A number with a fraction is no label, and in Python a truth value is a whole number.
    if isinstance(label, bool) or not isinstance(label, str | int):
        whole = isinstance(label, float) and label.is_integer()
        hint = f"; write {label:.0f}" if whole else ""
        raise ValueError(f"label is {kind_of(label)}: must be text or a whole number{hint}")
    label = str(label).strip()
    if not label:
        raise ValueError("label is empty")
    check_sound(label, "label", file)
    if len(label) > _LONGEST_LABEL:
        raise ValueError(
            f"label has {len(label)} characters, {excerpt(label, 20)}: at most {_LONGEST_LABEL} "
            "are allowed; are label and text exchanged?"
        )
    return label


def text_of(fields: dict[str, Any], column: str, file: Path) -> str:
    """The text in a column of a row; raises `ValueError` with what is wrong with it."""
    text = fields.get(column)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{column} is {'empty' if text == '' else kind_of(text)}")
    check_sound(text, column, file)
    return text


def check_sound(text: str, column: str, file: Path) -> None:
    """Raises `ValueError` if a text holds bytes that are not UTF-8, or half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        odd = text[error.start]
        if not "\udc80" <= odd <= "\udcff":
            raise ValueError(f"{column} has half a character, {ascii(odd)[1:-1]}") from None
        raise ValueError(
            f"{column} is not UTF-8 (byte 0x{ord(odd) - 0xDC00:02x}); if the file is of Windows or "
            f"Latin-1, `iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(str(file))} > new` converts it"
        ) from None


def kind_of(value: Any) -> str:
    """A value of JSON as it is, or what it is where that may be long."""
    if isinstance(value, list | dict):
        return "an array" if isinstance(value, list) else "an object"
    return excerpt(json.dumps(value))
