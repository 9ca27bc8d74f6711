"""What the policies of a traced model have learned, as the trainer keeps it: by site and block."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from pbr_jax.pruning import PolicyState
from pbr_jax.training.selection import SelectorState
from pbr_jax.transform.groups import Group
from pbr_jax.transform.policies import State


class Blocks:
    """Groups as blocks of sites, so that checkpoints, history and report know one form.

    Groups whose names differ in numbers alone, such as `layer_0/mlp/kernel` and
    `layer_1/mlp/kernel`, are the blocks of one site, `layer_*/mlp/kernel`.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._stacks = {name: group.stack_shape for name, group in groups.items()}
        alike: dict[tuple[str, int, int], list[str]] = {}
        for name, group in groups.items():
            kind = (re.sub(r"\d+", "*", name), group.num_columns, group.num_kept)
            alike.setdefault(kind, []).append(name)
        # A site whose groups keep different numbers is several, each called by its first group.
        counts = Counter(pattern for pattern, _, _ in alike)
        self.sites = {
            pattern if counts[pattern] == 1 else names[0]: sorted(names, key=_natural)
            for (pattern, _, _), names in alike.items()
        }

    def joined(self, state: State) -> SelectorState:
        """Leaves `[L, D]`, and `[L, 0]` of a field that the policy has no use for."""
        columns = {}
        for site, names in self.sites.items():
            rows = {
                field: [state[n][field].reshape(-1, state[n][field].shape[-1]) for n in names]
                for field in state[names[0]]
            }
            joined = {field: jnp.concatenate(own) for field, own in rows.items()}
            nothing = jnp.zeros((len(joined["probs"]), 0), jnp.float32)
            columns[site] = PolicyState(**{"energy": nothing} | joined)
        return SelectorState(columns, {})

    def apart(self, state: SelectorState) -> State:
        """The inverse of `joined`."""
        found: State = {}
        for site, names in self.sites.items():
            start = 0
            for name in names:
                stack = self._stacks[name]
                end = start + math.prod(stack)
                found[name] = {
                    field: leaf[start:end].reshape(*stack, leaf.shape[-1])
                    for field, leaf in state.columns[site]._asdict().items()
                    if leaf.shape[-1]
                }
                start = end
        return found


def _natural(name: str) -> list[Any]:
    """A key by which `layer_10` comes after `layer_9`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
