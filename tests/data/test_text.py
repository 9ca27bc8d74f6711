"""WordPiece against the original's rules, and the arrays of a batch."""

import json
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from small_data import VOCABULARY, write_vocabulary

from pbr_jax.data import TextInputs
from pbr_jax.data.records import TextRecord


@pytest.fixture
def vocabulary(tmp_path):
    return write_vocabulary(tmp_path)


def prepared(inputs, *texts):
    """The batch, and its tokens as words without the padding."""
    pairs = [text if isinstance(text, tuple) else (text, None) for text in texts]
    batch = inputs([TextRecord(a, b, i, "") for i, (a, b) in enumerate(pairs)])
    rows = zip(batch["tokens"], batch["lengths"], strict=True)
    return batch, [[VOCABULARY[token] for token in row[:length]] for row, length in rows]


def test_a_batch_has_tokens_types_lengths_and_labels(vocabulary):
    batch, words = prepared(TextInputs(vocabulary, 12), ("A man walks.", "It's 2"), "a man")
    assert words == [
        ["[CLS]", "a", "man", "walk", "##s", ".", "[SEP]", "it", "'", "[UNK]", "2", "[SEP]"],
        ["[CLS]", "a", "man", "[SEP]"],
    ]
    assert batch["token_types"].tolist() == [[0] * 7 + [1] * 5, [0] * 12]
    assert batch["lengths"].tolist() == [12, 4] and batch["label"].tolist() == [0, 1]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    assert batch["tokens"].shape == (2, 12) and not batch["tokens"][1, 4:].any()


def test_the_longer_text_is_cut_first(vocabulary):
    inputs = TextInputs(vocabulary, 8)
    (_, words), (_, turned) = (
        prepared(inputs, ("1 2", "a man a man a man a man")),
        prepared(inputs, ("a man a man a man a man", "1 2")),
    )
    assert words == [["[CLS]", "1", "2", "[SEP]", "a", "man", "a", "[SEP]"]]
    assert turned == [["[CLS]", "a", "man", "a", "[SEP]", "1", "2", "[SEP]"]]
    batch, words = prepared(inputs, "a man a man a man a man")
    assert batch["lengths"].tolist() == [8] and words[0][-1] == "[SEP]"


def test_lower_case_also_strips_accents(vocabulary):
    _, words = prepared(TextInputs(vocabulary, 8), "A Café")
    assert words == [["[CLS]", "a", "caf", "##e", "[SEP]"]]
    _, words = prepared(TextInputs(vocabulary, 8, lower_case=False), "A café")
    assert words == [["[CLS]", "[UNK]", "caf", "##é", "[SEP]"]]


def test_special_tokens_in_a_text_are_text(vocabulary):
    _, words = prepared(TextInputs(vocabulary, 12), "a [SEP] man")
    assert words[0].count("[SEP]") == 1 and words[0][-1] == "[SEP]"


def test_tokenizer_json_gives_the_same(vocabulary, tmp_path):
    own = TextInputs(vocabulary, 10)
    path = tmp_path / "tokenizer.json"
    own._tokenizer.save(str(path))
    read = TextInputs(str(path), 10)
    texts = [("A man walks.", "It is 1"), ("a", None)]
    for name, array in prepared(own, *texts)[0].items():
        np.testing.assert_array_equal(array, prepared(read, *texts)[0][name])
    assert read.vocab_size == own.vocab_size == len(VOCABULARY)
    with pytest.raises(ValueError, match=r"data\.lower_case = false: .*tokenizer\.json decides"):
        TextInputs(str(path), 10, lower_case=False)
    without = json.loads(path.read_text())
    without["model"]["vocab"]["a"] = 4_000_000_000
    path.write_text(json.dumps(without))
    with pytest.raises(ValueError, match="has token 4000000000"):
        TextInputs(str(path), 10)
    without["model"]["vocab"] |= {"a": 5, "[CLS]": 1}
    path.write_text(json.dumps(without | {"added_tokens": []}))
    with pytest.raises(ValueError, match="has one number for several of"):
        TextInputs(str(path), 10)
    del without["model"]["vocab"]["[CLS]"]
    without["post_processor"] = None
    without["added_tokens"] = []
    path.write_text(json.dumps(without))
    with pytest.raises(ValueError, match=r"has no \[CLS\]; not of a BERT"):
        TextInputs(str(path), 10)
    del without["model"]["vocab"]["[UNK]"]
    panic = without | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A"}}
    for content in ("{}", "[" * 100_000, json.dumps(without), json.dumps(panic), ""):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
            TextInputs(str(path), 10)


