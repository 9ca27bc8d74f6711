"""Data sets by name."""

import importlib
import subprocess
import sys
import types

import numpy as np
import pytest

from pbr_jax import data
from pbr_jax.data import digits
from pbr_jax.data.digits import stratified_split
from pbr_jax.datasets import SOURCES, Source

FIRST_TEST_LABELS = [1, 2, 9, 0, 3, 5, 7, 8, 9, 1, 3, 4]


def test_digits_are_the_1797_of_scikit_learn():
    train, test, names, *_ = dataset = data.load("digits")
    assert train.images.shape == (1347, 8, 8, 1) and test.images.shape == (450, 8, 8, 1)
    assert train.images.dtype == test.images.dtype == np.uint8
    assert (dataset.num_classes, names) == (10, tuple("0123456789"))
    everything = np.concatenate([train.images, test.images])
    assert (everything.min(), everything.max()) == (0, 255)
    assert set(np.unique(everything)) == {round(v * 255 / 16) for v in range(17)}


def test_the_digits_split_is_fixed_stratified_and_disjoint():
    train, test, *_ = data.load("digits")
    train_counts, test_counts = np.bincount(train.labels), np.bincount(test.labels)
    assert abs(test_counts - 450 * (train_counts + test_counts) / 1797).max() < 1
    again = data.load("digits")
    assert again.test.images.tobytes() == test.images.tobytes()
    assert test.labels[:12].tolist() == FIRST_TEST_LABELS
    # scikit-learn's set has no duplicates, so contents tell examples apart.
    rows = {image.tobytes() for image in np.concatenate([train.images, test.images])}
    assert len(rows) == 1797


def test_a_subset_of_the_digits_keeps_each_image_in_its_split():
    full, part = data.load("digits"), digits.load_classes((3, 1))
    assert (part.num_classes, part.class_names) == (2, ("3", "1"))
    for whole, some in [(full.train, part.train), (full.test, part.test)]:
        for label, digit in enumerate((3, 1)):
            np.testing.assert_array_equal(
                some.images[some.labels == label], whole.images[whole.labels == digit]
            )
    assert len(part.test.labels) + len(part.train.labels) == 183 + 182


@pytest.mark.parametrize("classes", [(), (1, 1), (9, 10)])
def test_wrong_digits_are_named(classes):
    with pytest.raises(ValueError, match=r"must be different digits in 0\.\.9"):
        digits.load_classes(classes)


def test_stratified_split_takes_the_largest_remainders():
    labels = np.repeat([0, 1, 2], [50, 30, 21])
    in_test = stratified_split(labels, 10, seed=0)
    assert np.bincount(labels[in_test]).tolist() == [5, 3, 2]
    assert not np.array_equal(in_test, stratified_split(labels, 10, seed=1))


@pytest.mark.parametrize("name", SOURCES)
def test_a_data_set_agrees_with_its_module(name):
    source = SOURCES[name]
    module = importlib.import_module(f"pbr_jax.data.{source.module}")
    assert callable(module.load) and hasattr(module, "prepare") == source.prepared
    assert bool(source.augments) == (source.kind == "image")
    if source.tfds is not None:
        assert bool(source.tfds.texts) == (source.kind == "text")


def test_a_new_data_set_is_a_module_and_a_line(monkeypatch):
    module = types.ModuleType("pbr_jax.data.mine")
    module.load = lambda request: digits.load_classes((3, 1))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(SOURCES, "mine", Source("image", "mine", augments=("crop",)))
    assert data.load("mine").class_names == ("3", "1")
    with pytest.raises(ValueError, match="mine: needs no preparation"):
        data.prepare("mine")


def test_a_configuration_names_a_data_set_without_the_code_that_reads_it():
    program = """
import sys, pbr_jax.configs.common as common
print(common.Data().source.kind, {"numpy", "jax", "pbr_jax.data"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["image", "set()"], done.stderr


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(ValueError, match=r"'digit' is unknown: .*digits, npz.*mean 'digits'\?"):
        data.load("digit")
    with pytest.raises(ValueError, match=r"must be one of digits, npz, .*glue/wnli$"):
        data.load("imagenet21k")


ARRAYS = {
    "train_images": np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1),
    "train_labels": np.array([0, 1, 2, 0, 1, 2]),
    "test_images": np.zeros((2, 2, 2, 1), np.uint8),
    "test_labels": np.array([2, 0]),
}


def save(tmp_path, **changes):
    arrays = {k: v for k, v in {**ARRAYS, **changes}.items() if v is not None}
    np.savez(tmp_path / "own.npz", **arrays)
    return str(tmp_path / "own.npz")


def test_npz_gives_its_arrays(tmp_path):
    dataset = data.load("npz", save(tmp_path))
    np.testing.assert_array_equal(dataset.train.images, ARRAYS["train_images"])
    np.testing.assert_array_equal(dataset.test.labels, [2, 0])
    assert (dataset.num_classes, dataset.class_names) == (3, ("0", "1", "2"))
    named = data.load("npz", save(tmp_path, class_names=np.array(["ant", "bee", "cat"])))
    assert named.class_names == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "no array test_labels; it has test_images, train_images"),
        ({"test_labels": np.array([1, 3])}, "test label 3 of example 1"),
        ({"train_labels": np.array([0, 1, 1, 0, 1, 4])}, "test labels never seen .*2 "),
        ({"test_images": np.zeros((2, 3, 2, 1), np.uint8)}, r"\[2, 2, 1\] and test .*\[3, 2, 1\]"),
        ({"train_labels": np.array([0, 1])}, "training has 6 images and 2 labels"),
        (
            {"train_images": np.zeros((0, 2, 2, 1)), "train_labels": np.zeros(0, int)},
            r"training images are empty: shape \(0, 2, 2, 1\)",
        ),
        ({"class_names": np.array(["ant", "ant", "bee"])}, "class_names have ant more than once"),
        ({"class_names": np.array([], str)}, r"class_names have shape \(0,\): must be"),
        ({"class_names": np.array([b"\xe9", b"a", b"b"])}, "class_names are bytes that are not U"),
        ({"class_names": np.array(["ant", "bee"])}, r"training label 2 .*must be in 0\.\.1"),
        ({"train_labels": np.array([0.0, np.nan, 1, 2, 0, 1])}, "labels are float64"),
        ({"train_labels": np.array([])}, "labels are float64"),
    ],
)
def test_wrong_npz_arrays_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        data.load("npz", save(tmp_path, **changes))


def test_wrong_npz_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.npz: no such file"):
        data.load("npz", str(tmp_path / "absent.npz"))
    np.save(tmp_path / "single.npy", np.zeros(3))
    single = (tmp_path / "single.npy").read_bytes()
    for content in (b"", b"PK\x03\x04 broken", b"not an archive", single):
        path = tmp_path / "broken.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.npz: not a readable \.npz file"):
            data.load("npz", str(path))


def test_arguments_of_another_data_set_are_refused():
    with pytest.raises(ValueError, match=r"digits .* take no path"):
        data.load("digits", "somewhere")
    with pytest.raises(ValueError, match="npz needs the path"):
        data.load("npz")
    for name in ("digits", "npz"):
        with pytest.raises(ValueError, match=rf"test_split = val: {name} has train and test"):
            data.load(name, test_split="val")
