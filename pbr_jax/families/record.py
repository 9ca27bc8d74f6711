"""A family of models as a record: all that the rest of the package asks of it.

No module here imports JAX: what needs it is named by its place, "module:name", and loaded late.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from pbr_jax.configs.common import SHAPE, Model

KERNEL, BIAS = "kernel", "bias"
"""Names of the two parameters of a linear layer, as Flax has them."""


class Site(NamedTuple):
    """An activation that feeds linear layers, and the layer that it feeds.

    Attributes:
      columns: D, width of the activation.
      features: F, outputs of the layer; layers that share the activation count as one.
      path: of `{kernel [L, D, F], bias [L, F]}` in the parameter tree, and of what is selected
        there in the collection `selection`.
    """

    columns: int
    features: int
    path: tuple[str, ...]


class Attention(NamedTuple):
    """Self-attention of a block.

    Attributes:
      site: whose layer makes q, k and v.
      heads: H.
    """

    site: str
    heads: int


class Architecture(NamedTuple):
    """Sizes of a model, as selection, step, cost and fit need them.

    Attributes:
      width: D, channels of a token between blocks.
      depth: L, blocks, stacked along the first axis of every parameter of theirs.
      tokens: N of an example, padding included.
      sites: in the order of the forward pass.
      attention: None in a model without it.
    """

    width: int
    depth: int
    tokens: int
    sites: Mapping[str, Site]
    attention: Attention | None = None

    @property
    def hidden(self) -> int:
        """Width of the widest input of a linear layer."""
        return max(site.columns for site in self.sites.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of model; `model.family` names it, or its place, "module:NAME".

    Attributes:
      name: one word.
      title: for readers, "ViT".
      reads: kind of the data sets it can be trained on.
      shape: fields of `Model` that fix its sizes, unless `size` names them.
      settings: fields of `Model` that this family reads and not every other does.
      describe: sizes of the configured model.
      build: place of `(Model, ResidualPlan) -> nn.Module`. The module has `inputs(batch)`, what it
        reads of a batch, and `input_specs(batch_size)`, shapes and dtypes of that.
      faults: what is wrong between its settings, a line each.
      integers: name of an integer input -> how many values it can take, for random batches.
      lengths: name of the input, int32 `[B]`, that says how many tokens of an example are real;
        None where all are.
      task: place of a `pbr_jax.training.task.Task`, its loss and metrics.
      exact: place of a plain model in float64, `(Config, params, batch) -> outputs`, that
        `pbr bench check` compares gradients with; None without one.
      published: place of a `pbr_jax.weights.formats.Published`; None without public weights.
    """

    name: str
    title: str
    reads: Literal["image", "text"]
    describe: Callable[[Model], Architecture]
    build: str
    shape: tuple[str, ...] = SHAPE
    settings: tuple[str, ...] = ()
    faults: Callable[[Model], list[str]] = lambda model: []
    integers: Callable[[Model], dict[str, int]] = lambda model: {}
    lengths: str | None = None
    task: str = "pbr_jax.training.task:CLASSIFICATION"
    exact: str | None = None
    published: str | None = None


def late(where: str) -> Any:
    """The object at "module:name"."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def near_multiples(value: int, factor: int) -> str:
    """The multiples of `factor` around `value`, for advice."""
    below = value // factor * factor
    return f"{below} and {below + factor}" if below else str(factor)
