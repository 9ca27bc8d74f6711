"""What is wrong with the arrays of weights: missing, superfluous, misshapen or not finite."""

import collections
from collections.abc import Mapping

import numpy as np

from pbr_jax.weights import layout
from pbr_jax.weights.layout import Arrays
from pbr_jax.weights.read import Weights

OPTIONAL = ("head", "lm_head", "pooler", "cls")  # parts of our tree that a whole file may lack


def own_faults(weights: Weights) -> list[str]:
    """What is missing, superfluous, misshapen or not finite by what the file itself says."""
    # Where the file is silent about a size, any will do: its arrays are compared with themselves.
    sizes = collections.defaultdict(lambda: 1, weights.sizes)
    absent = [part for part in OPTIONAL if not weights.names_of(part)]
    expected = {
        line.theirs: layout.shape_of(line, weights.arrays.get(line.theirs), sizes)
        for line in weights.format.table(sizes["depth"])
        if line.ours.split("/")[0] not in absent
    }
    return faults(weights, weights.arrays, expected)


def faults(weights: Weights, arrays: Arrays, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A line for every array that is missing, superfluous, misshapen or not finite.

    Arrays of several blocks with the same fault share a line.
    """
    found: dict[tuple[str, str], list[str]] = {}

    def add(name: str, text: str) -> None:
        found.setdefault((weights.format.in_block(name, "0"), text), []).append(name)

    for name in sorted(expected.keys() - arrays.keys()):
        add(name, "missing: {}")
    for name in sorted(arrays.keys() - expected.keys()):
        add(name, "not in the model: {}")
    for name in sorted(expected.keys() & arrays.keys()):
        if arrays[name].shape != expected[name]:
            add(name, f"{{}} is {arrays[name].shape}, the model wants {expected[name]}")
        elif not _is_finite(arrays[name]):
            add(name, "{} has values that are not finite in float32")
    return [text.format(_listed(weights, names)) for (_, text), names in found.items()]


def _is_finite(array: np.ndarray) -> bool:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())


def _listed(weights: Weights, names: list[str]) -> str:
    """One name of the file, or that of all blocks with their numbers."""
    form, name = weights.format, weights.names.get(names[0], names[0])
    if len(names) == 1:
        return name
    numbers = sorted(form.block_of(name) or 0 for name in names)
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    listed = f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))
    return f"{form.in_block(name, '*')} of blocks {listed}"
