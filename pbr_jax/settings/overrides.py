"""One setting of a configuration, replaced by what was typed: `pruning.keep.fc2=0.1`."""

import contextlib
import dataclasses
import math
from typing import Any

from pbr_jax.configs.common import Config
from pbr_jax.plans import Keep
from pbr_jax.settings import rules
from pbr_jax.settings.rules import Setting, alternatives, choices, settings


def override(config: Config, text: str) -> tuple[Config, str | None]:
    """`config` with `key=value` applied, or as it was and what is wrong.

    A value of the wrong type is put in all the same: validation names it with its rule.
    """
    key, equals, value = text.partition("=")
    if not equals:
        return config, f"{text}: has no value; write {text}=VALUE"
    # A key as it is, or one site of a key that is a number for each.
    for entry in settings():
        if entry.key == key:
            return _replace(config, key, _parse(value, entry)), None
        # A site of `keep`; whether the model has it is seen when the family is known.
        site = key.removeprefix(f"{entry.key}.")
        if Keep in alternatives(entry.annotation) and site != key and "." not in site:
            keep = as_keep(rules.value_at(config, entry.key))
            sites = {**keep.sites, site: _parse(value, entry)}
            return _replace(config, entry.key, Keep(keep.default, **sites)), None
    return config, rules.unknown_key(key)


def _parse(text: str, entry: Setting) -> Any:
    """`text` as the first type of the setting that can read it.

    When none can, it stays text, which validation then rejects by its type.
    """
    members = alternatives(entry.annotation)
    if type(None) in members and text.lower() == "none":
        return None
    if text in choices(entry):
        return text
    if bool in members and text.lower() in ("true", "false"):
        return text.lower() == "true"
    # 2e3 is a whole number too, and 1 stays one where any number will do. What overflows is text.
    for kind in (int, float) if {int, float} & {*members} else ():
        with contextlib.suppress(ValueError):
            number = kind(text)
            if number in (math.inf, -math.inf) and "inf" not in text.lower():
                return text
            whole = type(number) is float and number.is_integer() and int in members
            return int(number) if whole else number
    return text


def _replace(tree: Any, key: str, value: Any) -> Any:
    """`tree` with the value under the dotted key."""
    name, _, rest = key.partition(".")
    if rest:
        value = _replace(getattr(tree, name), rest, value)
    return dataclasses.replace(tree, **{name: value})


def as_keep(value: Any) -> Keep:
    """A keep that is one number, a dictionary of `config.json`, none or a `Keep`, as a `Keep`."""
    if isinstance(value, dict):
        return Keep(value.get("default"), **{k: v for k, v in value.items() if k != "default"})
    return value if isinstance(value, Keep) else Keep(value)
