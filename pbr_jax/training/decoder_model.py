"""A decoder for the trainer: blocks pruned by `transform`, a vocabulary with a loss of its own.

The tables of words are no product that the transformation sees: `ops.vocabulary` looks tokens up,
makes the loss chunk by chunk, and gives gradients of a few columns of a table as it gives them of
all. So a table is a site beside those of the blocks, and a tied one draws once for both uses.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.configs.common import Config
from pbr_jax.families import Family, late
from pbr_jax.families.decoder import KERNELS, TABLE
from pbr_jax.methods import Method
from pbr_jax.models import lora
from pbr_jax.ops import vocabulary
from pbr_jax.plans import budget_for
from pbr_jax.pruning import Learning
from pbr_jax.training import pretrained
from pbr_jax.training.lora_model import adapters
from pbr_jax.training.pruned_model import Batch, PrunedModel
from pbr_jax.training.slices import NOTHING
from pbr_jax.training.task import Task, token_weights
from pbr_jax.training.traced import columns, dense
from pbr_jax.transform.attach import Layout
from pbr_jax.transform.groups import Group, Plan, path_of
from pbr_jax.transform.packing import Packing
from pbr_jax.transform.policies import GroupPolicies
from pbr_jax.transform.prune import prune

PyTree = Any
_TABLES = ("embedding", "lm_head")  # the second where the head is not the embedding


def decoder_model(config: Config, family: Family, method: Method, task: Task) -> PrunedModel:
    """The configured decoder, trained by `method`."""
    # Parameters are drawn in float32 throughout: A and B are wider than what a block computes in.
    wide = dataclasses.replace(config.model, dtype="float32")
    module, drawn = (late(family.build)(m, method.plan) for m in (config.model, wide))
    if method.adapters:
        module, drawn = (lora.with_lora(one, config.lora) for one in (module, drawn))

    def fresh(seed):
        example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), module.input_specs(1))
        params = drawn.init(jax.random.key(seed), example)["params"]
        return lora.cast(params, jnp.float32), ()  # A and B; without them nothing is cast

    def begin(seed, class_names=None):
        if config.model.weights is None:
            return *fresh(seed), []
        # A model may have room once: nothing is drawn that weights replace.
        loaded = pretrained.load_weights(config.model, lora.base_of(shapes()[0]), class_names)
        base = jax.tree.map(jnp.asarray, loaded.params)
        if not method.adapters:
            return base, (), loaded.notes
        own = jax.jit(lambda: lora.map_leaves(lambda leaf: leaf, NOTHING.gather, fresh(seed)[0]))
        return lora.with_base(own(), base), (), loaded.notes

    def hidden_of(body, tables, batch, packed: Mapping[str, dict[str, jax.Array]]):
        """`[B N, D]`, and the table of the head with what is packed of it."""
        used = packed.get("embedding", {})
        embedded = vocabulary.embed(tables["embedding"], batch["tokens"], **used)
        params = {**body, **{name: {"table": table} for name, table in tables.items()}}
        params = lora.cast(params, config.model.dtype)
        hidden, _ = module.apply({"params": params}, module.inputs(batch), embedded)
        head = [name for name in _TABLES if name in tables][-1]
        return hidden.reshape(-1, hidden.shape[-1]), tables[head], packed.get(head, {})

    def chunk(hidden, table):
        return vocabulary.chunk_of(hidden.shape[0], table.shape[0], config.mesh.data or 1)

    def loss(body, tables, packed, batch):
        hidden, table, used = hidden_of(body, tables, batch, packed)
        targets, weights = batch["targets"].reshape(-1), token_weights(batch).reshape(-1)
        how = {"chunk": chunk(hidden, table), **used}
        value, (_, right) = vocabulary.loss(hidden, table, targets, weights, **how)
        return value, {"accuracy": jnp.sum(jnp.where(right, weights, 0.0))}

    def outputs(variables, batch, part=None):
        hidden, table, _ = hidden_of(*_apart(variables[0]), batch, {})
        scored = batch["scored"].reshape(-1).astype(jnp.float32)
        targets, size = batch["targets"].reshape(-1), chunk(hidden, table)
        found = vocabulary.scores(hidden, table, targets, scored, chunk=size)
        return jax.tree.map(lambda leaf: leaf.reshape(batch["targets"].shape), found)

    shapes = functools.cache(lambda: jax.eval_shape(lambda: fresh(0)))
    if method.policy is None:

        def whole(params, extra, batch, key):
            value, figures = loss(*_apart(params), {}, batch)
            return value, (figures, extra)

        trained = adapters(whole, config.lora) if method.adapters else dense(whole)
    else:
        trained = _rows(config, method, shapes()[0], module.input_specs(1), hidden_of, loss)
    return PrunedModel(module, module.input_specs, shapes, begin, outputs, **trained)


def _apart(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is not the vocabulary, and the tables by name."""
    tables = {name: params[name]["table"] for name in _TABLES if name in params}
    return {name: tree for name, tree in params.items() if name not in tables}, tables


