"""A user's own module for the trainer: pruned by `transform`, as its code stays as it is."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.configs.common import Config
from pbr_jax.families import Family
from pbr_jax.methods import Method
from pbr_jax.models.inputs import input_specs
from pbr_jax.models.own import make_own
from pbr_jax.models.own_call import OwnModel
from pbr_jax.ops.arrays import squared_norms
from pbr_jax.plans import Keep
from pbr_jax.pruning import Learning
from pbr_jax.reading import few
from pbr_jax.training import pretrained
from pbr_jax.training.own_blocks import Blocks
from pbr_jax.training.pruned_model import PrunedModel
from pbr_jax.training.selection import SelectorState
from pbr_jax.training.slices import ALL, Rows, Slices
from pbr_jax.training.state import EXTRA, as_tree
from pbr_jax.training.task import Task, objective
from pbr_jax.transform.attach import Layout
from pbr_jax.transform.prune import prune
from pbr_jax.transform.pruned import Pruned
from pbr_jax.weights import load, published, read

PyTree = Any


class LayoutRows(NamedTuple):
    """Selected rows of a parameter whose axes lie in any order; see `Slices`."""

    layout: Layout
    columns: jax.Array  # int32 [*stack, K]

    def gather(self, leaf: jax.Array) -> jax.Array:
        return self.layout.gather(leaf, self.columns)

    def scatter(self, leaf: jax.Array, rows: jax.Array) -> jax.Array:
        return self.layout.scatter(leaf, rows, self.columns)

    def norms(self, grad: jax.Array) -> jax.Array:
        return squared_norms(grad, self.columns.ndim)


def own_model(config: Config, family: Family, method: Method, task: Task) -> PrunedModel:
    """The module that the function of a family makes, its products pruned if `method` does that."""
    # An export of ours is loaded here; any other weights are the function's to read.
    export = pretrained.own_export(config.model)
    given = config.model if export is None else dataclasses.replace(config.model, weights=None)
    own = make_own(family.build, given)
    specs = functools.partial(input_specs, config.data.source.kind, config.model)

    def loss(params, extra, batch, key):
        outputs, moved = own.apply(params, extra, batch, key, True)
        _check_outputs(config, outputs)
        value, figures = objective(task, outputs, batch)
        return value, (figures, moved)

    def outputs(variables, batch, part=None):
        found, _ = own.apply(*variables, batch, jax.random.key(0), False)
        return found

    pruned = None if method.policy is None else _pruned(config, method, own)
    said = [] if pruned is None else _notes(pruned)

    def begin(seed, class_names=None):
        params, extra, notes = own.begin(seed, specs(1))
        if export is None:
            return params, extra, said + notes
        sizes = published(family.build).sizes(config.model)
        found = read(export)
        loaded = load(found, family.build, sizes, as_tree(params, extra), class_names)
        tree = jax.tree.map(jnp.asarray, loaded.params)
        return tree, tree.pop(EXTRA, extra), said + loaded.notes

    return PrunedModel(
        module=own.module,
        input_specs=specs,
        shapes=lambda: own.shapes(specs(1)),
        begin=begin,
        outputs=outputs,
        **(_dense(loss) if pruned is None else _columns(pruned, loss)),
    )


def _pruned(config: Config, method: Method, own: OwnModel) -> Pruned:
    """The module's pruning; its program for one example tells the sites."""
    p, kind = config.pruning, config.data.source.kind
    batch = input_specs(kind, config.model, 1)
    params, extra = own.shapes(batch)

    def function(params, extra, batch):
        return own.apply(params, extra, batch, jax.random.key(0), True)

    assert method.policy is not None
    return prune(
        function,
        params,
        extra,
        batch,
        keep=_by_pattern(method.plan.keep),
        policy=method.policy,
        learning=Learning(p.step_size, p.min_prob, p.offset),
    )


