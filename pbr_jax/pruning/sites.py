"""The policies of all sites in all blocks: sites of one width draw and learn at once.

One after the other they would be hundreds of small operations: to compile, and to launch on a GPU.
Sites that differ in K alone share one array `[sites, L, A]`. Those that differ in D do not: padded
to the widest they would compile faster, but a step would mostly sort and project padding.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
      policies: `{site: policy}`; those of one width differ in their budgets only. May be empty.
      num_blocks: L.

    Raises:
      ValueError: policies of one width differ in more than their budgets.
    """
    widths: dict[int, list[str]] = {}
    for site, policy in policies.items():
        widths.setdefault(policy.num_columns, []).append(site)
    groups = [(sites, _together([policies[site] for site in sites])) for sites in widths.values()]
    slots = {site: together.num_slots for sites, together in groups for site in sites}

    def at_once(method: Callable[..., PyTree], *args: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """`{site: method(policy, *args[site])}` with a leading [L], by one call for each width."""
        over_blocks = jax.vmap(method, in_axes=(None, *(0 for _ in args)))
        found = {}
        for sites, together in groups:
            stacks = [_stack([arg[site] for site in sites]) for arg in args]
            results = jax.vmap(over_blocks)(together, *stacks)
            for i, site in enumerate(sites):
                found[site] = jax.tree.map(lambda leaf, i=i: leaf[i], results)
        return found

    def init() -> dict[str, PolicyState]:
        return {
            site: jax.tree.map(lambda leaf: jnp.tile(leaf[None], (num_blocks, 1)), policy.init())
            for site, policy in policies.items()
        }

    def widened(found: Mapping[str, jax.Array], fill: int) -> dict[str, jax.Array]:
        """`{site: [L, S]}` padded to the most slots of a site of the same width."""
        return {
            site: jnp.pad(leaf, ((0, 0), (0, slots[site] - leaf.shape[1])), constant_values=fill)
            for site, leaf in found.items()
        }

    def narrowed(found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The inverse of `widened`."""
        return {site: found[site][:, : policy.num_slots] for site, policy in policies.items()}

    def sample(key, states):
        # A key for each site, and from that one for each block.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(policies)))
        keys = jax.vmap(lambda key: jax.random.split(key, num_blocks))(keys)
        own = dict(zip(policies, keys, strict=True))
        return narrowed(at_once(PruningPolicy.sample, own, states))

    # Slots that a site has beyond its own name no column, and are passed over as unused.
    def update(states, columns, sq_norms):
        columns, sq_norms = widened(columns, _UNUSED), widened(sq_norms, 0)
        return at_once(PruningPolicy.update, states, columns, sq_norms)

    def inclusion(states, columns):
        return narrowed(at_once(PruningPolicy.inclusion, states, widened(columns, _UNUSED)))

    num_columns = {site: policy.num_columns for site, policy in policies.items()}
    return SitePolicies(init, sample, update, inclusion, num_columns)


def _together(policies: Sequence[PruningPolicy]) -> PruningPolicy:
    """Policies as one, whose leaves are stacked and whose slots suffice for each."""
    num_slots = max(policy.num_slots for policy in policies)
    alike = [dataclasses.replace(policy, num_slots=num_slots) for policy in policies]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *alike)


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
