"""Public weights for the model of a configuration, and the configuration that weights ask for."""

from pathlib import Path
from typing import Any

from pbr_jax import weights as public
from pbr_jax.configs.common import MODEL_SIZES, SHAPE, Model
from pbr_jax.families import find
from pbr_jax.files import user_path
from pbr_jax.settings.rules import show
from pbr_jax.weights import Weights, WeightsError, published

_PACKAGE = Path(__file__).resolve().parents[1]


def find_weights(name: str) -> Path:
    """The path as given, or, where there is none, the file of that name that the package ships."""
    path, shipped = user_path(name), _PACKAGE / name
    return shipped if shipped.is_file() and not path.exists() else path


def load_weights(model: Model, initial: Any) -> public.Loaded:
    """The weights that `model` names, as `weights.load` gives them.

    Raises:
      WeightsError: they do not fit; says what they are and the settings that fit them.
    """
    assert model.weights is not None
    found = public.read(find_weights(model.weights))
    try:
        return public.load(found, model.family, published(model.family).sizes(model), initial)
    except WeightsError as error:
        raise WeightsError(error.path, error.faults, advice(found, model)) from error


def describe(weights: Weights) -> str:
    """What weights are, such as `ViT-B/16`, with their sizes where these have no name."""
    name, sizes = size_name(weights), weights.sizes
    label = name and published(weights.family).label(name, sizes)
    if label:
        return label
    listed = (f"{word} {sizes[word]}" for word in (*SHAPE, "patch") if word in sizes)
    return f"a {find(weights.family).title} of {', '.join(listed)}"


def size_name(weights: Weights) -> str | None:
    """The name in `MODEL_SIZES` of what weights are, None without; heads may be unknown."""
    for name, shape in MODEL_SIZES.items():
        if all(weights.sizes.get(w, n) == n for w, n in zip(SHAPE, shape, strict=True)):
            return name
    return None


def changes(weights: Weights, model: Model) -> list[str]:
    """Settings of the model, "name=value" each, to change so that it can have these weights."""
    sizes = weights.sizes
    mine, name = model.resolved(), size_name(weights)
    wanted: dict[str, Any] = {"family": weights.family}
    if any(word in sizes and sizes[word] != getattr(mine, word) for word in SHAPE):
        if name is not None:
            wanted |= {"size": name} | dict.fromkeys(SHAPE)
        else:
            wanted |= {"size": None} | {word: sizes.get(word) for word in SHAPE}
    wanted |= published(weights.family).settings(weights.arrays, sizes, model)
    return [f"{key}={show(value)}" for key, value in wanted.items() if getattr(model, key) != value]


def advice(weights: Weights, model: Model) -> str:
    """What weights are, and what to set so that the model is that too."""
    flags = [f"--config.model.{change}" for change in changes(weights, model)]
    return " ".join([f"This is {describe(weights)}" + (":" if flags else "."), *flags])
