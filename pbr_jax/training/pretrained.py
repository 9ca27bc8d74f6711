"""Public weights for the model of a configuration, and the configuration that weights ask for."""

from pathlib import Path
from typing import Any

from pbr_jax import weights as checkpoints
from pbr_jax.configs.common import MODEL_SIZES, Model
from pbr_jax.models.bert import Bert
from pbr_jax.models.vit import ViT
from pbr_jax.settings.rules import show
from pbr_jax.weights import Family, Weights, WeightsError

_PACKAGE = Path(__file__).resolve().parents[1]
_SHAPE = ("width", "depth", "heads", "mlp_dim")
_BERT_NAMES = {"B": "base", "L": "large"}


def find_weights(name: str) -> Path:
    """The path as given, or, where there is none, the file of that name that the package ships."""
    path, shipped = Path(name), _PACKAGE / name
    return shipped if shipped.is_file() and not path.exists() else path


def architecture(model: ViT | Bert) -> tuple[Family, dict[str, int]]:
    """The family of a model and its sizes, in the words of `pbr_jax.weights`."""
    sizes = {name: getattr(model, name) for name in _SHAPE} | {"classes": model.num_classes}
    if isinstance(model, Bert):
        return "bert", sizes | {
            "positions": model.max_length,
            "vocab": model.vocab_size,
            "types": model.type_vocab,
        }
    tokens = (model.image_size // model.patch) ** 2 + (model.pool == "cls")
    return "vit", sizes | {
        "positions": tokens,
        "patch": model.patch,
        "channels": model.channels,
    }


def load_weights(settings: Model, model: ViT | Bert, initial: Any) -> checkpoints.Loaded:
    """The weights that `settings` names, as `checkpoints.load` gives them.

    Raises:
      WeightsError: they do not fit; says what they are and the settings that fit them.
    """
    assert settings.weights is not None
    weights = checkpoints.read(find_weights(settings.weights))
    try:
        return checkpoints.load(weights, *architecture(model), initial)
    except WeightsError as error:
        raise WeightsError(error.path, error.faults, advice(weights, settings)) from error


def describe(weights: Weights) -> str:
    """What weights are, such as `ViT-B/16`, with their sizes where these have no name."""
    name, sizes = size_name(weights), weights.sizes
    if weights.family == "vit" and name is not None:
        return f"ViT-{name}/{sizes.get('patch')}"
    if name in _BERT_NAMES:
        return f"BERT-{_BERT_NAMES[name]}"
    kind = "ViT" if weights.family == "vit" else "BERT"
    listed = (f"{word} {sizes[word]}" for word in (*_SHAPE, "patch") if word in sizes)
    return f"a {kind} of {', '.join(listed)}"


def size_name(weights: Weights) -> str | None:
    """The name in `MODEL_SIZES` of what weights are, None without; heads may be unknown."""
    for name, shape in MODEL_SIZES.items():
        if all(weights.sizes.get(w, n) == n for w, n in zip(_SHAPE, shape, strict=True)):
            return name
    return None


def changes(weights: Weights, settings: Model) -> list[str]:
    """Settings of the model, "name=value" each, to change so that it can have these weights."""
    sizes = weights.sizes
    mine, name = settings.resolved(), size_name(weights)
    wanted: dict[str, Any] = {"family": weights.family}
    if any(word in sizes and sizes[word] != getattr(mine, word) for word in _SHAPE):
        if name is not None:
            wanted |= {"size": name} | dict.fromkeys(_SHAPE)
        else:
            wanted |= {"size": None} | {word: sizes.get(word) for word in _SHAPE}
    if weights.family == "vit":
        wanted |= {word: sizes[word] for word in ("patch", "channels") if word in sizes}
        if not weights.names_of("cls"):
            wanted["pool"] = "mean"
    else:
        wanted["vocab_size"] = sizes.get("vocab", settings.vocab_size)
        wanted["max_length"] = min(sizes.get("positions", mine.max_length), mine.max_length)
    return [
        f"{key}={show(value)}" for key, value in wanted.items() if getattr(settings, key) != value
    ]


def advice(weights: Weights, settings: Model) -> str:
    """What weights are, and what to set so that the model is that too."""
    flags = [f"--config.model.{change}" for change in changes(weights, settings)]
    return " ".join([f"This is {describe(weights)}" + (":" if flags else "."), *flags])
