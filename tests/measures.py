"""Helpers of the numerical tests: random arrays, errors against an oracle, bytes saved."""

import contextlib
import functools
import inspect
import os
import pathlib
import re
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

from pbr_jax.gpu import Card, require_compiler
from pbr_jax.ops import dispatch

# An op's own checks, without the annotations that conftest.py checks before them.
unchecked = inspect.unwrap


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers that float32 represents exactly, as float64."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(np.float64)


def as_jax(tree, dtype=jnp.float32):
    """Float64 leaves as JAX arrays of `dtype`, others in their own."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype if a.dtype == np.float64 else a.dtype), tree)


def as_float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def relative_error(actual, expected) -> float:
    """`|actual - expected| / |expected|`, Euclidean norms, in float64."""
    difference = np.asarray(actual, np.float64) - np.asarray(expected, np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(expected, np.float64)))


def assert_close(actual, expected, tolerance: float, name: str = "") -> None:
    """Equal shapes, and a relative error within `tolerance`; all of a tree, leaf by leaf."""
    if isinstance(expected, dict):
        assert set(actual) == set(expected)
        for key, value in expected.items():
            assert_close(actual[key], value, tolerance, f"{name}.{key}")
        return
    assert np.shape(actual) == np.shape(expected), name
    if not np.any(np.asarray(expected)):
        np.testing.assert_array_equal(np.asarray(actual, np.float64), 0.0, err_msg=name)
        return
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e} exceeds {tolerance:.1e}"


# Rounds as a user's program does: conftest.py turns XLA's fusion emitters off, and without them a
# fusion rounds otherwise, and tanh is less accurate.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_OFF = _EMITTERS in os.environ.get("XLA_FLAGS", "")
exact_jit = functools.partial(jax.jit, compiler_options={_EMITTERS: True} if _OFF else None)


def value_and_pullback(function, dy, *args):
    """`function(*args)` and the cotangents of `args`, compiled."""

    @exact_jit
    def run(dy, *args):
        y, pullback = jax.vjp(function, *args)
        return y, pullback(dy)

    return run(dy, *args)


@contextlib.contextmanager
def implemented():
    """Where every implementation of an op may be named: kernels are interpreted without a GPU."""
    with contextlib.ExitStack() as stack:
        if jax.default_backend() == "gpu":
            stack.enter_context(jax.default_matmul_precision("highest"))
        else:
            stack.enter_context(dispatch.interpreted())
        yield


def saved_bytes(function, *activations) -> int:
    """Bytes that differentiating `function` keeps for the backward pass, its constants excluded.

    The function sees the activations negated, as results of another op: inside a network the caller
    lets go of them, so keeping one costs its bytes. Parameters that `function` closes over, and the
    activations themselves, are not counted.
    """

    def leaves(*activations):
        _, pullback = jax.vjp(lambda *a: function(*map(jnp.negative, a)), *activations)
        return jax.tree.leaves(pullback)

    jaxpr = jax.make_jaxpr(leaves)(*activations).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars}
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)} - given
    return sum(v.aval.size * v.aval.dtype.itemsize for v in kept)


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def ptx_use(ptx: str, card: Card) -> tuple[int, int]:
    """Registers of a thread and bytes that it spills, of the one kernel in a PTX program."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None and str(card.capability[0]) in target[1]
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder, "kernel.ptx")
        program.write_text(ptx)
        command = [require_compiler() / "bin/ptxas", "-v", f"-arch={target[1]}", program]
        command += ["-o", program.with_suffix(".cubin")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    return int(registers[1]), int(spills[1]) + int(spills[2])
