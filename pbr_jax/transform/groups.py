"""Which sites are pruned, how they share a selection, and why the others stay dense."""

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.plans import budget_for
from pbr_jax.transform.attach import Layout
from pbr_jax.transform.sites import Analysis, Use

Keep = float | Mapping[str, float]
Patterns = str | Sequence[str]


class Group(NamedTuple):
    """Parameters that share one selection, because they read one activation.

    Attributes:
      name: path of the first of them in the order of the alphabet; checkpoints know it by that.
      leaves: numbers of the parameters, in that order.
      paths: their paths.
      layouts: of each, where its rows lie.
      stack_shape: lengths of the scans that walk along them; `()` without.
      num_columns: D.
      num_kept: K.
      uses: sites of each.
    """

    name: str
    leaves: tuple[int, ...]
    paths: tuple[str, ...]
    layouts: tuple[Layout, ...]
    stack_shape: tuple[int, ...]
    num_columns: int
    num_kept: int
    uses: tuple[tuple[Use, ...], ...]


class Plan(NamedTuple):
    """What is pruned of a function's parameters.

    Attributes:
      paths, shapes, dtypes: of all parameters, by number.
      groups: by name, in the order of the alphabet.
      dense: why a parameter is not pruned, by path.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    groups: dict[str, Group]
    dense: dict[str, str]

    @property
    def layouts(self) -> dict[int, Layout]:
        """Of every pruned parameter, by number."""
        return {
            leaf: layout
            for group in self.groups.values()
            for leaf, layout in zip(group.leaves, group.layouts, strict=True)
        }

    @property
    def group_of(self) -> dict[int, str]:
        """Name of the group of every pruned parameter."""
        return {leaf: group.name for group in self.groups.values() for leaf in group.leaves}


def path_of(keys: Sequence[Any]) -> str:
    """The path of a leaf of a pytree, `encoder/layer_0/kernel`.

    The box that Linen's `with_partitioning` puts around a leaf has no name in it.
    """
    boxed = keys and keys[-1] == jax.tree_util.GetAttrKey("value")
    keys = keys[:-1] if boxed else keys
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def make_plan(
    analysis: Analysis,
    paths: Sequence[str],
    leaves: Sequence[Any],
    *,
    keep: Keep,
    include: Patterns,
    exclude: Patterns | None,
    min_columns: int,
    group_size: int = 1,
) -> Plan:
    """Groups the sites of an analysis; arguments as of `pbr_jax.prune`.

    Raises:
      ValueError: nothing can be pruned; a pattern names nothing, or nothing that can be pruned;
        groups do not tile the columns of a site.
    """
    shapes = tuple(tuple(leaf.shape) for leaf in leaves)
    dense: dict[str, str] = {}
    sites: dict[int, list[Use]] = {}
    for i, path in enumerate(paths):
        why = _obstacle(analysis, i, leaves[i], min_columns)
        if why is None:
            sites[i] = analysis.uses[i]
        else:
            dense[path] = why
    if not sites:
        raise ValueError(f"nothing can be pruned: {_listed(dense)}")
    # What cannot be pruned at all is known here; then come the caller's wishes.
    _check_include(include, paths, {paths[i] for i in sites}, dense)
    wanted = {}
    for i, uses in sites.items():
        if not _matches(include, paths[i], "include"):
            dense[paths[i]] = "not named by include"
        elif exclude and _matches(exclude, paths[i], "exclude"):
            dense[paths[i]] = "named by exclude"
        else:
            wanted[i] = uses
    shares = _shares(keep, {i: paths[i] for i in wanted})
    groups = {}
    for members in _together(wanted):
        members = sorted((i for i in members), key=lambda i: paths[i])
        for i in [i for i in members if shares[i] is None]:
            dense[paths[i]] = "no pattern of keep names it"
        members = [i for i in members if shares[i] is not None]
        if not members:
            continue
        if len({shares[i] for i in members}) > 1:
            listed = ", ".join(f"{paths[i]}: {shares[i]}" for i in members)
            raise ValueError(
                f"keep gives {listed}: these read one activation and share its columns; give them"
                " one number"
            )
        layouts = tuple(Layout(shapes[i], *wanted[i][0].site.layout) for i in members)
        width = layouts[0].num_columns
        share = shares[members[0]]
        assert share is not None
        try:
            kept = budget_for(share, width, group_size)
        except ValueError as error:
            raise ValueError(f"{paths[members[0]]}: {error}") from error
        if kept == width:
            dense |= {paths[i]: f"keep = {share} is all of its {width} columns" for i in members}
            continue
        group = Group(
            paths[members[0]],
            tuple(members),
            tuple(paths[i] for i in members),
            layouts,
            layouts[0].stack_shape,
            width,
            kept,
            tuple(tuple(wanted[i]) for i in members),
        )
        groups[group.name] = group
    if not groups:
        raise ValueError(f"nothing can be pruned: {_listed(dense)}")
    groups = {name: groups[name] for name in sorted(groups)}
    dtypes = tuple(leaf.dtype for leaf in leaves)
    return Plan(tuple(paths), shapes, dtypes, groups, dense)


def _obstacle(analysis: Analysis, i: int, leaf: Any, min_columns: int) -> str | None:
    """Why a parameter cannot be pruned, or None."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"{leaf.dtype} is not differentiated"
    uses, other = analysis.uses.get(i, []), sorted(analysis.other.get(i, ()))
    if not uses:
        return "; ".join(other) if other else "not used"
    if other:
        return "a matrix product, and also " + "; ".join(other)
    if len({use.site.layout for use in uses}) > 1:
        return "its products contract different axes, or lie in different scans"
    width = uses[0].site.num_columns
    if width < min_columns:
        return f"{width} columns, fewer than min_columns = {min_columns}"
    return None


