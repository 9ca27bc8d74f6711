"""Public weights for the model of a configuration, and the configuration that weights ask for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pbr_jax import weights as public
from pbr_jax.configs.common import MODEL_SIZES, SHAPE, Model
from pbr_jax.families import FAMILIES
from pbr_jax.files import user_path
from pbr_jax.settings.rules import show, value_at
from pbr_jax.weights import Weights, WeightsError, published
from pbr_jax.weights.beside import ARCHITECTURE, read_object

_PACKAGE = Path(__file__).resolve().parents[1]


def find_weights(name: str) -> Path:
    """The path as given, or, where there is none, the file of that name that the package ships."""
    path, shipped = user_path(name), _PACKAGE / name
    return shipped if os.path.isfile(shipped) and not os.path.exists(path) else path


def load_weights(
    model: Model, initial: Any, class_names: Sequence[str] | None = None
) -> public.Loaded:
    """The weights that `model` names, as `weights.load` gives them.

    Raises:
      WeightsError: they do not fit; says what they are and the settings that fit them.
    """
    assert model.weights is not None
    found = public.read(find_weights(model.weights))
    form = published(model.family)
    try:
        if faults := form.differences(found.config, model):
            raise WeightsError(found.path, faults)
        return public.load(found, model.family, form.sizes(model), initial, class_names)
    except WeightsError as error:
        raise WeightsError(error.path, error.faults, advice(found, model)) from error


def own_export(model: Model) -> Path | None:
    """Where `model.weights` is what `pbr export` wrote of a model of this very family, its path."""
    if model.weights is None:
        return None
    path = find_weights(model.weights)
    described = read_object(path / ARCHITECTURE) if os.path.isdir(path) else {}
    return path if described.get("family") == model.family else None


def describe(weights: Weights) -> str:
    """What weights are, such as `ViT-B/16`, with their sizes where these have no name."""
    name, sizes = size_name(weights), weights.sizes
    label = name and _published(weights).label(name, sizes)
    if label:
        return label
    listed = (f"{word} {sizes[word]}" for word in (*SHAPE, "patch") if word in sizes)
    known = FAMILIES.get(weights.family)
    return f"a {known.title if known else weights.family} of {', '.join(listed)}"


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
            wanted |= {"size": None} | {word: sizes[word] for word in SHAPE if word in sizes}
    wanted |= _published(weights).settings(weights.arrays, sizes, model, weights.config)
    other = {key: value for key, value in wanted.items() if value_at(model, key) != value}
    return [f"{key}={show(value)}" for key, value in other.items()]


def advice(weights: Weights, model: Model) -> str:
    """What weights are, and what to set so that the model is that too."""
    wanted = flags(weights, model)
    return f"This is {describe(weights)}" + (f": {wanted}" if wanted else ".")


def flags(weights: Weights, model: Model) -> str:
    """What to type so that the model has the sizes of weights; empty where it has them."""
    found = [f"--config.model.{change}" for change in changes(weights, model)]
    unnamed = size_name(weights) is None and "heads" not in weights.sizes
    if unnamed and (model.heads is None or weights.sizes.get("width", 0) % model.heads):
        found.append("--config.model.heads=H (no array tells H; their authors do)")
    return " ".join(found)


def _published(weights: Weights) -> public.Published:
    """Of the family of weights; a place to import from is taken from a configuration only."""
    return published(weights.family) if weights.family in FAMILIES else public.Published()
