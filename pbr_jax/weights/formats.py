"""The formats of public weights: which array of theirs is which leaf of ours.

Every family has a module of its own beside this one, with a `Published`: a table of lines for each
layout, and what else has to be known of its files.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from pbr_jax.configs.common import Model
from pbr_jax.families import FAMILIES, find, late
from pbr_jax.weights.layout import Arrays, Leaves, Line, Sizes, model_sizes
from pbr_jax.weights.preparation import Normalization

Companions = Callable[[Mapping[str, Any], Sizes, Normalization], dict[str, Any]]
TOLD: dict[str, Callable[[Sizes], int]] = {  # by every model of Hugging Face's
    "hidden_size": itemgetter("width"),
    "num_hidden_layers": itemgetter("depth"),
    "num_attention_heads": itemgetter("heads"),
    "intermediate_size": itemgetter("mlp_dim"),
}


class Format(NamedTuple):
    """A way to name and lay out the weights of one family."""

    name: str  # for readers
    family: str  # name of the family whose weights these are
    container: str  # kind of file that an export writes, "npz" or "safetensors"
    table: Callable[[int], list[Line]]  # depth -> a line for every array
    block: str  # pattern of what precedes the number of the block in a name
    prefix: str = ""  # what names may begin with or not
    renamed: tuple[tuple[str, str], ...] = ()  # endings in some files, and what they stand for
    unused: Mapping[str, str] = {}  # pattern of a name that our model does not have -> what it is
    # Of the `config.json` beside such weights, which an export writes too:
    told: Mapping[str, Callable[[Sizes], int]] = {}  # a key -> the number that the arrays tell
    computed: Mapping[str, Any] = {}  # a key -> the one value of it that our model computes
    types: tuple[str, ...] = ()  # what it calls the type of the model; empty: as the family
    related: Mapping[str, str] = {}  # another type of model with such arrays -> what to know of it
    # `(params, sizes, normalization) -> {file name: content}` of the JSON files beside an export.
    # It raises ValueError where the layout cannot hold the model.
    companions: Companions = lambda params, sizes, normalization: {}

    @property
    def model_types(self) -> tuple[str, ...]:
        """The types of model whose weights these are, by their `config.json`."""
        return self.types or (self.family,)

    def full_name(self, name: str) -> str:
        """`name` as the table writes it, in whatever block; other names as they are."""
        # The ending first, then the prefix that some files leave out.
        full = name
        for ending, meant in self.renamed:
            if name.endswith(ending):
                full = name.removesuffix(ending) + meant
        candidates = (full, self.prefix + full)
        return next((n for n in candidates if self.in_block(n, "0") in _known(self.table)), name)

    def knows(self, name: str) -> bool:
        """Whether the table has an array of that name, in whatever block."""
        return self.in_block(self.full_name(name), "0") in _known(self.table)

    def in_block(self, name: str, number: str) -> str:
        """The name of the same array of another block."""
        return re.sub(rf"(?<={self.block})\d+", number, name)

    def block_of(self, name: str) -> int | None:
        """The number of the block in a name, None where there is none."""
        # A number that nobody counts to is left to the name, which then is of no block.
        found = re.search(rf"{self.block}(\d{{1,9}})(?!\d)", name)
        return int(found[1]) if found else None

    def why_unused(self, name: str) -> str | None:
        """What an array is that only the published model has; None of any other."""
        return next((why for pattern, why in self.unused.items() if re.match(pattern, name)), None)


@functools.cache
def _known(table: Callable[[int], list[Line]]) -> frozenset[str]:
    """Names in a table, those of the first block for all."""
    return frozenset(line.theirs for line in table(1))


class Published(NamedTuple):
    """Public weights of a family; the defaults are those of a family without any."""

    formats: tuple[Format, ...] = ()
    sizes: Callable[[Model], dict[str, int]] = model_sizes  # values of the layouts' words
    # `(name of the size, sizes) -> name of a model` such as ViT-B/16, or None without one.
    label: Callable[[str, Sizes], str | None] = lambda size, sizes: None
    # `(arrays, sizes, model, config) -> {key: value}` of `Model` that fit weights with that
    # `config.json`, beside the family and the sizes of the blocks.
    settings: Callable[[Arrays, Sizes, Model, Mapping[str, Any]], dict[str, Any]] = (
        lambda arrays, sizes, model, config: {}
    )
    # `(arrays, lines, leaves, sizes) -> notes`; changes the position embeddings among the arrays so
    # that they fit the model. It raises ValueError where that should be done and cannot.
    fit_positions: Callable[[Arrays, Sequence[Line], Leaves, Sizes], list[str]] = (
        lambda arrays, lines, leaves, sizes: []
    )
    # What of `config.json` follows from the settings of a model, where an export writes it. It
    # raises ValueError where no published model computes what this one does.
    described: Callable[[Model], dict[str, Any]] = lambda model: {}
    # A line for everything that a `config.json` says otherwise than the settings of a model do, of
    # what no array would show.
    differences: Callable[[Mapping[str, Any], Model], list[str]] = lambda config, model: []


def published(family: str) -> Published:
    """The public weights of the family that is called, or lies at the place, `family`."""
    place = find(family).published
    return Published() if place is None else late(place)


def formats() -> tuple[Format, ...]:
    """All layouts that can be read."""
    return tuple(form for family in FAMILIES for form in published(family).formats)
