"""Case of `pbr bench kernels`: an op on the shapes of a real model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from pbr_jax.plans import Implementation


class BenchCase(NamedTuple):
    """One op on one set of shapes.

    Attributes:
      op: what it computes, "weight gradient".
      shape: whose shapes these are, "fc1 of ViT-B/16, batch 128".
      run: `run(*arrays, implementation=...)`, jittable.
      args: shapes and dtypes of its arrays; uint8 are any bytes, other integers indices
        below `index_limit`.
      flops: of its matrix products, as few as there can be.
      num_bytes: that must at least move to and from memory.
      index_limit: for random integers, drawn without repetition along the last axis.
      donate: which arguments may be overwritten.
      rivals: other implementations to time, name -> `run(*arrays)`.
      kernel: the implementation to compare with XLA; `kernel_use` reads those of "triton" only.
      figures: other figures to print, `figures(*arrays) -> {name: value}`: errors, cosines.
    """

    op: str
    shape: str
    run: Callable[..., Any]
    args: tuple[jax.ShapeDtypeStruct, ...]
    flops: int
    num_bytes: int
    index_limit: int = 0
    donate: tuple[int, ...] = ()
    rivals: Mapping[str, Callable[..., Any]] = {}
    kernel: Implementation = "triton"
    figures: Callable[..., Mapping[str, jax.Array]] | None = None


def num_bytes(*specs: jax.ShapeDtypeStruct) -> int:
    """Bytes of all arrays together."""
    return sum(spec.size * spec.dtype.itemsize for spec in specs)
