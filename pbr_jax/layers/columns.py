"""Which columns a layer keeps: those handed to it, or a draw that its collection tells."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pbr_jax.plans import budget_for


class Columns(NamedTuple):
    """Columns of an input.

    Attributes:
      indices: int32 `[K]`; None where there are none, to evaluate or to keep all.
      told: whether a caller can know them.
    """

    indices: jax.Array | None
    told: bool = True


def selected_columns(module: nn.Module, num_columns: int, keep: float) -> Columns:
    """The columns handed to `module`, or a uniform draw of `budget_for(keep, D)`, or none."""
    if module.has_variable("selection", "columns"):
        return Columns(module.get_variable("selection", "columns"))
    budget = budget_for(keep, num_columns)
    if budget == num_columns or not module.has_rng("selection"):
        return Columns(None)
    # The beginning of a random order is a uniform draw without repetition.
    columns = jnp.arange(num_columns, dtype=jnp.int32)
    drawn = jax.random.permutation(module.make_rng("selection"), columns)[:budget]
    return Columns(jnp.sort(drawn), told=module.is_mutable_collection("selection"))


def record(module: nn.Module, columns: Columns, inputs: Sequence[int]) -> None:
    """Writes columns, and the mask of the kernel's leading axes, where `selection` is mutable."""
    if columns.indices is None or not module.is_mutable_collection("selection"):
        return
    if module.is_initializing():
        return
    selected = jnp.zeros((math.prod(inputs),), bool).at[columns.indices].set(True, mode="drop")
    module.put_variable("selection", "columns", columns.indices)
    module.put_variable("selection", "selected", selected.reshape(inputs))


def require(path: str, columns: Columns, keep: float, num_columns: int) -> None:
    """Raises where a layer is about to be differentiated without columns, or by untold ones."""
    if columns.indices is None and budget_for(keep, num_columns) < num_columns:
        raise ValueError(
            f"{path}: keep = {keep} but no columns were given for the backward pass; pass"
            ' rngs={"selection": key} or the collection "selection" to apply, or set keep=1'
        )
    if not columns.told:
        raise ValueError(
            f'{path}: columns are drawn from the stream "selection", but its collection cannot'
            " tell them, and an optimizer would move all rows: pass"
            ' mutable=["selection"] to apply; under nn.scan and nn.vmap "selection" belongs in'
            " variable_axes, not in split_rngs alone"
        )
