"""Settings that were given and do nothing under the chosen method, optimizer, model or data."""

from collections.abc import Callable

from pbr_jax.configs.common import Config
from pbr_jax.families import FAMILIES, find
from pbr_jax.methods import Method
from pbr_jax.settings.resolve import resolve_method
from pbr_jax.settings.rules import settings, show, value_at


def unused(config: Config) -> list[str]:
    """A line for every setting that differs from its default and is read by nothing."""
    method = resolve_method(config)
    lines = []
    for entry in settings():
        value = value_at(config, entry.key)
        if value != entry.field.default and (reason := _reason(entry.key, config, method)):
            lines.append(f"{entry.key} = {show(value)} does nothing: {reason}")
    return lines


def _reason(key: str, config: Config, method: Method) -> str | None:
    """Why nothing reads a setting, or None."""
    section, _, name = key.rpartition(".")
    # A field that only some families read.
    owned = {field for other in FAMILIES.values() for field in other.settings}
    if section == "model" and name in owned - {*find(config.model.family).settings}:
        return f"a {config.model.family} has no {name}"
    for keys, reads, reason in _READ_IF:
        if key in keys and not reads(config, method):
            return reason.format(config=config, method=method)
    return None


_OF_DRAWS = ("sampler", "interval", "group_size", "importance_weighting")
_READ_IF: tuple[tuple[tuple[str, ...], Callable[[Config, Method], bool], str], ...] = (
    # The keys, whether something reads them, and why nothing does.
    (
        ("optimizer.momentum",),
        lambda config, method: config.optimizer.name == "sgd",
        "optimizer.name is {config.optimizer.name}",
    ),
    (
        ("optimizer.b1", "optimizer.b2", "optimizer.eps"),
        lambda config, method: config.optimizer.name == "adamw",
        "optimizer.name is {config.optimizer.name}",
    ),
    (
        tuple(f"pruning.{name}" for name in _OF_DRAWS),
        lambda config, method: method.policy is not None,
        "method {method.name} draws no columns",
    ),
    (
        ("pruning.step_size", "pruning.offset"),
        lambda config, method: method.policy == "bandit",
        "method {method.name} has no bandit over columns",
    ),
    (
        ("pruning.min_prob",),
        lambda config, method: method.policy in ("bandit", "importance"),
        "method {method.name} learns no probabilities",
    ),
    (
        ("pruning.attention_keep",),
        lambda config, method: method.plan.kind("attention").has_own_keep,
        "method {method.name} has no sparse attention",
    ),
    (
        ("pruning.joint_spar_interval", "pruning.joint_spar_step_size"),
        lambda config, method: method.joint_spar is not None,
        "method {method.name} trains all tensors",
    ),
    (
        ("plan.stochastic_codes",),
        lambda config, method: method.plan.gelu != "dense",
        "method {method.name} keeps no codes of GELU",
    ),
    (
        ("data.tokenizer", "data.lower_case"),
        lambda config, method: config.data.source.kind == "text",
        "data set {config.data.name} has images",
    ),
)