def _rows(config: Config, method: Method, params, batch: Batch, hidden_of, loss) -> dict[str, Any]:
    """Selected rows of the blocks' kernels and selected columns of the tables are trained."""
    p, keep = config.pruning, method.plan
    learning = Learning(p.step_size, p.min_prob, p.offset)
    assert method.policy is not None
    pruned = prune(
        lambda *args: hidden_of(*args, {})[0],
        *(*_apart(params), batch),
        keep={f"^blocks/({'|'.join(own)})/": keep.keep_at(site) for site, own in KERNELS.items()},
        include="^blocks/.*kernel$",
        min_columns=1,
        policy=method.policy,
        learning=learning,
        group_size=method.group_size,
    )
    plan = _with_tables(pruned.plan, params, keep.keep_at(TABLE), method.group_size)
    policies = GroupPolicies(plan.groups, method.policy, learning, method.group_size)
    packing = Packing(plan, policies, lambda tree: [path for path, _ in _by_path(tree)])
    blocks_loss = pruned.differentiable(loss, has_aux=True)

    def packed_loss(trained, frozen, extra, selection, batch, key, part=None):
        body, rows = _apart(trained)
        whole = {name: frozen.get(_path(name), given) for name, given in rows.items()}
        packed = {
            name: {"columns": selection[_path(name)], "rows": given}
            for name, given in rows.items()
            if _path(name) in selection
        }
        own = {path: leaf for path, leaf in frozen.items() if path in pruned.plan.paths}
        drawn = {name: selection[name] for name in pruned.groups}
        value, (figures, *_) = blocks_loss(body, own, (), drawn, whole, packed, batch)
        return value, (figures, extra)

    return columns(packing, packed_loss)


def _path(table: str) -> str:
    return f"{table}/table"


def _by_path(tree: PyTree) -> list[tuple[str, Any]]:
    return [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _with_tables(plan: Plan, params: PyTree, keep: float, group_size: int) -> Plan:
    """A plan of the blocks as one of all parameters, and with the tables."""
    leaves = dict(_by_path(params))
    numbers = {path: i for i, path in enumerate(leaves)}
    groups = {
        name: group._replace(leaves=tuple(numbers[path] for path in group.paths))
        for name, group in plan.groups.items()
    }
    dense = dict(plan.dense)
    for name in _apart(params)[1]:
        path, shape = _path(name), tuple(leaves[_path(name)].shape)
        kept = budget_for(keep, shape[1], group_size)
        if kept == shape[1]:
            dense[path] = f"keep = {keep} is all of its {shape[1]} columns"
            continue
        layout = Layout(shape, (), (1,))
        groups[path] = Group(path, (numbers[path],), (path,), (layout,), (), shape[1], kept, ((),))
    return Plan(
        tuple(leaves),
        tuple(tuple(leaf.shape) for leaf in leaves.values()),
        tuple(leaf.dtype for leaf in leaves.values()),
        {name: groups[name] for name in sorted(groups)},
        dense,
    )
