"""Weights that are damaged, too large, or made to do harm: refused by name, and nothing is lost."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from fakes import random_params, vit, words
from hypothesis import given, settings
from hypothesis import strategies as st
from published import as_huggingface_vit, google_vit
from safetensors.numpy import load_file, save, save_file

from pbr_jax import weights as public

HUGGING_FACE = as_huggingface_vit(google_vit())
INITIAL = random_params(vit())


def with_header(change, arrays=HUGGING_FACE):
    """A file of safetensors whose header `change` has been at."""
    content = save(arrays)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[end:]


def retyped(kind):
    return lambda header: header["classifier.bias"].update(dtype=kind)


def reshaped(header):
    header["classifier.bias"]["shape"] = [2**62, 3]


def swapped(header):
    header["classifier.bias"]["data_offsets"].reverse()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (save(HUGGING_FACE)[:-5], r"cut short: 5 of \d+ bytes are missing; download it again"),
        (save(HUGGING_FACE)[:900], r"cut short: \d+ bytes of its header are missing, and all arr"),
        (save(HUGGING_FACE) + b"more", r"damaged: 4 bytes follow its arrays"),
        (b"\xff\xff\xff\xff\0\0\0\0{", r"damaged: a header of 4294967295 bytes"),
        (b"\x05\0\0\0\0\0\0\0{bad}", r"damaged: its header is no JSON"),
        (b"\x40\x0d\x03\0\0\0\0\0{" + 199_999 * b"[", r"damaged: its header is no JSON"),
        (b'\x0a\0\0\0\0\0\0\0{"a": [3]}', r"damaged: in its header a must be an object"),
        (with_header(reshaped), r"damaged \("),
        (with_header(swapped), r"damaged \("),
        (with_header(retyped("F8_E4M3")), r"has arrays of type F8_E4M3, which are not read; take"),
        (with_header(retyped("F8_E5M2")), r"has arrays of type F8_E5M2, which are not read"),
        (with_header(retyped("I32")), r"1 of its arrays hold int32, such as classifier.bias"),
    ],
)
def test_a_damaged_header_is_named(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights {tmp_path}/?\S*: {message}"):
        public.read(tmp_path)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.zeros(16, np.complex64), "complex64"),
        (np.zeros(16, np.int8), "int8"),
        (np.zeros(16, bool), "bool"),
        (np.full(16, "text"), "str128"),
        (np.zeros(16, [("a", "f4")]), "void32"),
        (np.zeros(16, ml_dtypes.bfloat16), "void16"),
    ],
)
def test_arrays_that_are_no_floats_are_named(tmp_path, array, kind):
    np.savez(tmp_path / "a.npz", **google_vit() | {"embedding/bias": array})
    with pytest.raises(ValueError, match=f"1 of its arrays hold {kind}, such as embedding/bias"):
        public.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "name",
    [
        "cls",
        "embedding/kernel",
        "Transformer/posembed_input/pos_embedding",
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel",
        "head/bias",
    ],
)
def test_empty_arrays_and_single_numbers_are_misshapen(tmp_path, name):
    path = tmp_path / "a.npz"
    for shape in ((), (0,), (16, 0), (2**16, 0), (1, 0, 16), (1, 1, 0), (0, 5, 16)):
        np.savez(path, **google_vit() | {name: np.zeros(shape, np.float32)})
        weights = public.read(path)
        (fault,) = public.own_faults(weights)
        assert fault.startswith(f"{name} is {shape}, the model wants ")
        with pytest.raises(public.WeightsError, match=f"{name} is "):
            public.load(weights, *words(vit()), INITIAL)


def test_a_block_whose_number_has_thousands_of_digits_is_no_block(tmp_path):
    name = f"Transformer/encoderblock_{'9' * 5000}/LayerNorm_0/scale"
    np.savez(tmp_path / "a.npz", **google_vit() | {name: np.zeros(16, np.float32)})
    (fault,) = public.own_faults(public.read(tmp_path / "a.npz"))
    assert fault == f"not in the model: {name}"


def test_numbers_that_float32_does_not_hold_are_not_finite(tmp_path):
    arrays = google_vit()
    arrays["cls"] = np.full_like(arrays["cls"], 1e300, np.float64)
    np.savez(tmp_path / "a.npz", **arrays)
    assert public.own_faults(public.read(tmp_path / "a.npz")) == [
        "cls has values that are not finite in float32"
    ]


def test_weights_without_blocks_are_no_model(tmp_path):
    arrays = {n: a for n, a in google_vit().items() if "block" not in n}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="has none of the blocks of ViT in Google's layout"):
        public.read(tmp_path / "a.npz")


def test_what_the_memory_cannot_hold_is_said_before_it_is_read(tmp_path):
    save_file(HUGGING_FACE, tmp_path / "model.safetensors")
    (tmp_path / "index.json").write_bytes(INDEX)
    np.savez(tmp_path / "a.npz", **google_vit())
    with mock.patch("pbr_jax.measure.memory.host_room", return_value=mock.Mock(free=10)):
        for name in ("", "index.json", "a.npz"):
            with pytest.raises(ValueError, match=r"take [\d.]+ kB of memory, and 10 B are free"):
                public.read(tmp_path / name)


def test_zeros_that_unpack_to_very_much_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("pbr_jax.npz._LARGE", 2**16)
    np.savez_compressed(tmp_path / "a.npz", cls=np.zeros(2**20, np.float32))
    with pytest.raises(ValueError, match=r"cls is [\d.]+ kB that unpack to 4.19 MB"):
        public.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": ["a"]}, "weight_map must be an object, not .*so it is not the index"),
        ({"weight_map": {"a": 3}}, "weight_map.a has a wrong value, 3"),
        ({"weight_map": {"a": "../b.safetensors"}}, "names of files beside it, not '../b.safete"),
        ({"weight_map": {"a": "/etc/passwd"}}, "names of files beside it, not '/etc/passwd'"),
        ({"weight_map": {"a": ".."}}, "1 of 1 shards are not beside it: .."),
        ({"weight_map": {"a": ""}}, "1 of 1 shards are not beside it: "),
        ({"weight_map": {"a": "page"}}, "page: a web page; download"),
        ({"weight_map": {"a": "a", "b": "again"}}, "again and another shard both have a; download"),
        ({"weight_map": {}}, "of its 0 arrays none belongs"),
    ],
)
def test_an_index_reads_only_shards_beside_it(tmp_path, content, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for place in (tmp_path / "b.safetensors", folder / "a", folder / "again"):
        save_file({"a": np.zeros(3)}, place)
    (folder / "page").write_bytes(b"<html>")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        public.read(folder)
    assert str(raised.value).startswith(f"weights {folder}")


def test_a_shard_alone_asks_for_its_index(tmp_path):
    for number in (1, 2):
        save_file(HUGGING_FACE, tmp_path / f"model-0000{number}-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(ValueError, match=f"one of 2 shards; name {index}"):
        public.read(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match=f"its shards need {index.name}, from where"):
        public.read(tmp_path)
    # A single one is a file like any other.
    (tmp_path / "one").mkdir()
    save_file(HUGGING_FACE, tmp_path / "one" / "model-00001-of-00001.safetensors")
    assert public.read(tmp_path / "one" / "model-00001-of-00001.safetensors").family == "vit"


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "a/" * 3000])
def test_a_path_that_cannot_be_is_no_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no such file"):
        public.read(tmp_path / name)
    assert public.preparation_of(tmp_path / name) is None


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"weights .*a.npz: is a named pipe, not a file"):
        public.read(tmp_path / "a.npz")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbax") / "export"
    family, sizes = words(vit())
    public.save(folder, "orbax", family, INITIAL, sizes, "abcde")
    return folder


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (b"", "is empty; write it again with `pbr export`"),
        (b"[]", "its content must be an object"),
        (b'{"family": "vit"}', "lacks 'sizes'"),
        (b'{"family": "vit", "sizes": {"depth": "2"}}', "sizes.depth has a wrong value, '2'"),
        (b'{"family": "vit", "sizes": {"depth": 2, "patch": 0}}', "patch = 0: must be 1 or more"),
        (b'{"family": "resnet", "sizes": {"depth": 2}}', "family = resnet: there are vit, bert"),
    ],
)
def test_a_damaged_description_of_an_export_is_named(exported, tmp_path, described, message):
    (tmp_path / "params").symlink_to(exported / "params")
    (tmp_path / "architecture.json").write_bytes(described)
    with pytest.raises(ValueError, match=rf"weights {tmp_path}/architecture.json.*{message}"):
        public.read(tmp_path)
    (tmp_path / "architecture.json").unlink()
    with pytest.raises(ValueError, match=r"architecture.json: cannot be read .*write it again"):
        public.read(tmp_path)


def test_a_family_that_a_file_names_is_not_imported(exported, tmp_path, monkeypatch):
    from pbr_jax.training import pretrained

    (tmp_path / "params").symlink_to(exported / "params")
    described = json.loads((exported / "architecture.json").read_text())
    described["family"] = "a_module_of_the_file:FAMILY"
    (tmp_path / "architecture.json").write_text(json.dumps(described))
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imports {name}"))
    weights = public.read(tmp_path)
    assert pretrained.describe(weights).startswith("a a_module_of_the_file:FAMILY of width 16")


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_a_damaged_orbax_export_is_named_without_a_traceback(exported, tmp_path, damage, capfd):
    shutil.copytree(exported, tmp_path / "copy")
    largest = max((tmp_path / "copy" / "params").rglob("*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content[:9] if damage == "truncate" else content)
    if damage == "remove":
        largest.unlink()
    name = largest.relative_to(tmp_path / "copy" / "params")
    with pytest.raises(ValueError, match=rf"damaged or missing: {name}; write it again"):
        public.read(tmp_path / "copy")
    assert capfd.readouterr().err == ""


def test_an_orbax_folder_of_another_hand_is_named_when_it_cannot_be_read(exported, tmp_path):
    (tmp_path / "params").mkdir()
    described = json.loads((exported / "architecture.json").read_text()) | {"files": {}}
    (tmp_path / "architecture.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=rf"weights {tmp_path}/params: not a readable Orbax check"):
        public.read(tmp_path)


@pytest.mark.parametrize("name", ["[x]", "a\\b", "größe"])
def test_an_orbax_export_may_have_any_name(tmp_path, name):
    family, sizes = words(vit())
    public.save(tmp_path / name, "orbax", family, INITIAL, sizes, "abcde")
    weights = public.read(tmp_path / name)
    np.testing.assert_array_equal(weights.arrays["head/kernel"], INITIAL["head"]["kernel"])
    assert public.own_faults(weights) == []


NPZ, SAFETENSORS = "a.npz", "model.safetensors"
INDEX = json.dumps({"weight_map": dict.fromkeys(HUGGING_FACE, SAFETENSORS)}).encode()
CONFIG = b'{"model_type": "vit", "num_attention_heads": 2, "id2label": {"0": "a", "1": "b"}}'


def made(name):
    """The content of a sound file."""
    if name == NPZ:
        with tempfile.TemporaryFile() as file:
            np.savez_compressed(file, **google_vit())
            file.seek(0)
            return file.read()
    return {SAFETENSORS: save(HUGGING_FACE), "index.json": INDEX, "config.json": CONFIG}[name]


@st.composite
def damage(draw):
    """A file's name, and its content cut short, changed in some bytes, or of any bytes."""
    name = draw(st.sampled_from([NPZ, SAFETENSORS, "index.json", "config.json"]))
    sound = SOUND[name]
    kind = draw(st.sampled_from(["cut", "changed", "any"]))
    if kind == "cut":
        return name, sound[: draw(st.integers(0, len(sound)))]
    if kind == "any":
        start = draw(st.sampled_from([b"", sound[:9], b"PK\x03\x04"]))
        return name, start + draw(st.binary(max_size=99))
    content = bytearray(sound)
    # Most of a file are arrays, where a change does not matter: its ends are hit more often.
    places = st.one_of(st.integers(0, 200), st.integers(-200, -1), st.integers(0, len(sound) - 1))
    for place in draw(st.lists(places, min_size=1, max_size=5)):
        content[place % len(sound)] = draw(st.integers(0, 255))
    return name, bytes(content)


SOUND = {name: made(name) for name in (NPZ, SAFETENSORS, "index.json", "config.json")}


@settings(max_examples=60, deadline=None)
@given(damage())
def test_any_bytes_are_read_or_refused_by_name(damaged):
    changed, content = damaged
    with tempfile.TemporaryDirectory() as folder:
        for name, sound in (SOUND | {changed: content}).items():
            (Path(folder) / name).write_bytes(sound)
        read = Path(folder) / (SAFETENSORS if changed == "config.json" else changed)
        said = folder
        try:
            weights = public.read(read)
            public.own_faults(weights)
            public.load(weights, *words(vit()), INITIAL, "abcde")
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
        assert folder in said


def test_the_sound_files_are_read(tmp_path):
    for name, content in SOUND.items():
        (tmp_path / name).write_bytes(content)
    for name in (NPZ, SAFETENSORS, "index.json"):
        assert public.own_faults(public.read(tmp_path / name)) == []
    assert load_file(tmp_path / SAFETENSORS).keys() == HUGGING_FACE.keys()
