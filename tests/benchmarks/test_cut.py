"""A vocabulary cut to the words of a task: the same pieces, and the same logits."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest
from published import BLOCKS, CLASSES, HEADS, MLP, POSITIONS, VOCAB, WIDTH, huggingface_bert

from pbr_jax.configs.common import Config, Model
from pbr_jax.data.records import TextRecord
from pbr_jax.data.text import TextInputs
from pbr_jax.training import from_config

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks/real"
SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["a", "un", "able", "##able", "##a", "##ble", "unable", "b", "##b", "."]
TEXTS = ["Unable ab.", "bable q a", "Unablea"]


@pytest.fixture(scope="module")
def cut():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("cut")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("cut", "packages"):
            sys.modules.pop(name, None)


@pytest.fixture
def folders(cut, tmp_path):
    """A model of `VOCAB` words, and the one that is cut to `TEXTS`."""
    from safetensors.numpy import save_file

    whole = tmp_path / "whole"
    whole.mkdir()
    save_file(huggingface_bert(), whole / "model.safetensors")
    words = [*SPECIAL, *PIECES]
    words += [f"word{i}" for i in range(VOCAB - len(words))]
    (whole / "vocab.txt").write_text("\n".join(words))
    (whole / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": VOCAB}))
    (whole / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return whole, tmp_path / "cut", cut.cut(whole, TEXTS, tmp_path / "cut")


def logits(folder, vocab_size):
    model = Model(
        family="bert",
        width=WIDTH,
        depth=BLOCKS,
        heads=HEADS,
        mlp_dim=MLP,
        vocab_size=vocab_size,
        max_length=POSITIONS,
        num_classes=CLASSES,
        weights=str(folder),
    )
    config = Config(method="full", model=model)
    model = from_config.build(config).model
    params, _, _ = model.begin(config.seed)
    inputs = TextInputs(str(folder / "vocab.txt"), POSITIONS)
    batch = inputs([TextRecord(text, None, 0, "") for text in TEXTS])
    tokens = [inputs._tokenizer.encode(text).tokens for text in TEXTS]
    return model.outputs((params, ()), batch), tokens


def test_fewer_words_give_the_same_pieces_and_the_same_logits(folders):
    whole, less, count = folders
    assert len(SPECIAL) < count < VOCAB
    assert json.loads((less / "config.json").read_text())["vocab_size"] == count
    ours, pieces = logits(whole, VOCAB)
    theirs, same = logits(less, count)
    assert pieces == same
    assert "[UNK]" in pieces[1] and "unable" in pieces[0] and "##able" in pieces[1]
    np.testing.assert_array_equal(ours, theirs)


def test_the_words_keep_their_order_and_their_rows(cut, folders):
    from safetensors.numpy import load_file

    whole, less, _ = folders
    before, after = ((f / "vocab.txt").read_text().split() for f in (whole, less))
    kept = [before.index(word) for word in after]
    assert kept == sorted(kept) and "[unused0]" not in after
    name = f"bert.{cut.WORDS}"
    rows, fewer = (load_file(f / "model.safetensors")[name] for f in (whole, less))
    np.testing.assert_array_equal(rows[kept], fewer)
