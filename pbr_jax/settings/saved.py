"""The settings of a run in its `config.json`: written, read, and compared when it goes on."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from pbr_jax.configs.common import Config
from pbr_jax.plans import Keep
from pbr_jax.settings import rules
from pbr_jax.settings.load import ConfigError
from pbr_jax.settings.overrides import as_keep
from pbr_jax.settings.resolve import METHODS_OWN, named_method
from pbr_jax.settings.rules import settings, show, value_at
from pbr_jax.settings.ties import tie_faults

_KEEP = "keep"  # the one setting that is a number, or one for each site


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries of JSON values, as in `config.json`."""
    tree = dataclasses.asdict(config)
    # Written site by site; one number, or none, stays as it is.
    if isinstance(keep := config.pruning.keep, Keep):
        tree["pruning"][_KEEP] = {"default": keep.default, **keep.sites}
    return tree


def from_dict(saved: dict[str, Any], where: str) -> Config:
    """The inverse of `to_dict`; a key that is not there has its default.

    Raises:
      ConfigError: naming `where`, every key that does not exist and every value that is wrong.
    """
    if not isinstance(saved, dict):
        raise ConfigError([f"holds no settings but {show(saved)}"], where)
    # Only a tree of known keys can become a configuration.
    keys = {entry.key for entry in settings()}
    faults = [rules.unknown_key(key) for key in _keys(saved) if key not in keys]
    config = Config()
    if not faults:
        config = _section(Config, saved)
        wrong = rules.field_faults(config)
        faults = [*wrong.values(), *tie_faults(config, wrong)]
    if faults:
        raise ConfigError(faults, where, "It was written by another version of pbr_jax.")
    return config


def _section(kind: type, tree: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for name, value in tree.items():
        if isinstance(value, dict) and name == _KEEP:
            value = as_keep(value)
        elif dataclasses.is_dataclass(hints[name]):
            value = _section(hints[name], value)
        values[name] = value
    return kind(**values)


def _keys(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a tree; a keep is one value, however it was written."""
    for name, value in tree.items():
        if isinstance(value, dict) and value and name != _KEEP:
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def check_resume(saved: dict[str, Any], config: Config, workdir: Path | str) -> list[str]:
    """One line for each harmless change since the run in `workdir` was started.

    Raises:
      ConfigError: a change that would make the resumed run another run; all are named.
    """
    before = _as_it_runs(from_dict(saved, f"the settings of the run in {workdir}"))
    config = _as_it_runs(config)
    safe, serious = list[str](), list[str]()
    for entry in settings():
        old, new = (_compared(entry.key, value_at(tree, entry.key)) for tree in (before, config))
        # What a run settles at its start, and its configuration leaves open, stays as it was.
        if old != new and not (new is None and entry.field.metadata["settled"]):
            lines = safe if entry.field.metadata["resume_safe"] else serious
            lines.append(f"{entry.key} = {show(new)}: was {show(old)}")
    if serious:
        raise ConfigError(
            serious,
            f"the configuration: the run in {workdir} was started with other settings",
            f"Resume with the old settings, or start afresh with another --workdir than {workdir}.",
        )
    return safe


def _as_it_runs(config: Config) -> Config:
    """`config` with those of its method's own settings that it leaves open."""
    method = named_method(config)
    own = {name: getattr(method, name) for name in METHODS_OWN}
    return dataclasses.replace(config, pruning=dataclasses.replace(config.pruning, **own))


def _compared(key: str, value: Any) -> Any:
    """A value as it is compared: one number for all sites is a keep too."""
    return as_keep(value) if key.endswith(f".{_KEEP}") and value is not None else value
