"""`pbr_jax.prune`: any model, with the weight gradients of selected rows alone."""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.pruning import Learning
from pbr_jax.transform import rewrite
from pbr_jax.transform.attach import guard, rows_of
from pbr_jax.transform.groups import Group, Keep, Patterns, Plan, make_plan
from pbr_jax.transform.model import FunctionModel, front_end
from pbr_jax.transform.policies import GroupPolicies, Selection, State
from pbr_jax.transform.tracing import Trace, Traced

PyTree = Any
EXCLUDE = r"(?i)(^|/)([^/]*[_.])?(head|classifier|logits)(_?\d+)?(/|$)"
"""Output layers by their usual names: `head`, `lm_head`, `classifier`, `logits`, `head_0`."""


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
    """

    value: jax.Array
    aux: PyTree
    grads: PyTree
    extra: PyTree


def prune(
    model: Any,
    *example: Any,
    keep: Keep = 0.1,
    include: Patterns = ".*",
    exclude: Patterns | None = EXCLUDE,
    policy: str = "bandit",
    min_columns: int = 64,
    learning: Learning | None = None,
    **kwargs: Any,
) -> "Pruned":
    """Prunes the weight gradients of a model whose code stays as it is.

    The model is traced once, by shapes. Every matrix product between an activation and a parameter
    is a site: in a step, only K of the D rows of its weight gradient are computed, and only K
    columns of the activation are kept for them (PreBackRazor, Algorithm 1). The forward pass and
    the derivative by the activation are the model's own.

        pruned = pbr_jax.prune(model, images, keep=0.1)
        state = pruned.init()
        selection = pruned.select(state, key)
        loss, grads = pruned.value_and_grad(loss_fn)(params, selection, images, labels)
        state = pruned.learn(state, selection, grads)

    Args:
      model: a Linen module, an NNX module, or a function `(params, *args)`.
      *example: the model's inputs, arrays or `jax.ShapeDtypeStruct`; of a function, its parameters
        come first. `kwargs` go to the model too.
      keep: fraction of the columns to keep, in (0, 1]; or `{pattern: fraction}`, of which the first
        pattern that is found in a parameter's path counts. Parameters of no pattern stay dense.
      include, exclude: patterns of paths, regular expressions that are searched for.
      policy: "bandit" (Algorithm 2), "importance" or "uniform", see `pbr_jax.pruning`.
      min_columns: sites with fewer stay dense.
      learning: how the policy follows the gradient; None takes the defaults.

    Raises:
      ValueError: nothing can be pruned; a pattern names nothing, or only what cannot be pruned,
        with the reason.
      TypeError: `model` is of no kind above.
    """
    front = front_end(model)
    shown = front.example(example, kwargs)
    trace, _, _ = Traced(shown.function)(shown.params, shown.args, shown.kwargs)
    plan = make_plan(
        trace.analysis,
        front.paths(shown.params),
        jax.tree.leaves(shown.params),
        keep=keep,
        include=include,
        exclude=exclude,
        min_columns=min_columns,
    )
    return Pruned(front, plan, GroupPolicies(plan.groups, policy, learning or Learning()))


class Pruned:
    """A pruned model. All methods can be jitted.

    Attributes:
      plan: groups of parameters, and why others stay dense.
      unpruned: `{path: reason}`.
    """

    def __init__(self, front: FunctionModel, plan: Plan, policies: GroupPolicies) -> None:
        self.plan, self.policies = plan, policies
        self._front = front
        self._layouts, self._group_of = plan.layouts, plan.group_of
        self._apply = Traced(front.call)
        self.unpruned = dict(plan.dense)
        self._known = _KnownSelections()

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

        Leaves are `[*stack, D]`, none of size zero; names come from the parameters' paths.
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
          variables that are no parameters move as in the loss.

          It raises ValueError for parameters or a selection of another model, and for integer
          parameters.
        """
        gradients = self.gradients(loss, has_aux)

        def run(given, selection, /, *batch, **kwargs):
            params, extra = self._front.params_of(given), self._front.extra(given)
            found = gradients(params, extra, selection, *batch, **kwargs)
            self._front.put_back(given, found.extra)
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
        traced = Traced(self._front.loss(loss))

        def run(params, extra, selection, /, *batch, **kwargs):
            self._leaves(params, "params")
            self.policies.check_selection(selection)
            trace, leaves, arrays = traced(params, (extra, *batch), kwargs)
            columns = self._columns(selection)
            dense = {i: leaf for i, leaf in enumerate(leaves) if i not in columns}
            rows = {
                i: layout.zeros(leaves[i], columns[i].shape[-1])
                for i, layout in self._layouts.items()
            }

            def function(dense, rows):
                own = [dense.get(i, leaf) for i, leaf in enumerate(leaves)]
                outs = self._evaluate(trace, own, columns, rows, arrays)
                out, changed = jax.tree.unflatten(trace.tree, outs)
                value, aux = out if has_aux else (out, None)
                return value, (aux, changed)

            gradient = jax.value_and_grad(function, argnums=(0, 1), has_aux=True)
            (value, (aux, changed)), (dense_grads, packed) = gradient(dense, rows)
            grads = [dense_grads[i] if i in dense_grads else packed[i] for i in range(len(leaves))]
            tree = jax.tree.structure(params)
            return Gradients(value, aux, jax.tree.unflatten(tree, grads), changed)

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
        if selection is None:
            guarded = [
                guard(_unselected(self.plan.paths[i]), leaf) if i in self._layouts else leaf
                for i, leaf in leaves.items()
            ]
            own = jax.tree.unflatten(jax.tree.structure(own), guarded)
            out, changed = self._front.call(own, rest, *args, **kwargs)
        else:
            self.policies.check_selection(selection)
            trace, flat, arrays = self._apply(own, (rest, *args), kwargs)
            outs = self.evaluate_packed(trace, flat, arrays, selection)
            out, changed = jax.tree.unflatten(trace.tree, outs)
        self._front.put_back(params, changed)
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
            grads,
            selection,
            lambda layout, leaf, columns: layout.spread(leaf, columns),
        )

    def gather(self, params: PyTree, selection: Selection) -> PyTree:
        """The selected rows of parameters, or of what is shaped like them, `[*stack, K, *rest]`."""
        return self._map_packed(
            params, selection, lambda layout, leaf, columns: layout.gather(leaf, columns)
        )

    def scatter(self, params: PyTree, packed: PyTree, selection: Selection) -> PyTree:
        """Parameters with their selected rows, and all that is not pruned, from `packed`."""
        new = self._leaves(packed, "packed", shapes=False)
        old = self._leaves(params, "params")
        columns = self._columns(selection)
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
        columns = self._columns(selection)
        return {self.plan.paths[i]: own.mask(columns[i]) for i, own in self._layouts.items()}

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
        columns = self._columns(selection)
        rows = {i: rows_of(lay, leaves[i], columns[i]) for i, lay in self._layouts.items()}
        return self._evaluate(trace, leaves, columns, rows, arrays)

    def _map_packed(self, tree, selection, function):
        self.policies.check_selection(selection)
        columns = self._columns(selection)
        leaves = self._leaves(tree, "tree", shapes=False)
        new = [
            function(self._layouts[i], leaf, columns[i]) if i in columns else leaf
            for i, leaf in leaves.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(tree), new)

    def _evaluate(self, trace, leaves, columns, rows, arrays):
        shapes, analysis = trace.shapes, trace.analysis
        return rewrite.evaluate(
            trace.closed, shapes, self._layouts, leaves, columns, rows, arrays, analysis
        )

    def _columns(self, selection: Selection) -> dict[int, jax.Array]:
        """Columns of every pruned parameter, one object for a group."""
        return {i: selection[name] for i, name in self._group_of.items()}

    def _leaves(self, tree: PyTree, argument: str, shapes: bool = True) -> dict[int, Any]:
        """Leaves by number, after a check that the tree is that of the model."""
        paths, leaves = self._front.paths(tree), jax.tree.leaves(tree)
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


