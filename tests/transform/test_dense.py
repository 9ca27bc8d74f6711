"""What `prune` leaves dense, each kind with its reason."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from rewritten import check, numbers, weights

from pbr_jax import prune

D = 64


@functools.cache
def dense_model():
    """Uses that leave a kernel dense, each beside the reason for it."""

    @jax.custom_vjp
    def own(x, w):
        return x @ w

    across_devices = jax.shard_map(
        jnp.matmul, mesh=jax.make_mesh((1,), ("one",)), in_specs=(P(), P()), out_specs=P()
    )
    own.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy))

    def model(params, x):
        p = params
        out = own(x, p["custom"])
        out += lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: -x @ w, p["cond"])
        out += lax.fori_loop(0, 2, lambda i, y: y, x @ p["good"])
        out += (x @ p["across"].reshape(2, D, D))[0]
        out += x @ (2.0 * p["scaled"])
        out += x @ (p["first"] @ p["second"])
        out += x @ p["whole"][:, :D]
        out += lax.scan(lambda w, _: (w.T, x @ w), p["carried"], None, length=2)[1][0]
        image = jnp.ones((1, 4, 4, D)) * x[0][None, None, None]
        out += across_devices(x, p["sharded"])
        out += lax.conv(image.transpose(0, 3, 1, 2), p["conv"], (1, 1), "SAME")[:, :, 0, 0]
        return out

    return model


def test_what_stays_dense_is_named_with_its_reason():
    square = dict.fromkeys(
        ("custom", "cond", "good", "scaled", "first", "second", "carried", "sharded"), (D, D)
    )
    params = weights(0, across=(2 * D, D), whole=(D, 2 * D), conv=(D, D, 1, 1), **square)
    params["across"] = params["across"].reshape(D, 2 * D)
    pruned = check(dense_model(), params, numbers(1, 4, D), tolerance=1e-5)
    assert [site.path for site in pruned.sites] == ["good"]
    reasons = {
        "custom": "custom_vjp",
        "cond": "a cond",
        "across": "reshaped or cut across the contracted axis",
        "scaled": "`mul`",
        "first": "two parameters",
        "second": "two parameters",
        "whole": "`slice`",
        "carried": "carried by a scan",
        "sharded": "a shard_map",
        "conv": "convolution",
    }
    for path, why in reasons.items():
        assert why in pruned.unpruned[path], (path, pruned.unpruned[path])


def test_a_while_loop_is_named():
    """Autodiff itself has no derivative of it, so it is only asked for the reason."""

    def model(params, x):
        x = x @ params["good"]
        return lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ params["looped"], x)

    pruned = prune(model, weights(0, good=(D, D), looped=(D, D)), numbers(1, 4, D))
    assert pruned.unpruned == {"looped": "used inside a while loop"}