def test_a_pair_of_words_is_the_shortest(vocabulary):
    _, words = prepared(TextInputs(vocabulary, 5), ("a man", "it is"))
    assert words == [["[CLS]", "a", "[SEP]", "it", "[SEP]"]]
    with pytest.raises(ValueError, match=r"model\.max_length = 4: must be 5 or more"):
        TextInputs(vocabulary, 4)


def test_wrong_vocabularies_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no such file; take vocab\.txt or .* huggingface\.co"):
        TextInputs(str(tmp_path / "vocab.txt"), 8)
    path = tmp_path / "vocab.txt"
    for content, message in [
        (b"[PAD]\n[UNK]\n[CLS]\n", r"has no \[SEP\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP] \n", r"has no \[SEP\], but '\[SEP\] '"),
        (b"\xff\xfe", r"vocab\.txt: is UTF-16: must be text in UTF-8"),
        (b"[PAD]\n[UNK]\n\xe9\n", r"vocab\.txt:3: is not UTF-8"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            TextInputs(str(path), 8)


def tokens_of(inputs, text):
    batch = inputs([TextRecord(text, None, 0, "")])
    return batch["tokens"][0, 1 : batch["lengths"][0] - 1].tolist()


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def test_only_line_ends_divide_the_words_of_a_vocabulary(tmp_path):
    odd = ["\u2028", "a", "\x85", "\x0b", "\xa0b", " c", "", "", "c ", "e\u3000", "d", "", ""]
    path = tmp_path / "vocab.txt"
    for end in ("\n", "\r\n"):
        path.write_bytes(("\ufeff" + end.join(SPECIAL + odd)).encode())
        inputs = TextInputs(str(path), 8)
        # The number of a token is that of its line; spaces are part of a word, which no text has.
        assert tokens_of(inputs, "a d c b") == [5, 14, 1, 1] and not inputs.notes
        assert inputs.vocab_size == 15  # empty lines at the end are no words


def test_of_equal_words_the_last_counts_and_both_lines_are_named(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, "a", "b", "a"]))
    inputs = TextInputs(str(path), 8)
    assert tokens_of(inputs, "a b") == [6, 5]
    assert inputs.notes[0].startswith(f"{path}: lines 5 and 7 are both a; the later one")


def test_words_that_look_like_another_casing_are_told(vocabulary, tmp_path):
    (note,) = TextInputs(vocabulary, 8, lower_case=False).notes
    assert "no word has a capital letter" in note and "set data.lower_case=true" in note
    path = tmp_path / "cased.txt"
    path.write_text("\n".join([*SPECIAL, "a", "A", "\u4e2d", "b"]))
    (note,) = TextInputs(str(path), 8).notes
    assert "25% of its words, such as A, are in no text that is lower-cased" in note
    assert "set data.lower_case=false" in note
    assert TextInputs(str(path), 8, lower_case=False).notes == []
    with pytest.raises(ValueError, match=r"is a folder; set data\.tokenizer=.*vocab\.txt$"):
        TextInputs(str(tmp_path), 8)


