"""A delta: what differs from the base, and the model again from both, bit for bit."""

import json
import os
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from fakes import bert, random_params, vit, words
from published import google_vit, huggingface_bert
from safetensors.numpy import load_file, save_file

from pbr_jax import weights as public
from pbr_jax.weights.layout import flatten, unflatten

MODELS = {"vit": vit(), "bert": bert()}
NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """`{family: path}` of public weights without a head, as a run begins with them."""
    folder = tmp_path_factory.mktemp("bases")
    arrays = {name: a for name, a in google_vit().items() if not name.startswith("head/")}
    np.savez(folder / "vit.npz", **arrays)
    (folder / "bert").mkdir()
    arrays = {n: a for n, a in huggingface_bert().items() if not n.startswith("classifier")}
    save_file(arrays, folder / "bert" / "model.safetensors", {"format": "pt"})
    return {"vit": folder / "vit.npz", "bert": folder / "bert"}


def begun(
    family: str, base: pathlib.Path, seed: int = 7, dtype=np.float32
) -> dict[str, np.ndarray]:
    """The leaves that a run begins with."""
    initial = random_params(MODELS[family], seed)
    params = public.load(public.read(base), *words(MODELS[family]), initial).params
    return {path: np.asarray(leaf).astype(dtype) for path, leaf in flatten(params).items()}


def trained(leaves, keep: float, draws: int = 1):
    """The leaves after steps on `keep` of the rows of the blocks' kernels, drawn `draws` times."""
    rng = np.random.default_rng(3)
    leaves = {path: leaf.copy() for path, leaf in leaves.items()}
    for path, leaf in leaves.items():
        if path.startswith("blocks/") and leaf.ndim == 3:
            for _ in range(draws):
                for block in leaf:
                    columns = rng.choice(len(block), int(keep * len(block)), replace=False)
                    block[columns] += np.asarray(0.1, leaf.dtype)
    return leaves


def save(folder, family, leaves, base, names=NAMES):
    sizes = words(MODELS[family])
    place = os.path.relpath(base, folder)
    return public.save_delta(
        folder, sizes[0], unflatten(leaves), sizes[1], names, None, base, place
    )


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(found[path], leaf, path)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", ["vit", "bert"])
def test_base_and_delta_are_the_model_bit_for_bit(bases, tmp_path, family, dtype):
    """After several draws, with the head that the base lacks, beside a full export."""
    before = begun(family, bases[family], dtype=dtype)
    after = trained(before, 0.25, draws=3)
    after["norm/scale"][0] = 2  # a vector
    after["head/bias"][:] = 0.5
    if family == "vit":
        after["cls"][..., 0] = -after["cls"][..., 0]
    save(tmp_path / "delta", family, after, bases[family])
    found = public.read(tmp_path / "delta")
    assert_same(found.arrays, after)
    # What a run begins with, and what an export is, are those of the whole.
    params, sizes = unflatten(after), words(MODELS[family])[1]
    public.save_orbax(tmp_path / "whole", family, params, sizes, NAMES)
    whole = public.read(tmp_path / "whole")
    assert_same(found.arrays, whole.arrays)
    initial = random_params(MODELS[family], 1)
    both = [public.load(w, family, sizes, initial, NAMES[::-1]) for w in (found, whole)]
    jax.tree.map(np.testing.assert_array_equal, both[0].params, both[1].params)


def test_its_size_is_the_kept_share_of_the_kernels(bases, tmp_path):
    before = begun("vit", bases["vit"])
    after = trained(before, 0.25)
    size = save(tmp_path / "delta", "vit", after, bases["vit"])
    kernels = [a for path, a in after.items() if path.startswith("blocks/") and a.ndim == 3]
    rows = sum(int(0.25 * a.shape[1]) * len(a) for a in kernels)
    head = sum(after[f"head/{leaf}"].nbytes for leaf in ("kernel", "bias"))
    assert size["delta"] == sum(a.nbytes for a in kernels) // 4 + 4 * rows + head
    assert size["whole"] == sum(a.nbytes for a in after.values())


