"""What lies beside weights is used, or named: the classes of a head, the model, its images."""

import json

import jax
import numpy as np
import pytest
from fakes import random_params, vit, words
from published import as_huggingface_vit, google_vit, huggingface_bert
from safetensors.numpy import save_file

from pbr_jax import weights as public
from pbr_jax.weights.beside import Rows, rows

NAMES = ("ant", "bee", "cat", "dog", "Eel_Fish")
OURS = ("dog", "ant", "Eel_Fish", "bee", "cat")
INITIAL = random_params(vit(), 7)
GOOGLE = google_vit()


@pytest.fixture
def folder(tmp_path):
    """A ViT of Hugging Face's with five classes."""
    save_file(as_huggingface_vit(GOOGLE), tmp_path / "model.safetensors")
    return tmp_path


def say(folder, name="config.json", /, **content):
    """Writes a JSON file beside the weights; `config.json` is of a ViT."""
    content = ({"model_type": "vit"} if name == "config.json" else {}) | content
    (folder / name).write_text(json.dumps(content))


def load(path, class_names=OURS):
    return public.load(public.read(path), *words(vit()), INITIAL, class_names)


def labels(names):
    return {str(label): name for label, name in enumerate(names)}


def inverse(names):
    return {name: label for label, name in enumerate(names)}


@pytest.mark.parametrize(
    "said",
    [
        {"id2label": labels(NAMES)},
        {"id2label": dict(reversed(labels(NAMES).items()))},
        {"label2id": inverse(NAMES)},
        {"label2id": {name: str(label) for name, label in inverse(NAMES).items()}},
        {"id2label": labels(f"LABEL_{i}" for i in range(5)), "label2id": inverse(NAMES)},
        {"id2label": labels(name.upper() for name in NAMES)},
        {"id2label": labels(name.lower().replace("_", " ") for name in NAMES)},
    ],
)
def test_the_rows_of_a_head_follow_their_classes(folder, said):
    say(folder, **said)
    params, notes = load(folder)
    columns = [NAMES.index(name) for name in OURS]
    np.testing.assert_array_equal(params["head"]["kernel"], GOOGLE["head/kernel"][:, columns])
    np.testing.assert_array_equal(params["head"]["bias"], GOOGLE["head/bias"][columns])
    (note,) = notes
    assert "its classes lie in another order" in note and "dog, ant, Eel_Fish, bee, cat" in note


def test_composed_and_decomposed_accents_are_one_class():
    assert rows(("b", "é"), ("e\u0301", "b")).order == [1, 0]


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        ({"id2label": labels(NAMES)}, NAMES),
        ({"id2label": labels(name.lower() for name in NAMES)}, NAMES),
        ({"id2label": labels(f"LABEL_{i}" for i in range(5))}, OURS),
        ({"id2label": labels("01234")}, OURS),
        ({"id2label": {}, "label2id": None}, OURS),
        ({}, OURS),
        ({}, None),
    ],
)
def test_a_head_whose_classes_are_the_same_or_unknown_stays_without_a_note(folder, said, ours):
    say(folder, **said)
    params, notes = load(folder, ours)
    np.testing.assert_array_equal(params["head"]["kernel"], GOOGLE["head/kernel"])
    assert notes == []


@pytest.mark.parametrize(
    ("ours", "has"),
    [
        (("ant", "bee", "cat", "dog", "fox"), "it has ant, bee, cat, dog; the"),
        (("ant", "ant_", "x", "y", "z"), "it has ant; the|it has ant, ant_; the"),
        (("v", "w", "x", "y", "z"), "it has none; the"),
    ],
)
def test_a_head_of_other_classes_starts_afresh(folder, ours, has):
    say(folder, id2label=labels(NAMES))
    params, (note,) = load(folder, ours)
    jax.tree.map(np.testing.assert_array_equal, params["head"], INITIAL["head"])
    np.testing.assert_array_equal(params["cls"], GOOGLE["cls"])
    assert "a head of other classes, ant, bee, cat, dog, Eel_Fish" in note
    assert any(text in note for text in has.split("|"))