def write_config(folder, **settings):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_the_file_beside_a_vocabulary_says_how_texts_are_changed(vocabulary, tmp_path):
    unknown = VOCABULARY.index("[UNK]")

    def cut(text, lower_case=None):
        inputs = TextInputs(vocabulary, 16, lower_case)
        return [VOCABULARY[token] for token in tokens_of(inputs, text)], inputs.notes

    write_config(tmp_path, do_lower_case=False, tokenizer_class="BertTokenizerFast")
    assert cut("A caf\u00e9") == (["[UNK]", "caf", "##\u00e9"], [])
    words, (note,) = cut("A caf\u00e9", lower_case=True)
    assert words == ["a", "caf", "##e"] and "data.lower_case = true: " in note
    assert "tokenizer_config.json says false" in note
    write_config(tmp_path, strip_accents=False, model_max_length=10**30)
    assert cut("A caf\u00e9") == (["a", "caf", "##\u00e9"], [])
    write_config(tmp_path, tokenize_chinese_chars=False, model_max_length=8)
    words, (note,) = cut("1\u4e2d")
    assert words == [VOCABULARY[unknown]] and "model.max_length = 16: the files of" in note
    write_config(tmp_path)
    assert cut("1\u4e2d")[0] == ["1", VOCABULARY[unknown]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"tokenizer_class": "RobertaTokenizer"}', "tokenizer_class is RobertaTokenizer"),
        ('{"do_lower_case": "no"}', 'do_lower_case is "no": must be true, false or null'),
        ('{"do_basic_tokenize": false}', "do_basic_tokenize is false"),
        ("[]", "not a JSON object"),
        ("{", r"not JSON \("),
        ("[" * 100_000, r"not JSON \("),
    ],
)
def test_a_file_beside_a_vocabulary_that_does_not_fit_is_named(
    vocabulary, tmp_path, content, message
):
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"data\.tokenizer = .*tokenizer_config\.json: {message}"):
        TextInputs(vocabulary, 8)


def test_a_tokenizer_says_how_it_changes_texts(vocabulary, tmp_path):
    def says(*values):
        names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
        return dict(zip(names, values, strict=True))

    inputs = TextInputs(vocabulary, 8)
    assert inputs.normalization == says(True, True, True)
    assert TextInputs(vocabulary, 8, lower_case=False).normalization == says(False, False, True)
    path = tmp_path / "tokenizer.json"
    tree = json.loads(inputs._tokenizer.to_str())
    lower, marks = {"type": "Lowercase"}, {"type": "StripAccents"}
    for normalizer, expected in [
        (None, says(False, False, False)),
        (lower, says(True, False, False)),
        ({"type": "Sequence", "normalizers": [{"type": "NFD"}, marks]}, says(False, True, False)),
    ]:
        path.write_text(json.dumps(tree | {"normalizer": normalizer}))
        assert TextInputs(str(path), 8).normalization == expected
    # What Transformers would follow is told.
    write_config(tmp_path, do_lower_case=True)
    (note,) = TextInputs(str(path), 8).notes
    assert "has do_lower_case = false, but tokenizer_config.json beside it says true" in note


def test_unknown_words_and_texts_that_are_cut_are_told(vocabulary, tmp_path):
    def remarks(*texts, path=vocabulary, lower_case=None, length=8):
        inputs = TextInputs(path, length, lower_case)
        return inputs.remarks([TextRecord(*text, 0, "") for text in texts])

    assert remarks() == remarks(("a man", None), ("it is", "1 2")) == []
    (line,) = remarks(("un homme", None), ("a", "marche"))
    assert line.startswith("75% of the tokens of the first 2 texts are [UNK], such as un: ")
    assert line.endswith("is it of another language, or of another model?")
    (line,) = remarks(("A MAN", "IT IS"), lower_case=False)
    assert "100% " in line and "such as A: " in line
    assert line.endswith("with data.lower_case=true 0% are")
    long = ("a " * 20, None)
    assert remarks(long, ("a", None)) == []
    (line,) = remarks(long, ("a", "man " * 10_000))
    assert line == "2 of the first 2 texts are cut at model.max_length = 8 tokens"


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=8))
def test_any_text_is_a_vocabulary(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "any_vocab.txt"
    text = "\n".join([*SPECIAL, *words])
    path.write_bytes(text.encode())
    known = TextInputs(str(path), 8)._tokenizer.get_vocab()
    lines = re.split("\r\n|\r|\n", text)
    assert known == {word: number for number, word in enumerate(lines) if word}


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.sampled_from(["vocab.txt", "tokenizer.json"]), st.binary(max_size=40))
def test_any_bytes_are_a_tokenizer_or_an_error(tmp_path_factory, name, content):
    path = tmp_path_factory.getbasetemp() / f"any_{name}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^data\.tokenizer = .*any_"):
        TextInputs(str(path), 8)
