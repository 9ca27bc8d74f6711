"""A pruned model on four devices, equal to one; run by tests/transform/test_meshes.py.

Prints a line of JSON: {case: [largest error, bytes in all-reduces, those of the dense model]}.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rewritten import loss_of, numbers, selection_of, weights

from pbr_jax import prune

D, F = 64, 256
SHAPES = {"float32": 4, "s32": 4, "f32": 4, "bf16": 2}


def model(params, x):
    step = lambda x, w: (x + jnp.tanh(x @ w["up"]) @ w["down"], None)  # noqa: E731
    return jax.lax.scan(step, x, params)[0]


def moved(compiled):
    """Bytes of all results of all-reduces in a compiled program."""
    total = 0
    for line in compiled.as_text().splitlines():
        found = re.search(r"= (.*?) all-reduce(-start)?\(", line)
        for kind, sizes in re.findall(r"(f32|bf16|s32)\[([\d,]*)\]", found[1] if found else ""):
            total += SHAPES[kind] * int(np.prod([int(n) for n in sizes.split(",") if n] or [1]))
    return total


SPECS = {  # of the batch, of `up` [L, D, F] and of `down` [L, F, D]
    "data": (P("data"), P(), P()),
    "fsdp": (P("data"), P(None, "data", None), P(None, None, "data")),
    "tensor": (P("data"), P(None, None, "model"), P(None, "model", None)),
}


def run(kind, parallel):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    batch, up, down = SPECS[parallel]
    params = weights(0, up=(2, D, F), down=(2, F, D))
    x = numbers(1, 8, 4, D)
    pruned = prune(model, params, x, keep=0.125)
    selection = selection_of(pruned)
    gradient = pruned.value_and_grad(loss_of(lambda p, x: out_of(p, x, kind)))
    stock = jax.value_and_grad(loss_of(lambda p, x: out_of(p, x, kind)))
    single = pruned.value_and_grad(loss_of(model))

    def both(gradient):
        def run(params, selection, x):
            value, grads = gradient(params, selection, x)
            return value, pruned.dense(grads, selection)

        return run

    expected = jax.jit(both(single))(params, selection, x)
    with jax.set_mesh(mesh):
        put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))  # noqa: E731
        placed = {"up": put(params["up"], up), "down": put(params["down"], down)}
        chosen = {name: put(columns, P()) for name, columns in selection.items()}
        spread = put(x, batch)
        compiled = jax.jit(both(gradient)).lower(placed, chosen, spread).compile()
        found = compiled(placed, chosen, spread)
        dense = jax.jit(stock).lower(placed, spread).compile()
    found, expected = jax.tree.map(np.asarray, (found, expected))
    error = max(
        float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )
    return [error, moved(compiled), moved(dense)]


def out_of(params, x, kind):
    """The model; with explicit axes the contraction over a sharded axis must say its output."""
    if kind == AxisType.Auto:
        return model(params, x)

    def step(x, w):
        h = jnp.tanh(jnp.einsum("bnd,df->bnf", x, w["up"], out_sharding=P("data", None, "model")))
        return x + jnp.einsum("bnf,fd->bnd", h, w["down"], out_sharding=P("data")), None

    return jax.sharding.reshard(jax.lax.scan(step, x, params)[0], P())


if __name__ == "__main__":
    cases = sys.argv[1:] or [f"{k}-{p}" for k in ("Auto", "Explicit") for p in SPECS]
    found = {}
    for case in cases:
        kind, parallel = case.split("-")
        found[case] = run(AxisType[kind], parallel)
    print(json.dumps(found))
