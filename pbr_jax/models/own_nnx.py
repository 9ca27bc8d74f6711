"""A user's NNX module as pure functions."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pbr_jax.models.own_call import Caller, OwnModel, Reads, logits_of

PyTree = Any


def of_nnx(module: nnx.Module, reads: Reads, module_of: Callable[[int], nnx.Module]) -> OwnModel:
    """The pure functions of an NNX module; `module_of` makes one by a seed, `module` no arrays."""

    def parts(module):
        """Graph; parameters, what else moves, streams of random numbers, what is sown."""
        kinds = nnx.Param, nnx.RngState, nnx.Intermediate, ...
        graph, *(params, streams, sown, extra) = nnx.split(module, *kinds)
        return graph, params, extra, streams, sown

    call = Caller(type(module), reads)
    graph, *states = parts(module)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), states)

    def begin(seed, specs):
        # Copies, since a train step donates what it is given.
        _, params, extra, *_ = jax.tree.map(jnp.copy, parts(module_of(seed)))
        return _as_dict(params), _as_dict(extra), []

    def apply(params, extra, batch, key, train):
        # Streams begin anew in every step, from its key, so that none of them is state.
        leaves, structure = jax.tree.flatten(like[2])
        fresh = [
            jax.random.fold_in(key, i)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        streams = jax.tree.unflatten(structure, fresh)
        states = _as_state(like[0], params), _as_state(like[1], extra), streams, like[3]
        own = nnx.merge(graph, *states)
        (own.train if train else own.eval)()
        out = call(own, batch, train)
        return logits_of(out), _as_dict(parts(own)[2])

    return OwnModel(module, lambda specs: (_as_dict(like[0]), _as_dict(like[1])), begin, apply)


def _as_dict(state: PyTree) -> dict[str, Any]:
    """The leaves of an NNX state as a nested dict."""
    tree: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        *above, last = _names(path)
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def _as_state(like: PyTree, tree: Mapping[str, Any]) -> PyTree:
    """The inverse of `_as_dict`."""

    def leaf(path, _):
        return functools.reduce(lambda node, name: node[name], _names(path), tree)

    return jax.tree_util.tree_map_with_path(leaf, like)


def _names(path: tuple) -> list[str]:
    """The path of a variable, without the name of the field that holds its value."""
    text = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    return text.split("/")
