"""Rows of a CSV file with the lines that they take, also behind a quote that is not closed.

A field in quotes may hold line ends, so that one quote too many takes all lines up to the next one.
A row that cannot be read is therefore given up after its first line, and the lines behind it are
read again, one by one. Each is a row of its own, or belongs to the row that was given up.
"""

import contextlib
import csv
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pbr_jax.data.lines import COLUMNS, Line
from pbr_jax.names import nearest
from pbr_jax.reading import excerpt

_AGAIN = 100  # lines of a row that is read again: each of many may open a quote
_LONGEST_FIELD = 2**31 - 1  # characters; what a C long holds on every system
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class _Cursor:
    """Lines for the reader of the standard library, which can be sent back; `next` from 0.

    Before line `end` it says that there are no more.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines, self.next, self.end = lines, 0, len(lines)

    def __iter__(self) -> "_Cursor":
        return self

    def __next__(self) -> str:
        if self.next == self.end:
            raise StopIteration
        self.next += 1
        return self.lines[self.next - 1]


def read_csv(file: Path, lines: Sequence[str], labelled: bool) -> list[Line]:
    """The rows behind the header, each as a dict by column, or as a `ValueError`.

    Raises:
      ValueError: the header is no CSV, or lacks a column; `label` only where rows are `labelled`.
    """
    cursor = _Cursor(lines)
    # The standard library has one limit for the process, and by default it is 131 072 characters.
    with _long_fields():
        reader = csv.reader(cursor, strict=True)
        try:
            columns = next(reader, [])
        except csv.Error as error:
            raise ValueError(
                f"{file}:1: not a CSV header ({error}); is a quote not closed?"
            ) from error
        try:
            _check_header(columns, file, labelled)
        except ValueError as error:
            raise ValueError(f"{file}:1: {error}") from error
        return list(_rows(reader, cursor, columns))


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _rows(reader: Iterator[list[str]], cursor: _Cursor, columns: Sequence[str]) -> Iterator[Line]:
    lines, labels = cursor.lines, _Labels(cursor.lines[cursor.next :], columns)
    swallowed = 0  # lines before this one were taken by a row that cannot be read
    again = 0  # lines before this one are read for the second time
    broken: Line | None = None  # that row, while the lines behind it are its own
    while (first := cursor.next) < len(lines):
        fields: list[str] = []
        fault = ""
        cursor.end = min(len(lines), first + _AGAIN if first < again else len(lines))
        try:
            fields = next(reader)
            if cursor.next > first + 1 and labels.end_each(lines[first : cursor.next]):
                fault = "a quote is not closed: each of the lines behind it ends like a row"
        except csv.Error as error:
            swallowed = max(swallowed, cursor.next)
            fault = f"a quote is not closed, or one in a field is not written twice ({error})"
        if fault:
            if broken:
                yield broken
            again = max(again, cursor.next)
            cursor.next = first + 1
            broken = Line(first + 1, first + 1, ValueError(fault))
            continue
        if not fields:  # an empty line
            continue
        fits = len(fields) == len(columns)
        # What cannot be a row by itself, or closes a quote that no field of it opens.
        closes = cursor.next == first + 1 and lines[first].count('"') % 2 == 1
        rest = first < swallowed and (closes or not fits)
        if broken and rest:
            broken = broken._replace(last=cursor.next)
            continue
        if broken:
            yield broken
            broken = None
        content: dict[str, str] | ValueError = dict(zip(columns, fields, strict=False))
        if not fits:
            content = ValueError(f"{len(fields)} fields, but the header has {len(columns)}")
        elif [name.removeprefix("\ufeff") for name in fields] == columns:
            content = ValueError("the header once more, as of a second file")
        elif rest:
            content = ValueError("the end of a row whose quote is not closed where it should be")
        yield Line(first + 1, cursor.next, content)
    if broken:
        yield broken


def _check_header(columns: Sequence[str], file: Path, labelled: bool) -> None:
    """Raises `ValueError` if the columns that are needed are not there, or are there twice."""
    if twice := [name for name in COLUMNS if columns.count(name) > 1]:
        raise ValueError(f"the header names {twice[0]} more than once; remove or rename one")
    missing = [] if {"text", "text_a"} & {*columns} else ["text"]
    missing += ["label"] if labelled and "label" not in columns else []
    if not missing:
        return
    hint = ""
    plain = {name.strip().lower(): name for name in columns}
    for name in missing:
        if close := nearest(name, plain):
            hint += f"; the nearest to {name} is {excerpt(repr(plain[close]))}: rename it"
    # A spreadsheet may write another separator than the comma.
    whole = ",".join(columns)
    for separator, called in _SEPARATORS.items():
        if {*COLUMNS} & {part.strip(' "').lower() for part in whole.split(separator)}:
            program = "import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, "
            program += f"delimiter={separator!r}))"
            hint = f"; its columns are separated by {called}, and must be by commas: "
            hint += f'`python -c "{program}" < {shlex.quote(str(file))} > new.csv` converts it'
    label = "a column label, and " if labelled else ""
    raise ValueError(
        f"the header must name {label}text or text_a and text_b; "
        f"it has {excerpt(', '.join(columns), 200) or 'nothing'}{hint}"
    )


class _Labels:
    """The labels of a file as its lines show them one by one, whatever quotes say."""

    def __init__(self, lines: Sequence[str], columns: Sequence[str]) -> None:
        self._lines, self._width = lines, len(columns)
        self._place = columns.index("label") if "label" in columns else None
        self._counts: Counter[str] | None = None

    def end_each(self, lines: Sequence[str]) -> bool:
        """Whether each of these lines is a row by itself, with a label that others have too.

        A text over several lines never is, but by chance. Rows that a quote holds together are.
        """
        inside: Counter[str] = Counter()
        for line in lines:
            if not (label := self._label(line)):
                return False
            inside[label] += 1
        if self._counts is None:  # all lines are looked at once, and few files need it
            self._counts = Counter(map(self._label, self._lines))
        return all(self._counts[label] > count for label, count in inside.items())

    def _label(self, line: str) -> str:
        fields = line.split(",")
        if self._place is None or len(fields) != self._width:
            return ""
        return fields[self._place].strip(' "\r\n')
