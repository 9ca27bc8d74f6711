"""What a configuration must satisfy. Every check returns faults as text, so that all show at once.

Types, ranges and choices come from the fields of `pbr_jax.configs.common`; the rules that tie two
settings together are in the table `_TIES`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

from pbr_jax.configs import common
from pbr_jax.configs.common import Config, Keep
from pbr_jax.methods import METHODS, SUFFIXES

_SHAPE_KEYS = ("width", "depth", "heads", "mlp_dim")


class Setting(NamedTuple):
    """One key of the configuration, such as `pruning.keep`."""

    key: str
    annotation: Any
    field: dataclasses.Field


def settings(section: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Every key in the order of the dataclasses; `pruning.keep` is followed by its sites."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        annotation = hints[field.name]
        if dataclasses.is_dataclass(annotation):
            yield from settings(typing.cast(type, annotation), f"{prefix}{field.name}.")
            continue
        yield Setting(prefix + field.name, annotation, field)
        if Keep in alternatives(annotation):
            yield from settings(Keep, f"{prefix}{field.name}.")


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def value_at(config: Any, key: str) -> Any:
    """The value under a dotted key; a site of a `keep` that is one number has that number."""
    for name in key.split("."):
        if name in common.SITES and not isinstance(config, Keep):
            return config
        config = getattr(config, name)
    return config


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) and not value.strip() else str(value)


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of `words`, or None when none is similar."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return close[0] if close else None


def unknown_key(key: str) -> str:
    """The fault for a key that does not exist, with the key that was probably meant."""
    keys = [entry.key for entry in settings()]
    inside = [known for known in keys if known.startswith(key + ".")]
    if inside:
        return f"{key}: is a section; set one of its keys, such as {inside[0]}"
    section, _, leaf = key.rpartition(".")
    leaves: dict[str, list[str]] = {}
    for known in keys:
        leaves.setdefault(_leaf(known), []).append(known)
    if leaf in leaves:
        return f"{key}: key in the wrong section; it is {' or '.join(leaves[leaf])}"
    at_home = [_leaf(known) for known in keys if known.rpartition(".")[0] == section]
    if close := nearest(leaf, at_home):
        return f"{key}: no such key; the nearest is {section + '.' if section else ''}{close}"
    if close := nearest(leaf, leaves):
        return f"{key}: no such key; the nearest is {' or '.join(leaves[close])}"
    if section and at_home:
        return f"{key}: no such key; {section} has {', '.join(at_home)}"
    return f"{key}: no such key; --help lists them all"


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def section_faults(config: Config) -> list[str]:
    """Sections that are not the dataclass they must be, such as `plan=None`."""
    hints = typing.get_type_hints(Config)
    return [
        f"{name} = {show(getattr(config, name))}: must be a {name.capitalize()}(...) of "
        f"pbr_jax.configs.common; leave it out for its defaults"
        for name, kind in hints.items()
        if dataclasses.is_dataclass(kind) and type(getattr(config, name)) is not kind
    ]


def field_faults(config: Config) -> dict[str, str]:
    """Key -> fault, for every value of the wrong type, outside its range or not a choice."""
    faults = {}
    for key, annotation, field in settings():
        parent = value_at(config, key.rpartition(".")[0]) if "." in key else config
        if _leaf(key) in common.SITES and not isinstance(parent, Keep):
            continue
        value = value_at(config, key)
        fault = _field_fault(value, annotation, field.metadata["rule"])
        if fault is None and key == "method":
            fault = method_fault(value)
        if fault is not None:
            faults[key] = f"{key} = {show(value)}: {fault}"
    return faults


def _field_fault(value: Any, annotation: Any, rule: common.Rule | None) -> str | None:
    members = alternatives(annotation)
    if not any(_has_type(value, member) for member in members):
        hint = nearest(value, choices(annotation)) if isinstance(value, str) else None
        return f"must be {_describe(members)}" + (f"; the nearest is {hint}" if hint else "")
    if rule is None or value is None or isinstance(value, Keep) or rule.holds(value):
        return None
    return rule.text


def _has_type(value: Any, member: Any) -> bool:
    if member in (None, type(None)):
        return value is None
    if typing.get_origin(member) is Literal:
        return value in typing.get_args(member)
    if member is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is member


def choices(annotation: Any) -> list[str]:
    """The names that a setting can take, empty when it is not a choice of names."""
    literals = [one for one in alternatives(annotation) if typing.get_origin(one) is Literal]
    return [choice for literal in literals for choice in typing.get_args(literal)]


def _describe(members: tuple[Any, ...]) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a finite number",
        str: "text",
        type(None): "none",
        Keep: "one per site (such as pruning.keep.fc2=0.1)",
    }
    words: list[str] = []
    for member in members:
        words += choices(member) or [names[member]]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def method_fault(method: str) -> str | None:
    """What is wrong with a method name such as `fast/js50`, or None."""
    name, slash, suffix = method.partition("/")
    if name not in METHODS:
        close = nearest(name, METHODS)
        hint = f"the nearest is {close + slash + suffix}; " if close else ""
        return f"no such method; {hint}there are {', '.join(METHODS)}"
    if slash and not (suffix and SUFFIXES.fullmatch(slash + suffix)):
        return (
            f"the suffix must be /js1 to /js99, such as {name}/js50 for 50 % of the tensors, or"
            f" /chunksN, such as {name}/chunks4, or /chunks4/js50"
        )
    return None


def tie_faults(config: Config, faulty: Iterable[str]) -> list[str]:
    """Faults between settings. A rule that reads a key of `faulty` is skipped."""
    faulty = set(faulty)
    found: list[str] = []
    for keys, check in _TIES:
        if not any(f"{bad}.".startswith(f"{key}.") for bad in faulty for key in keys):
            found += check(config)
    return found


def _near_multiples(value: int, factor: int) -> str:
    below = value // factor * factor
    return f"{below} and {below + factor}" if below else str(factor)


def _accumulation(config: Config) -> list[str]:
    batch, parts = config.batch_size, config.optimizer.accumulation_steps
    if batch % parts == 0:
        return []
    return [
        f"batch_size = {batch}: not divisible by optimizer.accumulation_steps = {parts}; "
        f"the nearest that is: {_near_multiples(batch, parts)}"
    ]


def _chunks(config: Config) -> list[str]:
    batch, parts = config.batch_size, config.optimizer.accumulation_steps
    chunks = config.plan.batch_chunks
    if chunks is None or batch % parts or batch // parts % chunks == 0:
        return []
    return [
        f"plan.batch_chunks = {chunks}: does not divide the {batch // parts} examples that are "
        f"run at a time; the nearest batch_size that works: "
        f"{_near_multiples(batch, parts * chunks)}"
    ]


def _model_shape(config: Config) -> list[str]:
    model = config.model
    given = [name for name in _SHAPE_KEYS if getattr(model, name) is not None]
    if model.size is None and len(given) < len(_SHAPE_KEYS):
        missing = ", ".join(f"model.{name}" for name in _SHAPE_KEYS if name not in given)
        return [f"{missing}: must be set unless model.size names a model (Ti, S, B or L)"]
    if model.size is not None and given:
        listed = ", ".join(f"model.{name} = {getattr(model, name)}" for name in given)
        return [
            f"model.size = {model.size}: fixes the shape, but {listed} is set too; "
            f"set either to none"
        ]
    return []


def _heads(config: Config) -> list[str]:
    width, heads = config.model.width, config.model.heads
    if width is None or heads is None or width % heads == 0:
        return []
    return [
        f"model.width = {width}: not divisible by model.heads = {heads}; "
        f"the nearest that is: {_near_multiples(width, heads)}"
    ]


def _patches(config: Config) -> list[str]:
    side, patch = config.model.image_size, config.model.patch
    if config.model.family != "vit" or side % patch == 0:
        return []
    return [
        f"model.image_size = {side}: not divisible by model.patch = {patch}; "
        f"the nearest that is: {_near_multiples(side, patch)}"
    ]


def _augment(config: Config) -> list[str]:
    data = config.data
    if data.augment in (None, "off", *data.source.augments):
        return []
    if data.source.kind == "text":
        return [f"data.augment = {data.augment}: changes images, but {data.name} is text; set off"]
    return [
        f"data.augment = {data.augment}: is for small images in arrays, but {data.name} has files; "
        "set crop"
    ]


def _family(config: Config) -> list[str]:
    family, texts = config.model.family, config.data.source.kind == "text"
    if (family == "bert") == texts:
        return []
    reads, has, other = (
        ("texts", "images", "vit") if family == "bert" else ("images", "texts", "bert")
    )
    return [
        f"model.family = {family}: reads {reads}, and data set {config.data.name} has {has}; "
        f"set model.family={other} or another data.name"
    ]


def _warmup(config: Config) -> list[str]:
    warmup, steps = config.optimizer.warmup_steps, config.steps
    if warmup < steps:
        return []
    return [
        f"optimizer.warmup_steps = {warmup}: must be below steps = {steps}; "
        f"a tenth of them is {steps // 10}"
    ]


def _budgets(config: Config) -> list[str]:
    """Arms must tile the columns, and min_prob for all of them must fit in the budget K."""
    model, pruning = config.model.resolved(), config.pruning
    if model.width is None or model.mlp_dim is None:
        return []
    group, min_prob = pruning.group_size, pruning.min_prob
    common_width = math.gcd(model.width, model.mlp_dim)
    if common_width % group:
        return [
            f"pruning.group_size = {group}: must divide model.width = {model.width} and "
            f"model.mlp_dim = {model.mlp_dim}; the nearest that does: "
            f"{_nearest_divisor(common_width, group)}"
        ]
    # One line, for the site with the least room: what fits there fits everywhere.
    room = []
    for site in common.SITES:
        keep = value_at(config, f"pruning.keep.{site}") or 1.0
        columns = model.mlp_dim if site == "fc2" else model.width
        multiple = math.lcm(8, group)
        budget = min(columns, multiple * math.ceil(keep * columns / multiple))
        room.append((budget / columns, site, columns, budget))
    share, site, columns, budget = min(room)
    if min_prob is None or min_prob <= share:
        return []
    return [
        f"pruning.min_prob = {min_prob}: times the {columns} columns of site {site} is "
        f"{min_prob * columns:g}, above its budget of {budget} columns; "
        f"at most {math.floor(share * 1000) / 1000:g} fits"
    ]


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [factor for factor in range(1, number + 1) if number % factor == 0]
    return min(divisors, key=lambda factor: abs(factor - wanted))


_SHAPE = ("model.size", *(f"model.{name}" for name in _SHAPE_KEYS))
_TIES: tuple[tuple[tuple[str, ...], Callable[[Config], list[str]]], ...] = (
    (("batch_size", "optimizer.accumulation_steps"), _accumulation),
    (("batch_size", "optimizer.accumulation_steps", "plan.batch_chunks"), _chunks),
    (_SHAPE, _model_shape),
    (("model.width", "model.heads"), _heads),
    (("data.name", "data.augment"), _augment),
    (("model.family", "data.name"), _family),
    (("model.family", "model.image_size", "model.patch"), _patches),
    (("optimizer.warmup_steps", "steps"), _warmup),
    ((*_SHAPE, "pruning.keep", "pruning.min_prob", "pruning.group_size"), _budgets),
)
