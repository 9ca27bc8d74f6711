"""Settings that were given and do nothing under the chosen method, optimizer, model or data."""

from pbr_jax.configs.common import Config
from pbr_jax.families import FAMILIES, find
from pbr_jax.methods import Method
from pbr_jax.settings.resolve import resolve_method
from pbr_jax.settings.rules import settings, show, value_at

_CONTENTS = {"image": "images", "text": "texts with classes", "language": "texts without classes"}


def unused(config: Config) -> list[str]:
    """A line for every setting that differs from its default and is read by nothing."""
    reasons = _reasons(config, resolve_method(config))
    lines = []
    for entry in settings():
        value = value_at(config, entry.key)
        if value != entry.field.default and entry.key in reasons:
            lines.append(f"{entry.key} = {show(value)} does nothing: {reasons[entry.key]}")
    return lines


def _reasons(config: Config, method: Method) -> dict[str, str]:
    """Every key that nothing reads -> why."""
    optimizer, policy, plan, name = config.optimizer.name, method.policy, method.plan, method.name
    # What some setting is read by, beside the optimizer and the bandit.
    learns, spar = policy in ("bandit", "importance"), method.joint_spar is not None
    sparse, kind = plan.kind("attention").has_own_keep, config.data.source.kind
    data = f"data set {config.data.name}"
    draws = ("sampler", "interval", "group_size", "importance_weighting")
    of_spar = ("joint_spar_interval", "joint_spar_step_size")
    table = [  # section, keys, whether something reads them, and why nothing does
        ("optimizer", ("momentum",), optimizer == "sgd", f"optimizer.name is {optimizer}"),
        ("optimizer", ("b1", "b2", "eps"), optimizer == "adamw", f"optimizer.name is {optimizer}"),
        ("pruning", draws, policy is not None, f"method {name} draws no columns"),
        ("pruning", ("step_size", "offset"), policy == "bandit", f"method {name} has no bandit"),
        ("pruning", ("min_prob",), learns, f"method {name} learns no probabilities"),
        ("pruning", ("attention_keep",), sparse, f"method {name} has no sparse attention"),
        ("pruning", of_spar, spar, f"method {name} trains all tensors"),
        ("lora", ("rank", "alpha", "modules"), method.adapters, f"method {name} has no A and B"),
        ("plan", ("save_attention",), plan.recompute, f"method {name} keeps that anyway"),
        ("plan", ("stochastic_codes",), plan.gelu != "dense", f"method {name} keeps no GELU codes"),
        ("data", ("tokenizer",), kind != "image", f"{data} has images"),
        ("data", ("lower_case",), kind == "text", f"{data} has {_CONTENTS[kind]}"),
        ("data", ("packing",), kind == "language", f"{data} has {_CONTENTS[kind]}"),
        ("data", ("mean", "std"), kind == "image", f"{data} has texts"),
    ]
    found = {f"{of}.{key}": why for of, keys, read, why in table if not read for key in keys}
    # Fields of the model that other families read, and this one does not.
    called, family = config.model.family, find(config.model.family)
    if family.describe is None:  # a function of one's own reads what it likes
        return found
    owned = {field for other in FAMILIES.values() for field in other.settings}
    others = {f"model.{field}" for field in owned - {*family.settings}}
    # A section is read or not as a whole.
    keys = {entry.key for entry in settings()}
    unread = {key for key in keys if key in others or key.rpartition(".")[0] in others}
    return found | {key: f"a {called} has no {key.removeprefix('model.')}" for key in unread}
