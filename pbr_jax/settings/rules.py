"""What every setting must satisfy by itself. All faults are text, so that they show at once.

Types, ranges and choices come from the fields of `pbr_jax.configs.common`; the rules that tie
settings together are in `pbr_jax.settings.ties`.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pbr_jax.configs.common import Config, Rule
from pbr_jax.families import FAMILIES, find
from pbr_jax.methods import METHODS, SUFFIXES
from pbr_jax.names import nearest
from pbr_jax.plans import Keep
from pbr_jax.settings import foreign


class Setting(NamedTuple):
    """One key of the configuration, such as `pruning.keep`."""

    key: str
    annotation: Any
    field: dataclasses.Field


def settings(section: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Every key in the order of the dataclasses."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        key, annotation = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(annotation):
            yield from settings(typing.cast(type, annotation), f"{key}.")
        else:
            yield Setting(key, annotation, field)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def value_at(config: Any, key: str) -> Any:
    """The value under a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def show(value: Any) -> str:
    """A value as it is written on the command line, for a message: what is long is cut short."""
    # Python writes no number of more than 4300 digits.
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a number of {round(abs(value).bit_length() * math.log10(2))} digits"
    text = value if isinstance(value, str) else " ".join(as_text(value).split())
    text = re.sub(r" at 0x[0-9a-f]+>", ">", text)  # where an object lies tells nobody anything
    if not text.strip() or not text.isprintable():
        text = repr(text)
    return text if len(text) <= 300 else f"{text[:60]}... ({len(text)} characters)"


def unknown_key(key: str) -> str:
    """The fault for a key that does not exist, with the key that was probably meant."""
    section, _, leaf = key.rpartition(".")
    known: dict[str, list[str]] = {}  # the last word of a key -> the keys that end so
    at_home = []
    for entry in settings():
        if entry.key.startswith(f"{key}."):
            return f"{key}: is a section; set one of its keys, such as {entry.key}"
        place, _, name = entry.key.rpartition(".")
        known.setdefault(name, []).append(entry.key)
        at_home += [name] if place == section else []
    if leaf in known:
        return f"{key}: key in the wrong section; it is {' or '.join(known[leaf])}"
    if advice := foreign.advice(leaf):
        return f"{key}: no such key; {advice}"
    # A key of the same section is more likely meant than one of another.
    if close := nearest(leaf, at_home):
        return f"{key}: no such key; the nearest is {section + '.' if section else ''}{close}"
    if close := nearest(leaf, known):
        return f"{key}: no such key; the nearest is {' or '.join(known[close])}"
    if section and at_home:
        return f"{key}: no such key; {section} has {', '.join(at_home)}"
    return f"{key}: no such key; --help lists them all"


def section_faults(config: Config) -> list[str]:
    """Sections that are not the dataclass they must be, such as `plan=None`."""
    return [
        f"{key} = {show(value)}: must be a {kind.__name__}(...) of pbr_jax.configs.common; leave it"
        " out for its defaults"
        for key, kind, value in _sections(config)
        if type(value) is not kind
    ]


def _sections(tree: Any, prefix: str = "") -> Iterator[tuple[str, type, Any]]:
    """Key, kind and value of every section, and of those inside one that is of its kind."""
    for name, kind in typing.get_type_hints(type(tree)).items():
        if dataclasses.is_dataclass(kind):
            value = getattr(tree, name)
            yield prefix + name, typing.cast(type, kind), value
            if type(value) is kind:
                yield from _sections(value, f"{prefix}{name}.")


def field_faults(config: Config) -> dict[str, str]:
    """Key -> fault, for every value of the wrong type, outside its range or not a choice."""
    faults = {}
    for entry in settings():
        value = value_at(config, entry.key)
        if fault := _field_fault(value, entry):
            faults[entry.key] = f"{entry.key} = {show(value)}: {fault}"
        elif isinstance(value, Keep):
            faults |= _keep_faults(entry.key, value)
    return faults


def _field_fault(value: Any, entry: Setting) -> str | None:
    if entry.key in _NAMED:
        return _NAMED[entry.key](value)
    # The type or the name first: a rule can only judge values of the right type.
    members, names = alternatives(entry.annotation), choices(entry)
    rule = entry.field.metadata["rule"]  # the numbers of a keep are checked one by one
    fits = any(_has_type(value, member) for member in members)
    if not fits or (names and value is not None and value not in names):
        return f"must be {_describe(members, names, rule)}{_hint(value, names)}"
    if rule is None or value is None or isinstance(value, Keep) or rule.holds(value):
        return None
    return rule.text


def _keep_faults(key: str, keep: Keep) -> dict[str, str]:
    """Faults of the numbers in a keep, each under the key that sets it."""
    given = {key: keep.default} | {f"{key}.{site}": share for site, share in keep.sites.items()}
    # Each is checked as if it were the whole setting.
    entry = next(entry for entry in settings() if entry.key == key)
    entry = entry._replace(annotation=float | None)
    wrong = {name: _field_fault(value, entry) for name, value in given.items()}
    return {name: f"{name} = {show(given[name])}: {f}" for name, f in wrong.items() if f}


def _has_type(value: Any, member: Any) -> bool:
    if typing.get_origin(member) is Literal:
        return type(value) is str and value in typing.get_args(member)
    if member is float:  # `type`, since a truth value is an int
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is member


def _hint(value: Any, names: Sequence[str]) -> str:
    """The name probably meant, or the type of a value that looks like one of ours."""
    if isinstance(value, str) and (close := nearest(value, names)):
        return f"; the nearest is {close}"
    if type(value) in (bool, int, float, str, type(None), Keep):
        return ""
    return f"; it is a {type(value).__module__}.{type(value).__qualname__}"


def choices(entry: Setting) -> tuple[str, ...]:
    """The names that a setting can take, empty when it is not a choice of names."""
    # Names that are known to the type checker, or those of a table.
    literals = [m for m in alternatives(entry.annotation) if typing.get_origin(m) is Literal]
    listed = tuple(choice for literal in literals for choice in typing.get_args(literal))
    return listed or entry.field.metadata["choices"]


def _describe(members: tuple[Any, ...], names: Sequence[str], rule: Rule | None) -> str:
    bounds = "" if rule is None or rule.most is None else rule.phrase
    span = f" {bounds}" if bounds.startswith("from") else ""
    kinds = {
        bool: "true or false",
        int: f"a whole number{span}",
        float: f"a finite number{span}",
        str: "text",
        type(None): "none",
        Keep: "one per site (such as pruning.keep.fc2=0.1)",
    }
    # Text is no news where the names themselves are listed.
    words = [*names, *(kinds[m] for m in members if m in kinds and not (names and m is str))]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _family_fault(name: Any) -> str | None:
    """What is wrong with the name or the place of a family, or None."""
    if type(name) is not str:
        return f"must be text{_hint(name, ())}"
    try:
        find(name)
    except ValueError as error:
        return f"{error}{_hint(name, [*FAMILIES])}"
    return None


def method_fault(method: str) -> str | None:
    """What is wrong with a method name such as `fast/js50`, or None."""
    if type(method) is not str:
        return f"must be text{_hint(method, ())}"
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


_NAMED: dict[str, Callable[[Any], str | None]] = {
    "method": method_fault,
    "model.family": _family_fault,
}
"""Keys whose names are more than a choice."""
