"""The object that `pbr_jax.prune` returns: selections, packed gradients, and what they are for."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from pbr_jax.ops.shardings import alike
from pbr_jax.transform import rewrite
from pbr_jax.transform.attach import guard, rows_of
from pbr_jax.transform.groups import Group, Plan
from pbr_jax.transform.known import KnownSelections
from pbr_jax.transform.model import FunctionModel
from pbr_jax.transform.packing import Packing
from pbr_jax.transform.policies import GroupPolicies, Selection, State
from pbr_jax.transform.tracing import Trace, Traced

PyTree = Any


class SiteInfo(NamedTuple):
    """A parameter that is pruned.

    Attributes:
      path: of the parameter.
      group: name of the selection that it shares.
      num_columns, num_kept: D and K.
      stack_shape: lengths of the scans that walk along it.
      products: how often it is used in one forward pass, not counting scans.
    """

    path: str
    group: str
    num_columns: int
    num_kept: int
    stack_shape: tuple[int, ...]
    products: int


class Shown(NamedTuple):
    """A model's equations and their inputs, arrays or shapes."""

    trace: Trace
    leaves: list[Any]
    arrays: list[Any]


class Gradients(NamedTuple):
    """What a loss gave.

    Attributes:
      value: the loss.
      aux: what else it returned, or None.
      grads: like the parameters, packed where they are pruned.
      extra: what the model changed beside them.
      moved: what the loss changed in other objects of NNX that it was given.
    """

    value: jax.Array
    aux: PyTree
    grads: PyTree
    extra: PyTree
    moved: PyTree


