"""Kinds of residual of a linear layer: the part of its input that its weight gradient reads."""

from typing import Any, NamedTuple

import jax
from jax import lax

from pbr_jax.ops import residuals
from pbr_jax.plans import budget_for


class LinearKind:
    """A kind of residual of a linear layer with input x, `[B, ..., D]`; by default all of x."""

    selects = False  # `columns` arrive in `params`, chosen by a policy before the forward pass
    # depends on x alone and not on a choice made from it, so that nothing needs to be kept where
    # another residual can make x again
    rebuildable = False
    whole = False  # is x itself, so that an array of its size outlives the forward pass
    # arrays `[B, N, F]` of the MLP that a chunk of a block needs at once, read off compiled steps
    in_hand = 3.5

    def save(self, x: jax.Array, params: dict, settings: residuals.Kept) -> Any:
        """The residual of x."""
        return x

    def restore(self, residual: Any, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Any:
        """The factor of the weight gradient, `[B, ..., D or K]`, for x of that shape and dtype."""
        return residual

    def place(self, packed: jax.Array, params: dict, residual: Any) -> jax.Array:
        """The weight gradient where it belongs: the K rows that were computed, among zeros."""
        return packed

    def kept_columns(self, num_columns: int, keep: float, group_size: int = 1) -> int:
        """Columns that the weight gradient is computed for."""
        return num_columns

    def searched_channels(self, num_columns: int) -> int:
        """Channels of a token among which the largest elements are searched for, 0 if none are."""
        return 0


class Dense(LinearKind):
    """All of x."""

    rebuildable = True
    whole = True


class Columns(LinearKind):
    """Packed columns that a policy selected (Algorithm 1, lines 8-15)."""

    selects = True
    rebuildable = True

    def save(self, x, params, settings):
        if "columns" not in params:
            return x  # keep = 1: nothing is selected, all of it is saved
        return residuals.take_columns(x, params["columns"])

    def place(self, packed, params, residual):
        # With `rows` the gradient is wanted packed; without a selection it is whole.
        if "rows" in params or "columns" not in params:
            return packed
        return residuals.put_rows(packed, params["columns"], params["kernel"].shape[0])

    def kept_columns(self, num_columns, keep, group_size=1):
        return budget_for(keep, num_columns, group_size)


class MagnitudeColumns(NamedTuple):
    """Packed columns chosen from the input, and which they are."""

    packed: jax.Array  # [..., K]
    columns: jax.Array  # int32 [K]


class Magnitude(LinearKind):
    """PreBackRazor-: the columns of largest norm of this batch, chosen from x itself."""

    def save(self, x, params, settings):
        columns = residuals.largest_columns(x, budget_for(settings.keep, x.shape[-1]))
        return MagnitudeColumns(residuals.take_columns(x, columns), columns)

    def restore(self, residual, shape, dtype):
        return residual.packed

    def place(self, packed, params, residual):
        # Barrier: without it a ViT-B/16 step takes 0.1 GB more, by the kernel on jax 0.11.
        packed = lax.optimization_barrier(packed)
        return residuals.put_rows(packed, residual.columns, params["kernel"].shape[0])

    def kept_columns(self, num_columns, keep, group_size=1):
        return budget_for(keep, num_columns)


class Elements(LinearKind):
    """BackRazor: the largest elements of each sample, as 16-bit values and a bit for each."""

    in_hand = 6.0

    def save(self, x, params, settings):
        return residuals.pack_for(settings, x, residuals.half_precision(x.dtype))

    def restore(self, residual, shape, dtype):
        return residuals.unpack_elements(residual, shape, dtype)

    def searched_channels(self, num_columns):
        return num_columns
