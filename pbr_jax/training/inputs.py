"""Data of a configuration: the data set, and the function that makes batches of its examples."""

import contextlib

from pbr_jax import data
from pbr_jax.configs.common import Config
from pbr_jax.data.records import TextRecord
from pbr_jax.data.unlabelled import Unlabelled

_SAMPLE = 200  # texts that are looked at before the first step


def load_data(config: Config) -> data.Dataset:
    """Reads the data set that `config` names, with as many classes as the model.

    Raises:
      ValueError: it cannot be read, has another number of classes, or is tested on fewer examples
        than it has classes.
    """
    d = config.data
    dataset = data.load(d.name, d.path, test_split=d.test_split, on_error=d.on_error)
    if dataset.num_classes != config.model.num_classes:
        raise ValueError(
            f"model.num_classes = {config.model.num_classes}: data set {d.name} has "
            f"{dataset.num_classes} classes; set model.num_classes={dataset.num_classes}"
        )
    if d.max_test is not None:
        test, which = data.sample(dataset.test, d.max_test)
        dataset = dataset._replace(test=test, remarks=(*dataset.remarks, which))
    return dataset


def make_inputs(config: Config) -> data.Prepare:
    """The function from examples to the arrays of a batch, for training and evaluation alike.

    Raises:
      ValueError: the tokenizer is not usable, or has more words than the model.
    """
    d, m = config.data, config.model
    if d.source.kind == "text":
        assert d.tokenizer is not None  # a rule of the configuration
        # A word beyond the model's embedding would read another word's row without an error.
        inputs = data.TextInputs(d.tokenizer, m.max_length, d.lower_case)
        if inputs.vocab_size > m.vocab_size:
            raise ValueError(
                f"model.vocab_size = {m.vocab_size}: {d.tokenizer} has {inputs.vocab_size} words; "
                "take the one that comes with the model's weights, or set model.vocab_size to that"
            )
        return inputs
    return data.ImageInputs(m.image_size, m.channels, d.augment or d.source.augments[0])


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
