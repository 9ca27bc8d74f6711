"""Data of a configuration: the data set, and the function that makes batches of its examples."""

from collections.abc import Sequence

from pbr_jax import data
from pbr_jax.configs.common import Config


def load_data(config: Config, classes: Sequence[str] | None = None) -> data.Dataset:
    """Reads the data set that `config` names, with as many classes as the model.

    A run that goes on says which `classes` it began with.

    Raises:
      ValueError: it cannot be read, or has other classes, or another number of them.
    """
    d = config.data
    dataset = data.load(d.name, d.path, test_split=d.test_split, on_error=d.on_error)
    if classes is not None and dataset.class_names != tuple(classes):
        raise ValueError(
            "the classes of the data are not those with which the run began, so labels would mean"
            f" others:\n  before: {_listed(classes)}\n  now:    {_listed(dataset.class_names)}\n"
            "Give them their names and their order back, or start afresh with another --workdir."
        )
    if dataset.num_classes != config.model.num_classes:
        raise ValueError(
            f"model.num_classes = {config.model.num_classes}: data set {d.name} has "
            f"{dataset.num_classes} classes; set model.num_classes={dataset.num_classes}"
        )
    if d.max_test is not None:
        dataset = dataset._replace(test=data.FirstRecords(dataset.test, d.max_test))
    return dataset


def _listed(names: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if names[limit:] else ""
    return ", ".join(names[:limit]) + more


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
