"""WordPiece against the original's rules, and the arrays of a batch."""

import json

import numpy as np
import pytest
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
    del without["model"]["vocab"]["[CLS]"]
    without["post_processor"] = None
    without["added_tokens"] = []
    path.write_text(json.dumps(without))
    with pytest.raises(ValueError, match=r"has no \[CLS\]; not of a BERT"):
        TextInputs(str(path), 10)
    path.write_text("{}")
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
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na\n", "lists a word more than once"),
        (b"\xff\xfe", r"not a vocab\.txt"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            TextInputs(str(path), 8)
