"""What trains in a step: columns of every site, and parameter tensors (JointSPAR).

`make_selector` joins the policies of all sites into one stateful method, pure functions whose state
is part of the train state; nothing else in training knows how columns are chosen. All trees are
keyed by site, and within it by the name of a tensor; where these lie among the parameters is for
the caller to know.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax import pruning
from pbr_jax.ops.arrays import squared_norms
from pbr_jax.training.slices import Rows

PyTree = Any


class SelectorState(NamedTuple):
    """State of all policies.

    Attributes:
      columns: `{site: PolicyState}`, leaves `[L, ...]`; empty where no policy chooses columns.
      tensors: `{site: {tensor: JointSparState}}`; empty without JointSPAR.
    """

    columns: dict[str, pruning.PolicyState]
    tensors: dict[str, dict[str, pruning.JointSparState]]


class Selection(NamedTuple):
    """What one step trains of the stacked tensors of a model.

    Attributes:
      columns: `{site: int32 [L, K]}`; all unused (index D) in blocks whose kernel JointSPAR froze.
      active: `{site: {tensor: int32 [M]}}`, blocks whose tensor is trained, increasing.
    """

    columns: dict[str, jax.Array]
    active: dict[str, dict[str, jax.Array]]


class Selector(NamedTuple):
    """Pure functions; hyper-parameters closed over.

    Gradients are `{site: {tensor: [L, ...]}}`; that of a kernel whose site has columns holds only
    their rows, `[L, K, F]`.

    Attributes:
      init: `() -> state`.
      select: `(key, state, step) -> (state, selection)`. The key is consumed.
      rows: `selection -> {site: {tensor: Rows}}`, the slices that the optimizer updates; tensors
        that are trained whole are absent.
      pack: `(selection, grads) -> grads`, only the slices that `rows` names: blocks that JointSPAR
        froze are left out.
      update: `(state, selection, packed, step, norms, added) -> state`, of what `pack` gave, before
        any division by p. `norms`, squared norms of what `rows` names, are computed where None;
        `added` of squared norms sums them over the devices that share a tensor.
      unbias: `(state, selection, packed) -> packed`: kept rows of what `pack` gave, divided by the
        probability that they were drawn with.
    """

    init: Callable[[], SelectorState]
    select: Callable[[jax.Array, SelectorState, jax.Array], tuple[SelectorState, Selection]]
    rows: Callable[[Selection], dict[str, dict[str, Rows]]]
    pack: Callable[[Selection, PyTree], PyTree]
    update: Callable[..., SelectorState]
    unbias: Callable[[SelectorState, Selection, PyTree], PyTree]


def make_selector(
    policies: pruning.SitePolicies,
    spar: pruning.JointSpar | None,
    num_blocks: int,
    sites: Sequence[str],
    tensors: Sequence[str],
) -> Selector:
    """Joins column policies and tensor policies.

    Args:
      policies: of the sites whose columns are chosen; others are trained dense.
      spar: chooses the blocks of every tensor, each with a state of its own; None trains all.
      num_blocks: L.
      sites: all sites.
      tensors: names of a site's tensors; the first, the kernel, has the columns' rows.
    """
    kernel = tensors[0]
    pairs = [(site, tensor) for site in sites for tensor in tensors]

    def init() -> SelectorState:
        states = {s: {t: spar.init() for t in tensors} for s in sites} if spar else {}
        return SelectorState(policies.init(), states)

    def select(key, state, step):
        spar_key, column_key = jax.random.split(key)
        drawn = state.tensors
        if spar:
            # A key for each site, and from that one for each tensor.
            keys = jax.vmap(jax.random.fold_in, (None, 0))(spar_key, jnp.arange(len(sites)))
            keys = jax.vmap(lambda key: jax.random.split(key, len(tensors)))(keys).reshape(-1)
            sample = jax.vmap(spar.sample, (0, 0, None))
            drawn = _unstack(pairs, sample(keys, _stack(pairs, state.tensors), step))
        active = {s: {t: own.active for t, own in named.items()} for s, named in drawn.items()}
        columns = policies.sample(column_key, state.columns)
        # A block whose kernel is frozen trains no column either.
        if spar:
            for site, width in policies.num_columns.items():
                trained = block_flags(active[site][kernel], num_blocks)[:, None]
                columns[site] = jnp.where(trained, columns[site], width)
        return state._replace(tensors=drawn), Selection(columns, active)

    def rows(selection):
        found = {s: {t: Rows(a) for t, a in named.items()} for s, named in selection.active.items()}
        for site, columns in selection.columns.items():
            # Rows are numbered through the stacked kernel [L, D, F]; L * D is past its end.
            width = policies.num_columns[site]
            blocks = selection.active.get(site, {}).get(kernel)
            blocks = jnp.arange(num_blocks, dtype=jnp.int32) if blocks is None else blocks
            columns = columns[blocks]
            slots = jnp.where(
                columns < width, blocks[:, None] * width + columns, num_blocks * width
            )
            found.setdefault(site, {})[kernel] = Rows(slots)
        return found

    def pack(selection, grads):
        return {
            site: named | {t: named[t][own] for t, own in selection.active.get(site, {}).items()}
            for site, named in grads.items()
        }

    def update(state, selection, grads, step, norms=None, added=lambda tree: tree):
        # Algorithm 1, line 24: columns learn from the rows of the kernels.
        seen = {}
        if norms is None:
            norms = added(
                {s: {kernel: squared_norms(grads[s][kernel], 2)} for s in selection.columns}
            )
        for site, columns in selection.columns.items():
            active = selection.active.get(site, {}).get(kernel)
            own = norms[site][kernel]
            if active is not None:  # of a block whose kernel is frozen nothing was seen
                own = jnp.zeros(columns.shape, jnp.float32).at[active].set(own)
            seen[site] = own
        columns = policies.update(state.columns, selection.columns, seen)
        # JointSPAR learns from whole tensors.
        moved = state.tensors
        if spar:
            squares = added({s: {t: squared_norms(grads[s][t], 1) for t in tensors} for s in sites})
            learn = jax.vmap(spar.update, (0, 0, None))
            moved = _unstack(pairs, learn(_stack(pairs, moved), _stack(pairs, squares), step))
        return SelectorState(columns, moved)

    def unbias(state, selection, grads):
        found = dict(grads)
        for site, probs in policies.inclusion(state.columns, selection.columns).items():
            active = selection.active.get(site, {}).get(kernel)
            own = probs if active is None else probs[active]
            found[site] = grads[site] | {kernel: grads[site][kernel] / own[..., None]}
        return found

    return Selector(init, select, rows, pack, update, unbias)


def _stack(pairs: Sequence[tuple[str, str]], trees: Mapping[str, Mapping[str, PyTree]]) -> PyTree:
    """`{site: {tensor: tree}}` as one tree with a leading axis of pairs."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(trees[s][t] for s, t in pairs))


def _unstack(pairs: Sequence[tuple[str, str]], tree: PyTree) -> dict[str, dict[str, PyTree]]:
    """The inverse of `_stack`."""
    sites: dict[str, dict[str, Any]] = {}
    for i, (site, tensor) in enumerate(pairs):
        sites.setdefault(site, {})[tensor] = jax.tree.map(lambda leaf, i=i: leaf[i], tree)
    return sites


def block_flags(active: jax.Array, num_blocks: int) -> jax.Array:
    """Indices of active blocks as flags: `int32 [M] -> bool [L]`."""
    return jnp.zeros((num_blocks,), bool).at[active].set(True)


def model_variables(
    selection: Selection, rows: Mapping[str, jax.Array], num_blocks: int
) -> dict[str, dict[str, Any]]:
    """What the layers of each site read: columns, zero rows `[L, K, F]`, flags of tensors."""
    sites: dict[str, dict[str, Any]] = {
        site: {"columns": columns, "rows": rows[site]}
        for site, columns in selection.columns.items()
    }
    for site, named in selection.active.items():
        flags = {tensor: block_flags(active, num_blocks) for tensor, active in named.items()}
        sites.setdefault(site, {})["active"] = flags
    return sites