def test_a_leaf_is_stored_in_the_way_that_takes_fewest_bytes(bases, tmp_path):
    before = begun("bert", bases["bert"])
    after = {path: leaf.copy() for path, leaf in before.items()}
    after["embedding/word"][3] += 1
    after["embedding/position"][:, 5] += 1
    after["blocks/fc1/kernel"][:] += 1
    save(tmp_path / "delta", "bert", after, bases["bert"])
    stored = load_file(tmp_path / "delta" / "delta" / "rows.safetensors")
    assert stored["embedding/word"].shape == (1, 16)
    assert stored["embedding/word:rows"].tolist() == [3]
    assert stored["embedding/position:columns"].tolist() == [5]
    assert stored["blocks/fc1/kernel"].shape == before["blocks/fc1/kernel"].shape
    told = {name.partition(":")[0] for name in stored}
    parts = {"embedding/word", "embedding/position", "blocks/fc1/kernel"}
    assert told == parts | {"head/kernel", "head/bias"}
    assert {a.dtype.name for name, a in stored.items() if ":" in name} == {"int32"}
    assert_same(public.read(tmp_path / "delta").arrays, after)


def test_bits_are_compared_and_not_values(bases, tmp_path):
    before = begun("vit", bases["vit"])
    before["blocks/fc2/kernel"][0, 0, 0] = 0
    params, sizes = unflatten(before), words(MODELS["vit"])[1]
    public.save_orbax(tmp_path / "base", "vit", params, sizes, NAMES)
    after = {path: leaf.copy() for path, leaf in before.items()}
    after["blocks/fc2/kernel"][0, 0, 0] = -0.0
    size = save(tmp_path / "delta", "vit", after, tmp_path / "base")
    assert size["delta"] == 4 * 16 + 4
    found = public.read(tmp_path / "delta").arrays["blocks/fc2/kernel"]
    assert np.signbit(found[0, 0, 0])


def test_a_delta_may_be_the_base_of_another(bases, tmp_path):
    first = trained(begun("vit", bases["vit"]), 0.25)
    save(tmp_path / "first", "vit", first, bases["vit"])
    second = trained(first, 0.5)
    save(tmp_path / "second", "vit", second, tmp_path / "first")
    assert_same(public.read(tmp_path / "second").arrays, second)


def test_another_base_is_refused_with_what_to_do(bases, tmp_path):
    base = shutil.copy(bases["vit"], tmp_path / "vit.npz")
    save(tmp_path / "delta", "vit", trained(begun("vit", base), 0.25), base)
    file = tmp_path / "delta" / "architecture.json"
    # Changed, of another model, and gone.
    arrays = dict(np.load(base))
    arrays["cls"] = arrays["cls"] + 1
    np.savez(base, **arrays)
    with pytest.raises(ValueError, match=r"SHA-256 .* name the right ones in base.path of .*"):
        public.read(tmp_path / "delta")
    told = json.loads(file.read_text())
    base_of = told["base"] | {"path": os.path.relpath(bases["bert"], tmp_path / "delta")}
    file.write_text(json.dumps(told | {"base": base_of}))
    with pytest.raises(ValueError, match=r"their base, by base.path .*\n  they are a bert"):
        public.read(tmp_path / "delta")
    file.write_text(json.dumps(told))
    os.remove(base)
    with pytest.raises(FileNotFoundError, match=r"vit.npz; bring them there, or write where"):
        public.read(tmp_path / "delta")
    # The advice.
    base_of = told["base"] | {"path": os.path.relpath(bases["vit"], tmp_path / "delta")}
    file.write_text(json.dumps(told | {"base": base_of}))
    assert public.read(tmp_path / "delta").family == "vit"


def test_a_damaged_delta_is_named(bases, tmp_path):
    save(tmp_path / "delta", "vit", begun("vit", bases["vit"]), bases["vit"])
    rows = tmp_path / "delta" / "delta" / "rows.safetensors"
    content = bytearray(rows.read_bytes())
    content[-1] ^= 1
    rows.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged or missing: rows.safetensors"):
        public.read(tmp_path / "delta")
    file = tmp_path / "delta" / "architecture.json"
    told = json.loads(file.read_text())
    told.pop("base")
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="lacks 'base'"):
        public.read(tmp_path / "delta")
