"""Tables of texts of the user's own, in CSV or JSON lines.

    PATH/train.csv    text,label            or  text_a,text_b,label
    PATH/train.jsonl  {"text": "...", "label": "..."}, and so on

Other columns are ignored. Files are UTF-8. Labels are text or whole numbers.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pbr_jax.data.folders import class_names, evaluation_split, existing_folder, settle
from pbr_jax.data.records import Dataset, Request, Skipped, TextRecord
from pbr_jax.datasets import OnError


class Row(NamedTuple):
    """A row whose label is not a number yet; `name` is FILE:LINE."""

    text_a: str
    text_b: str | None
    label: str
    name: str


class TextRecords:
    """Texts in memory, as `Records`."""

    def __init__(self, rows: list[Row], classes: tuple[str, ...]) -> None:
        number = {name: label for label, name in enumerate(classes)}
        self._rows = rows
        self.labels = np.array([number[row.label] for row in rows], np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TextRecord:
        text_a, text_b, _, name = self._rows[index]
        return TextRecord(text_a, text_b, int(self.labels[index]), name)


def load(request: Request) -> Dataset:
    """Reads `PATH/train.NAME` and one file beside it; the name is "csv" or "jsonl".

    Raises:
      ValueError: a file is missing, or a row cannot be used and `on_error` is "stop": its file and
        line are named.
    """
    suffix, on_error = request.name, request.on_error
    folder = existing_folder(request.path, f"train.{suffix} and test.{suffix}")
    found = sorted(file.stem for file in folder.glob(f"*.{suffix}"))
    test = evaluation_split(found, request.test_split, str(folder))
    train_rows, train_skipped = _read(folder / f"train.{suffix}", on_error)
    test_rows, test_skipped = _read(folder / f"{test}.{suffix}", on_error)
    # Rows first: the number of a label is its place among those of both splits.
    names = class_names({row.label for row in (*train_rows, *test_rows)}, folder)
    train, tested = TextRecords(train_rows, names), TextRecords(test_rows, names)
    return Dataset(train, tested, names, (train_skipped, test_skipped))


def _read(file: Path, on_error: OnError) -> tuple[list[Row], Skipped]:
    found = list(read_rows(file))
    rows = [row for row in found if isinstance(row, Row)]
    faults = [row for row in found if isinstance(row, str)]
    return rows, settle(faults, len(found), "rows", file, on_error)


def read_rows(file: Path, labelled: bool = True) -> Iterator[Row | str]:
    """Yields every row; for one that cannot be used, a line with its file, line number and fault.

    Rows that are not `labelled` have an empty label, whatever the file has.

    Raises:
      ValueError: a CSV file without a header that names the columns.
    """
    lines = _csv_rows(file, labelled) if file.suffix == ".csv" else _json_rows(file)
    for number, fields in lines:
        name = f"{file}:{number}"
        try:
            yield _row(fields, name, labelled)
        except ValueError as error:
            yield f"{name}: {error}"


def _csv_rows(file: Path, labelled: bool) -> Iterator[tuple[int, dict[Any, Any] | Exception]]:
    """Yields line number and fields of each row, or what is wrong with it.

    A row may have several lines; the number is that of its first.
    """
    # Bytes that are not UTF-8 become lone surrogates, so that `_text` can name their row.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            columns = next(reader, [])
        except csv.Error as error:
            raise ValueError(f"{file}:1: not a CSV header ({error})") from error
        if (labelled and "label" not in columns) or not {"text", "text_a"} & set(columns):
            label = "a column label, and " if labelled else ""
            raise ValueError(
                f"{file}:1: the header must name {label}text or text_a and text_b; "
                f"it has {', '.join(columns) or 'nothing'}"
            )
        while True:  # the reader goes on behind a row that it refuses; a `for` would end there
            number = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, error
                continue
            if fields and len(fields) != len(columns):
                yield number, ValueError(f"{len(fields)} fields, but the header has {len(columns)}")
            elif fields:  # an empty line is none
                yield number, dict(zip(columns, fields, strict=True))


def _json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Yields line number and value of each line that is not empty, or what is wrong with it."""
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    yield number, ValueError(f"not JSON ({error})")


def _row(fields: Any, name: str, labelled: bool) -> Row:
    """Makes a row of its fields; raises `ValueError` with what is wrong with them."""
    if isinstance(fields, Exception):
        raise ValueError(str(fields))
    if not isinstance(fields, dict):
        raise ValueError("not an object with the keys text and label")
    if not {"text", "text_a"} & fields.keys():
        raise ValueError(f"has neither text nor text_a, but {', '.join(fields) or 'nothing'}")
    # A text alone, or a pair whose second text a file may lack.
    alone = "text" in fields
    text_a = _text(fields, "text" if alone else "text_a")
    text_b = None if alone or "text_b" not in fields else _text(fields, "text_b")
    if not labelled:
        return Row(text_a, text_b, "", name)
    label = fields.get("label")
    # A number with a fraction is no label, and in Python a truth value is a whole number.
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise ValueError(f"label is {json.dumps(label)}: must be text or a whole number")
    label = str(label).strip()
    if not label:
        raise ValueError("label is empty")
    return Row(text_a, text_b, label, name)


def _text(fields: dict[str, Any], column: str) -> str:
    text = fields.get(column)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{column} is {'empty' if text == '' else json.dumps(text)}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{column} is not UTF-8")
    return text
