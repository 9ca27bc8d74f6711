"""Weights of a file as parameters of our model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pbr_jax.weights import layout
from pbr_jax.weights.formats import published
from pbr_jax.weights.layout import Arrays, Leaves, Line, Sizes
from pbr_jax.weights.read import Weights, faults

_COMPUTED = {"hidden_act": "gelu", "position_embedding_type": "absolute"}  # by our models


class WeightsError(ValueError):
    """Weights that do not fit the model; `faults` has a line for each reason."""

    def __init__(self, path: Path, faults: Sequence[str], advice: str = "") -> None:
        self.path, self.faults = path, tuple(faults)
        lines = [f"weights {path} do not fit the model:", *(f"  {fault}" for fault in faults)]
        super().__init__("\n".join([*lines, advice] if advice else lines))


class Loaded(NamedTuple):
    """Parameters of our tree, and what a reader should know about their origin."""

    params: dict[str, Any]
    notes: list[str]


def load(weights: Weights, family: str, sizes: Sizes, initial: Mapping[str, Any]) -> Loaded:
    """Weights as parameters of a model, NumPy float32.

    A head of another number of classes, and a head or pooler that the file lacks, keep their
    initial values. Positions are fitted to the model where that can be done. The notes say so.

    Args:
      weights: as `weights.read` gives them.
      family, sizes: of the model; `Published.sizes` of the family gives the latter.
      initial: the model's parameter tree.

    Raises:
      WeightsError: they are of another family, or arrays are missing, superfluous, misshapen or not
        finite: all of them are listed.
    """
    like = layout.flatten(initial)
    lines, arrays, notes = _fit(weights, family, sizes, like)
    leaves = like | layout.from_theirs(lines, arrays, like)
    return Loaded(layout.unflatten(leaves), [f"{weights.path}: {note}" for note in notes])


def check(weights: Weights, family: str, sizes: Sizes, like: Mapping[str, Any]) -> list[str]:
    """The notes of `load`, or its error, without converting anything; `like` may be shapes."""
    return _fit(weights, family, sizes, layout.flatten(like))[2]


def _fit(
    weights: Weights, family: str, sizes: Sizes, like: Leaves
) -> tuple[list[Line], Arrays, list[str]]:
    """The lines to read, the arrays that they speak of in the model's shapes, and notes."""
    if weights.family != family:
        raise WeightsError(weights.path, [f"they are a {weights.family}, the model is a {family}"])
    # What is read: lines of ours, without parts that start afresh.
    lines = [line for line in weights.format.table(sizes["depth"]) if line.ours in like]
    fresh = _fresh_parts(weights, lines, sizes)
    kept = [line for line in lines if line.ours.split("/")[0] not in fresh]
    dropped = [name for part in fresh for name in weights.names_of(part)]
    arrays = {name: array for name, array in weights.arrays.items() if name not in dropped}
    try:
        notes = [*fresh.values(), *published(family).fit_positions(arrays, lines, like, sizes)]
    except ValueError as error:
        raise WeightsError(weights.path, [str(error)]) from error
    # All that is wrong. A file of our own tree has only the lines of what is there.
    expected = {line.theirs: layout.shape_of(line, like[line.ours], sizes) for line in kept}
    absent = {path for path in like if path.split("/")[0] not in fresh} - {n.ours for n in kept}
    found = [f"missing: {path}" for path in sorted(absent)] + faults(weights, arrays, expected)
    if weights.sizes.get("heads", sizes["heads"]) != sizes["heads"]:
        found.insert(0, f"{weights.sizes['heads']} attention heads, the model has {sizes['heads']}")
    if found:
        raise WeightsError(weights.path, found)
    # What a reader should know although it fits.
    notes += [f"not used: {', '.join(names)} ({why})" for why, names in weights.unused.items()]
    notes += [
        f"its config.json says {key} = {weights.config[key]}, the model computes {value}"
        for key, value in _COMPUTED.items()
        if weights.config.get(key, value) != value
    ]
    return kept, arrays, notes


def _fresh_parts(weights: Weights, lines: Sequence[Line], sizes: Sizes) -> dict[str, str]:
    """Parts of our tree that keep their initial values, each with a note that says why."""
    ours, fresh = {line.ours.split("/")[0] for line in lines}, {}
    classes, has_head = weights.sizes.get("classes"), weights.names_of("head")
    if "head" in ours and (not has_head or classes != sizes["classes"]):
        found = f"a head of {classes} classes" if has_head else "no head"
        fresh["head"] = f"{found}; the head of {sizes['classes']} classes starts afresh"
    if "pooler" in ours and not weights.names_of("pooler"):
        fresh["pooler"] = "no pooler; it starts afresh"
    return fresh
