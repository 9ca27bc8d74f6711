"""The linear layers that sites feed, found in a parameter tree and put back."""

import functools
import operator
from collections.abc import Mapping
from typing import Any

from pbr_jax.families import Architecture

PyTree = Any
Layers = Mapping[str, dict[str, Any]]  # site -> {"kernel" [L, D, F], "bias" [L, F]}


def layers(tree: PyTree, architecture: Architecture) -> dict[str, dict[str, Any]]:
    """The layer of every site, `{site: {"kernel", "bias"}}`, of parameters or of their like."""
    paths = {name: site.path for name, site in architecture.sites.items()}
    return {name: functools.reduce(operator.getitem, path, tree) for name, path in paths.items()}


def with_layers(tree: PyTree, architecture: Architecture, changed: Layers) -> PyTree:
    """The tree with other leaves in the layers of these sites; `tree` itself stays.

    An empty tree becomes a Flax collection that holds the leaves where their layers are.
    """
    for name, leaves in changed.items():
        tree = _put(tree, architecture.sites[name].path, leaves)
    return tree


def _put(tree: PyTree, path: tuple[str, ...], leaves: Mapping[str, Any]) -> PyTree:
    if not path:
        return {**tree, **leaves}
    key, *rest = path
    return {**tree, key: _put(tree.get(key, {}), tuple(rest), leaves)}
