"""Data of a configuration: the data set, and the function that makes batches of its examples."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pbr_jax import data
from pbr_jax.configs.common import Config, channel_numbers
from pbr_jax.data.records import TextRecord
from pbr_jax.data.unlabelled import Unlabelled
from pbr_jax.reading import few
from pbr_jax.training.pretrained import find_weights
from pbr_jax.weights import Normalization, Preparation, preparation_of

_SAMPLE = 200  # texts that are looked at before the first step


def load_data(config: Config, classes: Sequence[str] | None = None) -> data.Dataset:
    """Reads the data set that `config` names, with as many classes as the model.

    Texts of language models are cut into tokens and packed into rows, the examples of a batch.

    A run that goes on says which `classes` it began with.

    Raises:
      ValueError: it cannot be read, has other classes, another number of them, or is tested on
        fewer examples than it has classes.
    """
    d = config.data
    dataset = data.load(d.name, d.path, test_split=d.test_split, on_error=d.on_error)
    if d.source.kind == "language":
        tokenizer = language_tokenizer(config)
        dataset = data.packed(dataset, tokenizer, config.model.max_length, d.packing, d.on_error)
        return _some(dataset, d.max_test)
    if classes is not None and dataset.class_names != tuple(classes):
        raise ValueError(
            "the classes of the data are not those with which the run began, so labels would mean"
            f" others:\n  before: {few(classes, 20)}\n  now:    {few(dataset.class_names, 20)}\n"
            "Give them their names and their order back, or start afresh with another --workdir."
        )
    if dataset.num_classes != config.model.num_classes:
        raise ValueError(
            f"model.num_classes = {config.model.num_classes}: data set {d.name} has "
            f"{dataset.num_classes} classes; set model.num_classes={dataset.num_classes}"
        )
    return _some(dataset, d.max_test)


def _some(dataset: data.Dataset, max_test: int | None) -> data.Dataset:
    """The data set with at most so many examples to evaluate on."""
    if max_test is None:
        return dataset
    test, which = data.sample(dataset.test, max_test)
    return dataset._replace(test=test, remarks=(*dataset.remarks, which))


def language_tokenizer(config: Config) -> data.LanguageTokenizer:
    """The tokenizer of a language model.

    Raises:
      ValueError: it is not usable, or has more words than the model.
    """
    d, m = config.data, config.model
    assert d.tokenizer is not None  # a rule of the configuration
    tokenizer = data.LanguageTokenizer(d.tokenizer)
    _check_words(tokenizer.vocab_size, m.vocab_size, d.tokenizer)
    return tokenizer


def _check_words(there: int, room: int, tokenizer: str) -> None:
    # A word beyond the model's embedding would read another word's row without an error.
    if there > room:
        raise ValueError(
            f"model.vocab_size = {room}: {tokenizer} has {there} words; take the one that comes"
            " with the model's weights, or set model.vocab_size to that"
        )


def make_inputs(config: Config) -> data.Prepare:
    """The function from examples to the arrays of a batch, for training and evaluation alike.

    Raises:
      ValueError: the tokenizer is not usable, or has more words than the model.
    """
    d, m = config.data, config.model
    if d.source.kind == "text":
        assert d.tokenizer is not None  # a rule of the configuration
        inputs = data.TextInputs(d.tokenizer, m.max_length, d.lower_case)
        _check_words(inputs.vocab_size, m.vocab_size, d.tokenizer)
        return inputs
    if d.source.kind == "language":
        return data.stack_rows
    augment = d.augment or d.source.augments[0]
    return data.ImageInputs(m.image_size, m.channels, augment, *normalization(config))


def input_notes(inputs: data.Prepare, records: data.Records | Unlabelled) -> list[str]:
    """Lines for the user on how the first of the texts are prepared; images have none."""
    if not isinstance(inputs, data.TextInputs):
        return []
    sample = []
    for row in range(min(len(records), _SAMPLE)):
        with contextlib.suppress(ValueError):  # one that cannot be used is told when its turn comes
            record = records[row]
            assert isinstance(record, TextRecord)
            sample.append(record)
    return [*inputs.notes, *inputs.remarks(sample)]


def normalization(config: Config) -> Normalization:
    """Mean and deviation of the images of `config`: as set, as its weights want them, or else 0.5.

    Raises:
      ValueError: what lies beside the weights is damaged, or is for other channels.
    """
    d, beside = config.data, _beside(config)
    told = Normalization() if beside is None else beside.normalization
    mean = told.mean if d.mean is None else channel_numbers(d.mean)
    std = told.std if d.std is None else channel_numbers(d.std)
    channels = config.model.channels
    for name, own, numbers in (("mean", d.mean, mean), ("std", d.std, std)):
        if len(numbers) not in (1, channels):
            where = f"data.{name} = {own}" if beside is None else f"{beside.file}: its {name}"
            raise ValueError(
                f"{where}: has {len(numbers)} numbers, and model.channels = {channels}; set"
                f" data.{name} to one number"
            )
    return Normalization(mean, std)


def settled(config: Config, saved: Mapping[str, Any] | None = None) -> tuple[Config, list[str]]:
    """`config` with the numbers of its `normalization`, and notes on what lies beside its weights.

    A run keeps the numbers that it was started with, whatever becomes of its weights: `saved` are
    the settings of a run that goes on. One from before these were settings had 0.5.
    """
    d, notes = config.data, list[str]()
    if d.source.kind != "image":
        return config, notes
    if saved is None:
        mean, std = map(as_setting, normalization(config))
        if (beside := _beside(config)) is not None:
            notes = beside.notes + _differences(beside, config)
    else:
        old = saved.get("data", {})
        mean, std = (0.5 if old.get(name) is None else old[name] for name in ("mean", "std"))
    mean, std = (new if own is None else own for own, new in ((d.mean, mean), (d.std, std)))
    return dataclasses.replace(config, data=dataclasses.replace(d, mean=mean, std=std)), notes


def as_setting(numbers: Sequence[float]) -> float | str:
    """Numbers of channels as `data.mean` and `data.std` have them."""
    return numbers[0] if len({*numbers}) == 1 else ",".join(map(str, numbers))


def _beside(config: Config) -> Preparation | None:
    """What lies beside the weights and is asked: what is set goes first."""
    d, weights = config.data, config.model.weights
    if weights is None or None not in (d.mean, d.std):
        return None
    return preparation_of(find_weights(weights))


def _differences(beside: Preparation, config: Config) -> list[str]:
    """Lines on what is prepared as the file says and not as by default, and the other way round."""
    lines, side = [], config.model.image_size
    if beside.normalization != Normalization():
        mean, std = map(as_setting, beside.normalization)
        lines.append(f"{beside.file}: images have its mean, {mean}, and deviation, {std}")
    if beside.side not in (None, side):
        lines.append(f"{beside.file}: its images have a side of {beside.side}, here {side}")
    return lines