def _notes(pruned: Pruned) -> list[str]:
    """What is pruned, and which matrices are not and why, a line each."""
    sites = Blocks(pruned.groups).sites
    listed = []
    for site, names in sites.items():
        group = pruned.groups[names[0]]
        listed.append(f"{site} keeps {group.num_kept} of {group.num_columns} columns")
    shapes = dict(zip(pruned.plan.paths, pruned.plan.shapes, strict=True))
    large = sorted(pruned.unpruned, key=lambda path: -math.prod(shapes[path]))
    dense = [f"{path} ({pruned.unpruned[path]})" for path in large if len(shapes[path]) > 1]
    lines = [f"pruned: {few(listed, 8)}"]
    return lines + ([f"not pruned: {few(dense, 4)}"] if dense else [])


def _by_pattern(keep: Keep) -> float | dict[str, float]:
    """What `prune` takes: patterns in their order, and what none of them names last."""
    assert keep.default is not None  # a plan leaves no site open
    return {**keep.sites, "": keep.default} if keep.sites else keep.default


def _dense(loss: Callable[..., Any]) -> dict[str, Any]:
    """All of a model is trained."""

    def whole(trained, frozen, extra, selection, batch, key, part=None):
        return loss(trained, extra, batch, key)

    return {
        "policies": lambda: SelectorState({}, {}),
        "select": lambda key, state, step: (state, {}),
        "split": lambda params, selection: (params, {}),
        "loss": whole,
        "slices": lambda selection, params: jax.tree.map(lambda _: ALL, params),
        "pack": lambda selection, grads: grads,
        "unbias": lambda state, selection, grads: grads,
        "learn": lambda state, *rest: state,
    }


def _columns(pruned: Pruned, loss: Callable[..., Any]) -> dict[str, Any]:
    """Selected rows of the pruned parameters, and all of the others."""
    packed_loss = pruned.differentiable(loss, has_aux=True)

    def packed(trained, frozen, extra, selection, batch, key, part=None):
        value, (aux, *_) = packed_loss(trained, frozen, (), selection, extra, batch, key)
        return value, aux

    def slices(selection, params):
        leaves, structure = jax.tree.flatten(params)
        rows: list[Slices] = [ALL] * len(leaves)
        for i, name in pruned.plan.group_of.items():
            rows[i] = _rows(pruned.plan.layouts[i], selection[name])
        return jax.tree.unflatten(structure, rows)

    blocks = Blocks(pruned.groups)

    def learn(state, selection, grads, step, norms=None, added=None):
        if norms is None:
            return blocks.joined(pruned.learn(blocks.apart(state), selection, grads))
        leaves = jax.tree.leaves(norms, is_leaf=lambda leaf: leaf is None)
        seen = {
            name: sum(leaves[i].reshape(selection[name].shape) for i in group.leaves)
            for name, group in pruned.groups.items()
        }
        return blocks.joined(pruned.policies.learn(blocks.apart(state), selection, seen))

    return {
        "policies": lambda: blocks.joined(pruned.init()),
        "select": lambda key, state, step: (state, pruned.select(blocks.apart(state), key)),
        "split": pruned.split,
        "loss": packed,
        "slices": slices,
        "pack": lambda selection, grads: grads,
        "unbias": lambda state, *rest: pruned.unbias(blocks.apart(state), *rest),
        "learn": learn,
    }


def _rows(layout: Layout, columns: jax.Array) -> Slices:
    """The rows of a parameter; `Rows`, which the optimizer's kernel takes, where they lie so."""
    depth = len(layout.stack)
    if layout.stack != (*range(depth),) or layout.rows != (depth,):
        return LayoutRows(layout, columns)
    # Rows are numbered through the leading axes [*stack, D].
    width, size = layout.num_columns, jnp.size(columns) // columns.shape[-1]
    first = width * jnp.arange(size, dtype=jnp.int32).reshape(*columns.shape[:-1], 1)
    return Rows(first + columns)


def _check_outputs(config: Config, outputs: Any) -> None:
    classes = config.model.num_classes
    if outputs.ndim != 2 or outputs.shape[-1] != classes:
        raise ValueError(
            f"model.family = {config.model.family}: its outputs have shape {outputs.shape}: must be"
            f" [B, {classes}], logits of the model.num_classes = {classes} classes"
        )