class _KnownSelections:
    """The selection of gradients that were just computed, as long as their arrays live."""

    def __init__(self) -> None:
        self._by_array: dict[int, tuple[weakref.ref, Selection]] = {}

    def add(self, grads: PyTree, selection: Selection) -> None:
        """Keeps it under every array of `grads`; arrays have no hash, and go by their identity."""
        for leaf in jax.tree.leaves(grads):
            key = id(leaf)
            forget = functools.partial(lambda key, gone: self._by_array.pop(key, None), key)
            self._by_array[key] = (weakref.ref(leaf, forget), selection)

    def of(self, grads: PyTree) -> Selection:
        """The one selection of all arrays of `grads`."""
        found = [self._by_array.get(id(leaf)) for leaf in jax.tree.leaves(grads)]
        known = {id(own[1]): own[1] for own in found if own is not None}
        if None in found or len(known) != 1:
            raise ValueError(
                "selection: must be given for gradients that are not the very arrays that"
                " value_and_grad returned, such as sums of them or outputs of a jitted function:"
                " pruned.dense(grads, selection)"
            )
        return known.popitem()[1]


def _unselected(path: str) -> str:
    return (
        f"{path} is pruned, and is differentiated without a selection: use"
        " pruned.value_and_grad(loss)(params, selection, *batch), or pass selection= to"
        " pruned.apply"
    )
