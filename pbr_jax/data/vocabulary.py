"""Tokenizers of BERT models, in the files that come with their weights.

    vocab.txt              one word piece a line; the number of its line, from 0, is its token
    tokenizer_config.json  beside it, if it is there: how texts are changed before they are cut
    tokenizer.json         all of that in one file

Texts must be cut as they were when the model was trained, so these files decide.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from pbr_jax.files import user_path
from pbr_jax.reading import excerpt, read_lines, read_text

CONFIG = "tokenizer_config.json"
# Classes of Transformers that read a vocab.txt as the original does; each may end with "Fast".
_CLASSES = {
    *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"),
    *("ConvBertTokenizer", "SqueezeBertTokenizer", "LxmertTokenizer", "LayoutLMTokenizer"),
    *("PreTrainedTokenizer", "TokenizersBackend"),
}
_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize")
_WORDS = 5000  # that are looked at


class Loaded(NamedTuple):
    """A tokenizer, and what the files that it is from say of it."""

    tokenizer: Any  # of the library `tokenizers`
    notes: list[str]  # lines on what a user should know
    longest: int | None  # tokens of the longest text


def load_tokenizer(path: str, lower_case: bool | None) -> Loaded:
    """The tokenizer in the file at `path`.

    Args:
      path: `vocab.txt` or `tokenizer.json`.
      lower_case: whether letters are lower-cased, for `vocab.txt`; None is as the file beside it
        says, or else True.

    Raises:
      ValueError: the file, or the one beside it, is missing or no such file; names it.
    """
    file = user_path(path)
    if file.is_dir():
        inside = [name for name in ("tokenizer.json", "vocab.txt") if (file / name).is_file()]
        advice = f"set data.tokenizer={file / inside[-1]}" if inside else "give a file in it"
        raise ValueError(f"data.tokenizer = {path}: is a folder; {advice}")
    if not file.exists():
        raise ValueError(
            f"data.tokenizer = {path}: no such file; take vocab.txt or tokenizer.json from where "
            "the model's weights are from, such as huggingface.co/google-bert/bert-base-uncased"
        )
    if file.suffix == ".json" and lower_case is not None:
        raise ValueError(
            f"data.lower_case = {str(lower_case).lower()}: {path} decides itself; set none"
        )
    try:
        beside = config_beside(file)
        # Transformers writes 10**30 where it does not know.
        longest = beside.get("model_max_length")
        longest = longest if isinstance(longest, int) and 0 < longest < 10**9 else None
        if file.suffix == ".json":
            return Loaded(*_whole(file, beside), longest)
        words, notes = _words(file)
    except ValueError as error:
        raise ValueError(f"data.tokenizer = {error}") from error
    said = beside.get("do_lower_case")
    if None not in (said, lower_case) and said != lower_case:
        notes.append(
            f"data.lower_case = {str(lower_case).lower()}: {file.with_name(CONFIG)} says "
            f"{str(said).lower()}, as the model was trained; the setting is followed"
        )
    lower = next((value for value in (lower_case, said) if value is not None), True)
    tokenizer = _word_pieces(words, lower, beside)
    notes += [] if said is not None else _unlike(words, tokenizer, lower, path)
    return Loaded(tokenizer, notes, longest)


def _unlike(words: dict[str, int], tokenizer: Any, lower: bool, path: str) -> list[str]:
    """A line if the words look as if texts were changed otherwise when they were collected."""
    some = [word for word in words if not word.startswith("[")]
    some = some[:: len(some) // _WORDS + 1]
    change = tokenizer.normalizer.normalize_str
    lost = [word for word in some if change(word).strip() != word.strip()]
    if lower and len(lost) > len(some) / 10:
        return [
            f"{path}: {len(lost) / len(some):.0%} of its words, such as {excerpt(lost[-1])}, are "
            "in no text that is lower-cased; if the model is a cased one, set data.lower_case=false"
        ]
    if not lower and some and all(word == word.lower() for word in some):
        return [
            f"{path}: no word has a capital letter, but texts keep theirs; if the model is an "
            "uncased one, set data.lower_case=true"
        ]
    return []


def _word_pieces(words: dict[str, int], lower: bool, beside: dict[str, Any]) -> Any:
    """The tokenizer of the original, whose parts a `tokenizer.json` names itself."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = models.WordPiece(words, unk_token="[UNK]", max_input_chars_per_word=100)
    tokenizer = Tokenizer(pieces)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lower,
        strip_accents=beside.get("strip_accents"),
        handle_chinese_chars=beside.get("tokenize_chinese_chars") is not False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _words(file: Path) -> tuple[dict[str, int], list[str]]:
    """Word -> number of its line, and notes on words that are there twice.

    As Transformers does, only line ends divide words: a word may be, or hold, any other space or
    separator. Of equal words the last counts. An empty line is no word, but has its number.
    """
    words: dict[str, int] = {}
    notes = []
    for number, word in enumerate(read_lines(file)):
        if word in words:
            notes.append(
                f"{file}: lines {words[word] + 1} and {number + 1} are both "
                f"{excerpt(word)}; the later one is its token, as in Transformers"
            )
        if word:
            words[word] = number
    more = [f"{file}: {len(notes) - 3} more words are there twice"] if len(notes) > 3 else []
    return words, notes[:3] + more


