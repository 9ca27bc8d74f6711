"""From a configuration to its batches."""

import dataclasses
import json

import numpy as np
import pytest
from fakes import bert_config
from small_data import VOCABULARY, write_image_folder, write_vocabulary

from pbr_jax import data
from pbr_jax.configs import digits
from pbr_jax.configs.common import Data
from pbr_jax.settings.load import SHIPPED, ConfigError, load
from pbr_jax.settings.saved import check_resume, from_dict, to_dict
from pbr_jax.training.from_config import batch_specs
from pbr_jax.training.inputs import input_notes, load_data, make_inputs, normalization, settled


def configured(model=(), **settings):
    config = digits.get_config("tiny")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **dict(model)),
        data=dataclasses.replace(config.data, augment=None, **settings),
    )


def batch_of(config):
    """A training batch, which must be what the step is compiled for."""
    records = load_data(config).train
    batch = next(data.TrainBatches(records, make_inputs(config), config.batch_size, config.seed))
    specs = batch_specs(config)
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in specs.items()
    }
    return batch


def test_digits_fill_the_image_that_the_model_wants():
    small = batch_of(configured())["image"]
    large = batch_of(configured({"image_size": 224, "channels": 3, "patch": 16}))["image"]
    assert abs(small.mean() - large.mean()) < 0.05
    assert (np.ptp(large, axis=-1) == 0).all()


def test_image_files_are_cropped_in_training(tmp_path):
    write_image_folder(tmp_path, count=9)
    wanted = {"num_classes": 2, "channels": 3, "image_size": 16}
    config = configured(wanted, name="image_folder", path=str(tmp_path))
    assert make_inputs(config).augment == "crop"
    batch_of(config)


def test_texts_become_what_bert_reads(tmp_path):
    for split in ("train", "test"):
        lines = (f"a man walks,it is {n % 4},{n % 4}\n" for n in range(12))
        (tmp_path / f"{split}.csv").write_text("text_a,text_b,label\n" + "".join(lines))
    texts = Data(name="csv", path=str(tmp_path), tokenizer=write_vocabulary(tmp_path))
    config = bert_config(data=texts)
    batch = batch_of(config)
    assert (batch["lengths"] == 8).all() and set(batch["label"]) <= set(range(4))
    texts = load_data(config).train
    assert "12 of the first 12 texts are cut" in input_notes(make_inputs(config), texts)[0]
    long = dataclasses.replace(config, model=dataclasses.replace(config.model, max_length=12))
    assert input_notes(make_inputs(long), texts) == []
    small = dataclasses.replace(config.model, vocab_size=len(VOCABULARY) - 1)
    with pytest.raises(ValueError, match=rf"model\.vocab_size = .* has {len(VOCABULARY)} words"):
        make_inputs(dataclasses.replace(config, model=small))


def test_another_number_of_classes_is_told():
    with pytest.raises(ValueError, match=r"digits has 10 classes; set model\.num_classes=10"):
        load_data(configured({"num_classes": 7}))


def test_evaluation_on_a_part_has_all_classes_and_says_so():
    dataset = load_data(configured(max_test=30))
    assert np.bincount(dataset.test.labels).tolist() == [3] * 10
    assert dataset.notes == ["evaluation on 30 of 450 test examples, of all 10 classes"]
    with pytest.raises(ValueError, match=r"data\.max_test = 9: .* has 10 classes; must be 10 or"):
        load_data(configured(max_test=9))
    assert load_data(configured()).notes == []


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
TYPED = ("0.485,0.456,0.406", "0.229,0.224,0.225")


@pytest.fixture
def weights(tmp_path):
    """A folder of weights that says how its images are prepared; its arrays are not looked at."""
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "preprocessor_config.json").write_text(json.dumps(IMAGENET | {"size": 8}))
    return tmp_path / "w"


def coloured(weights, **settings):
    return configured({"channels": 3, "weights": str(weights)}, **settings)


def test_what_lies_beside_the_weights_normalises_the_images(weights):
    inputs = make_inputs(coloured(weights))
    assert [list(inputs.mean), list(inputs.std)] == [*IMAGENET.values()]
    record = load_data(coloured(weights)).train[0]
    plain = make_inputs(configured({"channels": 3}))([record])["image"]
    expected = ((plain + 1) / 2 - inputs.mean) / inputs.std
    np.testing.assert_allclose(inputs([record])["image"], expected, atol=1e-6)


