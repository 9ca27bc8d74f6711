"""A pruned model on four devices, equal to one; run by tests/transform/test_meshes.py.

Prints a line of JSON: {case: [largest error, bytes in all-reduces, those of the dense model]}.
"""

import contextlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from decoder import decoder, problem
from four_devices import AXES, largest_error, on_every_device, put
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


def problem_of_two_layers():
    params = weights(0, up=(2, D, F), down=(2, F, D))
    x = numbers(1, 8, 4, D)
    return params, x, prune(model, params, x, keep=0.125)


def run(kind, parallel):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    batch, up, down = SPECS[parallel]
    plain = kind == AxisType.Auto or parallel == "data"
    params, x, pruned = problem_of_two_layers()
    selection = selection_of(pruned)
    gradient = pruned.value_and_grad(loss_of(lambda p, x: out_of(p, x, plain)))
    stock = jax.value_and_grad(loss_of(lambda p, x: out_of(p, x, plain)))
    single = pruned.value_and_grad(loss_of(model))

    def both(gradient):
        def run(params, selection, x):
            value, grads = gradient(params, selection, x)
            return value, pruned.dense(grads, selection)

        return run

    expected = jax.jit(both(single))(params, selection, x)
    # Arrays tell their mesh, so that none has to be in scope.
    with contextlib.nullcontext() if parallel == "data" else jax.set_mesh(mesh):
        placed = put(mesh, params, lambda path, leaf: {"up": up, "down": down}[path])
        chosen = put(mesh, selection, lambda path, leaf: P())
        spread = put(mesh, x, lambda path, leaf: batch)
        compiled = jax.jit(both(gradient)).lower(placed, chosen, spread).compile()
        found = compiled(placed, chosen, spread)
        dense = jax.jit(stock).lower(placed, spread).compile()
    return [largest_error(found, expected), moved(compiled), moved(dense)]


def run_on_every_device(axes):
    """Inside `shard_map`: the sum of gradients is that of packed ones, whoever takes it."""
    params, x, pruned = problem_of_two_layers()
    selection = selection_of(pruned)

    def loss(params, x):
        y = model(params, x)
        return jnp.sum(y * y + 0.1 * y * y * y)

    def gradients(params, x):
        value, grads = pruned.value_and_grad(loss)(params, selection, x)
        return value, (grads, jax.grad(loss, argnums=1)(params, x))

    def dense(params, x):
        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    found, compiled = on_every_device(gradients, axes, params, x)
    _, stock = on_every_device(dense, axes, params, x)
    error = largest_error(found, jax.jit(gradients)(params, x))
    return [error, moved(compiled), moved(stock)]


def out_of(params, x, plain):
    """The model; with explicit axes the contraction over a sharded axis must say its output."""
    if plain:
        return model(params, x)

    def step(x, w):
        h = jnp.tanh(jnp.einsum("bnd,df->bnf", x, w["up"], out_sharding=P("data", None, "model")))
        return x + jnp.einsum("bnf,fd->bnd", h, w["down"], out_sharding=P("data")), None

    return jax.sharding.reshard(jax.lax.scan(step, x, params)[0], P())


def run_decoder():
    """The decoder of `decoder.py`, compiled for four devices that share its batch."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    model = decoder()
    params, x, loss = problem(model)
    pruned = prune(model, x, None, keep=0.1)
    selection = jax.eval_shape(lambda: pruned.select(pruned.init(), jax.random.key(0)))

    def placed(tree, spec):
        place = NamedSharding(mesh, spec)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)

    params, selection, x = placed(params, P()), placed(selection, P()), placed(x, P("data"))
    with jax.set_mesh(mesh):
        mine = jax.jit(pruned.value_and_grad(loss)).lower(params, selection, x).compile()
        dense = jax.jit(jax.value_and_grad(loss)).lower(params, x).compile()
    # Bytes of a layer: both reduce their gradients inside the loop over layers, by as many calls.
    calls = [compiled.as_text().count(" all-reduce(") for compiled in (mine, dense)]
    assert calls[0] == calls[1], calls
    return [0.0, moved(mine), moved(dense)]


if __name__ == "__main__":
    found = {}
    for case in sys.argv[1:]:
        kind, parallel = case.split("-")
        if kind in AXES:
            found[case] = run_on_every_device(kind)
        else:
            found[case] = run_decoder() if kind == "decoder" else run(AxisType[kind], parallel)
    print(json.dumps(found))
