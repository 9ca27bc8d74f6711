"""A family's model for the trainer: half-blocks under a residual plan, and the policies of sites.

Its layers that sites feed are stacked over the blocks, `kernel [L, D, F]`, where the family's
`Architecture` says. The rows of a packed gradient are `[L, K, F]`.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax import methods, pruning
from pbr_jax.configs.common import Config
from pbr_jax.families import BIAS, KERNEL, Architecture, Family, late
from pbr_jax.ops.exchange import Exchange
from pbr_jax.plans import Keep
from pbr_jax.settings.resolve import column_budgets
from pbr_jax.training import pretrained
from pbr_jax.training import selection as selecting
from pbr_jax.training.pruned_model import PrunedModel
from pbr_jax.training.sites import layers, with_layers
from pbr_jax.training.slices import ALL
from pbr_jax.training.task import Task, objective

PyTree = Any


def family_model(config: Config, family: Family, method: methods.Method, task: Task) -> PrunedModel:
    """The configured model of a family, trained by `method`."""
    assert family.describe is not None
    sizes = family.describe(config.model)
    budgets, plan = column_budgets(config, method, sizes), method.plan
    if plan.kind("linear").selects:  # a site without a budget is trained dense
        keep = {site: plan.keep_at(site) if site in budgets else 1.0 for site in sizes.sites}
        plan = dataclasses.replace(plan, keep=Keep(**keep))
    module = late(family.build)(config.model, plan)
    selector = make_selector(config, method, sizes, budgets)

    def at(tree):
        return layers(tree, sizes)

    def put(tree, changed):
        return with_layers(tree, sizes, changed)

    def fresh(seed):
        example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), module.input_specs(1))
        return module.init(jax.random.key(seed), module.inputs(example))["params"], ()

    def begin(seed, class_names=None):
        params, extra = fresh(seed)
        if config.model.weights is None:
            return params, extra, []
        loaded = pretrained.load_weights(config.model, params, class_names)
        return jax.tree.map(jnp.asarray, loaded.params), extra, loaded.notes

    def outputs(variables, batch, part=None):
        params, shared = variables[0], {} if part is None else {"part": part}
        if part is not None and part.exchange is not None:
            params, _ = _entered(module, sizes, part.exchange, params, {})
        return module.apply({"params": params}, module.inputs(batch), **shared)

    def split(params, selection):
        own = at(params)
        frozen = {site: own[site][KERNEL] for site in selection.columns}
        rows = {
            site: jnp.zeros((*selection.columns[site].shape, kernel.shape[-1]), kernel.dtype)
            for site, kernel in frozen.items()
        }
        return put(params, _kernels(rows)), frozen

    def slices(selection, params):
        return put(jax.tree.map(lambda _: ALL, params), selector.rows(selection))

    def pack(selection, grads):
        return put(grads, selector.pack(selection, at(grads)))

    def unbias(state, selection, grads):
        return put(grads, selector.unbias(state, selection, at(grads)))

    def learn(state, selection, grads, step, norms=None, added=lambda tree: tree):
        own = None if norms is None else at(norms)

        def of_sites(named):  # sums know a tensor by its place among the parameters
            whole = added(put({}, named))
            return {
                site: functools.reduce(operator.getitem, sizes.sites[site].path, whole)
                for site in named
            }

        return selector.update(state, selection, at(grads), step, own, of_sites)

    return PrunedModel(
        module,
        module.input_specs,
        lambda: jax.eval_shape(lambda: fresh(0)),
        begin,
        outputs,
        selector.init,
        selector.select,
        split,
        _loss(module, task, sizes),
        slices,
        pack,
        unbias,
        learn,
        per_device=True,
    )


def make_selector(
    config: Config, method: methods.Method, sizes: Architecture, budgets: Mapping[str, int]
) -> selecting.Selector:
    """Policies of all sites that have a budget, and of all tensors."""
    p = config.pruning
    make = functools.partial(
        pruning.make_policy,
        group_size=method.group_size,
        sampler=p.sampler,
        learning=pruning.Learning(p.step_size, p.min_prob, p.offset),
    )
    policies = {}
    for site, budget in budgets.items():
        assert method.policy is not None  # a method without one has no budgets
        policies[site] = make(method.policy, sizes.sites[site].columns, budget)
    spar, every, step_size = None, p.joint_spar_interval, float(p.joint_spar_step_size)
    if (rate := method.joint_spar) is not None:
        spar = pruning.joint_spar(sizes.depth, float(rate), interval=every, step_size=step_size)
    joined = pruning.stacked(policies, sizes.depth)
    return selecting.make_selector(joined, spar, sizes.depth, [*sizes.sites], (KERNEL, BIAS))


def _loss(module: Any, task: Task, sizes: Architecture) -> Callable[..., Any]:
    def loss(trained, frozen, extra, selection, batch, key, part=None):
        if part is not None and part.exchange is not None:
            trained, frozen = _entered(module, sizes, part.exchange, trained, frozen)
        # The zeros reach the layers beside the columns; the whole kernels take their place.
        packed = layers(trained, sizes)
        rows = {site: packed[site][KERNEL] for site in frozen}
        params = with_layers(trained, sizes, _kernels(frozen))
        entries = selecting.model_variables(selection, rows, sizes.depth)
        variables = {"params": params, "selection": with_layers({}, sizes, entries)}
        inputs = module.inputs(batch)
        shared = {} if part is None else {"part": part}
        found = module.apply(variables, inputs, train=True, rngs={"dropout": key}, **shared)
        value, figures = objective(task, found, batch)
        return value, (figures, extra)

    return loss


def _entered(module: Any, sizes: Architecture, exchange: Exchange, trained, frozen) -> tuple:
    """Both whole, but for what the module itself takes through the exchange."""
    inside = getattr(module, "exchanges", ())
    outside = exchange.whole({name: t for name, t in trained.items() if name not in inside})
    for site, kernel in frozen.items():
        path = sizes.sites[site].path
        if path[0] not in inside:
            frozen = frozen | {site: exchange.gather({KERNEL: kernel}, path)[KERNEL]}
    return {**trained, **outside}, frozen


def _kernels(arrays: Mapping[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
    return {site: {KERNEL: array} for site, array in arrays.items()}
