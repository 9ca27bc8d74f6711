"""Rows of a language model: several texts in one, which do not see each other.

A row has N places. A text of L tokens takes L - 1 of them: at each place a model reads a token and
predicts the next one. Texts are packed once, by best fit of decreasing lengths (Johnson, 1974), so
that the rows are the same in every epoch and process; batches shuffle rows.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from pbr_jax.data.folders import settle
from pbr_jax.data.language import LanguageRecords
from pbr_jax.data.language_tokens import LanguageTokenizer, Tokens
from pbr_jax.data.records import Batch, Dataset, Generators, Identity, Skipped
from pbr_jax.datasets import OnError


class LanguageRow(NamedTuple):
    """A row; places behind its last text are filled up, with 0 in `segments`."""

    tokens: Int32[np.ndarray, " N"]
    segments: Int32[np.ndarray, " N"]  # 1, 2, ... for each text
    positions: Int32[np.ndarray, " N"]  # in its text
    targets: Int32[np.ndarray, " N"]  # the next token of the text
    scored: Bool[np.ndarray, " N"]  # targets that count in the loss
    name: str
    label: int = 0  # as every record has one


class Counts(NamedTuple):
    """What is in the rows of a split."""

    texts: int
    tokens: int  # that are read, filling excluded
    scored: int  # of them, those whose next one counts
    rows: int
    places: int
    split: int  # texts that are in several pieces
    cut: int  # texts that lost their end

    @property
    def fill(self) -> float:
        """Share of the places that have a token."""
        return self.tokens / max(self.places, 1)

    def __str__(self) -> str:
        return (
            f"{self.texts} texts in {self.rows} rows of {self.places // max(self.rows, 1)} tokens,"
            f" {self.fill:.0%} full, {self.scored} tokens are learned"
        )


class PackedRecords:
    """Rows of texts, as `Records`.

    Args:
      texts: with a name each, FILE:LINE.
      max_length: N.
      padding: the token of what is filled up.
      packing: several texts share a row; else each has its own.
    """

    labels: Any  # one class, so that any part stands for all

    def __init__(
        self, texts: Sequence[tuple[str, Tokens]], max_length: int, padding: int, packing: bool
    ) -> None:
        # Pieces of texts first, then rows of pieces; nothing of a row is copied until it is read.
        pieces = [
            (number, piece)
            for number, (_, tokens) in enumerate(texts)
            for piece in pieces_of(tokens, max_length)
        ]
        lengths = np.array([len(piece.ids) - 1 for _, piece in pieces], np.int64)
        rows = best_fit(lengths, max_length) if packing else [[one] for one in range(len(pieces))]
        self._max_length, self._padding = max_length, padding
        self._pieces = [[pieces[one] for one in row] for row in rows]
        self._names = [name for name, _ in texts]
        self.labels = np.zeros(len(rows), np.int32)
        # What a user should know of it: pieces beyond the first, and ends that are gone.
        per_text = np.bincount([number for number, _ in pieces], minlength=len(texts))
        lost = [not t.whole and len(t.ids) > max_length + 1 for _, t in texts]
        self.counts = Counts(
            texts=len(texts),
            tokens=int(lengths.sum()),
            scored=sum(int(np.sum(piece.learned[1:])) for _, piece in pieces),
            rows=len(rows),
            places=len(rows) * max_length,
            split=int(np.sum(per_text > 1)),
            cut=sum(lost),
        )

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> LanguageRow:
        size = self._max_length
        tokens = np.full(size, self._padding, np.int32)
        segments, positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
        targets, scored = np.zeros(size, np.int32), np.zeros(size, bool)
        # Each text reads all but its last token and predicts all but its first.
        begin = 0
        for number, (_, piece) in enumerate(self._pieces[index], start=1):
            own = slice(begin, begin + len(piece.ids) - 1)
            tokens[own], targets[own] = piece.ids[:-1], piece.ids[1:]
            segments[own], positions[own] = number, np.arange(len(piece.ids) - 1)
            scored[own] = piece.learned[1:]
            begin = own.stop
        return LanguageRow(tokens, segments, positions, targets, scored, self._name(index))

    def _name(self, index: int) -> str:
        return " + ".join(self._names[number] for number, _ in self._pieces[index])

    def identity(self, index: int) -> Identity:
        """The row is known by its tokens."""
        digest = hashlib.blake2b(digest_size=16)
        for _, piece in self._pieces[index]:
            digest.update(piece.ids.tobytes() + piece.learned.tobytes() + b"\0")
        return Identity(self._name(index), digest.digest(), b"")


def pieces_of(tokens: Tokens, max_length: int) -> list[Tokens]:
    """A text in pieces that fit into a row: a whole one is split, another loses its end.

    A piece begins with the token that the one before it predicted last, so that every token but
    the first of a text is predicted once.
    """
    starts = range(0, len(tokens.ids) - 1, max_length) if tokens.whole else range(1)
    most = max_length + 1
    return [
        Tokens(tokens.ids[at : at + most], tokens.learned[at : at + most], True) for at in starts
    ]


def best_fit(lengths: Int[np.ndarray, " T"], size: int) -> list[list[int]]:
    """Texts of each row: the longest first, each into the row that it fills best.

    Rows, and the texts in them, are in the order of the texts. No length is above `size`.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(size + 1)]
    rooms = 0  # a bit for each room that some row has
    for text in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[text])
        # The lowest bit that is left is the room that the text fills best.
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            rooms &= ~(1 << room) if not by_room[room] else -1
            rows[row].append(text)
        else:
            room, row = size, len(rows)
            rows.append([text])
        # The row goes on under the room that it still has.
        left = room - length
        by_room[left].append(row)
        rooms |= 1 << left
    return sorted(sorted(row) for row in rows)


