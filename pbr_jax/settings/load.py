"""Load a configuration file, apply overrides, and say everything that is wrong at once.

    config = load("configs/digits.py:tiny", ["steps=20", "pruning.keep.fc2=0.1"])

A configuration file is Python: it defines `get_config(variant: str | None) -> Config` and, if it
has variants, their names in a module-level `VARIANTS` (a tuple, or a dict with a line on each).
"""

import dataclasses
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_type_hints

from pbr_jax.configs.common import Config
from pbr_jax.plans import Keep
from pbr_jax.settings import rules
from pbr_jax.settings.rules import Setting, alternatives, choices, nearest, settings, show
from pbr_jax.settings.ties import tie_faults

SHIPPED = Path(__file__).parents[1] / "configs"
_KEEP = "keep"  # the one setting that is a number, or one for each site
ADVICE = "Correct the file or the flags; `python train.py --help` lists every key and its rule."


class ConfigError(ValueError):
    """All faults of a configuration; `faults` has one line for each.

    Args:
        faults: One line each.
        where: What the faults are in, such as the path of the file.
        advice: What to do, the last line of the message.
    """

    def __init__(self, faults: Sequence[str], where: str, advice: str = ""):
        self.faults = tuple(faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = [f"{count} in {where}", *(f"  {fault}" for fault in faults)]
        super().__init__("\n".join([*lines, advice] if advice else lines))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """The results of all calls; where several fail, one error that names the faults of all.

    Raises:
      ConfigError: two or more raised `ValueError` or `OSError`.
    """
    results, errors = [], []
    for call in calls:
        try:
            results.append(call())
        except (ValueError, OSError) as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigError([str(error) for error in errors], "what the configuration names")
    return results


class Change(NamedTuple):
    """A setting that differs between a saved and a new configuration."""

    key: str
    old: Any
    new: Any
    resume_safe: bool  # a resumed run still takes the same course


def load(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of `spec`, `FILE` or `FILE:variant`, with `overrides`, `a.b=value` each.

    Raises:
        ConfigError: naming every fault of the file, the overrides and the values.
    """
    config, faults = collect(spec, overrides)
    if faults:
        raise ConfigError(faults, f"the configuration {spec}", ADVICE)
    return config


def collect(spec: str, overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """As `load`, but returns the faults.

    When the file itself is faulty, the overrides are still checked one by one, and the
    configuration returned is the default.
    """
    loaded, faults = _execute(spec)
    config = loaded or Config()
    for override in overrides:
        config, fault = _override(config, override)
        faults += [fault] if fault else []
    wrong = rules.field_faults(config)
    faults += wrong.values()
    if loaded is not None:
        faults += tie_faults(config, wrong)
    return config, faults


def split_spec(spec: str) -> tuple[Path, str | None]:
    """`FILE:variant` -> the path and the variant, None when there is none."""
    path, colon, variant = spec.rpartition(":")
    return (Path(path), variant) if colon and "/" not in variant else (Path(spec), None)


def _execute(spec: str) -> tuple[Config | None, list[str]]:
    path, variant = split_spec(spec)
    if not path.is_file():
        return None, [_missing_file(path)]
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    # The file is the user's own program: whatever it raises is a fault to report with its line.
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), namespace)
        if not callable(namespace.get("get_config")):
            return None, [f"{path}: defines no get_config; add `def get_config(variant=None)`"]
        if fault := _variant_fault(path, variant, namespace.get("VARIANTS")):
            return None, [fault]
        config = namespace["get_config"](variant)
    except Exception as error:
        return None, [_raised(path, error)]
    if not isinstance(config, Config):
        kind = f"{type(config).__module__}.{type(config).__qualname__}"
        return None, [
            f"{path}: get_config returned {kind}; return a Config of pbr_jax.configs.common"
        ]
    wrong = rules.section_faults(config)
    return (None if wrong else config), wrong


def _missing_file(path: Path) -> str:
    known = [
        str(relative(file))
        for folder in (path.parent, SHIPPED)
        for file in sorted(folder.glob("*.py"))
        if file.stem not in ("__init__", "common")
    ]
    names = {Path(file).stem: file for file in known}
    close = nearest(path.stem, names)
    hint = (
        f"the nearest is {names[close]}"
        if close
        else "there are " + ", ".join(dict.fromkeys(known))
    )
    return f"{path}: no such configuration file" + (f"; {hint}" if known else "")


def relative(path: Path) -> Path:
    """The path as one would type it here: from the current directory where it lies below that."""
    real = path.resolve()
    return real.relative_to(Path.cwd()) if real.is_relative_to(Path.cwd()) else path


def default_spec() -> str:
    """The configuration that is taken where none is named, as one would type it here."""
    return str(relative(SHIPPED / "digits.py"))


def _variant_fault(path: Path, variant: str | None, variants: Iterable[str] | None) -> str | None:
    if variant is None or variants is None or variant in variants:
        return None
    close = nearest(variant, variants)
    hint = f"the nearest is {close}; " if close else ""
    return f"{path}:{variant}: no such variant; {hint}there are {', '.join(variants)}"


def _raised(path: Path, error: Exception) -> str:
    """The exception with the last line of the file that led to it, and the key probably meant."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    hint = ""
    if isinstance(error, TypeError) and "unexpected keyword argument" in text:
        close = nearest(text.split("'")[1], [entry.field.name for entry in settings()])
        hint = f"; the nearest is {close}" if close else ""
    place = f"{path}, line {line}" if line else str(path)
    return f"{place}: {type(error).__name__}: {text}{hint}"


def _override(config: Config, override: str) -> tuple[Config, str | None]:
    key, equals, text = override.partition("=")
    if not equals:
        return config, f"{override}: has no value; write {override}=VALUE"
    for entry in settings():
        if entry.key == key:
            return _replace(config, key, _parse(text, entry)), None
        # A site of `keep`; whether the model has it is seen when the family is known.
        site = key.removeprefix(f"{entry.key}.")
        if Keep in alternatives(entry.annotation) and site != key and "." not in site:
            keep = as_keep(rules.value_at(config, entry.key))
            sites = keep.sites | {site: _parse(text, entry)}
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
    for member in members:
        if member is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if member in (int, float):
            number = _number(text)
            if number is not None:
                return int(number) if member is int and float(number).is_integer() else number
    return text


def _number(text: str) -> float | int | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _replace(tree: Any, key: str, value: Any) -> Any:
    """`tree` with the value under the dotted key."""
    name, _, rest = key.partition(".")
    if rest:
        value = _replace(getattr(tree, name), rest, value)
    return dataclasses.replace(tree, **{name: value})


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries of JSON values, as in `config.json`."""
    tree = dataclasses.asdict(config)
    if isinstance(keep := config.pruning.keep, Keep):
        tree["pruning"][_KEEP] = {"default": keep.default, **keep.sites}
    return tree


def as_keep(value: Any) -> Keep:
    """A keep that is one number, a dictionary of `config.json`, none or a `Keep`, as a `Keep`."""
    if isinstance(value, dict):
        return Keep(**{site: share for site, share in value.items() if share is not None})
    return value if isinstance(value, Keep) else Keep(value)


def from_dict(saved: dict[str, Any], where: str) -> Config:
    """The inverse of `to_dict`; a key that is not there has its default.

    Args:
        saved: Content of a `config.json`.
        where: Its path, for the message.

    Raises:
        ConfigError: naming every key that does not exist and every value that is wrong.
    """
    keys = {entry.key for entry in settings()}
    faults = [rules.unknown_key(key) for key in _flatten(saved) if key not in keys]
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
        if isinstance(value, dict):
            inner = cast(type, hints[name])
            value = as_keep(value) if name == _KEEP else _section(inner, value)
        values[name] = value
    return kind(**values)


def changes(saved: dict[str, Any], config: Config) -> list[Change]:
    """What differs between a saved `to_dict` and `config`. A key that either lacks is None."""
    old, new = _flatten(saved), _flatten(to_dict(config))
    safe = {entry.key: entry.field.metadata["resume_safe"] for entry in settings()}
    return [
        Change(key, old.get(key), new.get(key), safe.get(key, False))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; a keep is one value, however it was written."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if name == _KEEP:
            flat[prefix + name] = None if value is None else as_keep(value)
        elif isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def check_resume(saved: dict[str, Any], config: Config, workdir: Path | str) -> list[str]:
    """One line for each harmless change since the run in `workdir` was started.

    Raises:
        ConfigError: a change that would make the resumed run another run; all are named.
    """
    found = changes(saved, config)
    lines = {change: _describe(change) for change in found}
    serious = [line for change, line in lines.items() if not change.resume_safe]
    if serious:
        raise ConfigError(
            serious,
            f"the configuration: the run in {workdir} was started with other settings",
            f"Resume with the old settings, or start afresh with another --workdir than {workdir}.",
        )
    return list(lines.values())


def _describe(change: Change) -> str:
    return f"{change.key} = {show(change.new)}: was {show(change.old)}"
