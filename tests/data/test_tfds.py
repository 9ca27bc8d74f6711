"""Data sets of TFDS, prepared from small files in their real formats by TFDS's own builders."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from small_data import downloaded, write_cifar100, write_rte, write_vocabulary
from tensorflow_datasets.image_classification import cifar

from pbr_jax import data
from pbr_jax.data import ImageInputs, TextInputs, TrainBatches, tfds


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`cifar100` and `glue/rte`, prepared; the path, and what CIFAR's files hold."""
    root = tmp_path_factory.mktemp("tfds")
    pixels = write_cifar100(root / "source")
    write_rte(root / "source")
    path = str(root / "prepared")
    theirs = cifar._load_data
    with downloaded(root / "source"):
        for name in ("cifar100", "glue/rte"):
            assert tfds.prepare(name, path) == tfds.prepare(name, path)
    assert cifar._load_data is theirs  # another user of TFDS in this process has his own again
    return path, pixels


def test_cifar_keeps_its_pixels_and_labels(prepared):
    path, pixels = prepared
    dataset = data.load("cifar100", path)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (30, 10, 100)
    assert dataset.class_names[7] == "fine7"
    (batch,) = data.eval_batches(dataset.train, ImageInputs(32, 3), 30)
    assert sorted(batch["label"].tolist()) == list(range(30))
    expected = pixels["train"][batch["label"]] / 127.5 - 1
    np.testing.assert_allclose(batch["image"], expected, atol=1e-6)


def test_cifar_in_224_pixels_through_workers_is_the_same(prepared):
    records = data.load("cifar100", prepared[0]).train
    inputs = ImageInputs(224, 3, "crop")
    alone, helped = (TrainBatches(records, inputs, 6, 0, workers) for workers in (0, 2))
    for _ in range(6):
        a, b = next(alone), next(helped)
        assert a["image"].shape == (6, 224, 224, 3)
        assert a["image"].tobytes() == b["image"].tobytes()


def test_rte_gives_pairs_of_its_columns(prepared, tmp_path):
    dataset = data.load("glue/rte", prepared[0])
    assert dataset.class_names == ("entailment", "not_entailment")
    assert (len(dataset.train), len(dataset.test)) == (6, 4)  # evaluation is on validation
    record = dataset.test[0]
    assert record.text_a == "A man walks." and record.text_b == f"It's {record.text_b[-1]}"
    assert record.label == int(record.text_b[-1]) % 2
    batch = next(TrainBatches(dataset.train, TextInputs(write_vocabulary(tmp_path), 16), 4, 0))
    assert batch["tokens"].shape == (4, 16) and set(batch["lengths"]) == {12}


def test_test_labels_of_glue_are_not_used(prepared):
    with pytest.raises(ValueError, match=r"data\.test_split = test: GLUE does not publish"):
        data.load("glue/rte", prepared[0], test_split="test")


def test_an_unprepared_data_set_is_told_at_once(tmp_path, monkeypatch):
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"`pbr data prepare cifar10 --path {tmp_path}` downloads"
    ):
        data.load("cifar10", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    with pytest.raises(ValueError, match=r"not prepared in .*own\n`pbr data prepare glue/rte`"):
        data.load("glue/rte")
    assert time.monotonic() - start < 5


def test_a_format_that_needs_tensorflow_is_named(prepared, tmp_path):
    shutil.copytree(prepared[0], tmp_path / "copy")
    (info,) = (tmp_path / "copy").glob("cifar100/*/dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="holds tfrecord files, which only TensorFlow reads"):
        data.load("cifar100", str(tmp_path / "copy"))


def test_no_network_is_one_error_at_once(tmp_path, monkeypatch):
    source = data.SOURCES["cifar10"]
    nowhere = source._replace(tfds=source.tfds._replace(host="http://127.0.0.1:9"))
    monkeypatch.setitem(data.SOURCES, "cifar10", nowhere)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9 cannot be reached(.|\n)*copy the folder"):
        tfds.prepare("cifar10", str(tmp_path))


def test_a_failed_preparation_is_one_error_and_leaves_nothing_prepared(tmp_path):
    write_cifar100(tmp_path / "source")
    (tmp_path / "source" / "cifar-100-binary" / "test.bin").unlink()
    path = str(tmp_path / "prepared")
    with (
        downloaded(tmp_path / "source"),
        pytest.raises(OSError, match=r"not prepared, FileNotFound"),
    ):
        tfds.prepare("cifar100", path)
    with pytest.raises(ValueError, match="not prepared in"):
        data.load("cifar100", path)


def test_columns_are_those_of_tfds():
    from tensorflow_datasets.text import glue

    configs = {config.name: config for config in glue.Glue.BUILDER_CONFIGS}
    named = {name for name in data.SOURCES if name.startswith("glue/")}
    # stsb is a regression, ax has no labels, and mnli_* have no training split.
    left_out = {"stsb", "ax", "mnli_matched", "mnli_mismatched"}
    assert named == {f"glue/{name}" for name in configs.keys() - left_out}
    for name in named:
        assert data.SOURCES[name].tfds.texts == tuple(configs[name.partition("/")[2]].text_features)


def test_no_tensorflow_is_imported(prepared):
    program = f"""
import sys
from pbr_jax import data
dataset = data.load("cifar100", {prepared[0]!r})
dataset.train[0]
print("tensorflow" in sys.modules, "tensorflow_datasets" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
