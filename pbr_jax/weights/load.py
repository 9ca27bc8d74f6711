"""Weights of a file as parameters of our model."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pbr_jax.weights import beside, layout
from pbr_jax.weights.beside import Rows
from pbr_jax.weights.faults import faults
from pbr_jax.weights.formats import published
from pbr_jax.weights.layout import Arrays, Leaves, Line, Sizes
from pbr_jax.weights.read import Weights


class WeightsError(ValueError):
    """Weights that do not fit the model; `faults` has a line for each reason."""

    def __init__(self, path: Path, faults: Sequence[str], advice: str = "") -> None:
        self.path, self.faults = path, tuple(faults)
        lines = [f"weights {path} do not fit the model:", *(f"  {fault}" for fault in faults)]
        super().__init__("\n".join([*lines, advice] if advice else lines))


class _Fit(NamedTuple):
    """What is read of weights for a model."""

    lines: list[Line]
    arrays: Arrays  # those that the lines speak of, in the model's shapes
    order: Sequence[int]  # label of ours -> row of their head; empty where that is the same
    notes: list[str]


class Loaded(NamedTuple):
    """Parameters of our tree, and what a reader should know about their origin."""

    params: dict[str, Any]
    notes: list[str]


def load(
    weights: Weights,
    family: str,
    sizes: Sizes,
    initial: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
) -> Loaded:
    """Weights as parameters of a model, NumPy arrays in the dtypes of `initial`.

    A head of other classes, and a head or pooler that the file lacks, keep their initial values.
    The rows of a head of the same classes are put into our order. Positions are fitted to the model
    where that can be done. The notes say so.

    Args:
      weights: as `weights.read` gives them.
      family, sizes: of the model; `Published.sizes` of the family gives the latter.
      initial: the model's parameter tree; of what does not start afresh, shapes and dtypes will do.
      class_names: label -> name of the data; None where they are not known.

    Raises:
      WeightsError: they are of another family, or arrays are missing, superfluous, misshapen or not
        finite: all of them are listed.
    """
    like = layout.flatten(initial)
    fit = _fit(weights, family, sizes, like, class_names)
    leaves = like | layout.from_theirs(fit.lines, fit.arrays, like)
    if fit.order:
        for path in filter(_of_head, leaves):  # whose last axis is that of the classes
            leaves[path] = np.take(leaves[path], fit.order, axis=-1)
    return Loaded(layout.unflatten(leaves), [f"{weights.path}: {note}" for note in fit.notes])


def check(weights: Weights, family: str, sizes: Sizes, like: Mapping[str, Any]) -> list[str]:
    """The notes of `load`, or its error, without converting anything; `like` may be shapes.

    The classes are taken to be those of the weights.
    """
    names, _ = own_classes(weights)
    return _fit(weights, family, sizes, layout.flatten(like), names).notes


def own_classes(weights: Weights) -> tuple[tuple[str, ...], str]:
    """Label -> name of the weights, empty where there are none to be used, and why if so."""
    try:
        names = beside.class_names(weights.config)
    except ValueError as error:
        return (), f"the names of its classes are not used: {error}"
    count = weights.sizes.get("classes")
    if names and len(names) != count:
        return (), f"the names of its classes are not used: {len(names)} for a head of {count}"
    return names, ""


def remarks(weights: Weights) -> list[str]:
    """Where what lies beside weights speaks of another model than their arrays, or than ours."""
    config, form = weights.config, weights.format
    found = []
    if about := form.related.get(config.get("model_type", "")):
        found.append(about)
    for key, tell in form.told.items():
        number = _number(config.get(key))
        with contextlib.suppress(KeyError):  # the arrays do not tell
            if number not in (None, tell(weights.sizes)):
                found.append(
                    f"its config.json says {key} = {config[key]}, its arrays {tell(weights.sizes)}"
                )
    return found + [
        f"its config.json says {key} = {config[key]}, the model computes {value}"
        for key, value in form.computed.items()
        if config.get(key, value) != value
    ]


def _number(said: Any) -> Any:
    """`[n, n]`, as some write a square, as `n`."""
    return said[0] if isinstance(said, list) and said and said == said[:1] * len(said) else said


def _fit(
    weights: Weights, family: str, sizes: Sizes, like: Leaves, class_names: Sequence[str] | None
) -> _Fit:
    """What to read of weights; raises `WeightsError` as `load` does."""
    if weights.family != family:
        raise WeightsError(weights.path, [f"they are a {weights.family}, the model is a {family}"])
    # What is read: lines of ours, without parts that start afresh.
    lines = [line for line in weights.format.table(sizes["depth"]) if line.ours in like]
    fresh = _fresh_parts(weights, lines, sizes)
    rows = Rows() if "head" in fresh else _rows(weights, class_names)
    if rows.fresh:
        fresh["head"] = rows.note
    kept = [line for line in lines if line.ours.split("/")[0] not in fresh]
    dropped = [name for part in fresh for name in weights.names_of(part)]
    arrays = {name: array for name, array in weights.arrays.items() if name not in dropped}
    notes = [*fresh.values()]
    if rows.note and not rows.fresh:
        notes.append(rows.note)
    try:
        notes += published(family).fit_positions(arrays, lines, like, sizes)
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
    notes += [f"not used: {', '.join(names)} ({why})" for why, names in weights.unused.items()]
    return _Fit(kept, arrays, rows.order, notes + remarks(weights))


def _of_head(path: str) -> bool:
    return path.split("/")[0] == "head"


def _rows(weights: Weights, class_names: Sequence[str] | None) -> Rows:
    """What becomes of the rows of a head that has as many classes as the model."""
    names, why_not = own_classes(weights)
    return Rows(note=why_not) if why_not else beside.rows(names, class_names)


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
