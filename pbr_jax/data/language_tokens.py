"""Tokens of texts for language models, as the tokenizer of the model cuts them.

tokenizer.json         the tokenizer
tokenizer_config.json  beside it: its special tokens, and the chat template if it is here
chat_template.jinja    beside it: the chat template, if it is here
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from pbr_jax.data.chat import ChatTemplate, template_source
from pbr_jax.data.language import LanguageRecord
from pbr_jax.data.vocabulary import CONFIG, config_beside, read_tokenizer
from pbr_jax.files import user_path

_AT_A_TIME = 1000  # texts, which the library cuts in several threads


class Tokens(NamedTuple):
    """A text as a model reads it, its end included."""

    ids: Int32[np.ndarray, " L"]
    learned: Bool[np.ndarray, " L"]  # those that a model has to predict
    whole: bool  # may be split into several texts: all of it is learned


class _Piece(NamedTuple):
    text: str
    special: bool  # begins as the tokenizer begins a text
    learned: bool


class LanguageTokenizer:
    """The tokenizer of a language model.

    Args:
      path: `tokenizer.json`, or the folder in which it is.

    Raises:
      ValueError: the file or one beside it is missing or damaged, or the end of a text is unknown.
    """

    vocab_size: int  # the largest number of a token, and one
    notes: list[str]  # lines on what a user should know of the tokenizer

    def __init__(self, path: str) -> None:
        named = user_path(path)
        file = named / "tokenizer.json" if named.is_dir() else named
        try:
            if not file.is_file():
                raise ValueError(
                    f"{path}: no such file; take tokenizer.json from where the"
                    " model's weights are from"
                )
            config = config_beside(file)
            self._tokenizer = read_tokenizer(file)
            # The library would cut and fill up as the file says; rows have lengths of their own.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            tokens = {}
            for name, value in config.items():
                value = value.get("content") if isinstance(value, dict) else value
                if name.endswith("_token") and isinstance(value, str):
                    tokens[name] = value
            self.end = self._number(tokens, file)
            found = template_source(file, config)
            self.template = None if found is None else ChatTemplate(*found, tokens)
        except ValueError as error:
            raise ValueError(f"data.tokenizer = {error}") from error
        self.path, self.notes = path, []
        padding = self._tokenizer.token_to_id(tokens.get("pad_token", ""))
        self.padding = self.end if padding is None else padding
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1

    def _number(self, tokens: dict[str, str], file: Path) -> int:
        word = tokens.get("eos_token")
        number = None if word is None else self._tokenizer.token_to_id(word)
        if number is None:
            what = f"eos_token {word!r} is no word of it" if word else "no eos_token"
            raise ValueError(
                f"{file}: {what}: write it into {CONFIG} beside it, as the model's own has it"
            )
        return int(number)

    def encode(self, records: Sequence[LanguageRecord]) -> list[Tokens | str]:
        """The tokens of each text, or what is wrong with it.

        A text ends with the token of ends, unless it has it already. A conversation ends as its
        template ends it. A completion is cut apart from its prompt, as a model writes it.
        """
        found: list[Tokens | str] = []
        for start in range(0, len(records), _AT_A_TIME):
            some = records[start : start + _AT_A_TIME]
            pieces = [self._pieces(record) for record in some]
            ids = self._cut([one for own in pieces if not isinstance(own, str) for one in own])
            for record, own in zip(some, pieces, strict=True):
                if isinstance(own, str):
                    found.append(own)
                else:
                    found.append(self._joined(record, own, [next(ids) for _ in own]))
        return found

    def prompt(self, text: str, as_message: bool = False) -> list[int]:
        """The tokens of a text that a model shall continue, as a prompt is cut in training.

        Args:
          text: at least a character.
          as_message: it is what a user says, in the chat template, and the model answers.

        Raises:
          ValueError: there is no template, or nothing is left of the text.
        """
        if as_message and self.template is None:
            raise ValueError(f"{self.path} has no chat template; leave out --chat")
        if as_message:
            assert self.template is not None
            text = self.template.render([{"role": "user", "content": text}], prompting=True)
        (ids,) = self._cut([_Piece(text, not as_message, False)])
        ids = ids[:-1] if not as_message and ids and ids[-1] == self.end else ids
        if not ids:
            raise ValueError(f"prompt {text!r}: has no token; write at least a word")
        return list(ids)

    def _pieces(self, record: LanguageRecord) -> list[_Piece] | str:
        if record.text is not None:
            return [_Piece(record.text, True, True)]
        if record.pair is not None:
            prompt, completion = record.pair
            return [_Piece(prompt, True, False), _Piece(completion, False, True)]
        assert record.messages is not None
        if self.template is None:
            return f"is a conversation, and {self.path} has no chat template; add that of its model"
        try:
            pieces = self.template.pieces(record.messages)
        except ValueError as error:
            return str(error)
        return [_Piece(text, False, learned) for text, learned in pieces]

    def _cut(self, pieces: Sequence[_Piece]):
        """The numbers of the tokens of each piece, in their order."""
        cut = {}
        for special in (True, False):
            texts = [piece.text for piece in pieces if piece.special == special]
            encoded = self._tokenizer.encode_batch(texts, add_special_tokens=special)
            cut[special] = iter(encoded)
        return iter([next(cut[piece.special]).ids for piece in pieces])

    def _joined(self, record: LanguageRecord, pieces: list[_Piece], ids: list) -> Tokens:
        if pieces[0].special and ids[0] and ids[0][-1] == self.end:
            ids[0] = ids[0][:-1]
        learned = [np.full(len(own), p.learned) for own, p in zip(ids, pieces, strict=True)]
        if record.messages is None:
            ids, learned = [*ids, [self.end]], [*learned, np.array([True])]
        joined = np.concatenate([np.asarray(own, np.int32) for own in ids])
        return Tokens(joined, np.concatenate(learned), record.text is not None)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        text: str = self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)
        return text
