"""Trees of parameters, packed: of a pruned one the selected rows alone, `[*stack, K, *rest]`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.transform.groups import Plan
from pbr_jax.transform.policies import GroupPolicies, Selection, State

PyTree = Any


class Packing:
    """What a selection makes of parameters, of their gradients and of what else is shaped so.

    Attributes:
      plan: groups of parameters, and why others stay dense.
      policies: of the groups.
    """

    def __init__(
        self, plan: Plan, policies: GroupPolicies, paths: Callable[[PyTree], Sequence[str]]
    ) -> None:
        self.plan, self.policies = plan, policies
        self._paths = paths
        self._layouts, self._group_of = plan.layouts, plan.group_of

    def split(self, params: PyTree, selection: Selection) -> tuple[PyTree, dict[str, jax.Array]]:
        """What `differentiable` takes: parameters, of the pruned ones zero rows, and these by path.

        Raises:
          ValueError: `params` or `selection` are of another model.
        """
        # What is wrong is named before anything is traced.
        leaves = self._leaves(params, "params")
        self.policies.check_selection(selection)
        columns = self.columns(selection)
        # Zeros are differentiated in the place of a pruned parameter, which is held constant.
        rows = {
            i: layout.zeros(jnp.asarray(leaves[i]), columns[i].shape[-1])
            for i, layout in self._layouts.items()
        }
        trained = [rows.get(i, leaf) for i, leaf in leaves.items()]
        frozen = {self.plan.paths[i]: leaves[i] for i in rows}
        return jax.tree.unflatten(jax.tree.structure(params), trained), frozen

    def gather(self, params: PyTree, selection: Selection) -> PyTree:
        """The selected rows of parameters, or of what is shaped like them, `[*stack, K, *rest]`."""
        return self._map_packed(
            params, selection, lambda layout, leaf, columns: layout.gather(leaf, columns)
        )

    def scatter(self, params: PyTree, packed: PyTree, selection: Selection) -> PyTree:
        """Parameters with their selected rows, and all that is not pruned, from `packed`."""
        new = self._leaves(packed, "packed", shapes=False)
        old = self._leaves(params, "params")
        columns = self.columns(selection)
        leaves = [
            self._layouts[i].scatter(old[i], leaf, columns[i]) if i in columns else leaf
            for i, leaf in new.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    def masks(self, selection: Selection) -> dict[str, jax.Array]:
        """`{path: bool}` of pruned parameters, with their axes; those that are no rows have size 1.

        `pbr_jax.freeze_unselected` reads it.
        """
        self.policies.check_selection(selection)
        columns = self.columns(selection)
        return {self.plan.paths[i]: own.mask(columns[i]) for i, own in self._layouts.items()}

    def unbias(self, state: State, selection: Selection, grads: PyTree) -> PyTree:
        """Packed gradients whose rows are divided by the probability of their draw (Theorem 1).

        `state` is the one that the selection was drawn from.
        """
        probs = self.policies.inclusion(state, selection)
        leaves = self._leaves(grads, "grads", shapes=False)
        new = [
            leaf / _beside(probs[self._group_of[i]], leaf).astype(leaf.dtype)
            if i in self._group_of
            else leaf
            for i, leaf in leaves.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(grads), new)

    def _map_packed(self, tree, selection, function):
        self.policies.check_selection(selection)
        columns = self.columns(selection)
        leaves = self._leaves(tree, "tree", shapes=False)
        new = [
            function(self._layouts[i], leaf, columns[i]) if i in columns else leaf
            for i, leaf in leaves.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(tree), new)

    def columns(self, selection: Selection) -> dict[int, jax.Array]:
        """Columns of every pruned parameter, one object for a group."""
        return {i: selection[name] for i, name in self._group_of.items()}

    def _leaves(self, tree: PyTree, argument: str, shapes: bool = True) -> dict[int, Any]:
        """Leaves by number, after a check that the tree is that of the model."""
        # Paths first: shapes of another tree would say nothing.
        paths, leaves = self._paths(tree), jax.tree.leaves(tree)
        if list(paths) != list(self.plan.paths):
            missing = [p for p in self.plan.paths if p not in paths] or ["nothing"]
            foreign = [p for p in paths if p not in self.plan.paths] or ["nothing"]
            raise ValueError(
                f"{argument}: must be the parameters that were pruned; it lacks"
                f" {', '.join(missing[:3])} and has {', '.join(foreign[:3])} beside them. To train"
                " other parameters too, prune a function of all of them"
            )
        for i, leaf in enumerate(leaves if shapes else ()):
            if jnp.shape(leaf) != self.plan.shapes[i]:
                raise ValueError(
                    f"{argument}: {paths[i]} has shape {jnp.shape(leaf)}: must be"
                    f" {self.plan.shapes[i]}, as when the model was pruned"
                )
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise ValueError(
                    f"{argument}: {paths[i]} is {jnp.result_type(leaf)}, which has no gradient;"
                    " pass it with the batch"
                )
        return dict(enumerate(leaves))


def _beside(rows: jax.Array, leaf: jax.Array) -> jax.Array:
    """`[*stack, K]` with an axis of size 1 for each other one of a packed leaf."""
    return rows.reshape(*rows.shape, *(1 for _ in range(leaf.ndim - rows.ndim)))