def read_tokenizer(file: Path) -> Any:
    """The tokenizer in a `tokenizer.json`, of the library `tokenizers`; raises `ValueError`."""
    from tokenizers import Tokenizer

    text = read_text(file)
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("\U0001f9ff")  # a model without its token for unknown words fails here
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises Exception itself, and a panic is none
        raise ValueError(f"{file}: not a tokenizer.json ({excerpt(str(error), 200)})") from error
    return tokenizer


def _whole(file: Path, beside: dict[str, Any]) -> tuple[Any, list[str]]:
    """The tokenizer in a `tokenizer.json`, and notes on what the file beside it says otherwise."""
    tokenizer = read_tokenizer(file)
    does = normalization(tokenizer)
    notes = [
        f"{file}: has {name} = {str(does[name]).lower()}, but {CONFIG} beside it says "
        f"{str(beside[name]).lower()}, which BertTokenizer of Transformers follows; {file.name} "
        "is followed"
        for name in _FLAGS[:3]
        if beside.get(name) not in (None, does.get(name))
    ]
    return tokenizer, notes


def config_beside(file: Path) -> dict[str, Any]:
    """The content of `tokenizer_config.json` in the folder of a file; empty if it is not there."""
    beside = file.with_name(CONFIG)
    if not beside.exists():
        return {}
    content = read_text(beside)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{beside}: not JSON ({error}); repair or remove it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{beside}: not a JSON object; repair or remove it")
    for name in _FLAGS:
        if not isinstance(found.get(name), bool | None):
            value = excerpt(json.dumps(found[name]))
            raise ValueError(f"{beside}: {name} is {value}: must be true, false or null")
    kind = found.get("tokenizer_class")
    if file.suffix != ".json":
        if kind is not None and str(kind).removesuffix("Fast") not in _CLASSES:
            raise ValueError(
                f"{beside}: tokenizer_class is {excerpt(str(kind))}, which cuts texts otherwise "
                "than BertTokenizer; take the files of a BERT"
            )
        if found.get("do_basic_tokenize") is False:
            raise ValueError(
                f"{beside}: do_basic_tokenize is false, which is not supported; take a "
                "tokenizer.json of that model"
            )
    return found


def normalization(tokenizer: Any) -> dict[str, bool]:
    """What a tokenizer does to a text before it cuts it, as `tokenizer_config.json` says it."""
    # Found by trying: a `tokenizer.json` may say the same in several ways.
    done = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    return {
        "do_lower_case": "a" in done("A"),
        "strip_accents": "\u0301" not in unicodedata.normalize("NFD", done("\u00e9")),
        "tokenize_chinese_chars": " \u4e2d " in done("a\u4e2da"),
    }