def packed(
    dataset: Dataset,
    tokenizer: LanguageTokenizer,
    max_length: int,
    packing: bool = True,
    on_error: OnError = "stop",
) -> Dataset:
    """A data set of texts as one of rows, with lines on what is in them.

    Raises:
      ValueError: a text cannot be used and `on_error` is "stop": its file and line are named.
    """
    splits = list[PackedRecords]()
    skipped, remarks = [*dataset.skipped], [*dataset.remarks]
    for name, records in (("train", dataset.train), ("test", dataset.test)):
        assert isinstance(records, LanguageRecords)
        rows, lost = _packed(records, tokenizer, max_length, packing, on_error)
        splits.append(rows)
        skipped.append(lost)
        remarks.append(f"{name}: {rows.counts}")
        for count, what in ((rows.counts.split, "split into several"), (rows.counts.cut, "cut")):
            if count:
                remarks.append(f"{name}: {count} texts are {what} at {max_length} tokens")
    return dataset._replace(
        train=splits[0], test=splits[1], skipped=tuple(skipped), remarks=tuple(remarks)
    )


def _packed(
    records: LanguageRecords,
    tokenizer: LanguageTokenizer,
    max_length: int,
    packing: bool,
    on_error: OnError,
) -> tuple[PackedRecords, Skipped]:
    texts, faults = [], []
    rows = [records[row] for row in range(len(records))]
    for record, found in zip(rows, tokenizer.encode(rows), strict=True):
        if isinstance(found, str):
            faults.append(f"{record.name}: {found}")
        elif not np.any(found.learned[1 : None if found.whole else max_length + 1]):
            long = not found.whole and len(found.ids) > max_length + 1
            why = f" within model.max_length = {max_length} tokens" if long else ""
            faults.append(f"{record.name}: nothing is left to learn{why}")
        else:
            texts.append((record.name, found))
    lost = settle(faults, len(rows), "rows", str(records.file), on_error)
    return PackedRecords(texts, max_length, tokenizer.padding, packing), lost


def stack_rows(records: Sequence[LanguageRow], generators: Generators | None = None) -> Batch:
    """Rows to `tokens`, `segments`, `positions`, `targets` Int32[B, N] and `scored` Bool[B, N]."""
    names = ("tokens", "segments", "positions", "targets", "scored")
    return {name: np.stack([getattr(record, name) for record in records]) for name in names}