class Pruned(Packing):
    """A pruned model. All methods can be jitted.

    Attributes:
      plan: groups of parameters, and why others stay dense.
      unpruned: `{path: reason}`.
    """

    def __init__(self, front: FunctionModel, plan: Plan, policies: GroupPolicies) -> None:
        super().__init__(plan, policies, front.paths)
        self._front = front
        self._apply = Traced(front.call)
        self.unpruned = dict(plan.dense)
        self._known = KnownSelections()

    def __repr__(self) -> str:
        return (
            f"<Pruned: {len(self._layouts)} parameters in {len(self.plan.groups)} groups,"
            f" {len(self.unpruned)} dense>"
        )

    @property
    def groups(self) -> dict[str, Group]:
        """Groups by name."""
        return self.plan.groups

    @property
    def sites(self) -> list[SiteInfo]:
        """Every pruned parameter."""
        return [
            SiteInfo(path, g.name, g.num_columns, g.num_kept, g.stack_shape, len(uses))
            for g in self.plan.groups.values()
            for path, uses in zip(g.paths, g.uses, strict=True)
        ]

    def init(self) -> State:
        """State of the policies before the first step, `{group: {"probs", "counts", ...}}`.

        Leaves are `[*stack, A]`, A = D / group_size, none of size zero; names come from the
        parameters' paths.
        """
        return self.policies.init()

    def select(self, state: State, key: jax.Array) -> Selection:
        """Draws the columns of a step, `{group: int32 [*stack, K]}`. The key is consumed."""
        return self.policies.select(state, key)

    def learn(self, state: State, selection: Selection, grads: PyTree) -> State:
        """The state after a step, from the gradients of `value_and_grad`, packed or dense.

        Raises:
          ValueError: `state` or `selection` are of another model.
        """
        self.policies.check_selection(selection)
        leaves = self._leaves(grads, "grads", shapes=False)
        return self.policies.learn(state, selection, self.policies.norms(leaves, selection))

    def value_and_grad(
        self, loss: Callable[..., Any], has_aux: bool = False
    ) -> Callable[..., tuple[Any, PyTree]]:
        """Like `jax.value_and_grad(loss)`, for a loss that calls the model as it always did.

        Args:
          loss: `(params, *batch, **kwargs) -> scalar`, or `(scalar, aux)`. It may do what it likes
            with the parameters: cast them, call the model twice, add a penalty. Of an NNX model the
            first argument is the module. It is traced, once for equal shapes.
          has_aux: whether it returns `(scalar, aux)`.

        Returns:
          `(params, selection, *batch, **kwargs) -> (value, grads)`. `grads` is like `params`; that
          of a pruned parameter is packed, `[*stack, K, *rest]`: the axes that scans walk along, its
          selected rows, and its other axes in order. `dense` unpacks them. Of an NNX module the
          variables that are no parameters move as in the loss, and so do an `nnx.Rngs` and other
          objects in the batch.

          It raises ValueError for parameters or a selection of another model, and for integer
          parameters.
        """
        gradients = self.gradients(loss, has_aux)

        def run(given, selection, /, *batch, **kwargs):
            params, extra = self._front.params_of(given), self._front.extra(given)
            found = gradients(params, extra, selection, *batch, **kwargs)
            self._front.put_back(given, found.extra, (batch, kwargs), found.moved)
            self._known.add(found.grads, selection)
            value = (found.value, found.aux) if has_aux else found.value
            return value, found.grads

        return run

    def gradients(
        self, loss: Callable[..., Any], has_aux: bool = False
    ) -> Callable[..., "Gradients"]:
        """`value_and_grad` as `(params, extra, selection, *batch) -> Gradients`, without effects.

        `extra` is a pytree of what else the model reads and changes, see `parts`.
        """
        differentiable = self.differentiable(loss, has_aux)

        def run(params, extra, selection, /, *batch, **kwargs):
            trained, frozen = self.split(params, selection)
            gradient = jax.value_and_grad(differentiable, has_aux=True)
            (value, (aux, *changed)), grads = gradient(
                trained, frozen, extra, selection, *batch, **kwargs
            )
            return Gradients(value, aux, grads, *changed)

        return run

    def differentiable(
        self, loss: Callable[..., Any], has_aux: bool = False
    ) -> Callable[..., tuple[jax.Array, tuple[PyTree, PyTree, PyTree]]]:
        """The loss as a function whose derivative is packed.

        It is `(trained, frozen, extra, selection, *batch) -> (value, (aux, extra, moved))`, of what
        `split` and `parts` give, to be differentiated by `trained`; the last two as in `Gradients`.
        """
        traced = Traced(self._front.loss(loss))

        def run(trained, frozen, extra, selection, /, *batch, **kwargs):
            # A pruned parameter is held constant, and its rows, zeros, are differentiated instead.
            own = self._leaves(trained, "trained", shapes=False)
            whole = [frozen.get(self.plan.paths[i], leaf) for i, leaf in own.items()]
            params = jax.tree.unflatten(jax.tree.structure(trained), whole)
            trace, leaves, arrays = traced(params, (extra, *batch), kwargs)
            rows = {i: own[i] for i in self._layouts}
            outs = self._evaluate(trace, leaves, self.columns(selection), rows, arrays)
            out, *changed = jax.tree.unflatten(trace.tree, outs)
            value, aux = out if has_aux else (out, None)
            return value, (aux, *changed)

        return run

    def parts(self, given: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and extra of what a loss takes first; extra is empty but for NNX modules."""
        return self._front.params_of(given), self._front.extra(given)

    def apply(
        self, params: PyTree, *args: Any, selection: Selection | None = None, **kwargs: Any
    ) -> PyTree:
        """Calls the model: a Linen module's `apply`, an NNX module or its parameters, a function.

        Differentiated by autodiff, the gradients of pruned parameters are zero but for the selected
        rows, in the shape of the parameters: what `value_and_grad(...)` and `dense` give together.

        Raises:
          ValueError: it is differentiated without a selection.
        """
        own, rest = self._front.split(params)
        leaves = self._leaves(own, "params")
        # Without a selection the model is evaluated as it is, and cannot be differentiated.
        if selection is None:
            guarded = [
                guard(_unselected(self.plan.paths[i]), leaf) if i in self._layouts else leaf
                for i, leaf in leaves.items()
            ]
            own = jax.tree.unflatten(jax.tree.structure(own), guarded)
            out, *changed = self._front.call(own, rest, *args, **kwargs)
        else:
            self.policies.check_selection(selection)
            trace, flat, arrays = self._apply(own, (rest, *args), kwargs)
            outs = self.evaluate_packed(trace, flat, arrays, selection)
            out, *changed = jax.tree.unflatten(trace.tree, outs)
        extra, moved = changed
        self._front.put_back(params, extra, (args, kwargs), moved)
        return out

    def dense(self, grads: PyTree, selection: Selection | None = None) -> PyTree:
        """Packed gradients in the shape of the parameters, zero in the rows not selected.

        Args:
          grads: what `value_and_grad` gave.
          selection: that of those gradients. It may be left out for the very arrays that
            `value_and_grad` returned, in the same trace if there is one; a sum of gradients, or the
            output of a jitted function, does not know its columns.

        Raises:
          ValueError: there is no selection, or grads are of another model.
        """
        if selection is None:
            selection = self._known.of(grads)
        return self._map_packed(
            grads, selection, lambda layout, leaf, columns: layout.spread(leaf, columns)
        )

    def example(self, *example: Any, **kwargs: Any) -> "Shown":
        """The model's equations for other inputs, by shapes; arguments as of `prune`."""
        shown = self._front.example(example, kwargs)
        trace, leaves, arrays = Traced(shown.function)(shown.params, shown.args, shown.kwargs)
        self._leaves(shown.params, "params")
        return Shown(trace, leaves, arrays)

    def evaluate_packed(
        self, trace: Any, leaves: Sequence[Any], arrays: Sequence[Any], selection: Selection
    ) -> list[Any]:
        """Outputs of a trace, of which the selected rows alone are differentiated."""
        columns = self.columns(selection)
        rows = {
            i: rows_of(layout, *alike(leaves[i], columns[i])) for i, layout in self._layouts.items()
        }
        return self._evaluate(trace, leaves, columns, rows, arrays)

    def _evaluate(self, trace, leaves, columns, rows, arrays):
        shapes, analysis = trace.shapes, trace.analysis
        return rewrite.evaluate(
            trace.closed, shapes, self._layouts, leaves, columns, rows, arrays, analysis
        )


def _unselected(path: str) -> str:
    return (
        f"{path} is pruned, and is differentiated without a selection: use"
        " pruned.value_and_grad(loss)(params, selection, *batch), or pass selection= to"
        " pruned.apply"
    )
