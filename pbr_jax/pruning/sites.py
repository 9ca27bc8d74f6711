"""The policies of all sites in all blocks, which draw and learn at once.

Sites differ in D and K. One after the other they would be hundreds of small operations: to compile,
and to launch on a GPU. Padded to the widest site they are one array `[sites, L, A]`, and a step
draws by one sort and one cumulative sum, learns by one projection. Padding is never drawn, and it
does not change what a site draws: random words depend on an arm's index alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax.pruning.policy import PolicyState, PruningPolicy

PyTree = Any
_UNUSED = np.iinfo(np.int32).max  # as a column: past the end of every site


class SitePolicies(NamedTuple):
    """Pure functions of dicts by site, whose leaves are `[L, ...]`; all can be jitted.

    Attributes:
      init: `() -> states`.
      sample: `(key, states) -> columns`, int32 `[L, S]`. The key is consumed.
      update: `(states, columns, squared row norms [L, S]) -> states`.
      inclusion: `(states, columns) -> float32 [L, S]`, the probability that each was drawn with.
      num_columns: D of each site.
    """

    init: Callable[[], dict[str, PolicyState]]
    sample: Callable[[jax.Array, Mapping[str, PolicyState]], dict[str, jax.Array]]
    update: Callable[..., dict[str, PolicyState]]
    inclusion: Callable[..., dict[str, jax.Array]]
    num_columns: Mapping[str, int]


def stacked(policies: Mapping[str, PruningPolicy], num_blocks: int) -> SitePolicies:
    """Joins the policies of sites, each for L blocks.

    Args:
      policies: `{site: policy}`, alike but for their sizes; may be empty.
      num_blocks: L.

    Raises:
      ValueError: policies differ in more than their sizes.
    """
    if not policies:
        return SitePolicies(dict, *(lambda *_: {},) * 3, {})
    # Alike in what is static, so that they are one pytree, and a method is traced once for all.
    num_slots = max(policy.num_slots for policy in policies.values())
    alike = [dataclasses.replace(policy, num_slots=num_slots) for policy in policies.values()]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *alike)

    def at_once(method: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """`method` of every policy on its part `[L, ...]` of the arguments `[sites, L, ...]`."""
        over_blocks = jax.vmap(method, in_axes=(None, *(0 for _ in args)))
        return jax.vmap(over_blocks)(together, *args)

    def init() -> dict[str, PolicyState]:
        return {
            site: jax.tree.map(lambda leaf: jnp.tile(leaf[None], (num_blocks, 1)), policy.init())
            for site, policy in policies.items()
        }

    def sample(key, states):
        # A key for each site, and from that one for each block.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(policies)))
        keys = jax.vmap(lambda key: jax.random.split(key, num_blocks))(keys)
        drawn = at_once(PruningPolicy.sample, keys, _pack(policies, states))
        return {
            s: drawn[i, :, : policy.num_slots] for i, (s, policy) in enumerate(policies.items())
        }

    # Slots that a narrower site lacks name no column of it, and are passed over as unused.
    def update(states, columns, sq_norms):
        columns, sq_norms = _pack(policies, columns, _UNUSED), _pack(policies, sq_norms)
        learned = at_once(PruningPolicy.update, _pack(policies, states), columns, sq_norms)
        return _unpack(policies, learned, states)

    def inclusion(states, columns):
        packed = _pack(policies, columns, _UNUSED)
        probs = at_once(PruningPolicy.inclusion, _pack(policies, states), packed)
        return _unpack(policies, probs, columns)

    num_columns = {site: int(policy.num_columns) for site, policy in policies.items()}
    return SitePolicies(init, sample, update, inclusion, num_columns)


def _pack(sites: Iterable[str], trees: Mapping[str, PyTree], fill: int = 0) -> PyTree:
    """`{site: [L, n]}` as `[sites, L, largest n]`, leaf by leaf."""

    def pack(*leaves: jax.Array) -> jax.Array:
        width = max(leaf.shape[1] for leaf in leaves)
        pads = [((0, 0), (0, width - leaf.shape[1])) for leaf in leaves]
        padded = map(functools.partial(jnp.pad, constant_values=fill), leaves, pads)
        return jnp.stack(list(padded))

    return jax.tree.map(pack, *(trees[site] for site in sites))


def _unpack(sites: Iterable[str], tree: PyTree, like: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The inverse of `_pack`; widths are those of `like`."""
    return {
        site: jax.tree.map(lambda leaf, own, i=i: leaf[i, :, : own.shape[1]], tree, like[site])
        for i, site in enumerate(sites)
    }