@pytest.mark.parametrize(
    ("ours", "why"), [(None, "are not known here"), (tuple("01234"), "are numbers")]
)
def test_classes_that_cannot_be_compared_are_named(folder, ours, why):
    say(folder, id2label=labels(NAMES))
    params, (note,) = load(folder, ours)
    np.testing.assert_array_equal(params["head"]["kernel"], GOOGLE["head/kernel"])
    assert "the classes of its head are ant, bee, cat, dog, Eel_Fish" in note and why in note


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"id2label": labels("abcdef")}, "6 for a head of 5"),
        ({"id2label": {"0": "a", "2": "b"}}, "gives no name to each label"),
        ({"id2label": {"one": "a"}}, "gives no name to each label"),
        ({"label2id": {"a": float("inf")}}, "gives no name to each label"),
        ({"id2label": ["a", "b"]}, "gives no name to each label"),
        ({"id2label": labels("aabcd")}, "gives two labels one name"),
    ],
)
def test_names_that_make_no_sense_are_named_and_not_used(folder, said, why):
    say(folder, **said)
    params, (note,) = load(folder)
    np.testing.assert_array_equal(params["head"]["kernel"], GOOGLE["head/kernel"])
    assert "the names of its classes are not used" in note and why in note


def test_an_orbax_export_knows_its_classes(tmp_path):
    family, sizes = words(vit())
    public.save(tmp_path / "out", "orbax", family, INITIAL, sizes, NAMES)
    params, (note,) = load(tmp_path / "out")
    columns = [NAMES.index(name) for name in OURS]
    expected = np.asarray(INITIAL["head"]["bias"])[columns]
    np.testing.assert_array_equal(params["head"]["bias"], expected)
    assert "its classes lie in another order" in note


def test_the_rows_of_no_names_are_as_they_are():
    assert rows((), ("a", "b")) == Rows() == rows((), None)


REMARKS = [
    ({"hidden_act": "quick_gelu"}, "hidden_act = quick_gelu, the model computes gelu"),
    ({"layer_norm_eps": 1e-12}, "layer_norm_eps = 1e-12, the model computes 1e-06"),
    ({"patch_size": 16, "image_size": [4, 4]}, "patch_size = 16, its arrays 2"),
    ({"image_size": 224, "num_channels": 3}, "image_size = 224, its arrays 4"),
    ({"hidden_size": "wide"}, "hidden_size = wide, its arrays 16"),
    ({"num_hidden_layers": 12, "num_attention_heads": 2}, "num_hidden_layers = 12, its arrays 2"),
    ({"model_type": "vit_mae"}, "a ViT-MAE, pretrained without classes"),
    ({"model_type": "vit_msn"}, "a ViT-MSN, pretrained without classes"),
]


@pytest.mark.parametrize(("said", "remark"), REMARKS)
def test_a_config_of_another_model_is_named(folder, said, remark):
    say(folder, **said)
    weights = public.read(folder)
    (found,) = public.remarks(weights)
    assert remark in found
    assert load(folder).notes == [f"{folder}: {found}"]


def test_a_config_of_the_same_model_says_nothing(folder):
    family, sizes = words(vit())
    public.save(folder, "safetensors", family, INITIAL, sizes, NAMES)
    assert public.remarks(public.read(folder)) == []


def test_the_decoder_of_a_mae_is_left_out_with_its_config_too(folder):
    arrays = as_huggingface_vit(GOOGLE) | {"decoder.mask_token": np.zeros((1, 1, 8), np.float32)}
    arrays = {name: a for name, a in arrays.items() if not name.startswith("classifier")}
    save_file(arrays, folder / "model.safetensors")
    say(folder, model_type="vit_mae")
    assert public.own_faults(public.read(folder)) == []
    notes = load(folder).notes
    assert any("no head; the head of 5 classes starts afresh" in note for note in notes)
    assert any("not used: decoder.mask_token" in note for note in notes)
    assert any("--config.model.pool=mean" in note for note in notes)


def test_a_bert_that_counts_positions_otherwise_is_named(tmp_path):
    save_file(huggingface_bert(), tmp_path / "model.safetensors")
    say(tmp_path, model_type="bert", position_embedding_type="relative_key", is_decoder=True)
    first, second = public.remarks(public.read(tmp_path))
    assert "position_embedding_type = relative_key, the model computes absolute" in first
    assert "is_decoder = True" in second


@pytest.mark.parametrize("heads", [3, 0, -2, 2.0, "2", [2]])
def test_heads_that_cannot_be_are_refused(folder, heads):
    say(folder, num_attention_heads=heads)
    with pytest.raises(ValueError, match=r"config.json says num_attention_heads = .*width .*, 16"):
        public.read(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 99_999])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_damaged_file_beside_weights_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{folder}/{name}.*or move it away"):
        public.read(folder)
        public.preparation_of(folder)
    (folder / name).rename(folder / "away")
    public.read(folder)
    assert public.preparation_of(folder) is None


