"""Blocks of threads that a kernel is cut into, and the part of an axis that one works on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import ManualAxisType

from pbr_jax.kernels.varying import alike, varying


class Blocks(NamedTuple):
    """Cut of a kernel into blocks of threads; each kernel says what its rows and columns are."""

    # rows, columns: of the tile that a block of threads handles at a time; powers of two
    rows: int
    columns: int
    depth: int = 0  # of a product that is multiplied at a time, a power of two of at least 16
    parts: int = 1  # tiles, one below the other, of one block of threads
    # num_warps, num_stages: of a block of threads, and of its pipeline of loads
    num_warps: int = 4
    num_stages: int = 1
    num_blocks: int = 0  # blocks of threads to aim at, where they share out the work

    def call(
        self, kernel, name: str, grid: tuple, out_shape: Any, interpret: bool, **options: Any
    ) -> Any:
        """The kernel as a function of arrays, with a block of threads for each place of `grid`."""
        params = triton.CompilerParams(num_warps=self.num_warps, num_stages=self.num_stages)
        options |= {"compiler_params": params, "interpret": interpret, "name": name}

        def run(*args):
            args, shapes = alike(*args), out_shape
            if axes := varying(args):
                kind = ManualAxisType(varying=axes)
                shapes = jax.tree.map(lambda out: out.update(manual_axis_type=kind), out_shape)
            return pl.pallas_call(kernel, grid=grid, out_shape=shapes, **options)(*args)

        return run


class Part(NamedTuple):
    """Indices `first ... first + size - 1` of an axis, some of which may lie behind its end."""

    first: jax.Array | int
    size: int
    length: int

    @property
    def slice(self) -> Any:
        return pl.ds(self.first, self.size)

    @property
    def indices(self) -> jax.Array:
        return self.first + lax.iota(jnp.int32, self.size)

    @property
    def whole(self) -> bool:
        """Whether no part of this size reaches over the end."""
        return self.length % self.size == 0

    @property
    def inside(self) -> jax.Array:
        return self.indices < self.length


def both(rows: Any, columns: Any) -> jax.Array:
    """The mask of what lies inside, of rows and columns."""
    return rows.inside[:, None] & columns.inside[None]


def places(rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Indices of all elements in these rows and columns."""
    shape = (rows.size, columns.size)
    return lax.broadcast_in_dim(rows, shape, (0,)), lax.broadcast_in_dim(columns, shape, (1,))


def load(ref: Any, rows: Part, columns: Part) -> jax.Array:
    """A tile of `ref`, zero behind the ends."""
    return triton.load(ref.at[rows.slice, columns.slice], mask=both(rows, columns), other=0)


def store(ref: Any, rows: Part, columns: Part, value: jax.Array) -> None:
    """Writes a tile of `ref`, in its dtype, as far as it lies inside."""
    at = ref.at[rows.slice, columns.slice]
    triton.store(at, value.astype(ref.dtype), mask=both(rows, columns))
