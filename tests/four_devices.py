"""Four devices of the CPU: programs of this folder, and what these programs share.

The number of devices is fixed with the first use of JAX, so a program has a process of its own.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


@functools.cache
def answers(program: str, cases: tuple[str, ...]) -> dict:
    """What `program` prints of the cases, a line of JSON."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, pathlib.Path(__file__).parent / program, *cases],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answer(program: str, case: str, *groups: list) -> object:
    """That of one case; the cases of its group of `pytest.param` share a process."""
    names = [tuple(param.id for param in group) for group in groups]
    return answers(program, next(own for own in names if case in own))[case]


def put(mesh, tree, spec):
    """The tree on the devices of a mesh, as `spec(path, leaf)` says."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.device_put(leaf, NamedSharding(mesh, spec(name, leaf)))

    return jax.tree_util.tree_map_with_path(place, tree)


def largest_error(found, expected):
    """Of any array, as a fraction of its largest entry."""
    found, expected = jax.tree.map(np.asarray, (found, expected))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


AXES = {"Manual": True, "Local": True, "Unchecked": False}
"""Whether `on_every_device` has JAX check what varies, and so take the sum of gradients."""


def on_every_device(gradients, axes, params, x):
    """`gradients(params, x) -> (loss, (of params, of x))` inside `shard_map` over the batch.

    Returns what it gives, and the compiled program.

    "Manual": the sum is JAX's own. "Local": the parameters vary, and the sum comes after. The other
    axis of the mesh stays explicit. "Unchecked": all axes manual, and the sum comes after.
    """
    kind = AxisType.Explicit if AXES[axes] else AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)

    def local(params, x):
        if axes == "Local":
            params = jax.lax.pcast(params, "data", to="varying")
        value, (grads, dx) = gradients(params, x)
        grads = grads if axes == "Manual" else jax.lax.psum(grads, "data")
        return jax.lax.psum(value, "data"), (grads, dx)

    options = {"check_vma": True, "axis_names": {"data"}} if AXES[axes] else {"check_vma": False}
    with jax.set_mesh(mesh):
        params = put(mesh, params, lambda path, leaf: P())
        x = put(mesh, x, lambda path, leaf: P("data"))
        specs = {"in_specs": (P(), P("data")), "out_specs": (P(), (P(), P("data")))}
        step = jax.jit(jax.shard_map(local, **specs, **options)).lower(params, x).compile()
        return step(params, x), step