def _together(sites: Mapping[int, Sequence[Use]]) -> list[list[int]]:
    """Parameters joined wherever two of them read one activation."""
    owner: dict[Hashable, int] = {}
    parent = {i: i for i in sites}

    def top(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, uses in sites.items():
        for use in uses:
            # Of a scan's input and of a constant beside it the selections differ in shape.
            key = (use.input, use.site.num_columns)
            parent[top(i)] = top(owner.setdefault(key, i))
    found: dict[int, list[int]] = {}
    for i in sites:
        found.setdefault(top(i), []).append(i)
    return list(found.values())


def _shares(keep: Keep, paths: Mapping[int, str]) -> dict[int, float | None]:
    """The share of every parameter: of the first pattern that matches its path."""
    if not isinstance(keep, Mapping):
        return {i: float(keep) for i in paths}
    for pattern in keep:
        if not any(_matches(pattern, path, "keep") for path in paths.values()):
            raise ValueError(
                f"keep names {pattern!r}: it matches no parameter that is pruned; those are"
                f" {_some(sorted(paths.values()))}"
            )
    return {
        i: next((float(share) for p, share in keep.items() if re.search(p, path)), None)
        for i, path in paths.items()
    }


def _check_include(
    include: Patterns, paths: Sequence[str], sites: set[str], dense: Mapping[str, str]
) -> None:
    for pattern in [include] if isinstance(include, str) else include:
        named = [path for path in paths if _matches(pattern, path, "include")]
        if not named:
            raise ValueError(
                f"include names {pattern!r}: it matches no parameter; there are"
                f" {_some(sorted(paths))}"
            )
        if not sites.intersection(named):
            raise ValueError(
                f"include names {pattern!r}, which cannot be pruned: "
                + _listed({path: dense[path] for path in named})
            )


def _matches(patterns: Patterns, path: str, argument: str) -> bool:
    try:
        return _which(patterns, path) is not None
    except re.error as error:
        raise ValueError(
            f"{argument} = {patterns!r}: must be regular expressions; {error}"
        ) from error


def _which(patterns: Patterns, path: str) -> str | None:
    every = [patterns] if isinstance(patterns, str) else patterns
    return next((pattern for pattern in every if re.search(pattern, path)), None)


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _listed(dense: Mapping[str, str]) -> str:
    return _some([f"{path}: {why}" for path, why in dense.items()])
