"""The data set of a configuration, and how its examples become the arrays of a batch."""

from pbr_jax import data
from pbr_jax.configs.common import Config


def load_data(config: Config) -> data.Dataset:
    """The data set that `config` names, with as many classes as the model.

    Raises:
      ValueError: it cannot be read, or has another number of classes.
    """
    dataset = data.load(config.data.name, config.data.path)
    if dataset.num_classes != config.model.num_classes:
        raise ValueError(
            f"model.num_classes = {config.model.num_classes}: data set {config.data.name} has "
            f"{dataset.num_classes} classes; set model.num_classes={dataset.num_classes}"
        )
    return dataset


def make_inputs(config: Config) -> data.Prepare:
    """What makes the arrays of a batch, for training and evaluation alike."""
    return data.ImageInputs(
        config.model.image_size, config.model.channels, config.data.augment or "affine"
    )
