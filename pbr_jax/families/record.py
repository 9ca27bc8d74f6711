"""A family of models as a record: all that the rest of the package asks of it.

No module here imports JAX: what needs it is named by its place, "module:name", and loaded late.
"""

import dataclasses
import importlib
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pbr_jax.configs.common import SHAPE, Model, Rule
from pbr_jax.datasets import Kind
from pbr_jax.methods import OF_HALF_BLOCKS

KERNEL, BIAS = "kernel", "bias"
"""Names of the two parameters of a linear layer, as Flax has them."""


class Site(NamedTuple):
    """An activation that feeds linear layers, and the layer that it feeds."""

    columns: int  # D, width of the activation
    features: int  # F, outputs of the layer; layers that share the activation count as one
    # Of `{kernel [L, D, F], bias [L, F]}` among the parameters, and of what is selected there in
    # the collection `selection`.
    path: tuple[str, ...]


class Attention(NamedTuple):
    """Self-attention of a block."""

    site: str  # whose layer makes q, k and v
    heads: int  # H


class Architecture(NamedTuple):
    """Sizes of a model, as selection, step, cost and fit need them."""

    width: int  # D, channels of a token between blocks
    depth: int  # L, blocks, stacked along the first axis of every parameter of theirs
    tokens: int  # N of an example, padding included
    sites: Mapping[str, Site]  # in the order of the forward pass
    attention: Attention | None = None
    # Sites of tables of words, beside those of blocks: columns of what a word is looked up as.
    tables: Mapping[str, Site] = types.MappingProxyType({})

    @property
    def hidden(self) -> int:
        """Width of the widest input of a linear layer."""
        return max(site.columns for site in self.sites.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of model; `model.family` names it, or its place, "module:NAME".

    Attributes:
      build: place of `(Model, ResidualPlan) -> nn.Module`. The module has `inputs(batch)`, what it
        reads of a batch, and `input_specs(batch_size)`, shapes and dtypes of that. Where devices
        share a batch it is called with `part`, see `ops.arrays.Part`. `exchanges`, if it has them,
        are names of the parameters that it gets and whose gradients it gives by `part.exchange`.
      describe: sizes of the configured model; None where only its program tells them (`own`).
      traced: whether `transform` prunes it by its program, so that what a block keeps, and in which
        parts it runs, is the module's own affair; otherwise its blocks are `ops.stack`.
      provider: place of `(Config, Family, Method, Task) -> PrunedModel`, what the trainer trains.
      lengths: name of the input, int32 `[B]`, that says how many tokens of an example are real;
        None where all are.
      exact: place of a plain model in float64, `(Config, params, batch) -> outputs`, that
        `pbr bench check` compares gradients with; None without one.
    """

    name: str  # one word
    title: str  # for readers, "ViT"
    reads: Kind | None  # kind of the data sets that it trains on; None: any
    describe: Callable[[Model], Architecture] | None
    build: str
    traced: bool = False
    provider: str = "pbr_jax.training.family_model:family_model"
    methods: tuple[str, ...] = OF_HALF_BLOCKS  # by which it can be trained
    usual: tuple[str, ...] | None = None  # of these, what is tried where none is named; None: all
    shape: tuple[str, ...] = SHAPE  # fields of `Model` that fix its sizes, unless `size` does
    settings: tuple[str, ...] = ()  # fields of `Model` that it reads and not every other family
    faults: Callable[[Model], list[str]] = lambda model: []  # between its settings, a line each
    # Name of an integer input -> how many values it can take, for random batches.
    integers: Callable[[Model], dict[str, int]] = lambda model: {}
    lengths: str | None = None
    task: str = "pbr_jax.training.task:CLASSIFICATION"  # place of a `Task`, its loss and metrics
    exact: str | None = None
    published: str | None = None  # place of a `pbr_jax.weights.formats.Published`


def late(where: str) -> Any:
    """The object at "module:name"."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def near_multiples(value: int, factor: int, rule: Rule) -> str:
    """The multiples of `factor` around `value` that obey the rule of its setting, for advice."""
    below = value // factor * factor
    return " and ".join(str(near) for near in (below, below + factor) if rule.holds(near))
