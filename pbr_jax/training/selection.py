"""What trains in a step: columns of every site, and parameter tensors (JointSPAR).

`make_selector` joins the policies of all sites into one stateful method, pure functions whose state
is part of the train state; nothing else in training knows how columns are chosen.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax import pruning
from pbr_jax.training.optimizer import ALL, Rows

PyTree = Any
TENSORS = ("kernel", "bias")


class SelectorState(NamedTuple):
    """State of all policies.

    Attributes:
      columns: `{site: PolicyState}`, leaves `[L, ...]`; empty where no policy chooses columns.
      tensors: `{site: {"kernel" | "bias": JointSparState}}`; empty without JointSPAR.
    """

    columns: dict[str, pruning.PolicyState]
    tensors: dict[str, dict[str, pruning.JointSparState]]


class Selection(NamedTuple):
    """What one step trains of the stacked kernels and biases of a model.

    Attributes:
      columns: `{site: int32 [L, K]}`; all unused (index D) in blocks whose kernel JointSPAR froze.
      active: `{site: {"kernel" | "bias": int32 [M]}}`, blocks whose tensor is trained, sorted.
    """

    columns: dict[str, jax.Array]
    active: dict[str, dict[str, jax.Array]]


class Selector(NamedTuple):
    """Pure functions; hyper-parameters closed over.

    Attributes:
      init: `() -> state`.
      select: `(key, state, step) -> (state, selection)`. The key is consumed.
      update: `(state, selection, grads, step, norms) -> state`; `grads` is `{site: {"kernel",
        "bias"}}`, the kernel's packed `[L, K, F]` where the site has columns, before any division
        by p. `norms`, squared norms of its rows `{site: [L, K]}`, are computed where None.
      unbias: `(state, selection, grads) -> grads`: kept rows divided by the probability that they
        were drawn with.
    """

    init: Callable[[], SelectorState]
    select: Callable[[jax.Array, SelectorState, jax.Array], tuple[SelectorState, Selection]]
    update: Callable[..., SelectorState]
    unbias: Callable[[SelectorState, Selection, PyTree], PyTree]


def make_selector(
    policies: Mapping[str, pruning.PruningPolicy],
    tensors: Mapping[str, pruning.JointSpar],
    num_columns: Mapping[str, int],
    num_blocks: int,
) -> Selector:
    """Joins stacked column policies and tensor policies.

    Args:
      policies: `{site: policy}` over `[L]` blocks (see `pruning.stacked`); sites that are trained
        dense are absent.
      tensors: `{site: joint_spar}`, for the site's kernel and, with a state of its own, its bias.
      num_columns: `{site: D}`.
      num_blocks: L.
    """

    def init() -> SelectorState:
        return SelectorState(
            {site: policy.init() for site, policy in policies.items()},
            {site: {name: spar.init() for name in TENSORS} for site, spar in tensors.items()},
        )

    spars = {(site, name): spar for site, spar in tensors.items() for name in TENSORS}

    def select(key, state, step):
        spar_key, column_key = jax.random.split(key)
        args: dict[Any, tuple] = {}
        for i, site in enumerate(tensors):
            keys = jax.random.split(jax.random.fold_in(spar_key, i), len(TENSORS))
            for name, k in zip(TENSORS, keys, strict=True):
                args[site, name] = (k, state.tensors[site][name])
        drawn = _by_site(_at_once(spars, lambda spar, *args: spar.sample(*args, step), args))
        active = {site: {n: s.active for n, s in named.items()} for site, named in drawn.items()}
        args = {
            site: (jax.random.fold_in(column_key, i), state.columns[site])
            for i, site in enumerate(policies)
        }
        columns = _at_once(policies, lambda policy, *args: policy.sample(*args), args)
        for site in columns:
            if site in active:
                trained = block_flags(active[site]["kernel"], num_blocks)[:, None]
                columns[site] = jnp.where(trained, columns[site], num_columns[site])
        return state._replace(tensors=drawn), Selection(columns, active)

    def update(state, selection, grads, step, norms=None):
        args: dict[Any, tuple] = {}
        for site in policies:
            squares = norms[site] if norms else _row_norms(grads[site]["kernel"])
            args[site] = (state.columns[site], selection.columns[site], squares)
        columns = _at_once(policies, lambda policy, *args: policy.update(*args), args)
        args = {}
        for site, name in spars:
            squares = _tensor_norms(grads[site][name], selection.active[site][name])
            args[site, name] = (state.tensors[site][name], squares)
        moved = _at_once(spars, lambda spar, *args: spar.update(*args, step), args)
        return SelectorState(columns, _by_site(moved))

    def unbias(state, selection, grads):
        out = dict(grads)
        for site, policy in policies.items():
            p = policy.inclusion(state.columns[site], selection.columns[site])
            kernel = grads[site]["kernel"]
            out[site] = grads[site] | {"kernel": kernel / p[..., None].astype(kernel.dtype)}
        return out

    return Selector(init, select, update, unbias)


def _at_once(policies: Mapping[Any, Any], call: Callable[..., PyTree], args: dict) -> dict:
    """`{key: call(policy, *args[key])}`, by one call for all keys with the same policy.

    Sites of one width have the same policy, as have all tensors. Together they are fewer and larger
    operations, of which a train step has hundreds otherwise: to compile, and to launch on a GPU.
    """
    alike: dict[Any, list] = {}
    for key, policy in policies.items():
        alike.setdefault(policy, []).append(key)
    found = {}
    for policy, keys in alike.items():
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(args[key] for key in keys))
        results = jax.vmap(functools.partial(call, policy))(*stacked)
        for i, key in enumerate(keys):
            found[key] = jax.tree.map(lambda leaf, i=i: leaf[i], results)
    return found


def _by_site(found: dict) -> dict:
    """`{(site, name): value} -> {site: {name: value}}`."""
    sites: dict[str, dict[str, Any]] = {}
    for (site, name), value in found.items():
        sites.setdefault(site, {})[name] = value
    return sites


def block_flags(active: jax.Array, num_blocks: int) -> jax.Array:
    """Indices of active blocks as flags: `int32 [M] -> bool [L]`."""
    return jnp.zeros((num_blocks,), bool).at[active].set(True)


def _row_norms(grad: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(grad.astype(jnp.float32)), axis=-1)


def column_norms(selection: Selection, norms: PyTree) -> dict[str, jax.Array]:
    """What `update_rows` found in the rows that `trained_rows` names, as `{site: [L, K]}`."""
    found = {}
    for site, columns in selection.columns.items():
        rows = norms[site]["kernel"].reshape(-1, columns.shape[1])
        active = selection.active.get(site, {}).get("kernel")
        if active is not None:
            rows = jnp.zeros(columns.shape, rows.dtype).at[active].set(rows)
        found[site] = rows
    return found


def _tensor_norms(grad: jax.Array, active: jax.Array) -> jax.Array:
    squares = jnp.square(grad.astype(jnp.float32))
    return jnp.sum(squares, axis=tuple(range(1, grad.ndim)))[active]


def model_variables(selection: Selection, rows: dict[str, jax.Array], num_blocks: int) -> PyTree:
    """The Flax collection `selection` of the stacked blocks: columns, zero rows, flags by site."""
    sites: dict[str, dict[str, Any]] = {}
    for site, columns in selection.columns.items():
        sites[site] = {"columns": columns, "rows": rows[site]}
    for site, named in selection.active.items():
        flags = {name: block_flags(active, num_blocks) for name, active in named.items()}
        sites.setdefault(site, {})["active"] = flags
    return sites


def trained_rows(
    selection: Selection, site: str, name: str, num_columns: int, num_blocks: int
) -> Any:
    """Where the optimizer finds the trained slices of a stacked tensor; how to pack its gradient.

    Returns:
      `(rows, pack)`: `Rows` or `ALL` for `update_rows`, and a function from the gradient of the
      whole stack to the `[R, ...]` slices that `rows` names.
    """
    active = selection.active.get(site, {}).get(name)
    if name == "kernel" and site in selection.columns:
        blocks = jnp.arange(num_blocks, dtype=jnp.int32) if active is None else active
        columns = selection.columns[site][blocks]
        flat = jnp.where(
            columns < num_columns, blocks[:, None] * num_columns + columns, num_blocks * num_columns
        )
        return Rows(flat.reshape(-1), axes=2), lambda g: g[blocks].reshape(-1, *g.shape[2:])
    if active is not None:
        return Rows(active, axes=1), lambda g: g[active]
    return ALL, lambda g: g