def test_without_a_word_mean_and_deviation_are_a_half(tmp_path):
    for config in (configured(), coloured(tmp_path), coloured(tmp_path / "nowhere.npz")):
        assert normalization(config) == ((0.5,), (0.5,))
        assert settled(config)[1] == []
    assert normalization(configured(mean=0.25, std="0.3")) == ((0.25,), (0.3,))


def test_what_is_set_goes_first_and_a_file_of_no_use_is_then_not_read(weights):
    assert normalization(coloured(weights, mean=0.1)) == ((0.1,), tuple(IMAGENET["image_std"]))
    (weights / "preprocessor_config.json").write_text('{"image_mean": "none"}')
    with pytest.raises(ValueError, match=r"correct it, or set data.mean and data.std"):
        make_inputs(coloured(weights))
    assert settled(coloured(weights, mean=0.1, std=0.2))[1] == []


def test_numbers_for_other_channels_are_named(weights):
    grey = configured({"channels": 1, "weights": str(weights)})
    with pytest.raises(ValueError, match=r"its mean: has 3 numbers, and model.channels = 1; set"):
        make_inputs(grey)
    given = dataclasses.replace(grey, data=dataclasses.replace(grey.data, mean=0.5, std=0.5))
    assert normalization(given) == ((0.5,), (0.5,))


def test_a_run_keeps_the_numbers_that_it_was_started_with(weights):
    config = coloured(weights)
    started, notes = settled(config)
    assert (started.data.mean, started.data.std) == TYPED
    (note,) = notes
    assert "preprocessor_config.json: images have its mean, 0.485,0.456,0.406, and dev" in note
    saved = to_dict(started)
    # The same command goes on with them, also where the weights are gone or say something else.
    (weights / "preprocessor_config.json").write_text('{"image_mean": 0.1, "image_std": 0.1}')
    for _ in range(2):
        assert check_resume(saved, config, "run") == []
        assert settled(config, saved) == (started, [])
        assert normalization(from_dict(saved, "config.json")) == normalization(started)
        (weights / "preprocessor_config.json").unlink(missing_ok=True)
    assert check_resume(saved, started, "run") == []
    with pytest.raises(ValueError, match=r"data.mean = 0.3: was 0.485,0.456,0.406"):
        check_resume(saved, coloured(weights, mean=0.3), "run")


def test_a_run_from_before_these_were_settings_has_a_half(weights):
    config = coloured(weights)
    saved = to_dict(config)
    del saved["data"]["mean"], saved["data"]["std"]
    assert check_resume(saved, config, "run") == []
    assert normalization(settled(config, saved)[0]) == ((0.5,), (0.5,))


def test_images_of_another_size_are_named(weights):
    (weights / "preprocessor_config.json").write_text('{"size": {"height": 224, "width": 224}}')
    (note,) = settled(coloured(weights))[1]
    assert "its images have a side of 224, here 8" in note


def test_texts_have_no_mean(tmp_path):
    texts = bert_config(data=Data(name="csv", path="no", tokenizer=write_vocabulary(tmp_path)))
    assert settled(texts) == (texts, [])


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("mean=0.5,x", "must be from 0 to 1, as pixels are; one number, or one for each channel"),
        ("mean=127.5", "must be from 0 to 1"),
        ("mean=nan", "data.mean = nan: must be"),
        ("mean=", "must be from 0 to 1"),
        ("std=0", "must be from 0.001 to 1"),
        ("std=0.2,,0.2", "must be from 0.001 to 1"),
        ("std=1e999", "data.std = 1e999: must be"),
        (
            "mean=0.1,0.2",
            "data.mean = 0.1,0.2: has 2 numbers; give one, or as many",
        ),
        (
            "std=" + ",".join(["0.5"] * 4),
            "has 4 numbers; give one, or as many as",
        ),
    ],
)
def test_numbers_of_no_use_are_refused_by_name(override, fault):
    with pytest.raises(ConfigError) as raised:
        load(str(SHIPPED / "digits.py"), [f"data.{override}"])
    assert any(fault in line for line in raised.value.faults)


def test_numbers_are_typed_as_they_are_written():
    config = load(str(SHIPPED / "digits.py"), ["data.mean=0.5", "data.std=0.25"])
    assert normalization(config) == ((0.5,), (0.25,))
    assert from_dict(json.loads(json.dumps(to_dict(config))), "x") == config
