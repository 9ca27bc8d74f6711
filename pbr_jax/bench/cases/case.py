"""Case of `pbr bench kernels`: an op on the shapes of a real model."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from pbr_jax.plans import Implementation


class BenchCase(NamedTuple):
    """One op on one set of shapes."""

    op: str  # what it computes: "weight gradient"
    shape: str  # whose shapes these are: "fc1 of ViT-B/16, batch 128"
    run: Callable[..., Any]  # `run(*arrays, implementation=...)`, jittable
    # uint8 are any bytes, other integers are indices below `index_limit`.
    args: tuple[jax.ShapeDtypeStruct, ...]
    num_bytes: int  # that must at least move to and from memory
    flops: int = 0  # of its matrix products, as few as there can be
    index_limit: int = 0  # of random integers, drawn without repetition along the last axis
    donate: tuple[int, ...] = ()  # arguments that may be overwritten
    rivals: Mapping[str, Callable[..., Any]] = {}  # other things to time, name -> `run(*arrays)`
    # What is compared with XLA; `kernel_use` reads kernels of "triton" only.
    kernel: Implementation = "triton"
    # Other figures to print, errors and cosines: `figures(*arrays) -> {name: value}`.
    figures: Callable[..., Mapping[str, jax.Array]] | None = None


def results(run: Callable[..., Any], *args: jax.ShapeDtypeStruct) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of all that `run` of a case gives for `args`."""
    return jax.tree.leaves(jax.eval_shape(functools.partial(run, implementation="xla"), *args))


def num_bytes(*specs: jax.ShapeDtypeStruct) -> int:
    """Bytes of all arrays together."""
    return sum(spec.size * spec.dtype.itemsize for spec in specs)
