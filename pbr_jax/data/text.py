"""Tokens of texts, as BERT sees them: `[CLS] a [SEP] b [SEP]`, and padding on the right.

Words are cut into pieces by WordPiece. `N` tokens of a row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pbr_jax.data.records import Batch, TextRecord
from pbr_jax.files import user_path

_SHORTEST = 5  # [CLS] a [SEP] b [SEP]
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class TextInputs:
    """Text records to `tokens`, `token_types` Int32[B, N], `lengths` Int32[B], `label` Int32[B].

    Args:
      path: `vocab.txt` with one word piece a line, or `tokenizer.json`, of the model.
      max_length: N. Longer pairs lose tokens of the longer text, one by one.
      lower_case: whether letters are lower-cased and lose their accents, for `vocab.txt`; None is
        True. A `tokenizer.json` says so itself.

    Raises:
      ValueError: the file is missing, is no such file, or lacks a special token.
    """

    def __init__(self, path: str, max_length: int, lower_case: bool | None = None) -> None:
        if max_length < _SHORTEST:
            raise ValueError(f"model.max_length = {max_length}: must be {_SHORTEST} or more")
        self.max_length = max_length
        self._tokenizer = _load(path, lower_case)
        ids = {token: self._tokenizer.token_to_id(token) for token in _SPECIAL}
        if missing := [token for token, number in ids.items() if number is None]:
            raise ValueError(f"data.tokenizer = {path}: has no {', '.join(missing)}; not of a BERT")
        from tokenizers.processors import BertProcessing

        # Truncation is the tokenizer's, which knows both texts; padding is ours, to one length.
        self._padding = ids["[PAD]"]
        sep, cls = (("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        self._tokenizer.post_processor = BertProcessing(sep, cls)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, strategy="longest_first")
        # A vocabulary may have gaps: its largest number counts, not its number of words.
        self.vocab_size: int = max(self._tokenizer.get_vocab().values()) + 1

    def __call__(
        self, records: Sequence[TextRecord], generator: np.random.Generator | None = None
    ) -> Batch:
        pairs = [
            record.text_a if record.text_b is None else (record.text_a, record.text_b)
            for record in records
        ]
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


def _load(path: str, lower_case: bool | None) -> Any:
    """The tokenizer in a file; raises `ValueError` as `TextInputs` does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    file = user_path(path)
    if not file.is_file():
        raise ValueError(
            f"data.tokenizer = {path}: no such file; take vocab.txt or tokenizer.json from where "
            "the model's weights are from, such as huggingface.co/google-bert/bert-base-uncased"
        )
    if file.suffix == ".json":
        if lower_case is not None:
            raise ValueError(
                f"data.lower_case = {str(lower_case).lower()}: {path} decides itself; set none"
            )
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"data.tokenizer = {path}: not a tokenizer.json ({error})") from error
    try:
        words = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"data.tokenizer = {path}: not a vocab.txt ({error})") from error
    vocabulary = {word.strip(): number for number, word in enumerate(words)}
    if len(vocabulary) < len(words):
        raise ValueError(f"data.tokenizer = {path}: lists a word more than once")
    # The tokenizer of the original, whose parts a `tokenizer.json` names itself.
    pieces = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    tokenizer = Tokenizer(pieces)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower_case in (None, True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
