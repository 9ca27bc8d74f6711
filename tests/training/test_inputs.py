"""From a configuration to its batches."""

import dataclasses

import numpy as np
import pytest
from fakes import bert_config
from small_data import VOCABULARY, write_image_folder, write_vocabulary

from pbr_jax import data
from pbr_jax.configs import digits
from pbr_jax.configs.common import Data
from pbr_jax.training.from_config import batch_specs
from pbr_jax.training.inputs import input_notes, load_data, make_inputs


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
