"""A user's own module for the trainer: pruned by `transform`, as its code stays as it is."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.configs.common import Config
from pbr_jax.families import Family
from pbr_jax.methods import Method
from pbr_jax.models.inputs import input_specs
from pbr_jax.models.lora import base_of, with_base
from pbr_jax.models.lora import check as check_adapters
from pbr_jax.models.own import make_own
from pbr_jax.models.own_call import OwnModel
from pbr_jax.plans import Keep
from pbr_jax.pruning import Learning
from pbr_jax.reading import few
from pbr_jax.training import pretrained
from pbr_jax.training.lora_model import adapters, own_adapted
from pbr_jax.training.own_blocks import Blocks
from pbr_jax.training.pruned_model import PrunedModel
from pbr_jax.training.state import EXTRA, as_tree
from pbr_jax.training.task import Task, objective
from pbr_jax.training.traced import columns, dense, loss_of_rows
from pbr_jax.transform.prune import prune
from pbr_jax.transform.pruned import Pruned
from pbr_jax.weights import load, published, read

PyTree = Any


def own_model(config: Config, family: Family, method: Method, task: Task) -> PrunedModel:
    """The module that the function of a family makes, its products pruned if `method` does that."""
    # An export of ours is loaded here; any other weights are the function's to read.
    export = pretrained.own_export(config.model)
    given = config.model if export is None else dataclasses.replace(config.model, weights=None)
    own = make_own(family.build, given, config.lora if method.adapters else None)
    specs = functools.partial(input_specs, config.data.source.kind, config.model)
    if method.adapters:
        own = own_adapted(own, config.model.dtype)
        check_adapters(config.model.family, own.shapes(specs(1))[0], config.lora)

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
        # A and B are no part of an export, into which they were merged.
        base = base_of(params) if method.adapters else params
        loaded = load(found, family.build, sizes, as_tree(base, extra), class_names)
        tree = jax.tree.map(jnp.asarray, loaded.params)
        extra = tree.pop(EXTRA, extra)
        return with_base(params, tree) if method.adapters else tree, extra, said + loaded.notes

    return PrunedModel(
        module=own.module,
        input_specs=specs,
        shapes=lambda: own.shapes(specs(1)),
        begin=begin,
        outputs=outputs,
        **_trained(config, method, pruned, loss),
    )


def _trained(
    config: Config, method: Method, pruned: Pruned | None, loss: Callable[..., Any]
) -> dict[str, Any]:
    """What of the module is trained: A and B, all of it, or rows of what is pruned."""
    if method.adapters:
        return adapters(loss, config.lora)
    return dense(loss) if pruned is None else columns(pruned, loss_of_rows(pruned, loss))


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
        group_size=method.group_size,
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


def _check_outputs(config: Config, outputs: Any) -> None:
    classes = config.model.num_classes
    if outputs.ndim != 2 or outputs.shape[-1] != classes:
        raise ValueError(
            f"model.family = {config.model.family}: its outputs have shape {outputs.shape}: must be"
            f" [B, {classes}], logits of the model.num_classes = {classes} classes"
        )
