"""The linear layers that sites feed, found in a parameter tree and put back."""

from collections.abc import Mapping
from typing import Any

from pbr_jax.families import Architecture

PyTree = Any
Layers = Mapping[str, dict[str, Any]]  # site -> {"kernel" [L, D, F], "bias" [L, F]}


def layers(tree: PyTree, architecture: Architecture) -> dict[str, dict[str, Any]]:
    """The layer of every site, `{site: {"kernel", "bias"}}`, of parameters or of their like."""
    return {name: _at(tree, site.path) for name, site in architecture.sites.items()}


def with_layers(tree: PyTree, architecture: Architecture, changed: Layers) -> PyTree:
    """The tree with other leaves in the layers of these sites; `tree` itself stays."""
    for name, leaves in changed.items():
        tree = _put(tree, architecture.sites[name].path, leaves)
    return tree


def collection(architecture: Architecture, entries: Mapping[str, Any]) -> PyTree:
    """`{site: entries}` as a Flax collection, each where the site's layer is."""
    tree: PyTree = {}
    for name, leaves in entries.items():
        tree = _put(tree, architecture.sites[name].path, leaves)
    return tree


def _at(tree: PyTree, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: PyTree, path: tuple[str, ...], leaves: Mapping[str, Any]) -> PyTree:
    if not path:
        return {**tree, **leaves}
    key, *rest = path
    return {**tree, key: _put(tree.get(key, {}), tuple(rest), leaves)}
