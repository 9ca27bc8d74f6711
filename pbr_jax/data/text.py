"""Tokens of texts, as BERT sees them: `[CLS] a [SEP] b [SEP]`, and padding on the right.

Words are cut into pieces by WordPiece. `N` tokens of a row.
"""

from collections.abc import Sequence

import numpy as np

from pbr_jax.data.records import Batch, Generators, TextRecord
from pbr_jax.data.vocabulary import load_tokenizer, normalization
from pbr_jax.reading import excerpt

_SHORTEST = 5  # [CLS] a [SEP] b [SEP]
_MOST_WORDS = 2**24  # the vocabularies of published models have less than a million words
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_CHARACTERS = 20  # of a text for each token that fits, in a sample: more than words have


class TextInputs:
    """Text records to `tokens`, `token_types` Int32[B, N], `lengths` Int32[B], `label` Int32[B].

    Args:
      path: `vocab.txt` with one word piece a line, or `tokenizer.json`, of the model.
      max_length: N. Longer pairs lose tokens of the longer text, one by one.
      lower_case: whether letters are lower-cased and lose their accents, for `vocab.txt`; None is
        as `tokenizer_config.json` beside it says, or else True. A `tokenizer.json` says so itself.

    Raises:
      ValueError: the file is missing, is no such file, or lacks a special token.
    """

    notes: list[str]  # lines on what a user should know of the tokenizer
    vocab_size: int  # the largest number of a token, and one

    def __init__(self, path: str, max_length: int, lower_case: bool | None = None) -> None:
        if max_length < _SHORTEST:
            raise ValueError(f"model.max_length = {max_length}: must be {_SHORTEST} or more")
        self.max_length = max_length
        self._path = path
        self._tokenizer, self.notes, longest = load_tokenizer(path, lower_case)
        words = self._tokenizer.get_vocab()
        ids = {token: self._tokenizer.token_to_id(token) for token in _SPECIAL}
        if missing := [token for token, number in ids.items() if number is None]:
            like = [excerpt(repr(w)) for w in words if w.strip().upper() in missing]
            hint = f", but {like[0]}" if like else ""
            raise ValueError(
                f"data.tokenizer = {path}: has no {', '.join(missing)}{hint}; not of a BERT"
            )
        if len({*ids.values()}) < len(ids):
            raise ValueError(f"data.tokenizer = {path}: has one number for several of {ids}")
        if longest is not None and longest < max_length:
            self.notes.append(
                f"model.max_length = {max_length}: the files of {path} say {longest} at most"
            )
        from tokenizers.processors import BertProcessing

        # Truncation is the tokenizer's, which knows both texts; padding is ours, to one length.
        self._padding, self._unknown = ids["[PAD]"], ids["[UNK]"]
        sep, cls = (("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        self._tokenizer.post_processor = BertProcessing(sep, cls)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, strategy="longest_first")
        # A vocabulary may have gaps: its largest number counts, not its number of words.
        self.vocab_size = max(words.values()) + 1
        if self.vocab_size > _MOST_WORDS:
            raise ValueError(
                f"data.tokenizer = {path}: has token {self.vocab_size - 1}, which is "
                f"not below {_MOST_WORDS}; not of a BERT"
            )

    @property
    def normalization(self) -> dict[str, bool]:
        """What is done to a text before it is cut, as `tokenizer_config.json` says it."""
        return normalization(self._tokenizer)

    def __call__(
        self, records: Sequence[TextRecord], generators: Generators | None = None
    ) -> Batch:
        pairs = [_pair(record) for record in records]
        # Rows of one length, whatever the texts: the step is compiled once.
        tokens = np.full((len(records), self.max_length), self._padding, np.int32)
        token_types = np.zeros_like(tokens)
        lengths = np.zeros(len(records), np.int32)
        for row, encoding in enumerate(self._tokenizer.encode_batch(pairs)):
            length = lengths[row] = len(encoding.ids)
            tokens[row, :length] = encoding.ids
            token_types[row, :length] = encoding.type_ids
        labels = np.array([record.label for record in records], np.int32)
        return {"tokens": tokens, "token_types": token_types, "lengths": lengths, "label": labels}

    def remarks(self, sample: Sequence[TextRecord]) -> list[str]:
        """Lines on texts that the tokenizer does not suit: unknown words, and what is cut off."""
        if not sample:
            return []
        share, word, cut = self._survey(sample)
        first, lines = f"of the first {len(sample)} texts", []
        if share > 0.5:
            lines.append(
                f"{share:.0%} of the tokens {first} are [UNK], such as {excerpt(word)}: "
                f"{self._path} lacks them; {self._cause(sample, share)}"
            )
        if cut > len(sample) / 2:
            lines.append(f"{cut} {first} are cut at model.max_length = {self.max_length} tokens")
        return lines

    def _survey(self, sample: Sequence[TextRecord]) -> tuple[float, str, int]:
        """The share of unknown tokens, the first such word ("" if none is), and texts cut off."""
        most = _CHARACTERS * self.max_length
        pairs = [_pair(record, most) for record in sample]
        unknown, total, cut, word = 0, 0, 0, ""
        for pair, encoding in zip(pairs, self._tokenizer.encode_batch(pairs), strict=True):
            total += len(encoding.ids) - encoding.special_tokens_mask.count(1)
            unknown += encoding.ids.count(self._unknown)
            cut += bool(encoding.overflowing)
            if not word and self._unknown in encoding.ids:
                at = encoding.ids.index(self._unknown)
                begin, end = encoding.offsets[at]
                text = pair if isinstance(pair, str) else pair[encoding.sequence_ids[at]]
                word = text[begin:end]
        return unknown / max(total, 1), word, cut

    def _cause(self, sample: Sequence[TextRecord], share: float) -> str:
        """What probably makes most words unknown, and what to do about it."""
        if not self._path.endswith(".json"):
            other = not self.normalization["do_lower_case"]
            changed, _, _ = TextInputs(self._path, self.max_length, other)._survey(sample)
            if changed < share / 2:
                return f"with data.lower_case={str(other).lower()} {changed:.0%} are"
        return "is it of another language, or of another model?"


def _pair(record: TextRecord, most: int | None = None) -> str | tuple[str, str]:
    """A text or a pair for the tokenizer; of each at most so many characters."""
    if record.text_b is None:
        return record.text_a[:most]
    return record.text_a[:most], record.text_b[:most]
