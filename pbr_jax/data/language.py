"""Texts of the user's own for language models, in JSON lines.

    PATH/train.jsonl  {"text": "..."}                                   all of it is learned
                      {"prompt": "...", "completion": "..."}            the completion is
                      {"messages": [{"role": "user", "content": "..."}, ...]}   the assistant's are

and a file for evaluation beside it. Rows of one file may differ. Other keys are ignored.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pbr_jax.data.folders import settle
from pbr_jax.data.lines import Line, json_rows, read_lines
from pbr_jax.data.records import Dataset, Request, Skipped
from pbr_jax.data.tables import check_sound, kind_of, split_files, text_of
from pbr_jax.datasets import OnError
from pbr_jax.reading import excerpt

ASSISTANT = "assistant"


class LanguageRecord(NamedTuple):
    """A text, a prompt with its completion, or a conversation; the others are None."""

    text: str | None
    pair: tuple[str, str] | None
    messages: tuple[dict[str, Any], ...] | None
    name: str  # FILE:LINE
    label: int = 0  # as every record has one


class LanguageRecords:
    """Texts in memory, as `Records`, before they are cut into tokens."""

    labels = None

    def __init__(self, rows: Sequence[LanguageRecord], file: Path) -> None:
        self._rows, self.file = rows, file

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> LanguageRecord:
        return self._rows[index]


def load(request: Request) -> Dataset:
    """Reads `PATH/train.jsonl` and one file beside it; there are no classes.

    Raises:
      ValueError: a file is missing, or a row cannot be used and `on_error` is "stop": its file and
        line are named.
    """
    train_file, test_file = split_files(request, "jsonl")
    train, train_skipped = _read(train_file, request.on_error)
    test, test_skipped = _read(test_file, request.on_error)
    return Dataset(train, test, (), (train_skipped, test_skipped))


def _read(file: Path, on_error: OnError) -> tuple[LanguageRecords, Skipped]:
    rows, faults, total = [], [], 0
    for line in json_rows(file, read_lines(file)):
        total += 1
        name = f"{file}:{line.first}"
        try:
            rows.append(_record(line, file, name))
        except ValueError as error:
            faults.append(f"{name}: {error}")
    return LanguageRecords(rows, file), settle(faults, total, "rows", str(file), on_error)


def _record(line: Line, file: Path, name: str) -> LanguageRecord:
    fields = line.content
    if isinstance(fields, Exception):
        raise ValueError(str(fields))
    if not isinstance(fields, dict):
        raise ValueError("not an object with the key text, prompt or messages")
    kinds = [key for key in ("text", "prompt", "messages") if key in fields]
    if len(kinds) != 1:
        has = " and ".join(kinds) or excerpt(", ".join(fields), 200) or "nothing"
        raise ValueError(f"has {has}: must have one of text, prompt (with completion) and messages")
    if kinds == ["text"]:
        return LanguageRecord(text_of(fields, "text", file), None, None, name)
    if kinds == ["prompt"]:
        pair = text_of(fields, "prompt", file), text_of(fields, "completion", file)
        return LanguageRecord(None, pair, None, name)
    return LanguageRecord(None, None, _messages(fields["messages"], file), name)


def _messages(found: Any, file: Path) -> tuple[dict[str, Any], ...]:
    if not isinstance(found, list) or not found:
        raise ValueError("messages is no list of objects with role and content")
    for number, message in enumerate(found, start=1):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} is {kind_of(message)}: must be an object")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(
                    f"{key} of message {number} is {kind_of(message.get(key))}: must be text"
                )
            check_sound(message[key], key, file)
    if not any(message["role"] == ASSISTANT for message in found):
        raise ValueError(f"no message has the role {ASSISTANT}: nothing is learned from the others")
    return tuple(found)