IMAGENET = public.Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SAID = {"image_mean": list(IMAGENET.mean), "image_std": list(IMAGENET.std)}
TIMM = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("preprocessor_config.json", SAID, IMAGENET),
        ("preprocessor_config.json", {"image_processor": SAID}, IMAGENET),
        ("preprocessor_config.json", {"pretrained_cfg": TIMM}, IMAGENET),
        ("processor_config.json", {"image_processor": SAID}, IMAGENET),
        ("config.json", {"pretrained_cfg": TIMM}, IMAGENET),
        ("preprocessor_config.json", {"do_resize": True}, ((0.5,), (0.5,))),
        ("preprocessor_config.json", {"image_mean": 0.25, "image_std": [0.5]}, ((0.25,), (0.5,))),
        ("preprocessor_config.json", {"rescale_factor": 1 / 255} | SAID, IMAGENET),
        ("preprocessor_config.json", {"rescale_factor": 0.00392156862745098} | SAID, IMAGENET),
        (
            "preprocessor_config.json",
            {"do_rescale": False, "image_mean": [127.5], "image_std": [127.5]},
            ((0.5,), (0.5,)),
        ),
        (
            "preprocessor_config.json",
            {"rescale_factor": 1 / 127.5, "image_mean": [1.0], "image_std": [1.0]},
            ((0.5,), (0.5,)),
        ),
        ("preprocessor_config.json", {"do_normalize": False} | SAID, ((0.0,), (1.0,))),
    ],
)
@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_mean_and_deviation_are_read_in_all_their_forms(folder, name, content, expected, file):
    say(folder, name, **content)
    found = public.preparation_of(folder / file)
    assert found.file == folder / name and found.notes == []
    np.testing.assert_allclose(found.normalization.mean, expected[0], rtol=1e-12)
    np.testing.assert_allclose(found.normalization.std, expected[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_mean": "0.5"}, "image_mean = '0.5': must be a number, or a list"),
        ({"image_mean": []}, r"image_mean = \[\]: must be a number, or a list"),
        (
            {"image_std": [0, 0.5, 0.5]},
            r"image_std = .*in \[0, 1\] it must be from 0.001 to 1",
        ),
        ({"image_mean": [127.5]}, r"image_mean = \[127.5\]: for pixels in \[0, 1\]"),
        ({"image_mean": [float("nan")]}, "must be a number, or a list"),
        ({"image_std": [True]}, "must be a number, or a list"),
        ({"rescale_factor": 0}, "rescale_factor = 0: must be a number above 0"),
        ({"rescale_factor": 10**400}, r"rescale_factor = 1000+\.\.\.0+: must be a number"),
        ({"do_normalize": False, "rescale_factor": 1e-9}, "leaves nothing of pixels"),
        ({"image_mean": [10**400]}, r"image_mean = \[1000+\.\.\.0+\]: must be a number"),
        ({"rescale_factor": None}, "rescale_factor = None: must be a number above 0"),
    ],
)
def test_a_preparation_without_a_meaning_is_named(folder, content, message):
    say(folder, "preprocessor_config.json", **content)
    with pytest.raises(ValueError, match=rf"{folder}/preprocessor_config.json: .*{message}"):
        public.preparation_of(folder)


def test_what_is_prepared_otherwise_here_is_named(folder):
    said = {"resample": 3, "do_center_crop": True, "do_flip_channel_order": True, "size": 224}
    say(folder, "preprocessor_config.json", **said)
    found = public.preparation_of(folder)
    assert [note.partition(": ")[2] for note in found.notes] == [
        "resample = 3; here images are resized bilinearly",
        "do_center_crop = True; here whole images are resized",
        "do_flip_channel_order = True; here channels are red, green and blue",
    ]


@pytest.mark.parametrize(
    ("said", "side"),
    [
        ({"size": 224}, 224),
        ({"size": {"height": 384, "width": 384}}, 384),
        ({"size": {"shortest_edge": 256}}, 256),
        ({"size": [32, 32]}, 32),
        ({"input_size": [3, 224, 224]}, 224),
        ({"size": {"height": 1, "width": 2}}, None),
        ({"size": "224"}, None),
        ({}, None),
    ],
)
def test_the_size_of_images_is_read_in_all_its_forms(folder, said, side):
    say(folder, "preprocessor_config.json", **{"do_resize": True} | said)
    assert public.preparation_of(folder).side == side


@pytest.mark.parametrize("container", ["safetensors", "orbax"])
def test_an_export_says_how_its_images_were_prepared(tmp_path, container):
    family, sizes = words(vit())
    public.save(tmp_path, container, family, INITIAL, sizes, NAMES, IMAGENET)
    assert public.preparation_of(tmp_path).normalization == IMAGENET
