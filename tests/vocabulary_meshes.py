"""Loss and gradients of a vocabulary on four devices, equal to one; run by ops/test_vocabulary.py.

A case says how the axis of the mesh is handled. Prints a line of JSON: {case: largest error}.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from four_devices import largest_error, on_every_device
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pbr_jax.ops import vocabulary

B, N, D, V, K = 4, 6, 8, 40, 3


def value(params, x):
    """Of a tied table: its rows are read by the lookup and by the loss."""
    tokens, hidden = x["tokens"], x["hidden"]
    own = {"columns": jnp.array([5, 1, 6], jnp.int32), "rows": params["rows"]}
    hidden = hidden + vocabulary.embed(params["table"], tokens, **own)
    weights = jnp.where(tokens.reshape(-1) % 5 == 0, 0.0, 0.1)
    targets = (tokens.reshape(-1) + 1) % V
    loss, _ = vocabulary.loss(
        hidden.reshape(-1, D), params["table"], targets, weights, z_loss=0.01, chunk=6, **own
    )
    return loss


def gradients(params, x):
    def loss(rows, hidden):
        return value(params | {"rows": rows}, x | {"hidden": hidden})

    found, (rows, hidden) = jax.value_and_grad(loss, (0, 1))(params["rows"], x["hidden"])
    return found, ({"rows": rows}, {"hidden": hidden})


def check(case):
    rng = np.random.default_rng(0)
    params = {"table": rng.normal(size=(V, D)), "rows": np.zeros((K, V))}
    params = {name: jnp.asarray(a, jnp.float32) for name, a in params.items()}
    x = {
        "tokens": jnp.asarray(rng.integers(0, V, (B, N)), jnp.int32),
        "hidden": jnp.asarray(rng.normal(size=(B, N, D)), jnp.float32),
    }
    expected = jax.jit(gradients)(params, x)
    if case == "Manual":
        found, _ = on_every_device(gradients, case, params, x)
    else:
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        whole, parts = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        found = jax.jit(gradients, in_shardings=(whole, parts))(params, x)
    return largest_error(found, expected)


print(json.dumps({case: check(case) for case in sys.argv[1:]}))
