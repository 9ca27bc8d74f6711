"""How arrays of a checkpoint lie in our parameter tree: a table of lines that is read both ways.

A line names one array of theirs, the leaf of ours that holds it, and the axes of both in words:

    Line("…patch_embeddings.projection.weight", "embedding/kernel",
         "patch patch channels width -> width channels patch patch")

Ours is on the left, where words that lie side by side may be one axis of the leaf
(`embedding/kernel` is `[patch * patch * channels, width]`); theirs is on the right, or the same
without an arrow. A word that comes twice keeps its order. Loading, saving and checking all follow
from the table: what one writes the other reads, bit for bit.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pbr_jax.configs.common import SHAPE, Model

Arrays = dict[str, np.ndarray]
Sizes = Mapping[str, int]  # word -> number
Leaves = Mapping[str, Any]  # path in our tree, such as "blocks/fc1/kernel" -> array or shape


class Line(NamedTuple):
    """One array of theirs."""

    theirs: str  # its name
    ours: str  # path of the leaf that holds it
    axes: str = ""  # words, "ours -> theirs"; empty where theirs is the leaf as it is
    block: int | None = None  # its row of the stacked leaf `[L, ...]`; None: not stacked
    part: int = 0  # which of `parts` equal parts of the leaf's last axis it is
    parts: int = 1

    def words(self) -> tuple[list[str], list[str]]:
        """The axes of ours and of theirs."""
        ours, arrow, theirs = self.axes.partition("->")
        return ours.split(), theirs.split() if arrow else ours.split()

    def place(self, leaf: np.ndarray) -> np.ndarray:
        """A view of what the line speaks of in a leaf of ours."""
        width = leaf.shape[-1] // self.parts
        rows = leaf if self.block is None else leaf[self.block]
        return rows[..., self.part * width : (self.part + 1) * width]


def model_sizes(model: Model) -> dict[str, int]:
    """The words that every family has, of a configured model."""
    m = model.resolved()
    sizes = {name: getattr(m, name) for name in SHAPE if getattr(m, name) is not None}
    return sizes | {"classes": m.num_classes}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested tree as path -> leaf."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}/") if inner else {prefix + name: value}
    return flat


def unflatten(leaves: Leaves) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def shape_of(line: Line, leaf: Any, sizes: Sizes) -> tuple[int, ...]:
    """The shape of theirs in a model of these sizes whose leaf is `leaf`."""
    if not line.axes:
        return tuple(leaf.shape)
    return tuple(_size(word, sizes) for word in line.words()[1])


def to_theirs(line: Line, leaf: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Theirs, contiguous, from our leaf."""
    if not line.axes:
        return leaf
    ours, theirs = line.words()
    split = line.place(leaf).reshape([_size(word, sizes) for word in ours])
    return np.ascontiguousarray(split.transpose(_order(ours, theirs)))


def from_theirs(lines: Iterable[Line], arrays: Arrays, like: Leaves) -> dict[str, np.ndarray]:
    """The leaves that the lines speak of, in the shapes and dtypes of `like`.

    Every element must be spoken of: the lines of a leaf cover its blocks and parts.
    """
    # Blocks and parts are written into their places of one stacked leaf.
    leaves: dict[str, np.ndarray] = {}
    for line in lines:
        if line.ours not in leaves:
            leaf = like[line.ours]
            leaves[line.ours] = np.empty(leaf.shape, leaf.dtype)
        place, array = line.place(leaves[line.ours]), arrays[line.theirs]
        if line.axes:
            ours, theirs = line.words()
            array = array.transpose(_order(theirs, ours)).reshape(place.shape)
        place[...] = array
    return leaves


def infer_sizes(lines: Iterable[Line], arrays: Arrays) -> dict[str, int]:
    """What every word means in these arrays: where they disagree, what most of them say."""
    seen: dict[str, Counter[int]] = {}
    for line in lines:
        _, words = line.words()
        shape = arrays[line.theirs].shape if line.theirs in arrays else ()
        if len(shape) == len(words):
            for word, size in zip(words, shape, strict=True):
                if size > 0:  # an empty array tells nothing
                    seen.setdefault(word, Counter())[size] += 1
    # What `_size` computes is no size of its own.
    told = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
    computed = [word for word in told if word.isdigit() or word in ("out", "head_dim")]
    return {word: size for word, size in told.items() if word not in computed}


def _size(word: str, sizes: Sizes) -> int:
    """`out` is the width on the output side of a square kernel; a number stands for itself."""
    if word.isdigit():
        return int(word)
    if word == "out":
        return sizes["width"]
    return sizes["width"] // sizes["heads"] if word == "head_dim" else sizes[word]


def _order(source: Sequence[str], target: Sequence[str]) -> list[int]:
    """The axis of `source` for every word of `target`; equal words keep their order."""
    left, order = [*source], []
    for word in target:
        order.append(left.index(word))
        left[order[-1]] = ""  # taken
    assert not any(left)
    return order
