"""What the groups have learned, and what they draw: groups of equal (D, K) draw at once."""

import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.ops.arrays import squared_norms
from pbr_jax.pruning import Learning, PolicyState, PruningPolicy, make_policy
from pbr_jax.transform.groups import Group

State = dict[str, dict[str, jax.Array]]
Selection = dict[str, jax.Array]


class GroupPolicies:
    """Policies of all groups; every method but the constructor can be jitted."""

    def __init__(
        self, groups: Mapping[str, Group], name: str, learning: Learning, group_size: int = 1
    ) -> None:
        self.groups = groups
        self.policies: dict[tuple[int, int], PruningPolicy] = {}
        self._alike: dict[tuple[int, int], list[str]] = {}
        for group in groups.values():
            size = (group.num_columns, group.num_kept)
            self._alike.setdefault(size, []).append(group.name)
        for size in self._alike:
            self.policies[size] = make_policy(name, *size, group_size=group_size, learning=learning)

    def init(self) -> State:
        """`{group: {"probs", "counts"[, "energy"]}}`, leaves `[*stack, A]`, not empty."""
        found: State = {}
        for group in self.groups.values():
            policy = self.policies[group.num_columns, group.num_kept]
            fresh = {n: a for n, a in policy.init()._asdict().items() if a.size}
            found[group.name] = {n: jnp.tile(a, (*group.stack_shape, 1)) for n, a in fresh.items()}
        return found

    def select(self, state: State, key: jax.Array) -> Selection:
        """`{group: int32 [*stack, K]}`, increasing. The key is consumed."""
        self.check(state, "state")
        found: Selection = {}
        for size, names in self._alike.items():
            sample = jax.vmap(self.policies[size].sample)
            drawn = sample(self._keys(key, names), self._joined(state, names))
            for name, columns in self._apart(drawn, names).items():
                found[name] = columns
        return {name: found[name] for name in self.groups}

    def learn(self, state: State, selection: Selection, norms: Mapping[str, jax.Array]) -> State:
        """From squared norms of the selected rows, float32 `[*stack, K]`."""
        self.check(state, "state")
        found: State = {}
        for size, names in self._alike.items():
            policy = self.policies[size]
            flat = [
                jnp.concatenate([tree[n].reshape(-1, size[1]) for n in names])
                for tree in (selection, norms)
            ]
            moved = jax.vmap(policy.update)(self._joined(state, names), *flat)
            for field, leaf in moved._asdict().items():
                for name, own in self._apart(leaf, names).items():
                    if field in state[name]:
                        found.setdefault(name, {})[field] = own
        return {name: found[name] for name in self.groups}

    def inclusion(self, state: State, selection: Selection) -> dict[str, jax.Array]:
        """Probability that each selected column was drawn with, float32 `[*stack, K]` by group."""
        self.check(state, "state")
        found: dict[str, jax.Array] = {}
        for size, names in self._alike.items():
            flat = jnp.concatenate([selection[name].reshape(-1, size[1]) for name in names])
            drawn = jax.vmap(self.policies[size].inclusion)(self._joined(state, names), flat)
            found |= self._apart(drawn, names)
        return found

    def norms(self, grads: Mapping[int, jax.Array], selection: Selection) -> dict[str, jax.Array]:
        """Squared norms of selected rows, summed over the parameters of a group.

        `grads` are packed, `[*stack, K, *rest]`, or in the shape of the parameter.
        """
        found = {}
        for group in self.groups.values():
            total = jnp.zeros((*group.stack_shape, group.num_kept), jnp.float32)
            for leaf, layout in zip(group.leaves, group.layouts, strict=True):
                grad = grads[leaf]
                if grad.shape != layout.packed_shape(group.num_kept):
                    grad = layout.gather(grad, selection[group.name])
                total = total + squared_norms(grad, total.ndim)
            found[group.name] = total
        return found

    def check(self, given: Mapping[str, Any], argument: str) -> None:
        """Refuses what is partial or of another model."""
        if not isinstance(given, Mapping):
            raise ValueError(f"{argument} is a {type(given).__name__}: must be a dict by group")
        missing, foreign = set(self.groups) - set(given), set(given) - set(self.groups)
        for names, what in ((missing, "lacks"), (foreign, "has the unknown")):
            if names:
                raise ValueError(
                    f"{argument} {what} {', '.join(sorted(names)[:4])}: must have exactly the"
                    f" groups of this model, {len(self.groups)} in number; see .sites"
                )

    def check_selection(self, selection: Selection) -> None:
        """Refuses a selection whose groups, shapes or dtypes are not those of `select`."""
        self.check(selection, "selection")
        for group in self.groups.values():
            columns, shape = selection[group.name], (*group.stack_shape, group.num_kept)
            if jnp.shape(columns) != shape or not jnp.issubdtype(columns.dtype, jnp.integer):
                raise ValueError(
                    f"selection[{group.name!r}] is {columns.dtype}{list(jnp.shape(columns))}: must"
                    f" be int32{list(shape)}, as select returns it"
                )

    def _keys(self, key: jax.Array, names: list[str]) -> jax.Array:
        """A key for every row of the groups, from their names.

        So a group's draws do not depend on which others there are.
        """
        codes = jnp.asarray([zlib.crc32(name.encode()) for name in names], jnp.uint32)
        own = jax.vmap(functools.partial(jax.random.fold_in, key))(codes)
        # Groups of equal length at once: a program of its own for each is slow to compile.
        rows = dict(self._rows(names))
        found: dict[str, jax.Array] = {}
        for count in sorted(set(rows.values())):
            alike = [i for i, name in enumerate(names) if rows[name] == count]
            split = functools.partial(jax.random.split, num=count)
            keys = jax.vmap(split)(own[jnp.asarray(alike)])
            found |= {names[i]: keys[n] for n, i in enumerate(alike)}
        return jnp.concatenate([found[name] for name in names])

    def _rows(self, names: list[str]) -> list[tuple[str, int]]:
        return [(name, math.prod(self.groups[name].stack_shape)) for name in names]

    def _joined(self, state: State, names: list[str]) -> PolicyState:
        """States of groups one after the other, `[rows, D]`."""

        def field(name: str) -> jax.Array:
            if name not in state[names[0]]:
                rows = sum(count for _, count in self._rows(names))
                return jnp.zeros((rows, 0), jnp.float32)
            leaves = [state[group][name] for group in names]
            return jnp.concatenate([leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves])

        return PolicyState(*(field(name) for name in PolicyState._fields))

    def _apart(self, leaf: jax.Array, names: list[str]) -> dict[str, jax.Array]:
        """The inverse: `[rows, ...]` by group, `[*stack, ...]`."""
        found, start = {}, 0
        for name, rows in self._rows(names):
            own = leaf[start : start + rows]
            found[name] = own.reshape(*self.groups[name].stack_shape, *leaf.shape[1:])
            start += rows
        return found
