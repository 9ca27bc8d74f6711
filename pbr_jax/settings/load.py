"""Load a configuration file, apply overrides, and say everything that is wrong at once.

    config = load("configs/digits.py:tiny", ["steps=20", "pruning.keep.fc2=0.1"])

A configuration file is Python: it defines `get_config(variant: str | None) -> Config` and, if it
has variants, their names in a module-level `VARIANTS` (a tuple, or a dict with a line on each).
"""

import contextlib
import dataclasses
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from pbr_jax.configs.common import Config
from pbr_jax.files import user_path
from pbr_jax.plans import Keep
from pbr_jax.settings import foreign, rules
from pbr_jax.settings.rules import Setting, alternatives, choices, nearest, settings, show
from pbr_jax.settings.ties import tie_faults

SHIPPED = Path(__file__).parents[1] / "configs"
_LARGEST = 2**20  # bytes of a configuration file
_KEEP = "keep"  # the one setting that is a number, or one for each site
ADVICE = "Correct the file or the flags; `python train.py --help` lists every key and its rule."


class ConfigError(ValueError):
    """All `faults` of a configuration, a line each, `where` they are, and `advice` as last line."""

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
    results, errors = [], []  # a call may run although one before it failed
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
    # First each value alone, then those that are sound together.
    wrong = rules.field_faults(config)
    faults += wrong.values()
    if loaded is not None:
        faults += tie_faults(config, wrong)
    return config, faults


def _execute(spec: str) -> tuple[Config | None, list[str]]:
    # A colon in the name of a folder begins no variant.
    file, colon, tail = spec.rpartition(":")
    named, variant = (file, tail) if colon and "/" not in tail else (spec, None)
    try:
        path = user_path(named)
        if fault := _no_program(path):
            return None, [fault]
    except OSError as error:  # no such home folder, or a name that is too long
        return None, [f"{show(spec)}: {error.strerror or error}"]
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    # The file is the user's own program: whatever it raises is a fault to report with its line, and
    # what it prints is no part of the output of a command.
    try:
        with contextlib.redirect_stdout(sys.stderr):
            exec(compile(path.read_bytes(), str(path), "exec"), namespace)
            make: Any = namespace.get("get_config")
            if fault := _make_fault(make) or _variant_fault(variant, namespace.get("VARIANTS")):
                return None, [f"{path}{fault}"]
            config = make(variant)
    except (Exception, SystemExit) as error:
        return None, [_raised(path, error)]
    # A subclass has fields that no rule knows.
    if type(config) is not Config:
        kind = f"{type(config).__module__}.{type(config).__qualname__}"
        return None, [f"{path}: get_config returned {kind}; return a pbr_jax.configs.common.Config"]
    wrong = rules.section_faults(config)
    return (None if wrong else config), wrong


def _no_program(path: Path) -> str | None:
    """Why there is no configuration file at a path, or None."""
    if not path.exists():
        return _missing_file(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        return f"{path}: is {kind}; a configuration is a Python file such as {default_spec()}"
    if (size := path.stat().st_size) > _LARGEST:
        return f"{path}: has {size} bytes, too many for a configuration, a Python file of a page"
    return None


def _make_fault(make: Any) -> str | None:
    """What is wrong with the `get_config` of a file, or None."""
    if not callable(make):
        return ": defines no get_config; add `def get_config(variant=None)`"
    try:
        inspect.signature(make).bind(None)
    except TypeError:
        return ": get_config must take the variant; write `def get_config(variant=None)`"
    return None


def _missing_file(path: Path) -> str:
    known = [
        str(relative(file))
        for folder in (path.parent, SHIPPED)
        for file in sorted(folder.glob("*.py"))
        if file.stem not in ("__init__", "common")
    ]
    names = {Path(file).stem: file for file in known}
    hint = f"; there are {', '.join([*dict.fromkeys(known)][:12])}" if known else ""
    if close := nearest(path.stem, names):
        hint = f"; the nearest is {names[close]}"
    return f"{path}: no such configuration file{hint}"


def relative(path: Path) -> Path:
    """The path as one would type it here: from the current directory where it lies below that."""
    real = path.resolve()
    with contextlib.suppress(FileNotFoundError):  # the current directory was removed
        return real.relative_to(Path.cwd()) if real.is_relative_to(Path.cwd()) else path
    return path


def default_spec() -> str:
    """The configuration that is taken where none is named, as one would type it here."""
    return str(relative(SHIPPED / "digits.py"))


def _variant_fault(variant: str | None, variants: Any) -> str | None:
    """What is wrong with a variant, or with the names of all that there are, or None."""
    if variant is None or variants is None:
        return None
    if not isinstance(variants, tuple | list | dict) or {*map(type, variants)} - {str}:
        return ": VARIANTS must be a tuple of names, or a dict with a line on each"
    if variant in variants:
        return None
    close = nearest(variant, variants)
    hint = f"the nearest is {close}; " if close else ""
    return f":{variant}: no such variant; {hint}there are {', '.join(variants)}"


def _raised(path: Path, error: BaseException) -> str:
    """The exception with the last line of the file that led to it, and the key probably meant."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line, text, hint = (lines or [None])[-1], show(str(error)), ""
    if isinstance(error, SyntaxError):
        line, text = error.lineno, error.msg
    # A field that a section lacks is most often one that is misspelt.
    if isinstance(error, TypeError) and "unexpected keyword argument" in text:
        field = text.split("'")[1]
        close = nearest(field, [entry.field.name for entry in settings()])
        meant = f"the nearest is {close}" if close else foreign.advice(field)
        hint = f"; {meant}" if meant else ""
    if path.suffix != ".py":
        hint += "; a configuration is a Python file"
    place = f"{path}, line {line}" if line else str(path)
    return f"{place}: {type(error).__name__}: {text}{hint}"


def _override(config: Config, override: str) -> tuple[Config, str | None]:
    key, equals, text = override.partition("=")
    if not equals:
        return config, f"{override}: has no value; write {override}=VALUE"
    # A key as it is, or one site of a key that is a number for each.
    for entry in settings():
        if entry.key == key:
            return _replace(config, key, _parse(text, entry)), None
        # A site of `keep`; whether the model has it is seen when the family is known.
        site = key.removeprefix(f"{entry.key}.")
        if Keep in alternatives(entry.annotation) and site != key and "." not in site:
            keep = as_keep(rules.value_at(config, entry.key))
            sites = {**keep.sites, site: _parse(text, entry)}
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


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dictionaries of JSON values, as in `config.json`."""
    tree = dataclasses.asdict(config)
    # Written site by site; one number, or none, stays as it is.
    if isinstance(keep := config.pruning.keep, Keep):
        tree["pruning"][_KEEP] = {"default": keep.default, **keep.sites}
    return tree


def as_keep(value: Any) -> Keep:
    """A keep that is one number, a dictionary of `config.json`, none or a `Keep`, as a `Keep`."""
    if isinstance(value, dict):
        return Keep(value.get("default"), **{k: v for k, v in value.items() if k != "default"})
    return value if isinstance(value, Keep) else Keep(value)


def from_dict(saved: dict[str, Any], where: str) -> Config:
    """The inverse of `to_dict`; a key that is not there has its default.

    Raises:
      ConfigError: naming `where`, every key that does not exist and every value that is wrong.
    """
    if not isinstance(saved, dict):
        raise ConfigError([f"holds no settings but {show(saved)}"], where)
    # Only a tree of known keys can become a configuration.
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
        if isinstance(value, dict) and name == _KEEP:
            value = as_keep(value)
        elif dataclasses.is_dataclass(hints[name]):
            value = _section(hints[name], value)
        values[name] = value
    return kind(**values)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; a keep is one value, however it was written."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if name == _KEEP:
            flat[prefix + name] = None if value is None else as_keep(value)
        elif isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def check_resume(saved: dict[str, Any], config: Config, workdir: Path | str) -> list[str]:
    """One line for each harmless change since the run in `workdir` was started.

    Raises:
      ConfigError: a change that would make the resumed run another run; all are named.
    """
    old, new = _flatten(saved), _flatten(to_dict(config))
    kept = {entry.key for entry in settings() if entry.field.metadata["settled"]}
    changed = {  # a key that either lacks is none there
        key: f"{key} = {show(new.get(key))}: was {show(old.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not (key in kept and new.get(key) is None)
    }
    safe = {entry.key for entry in settings() if entry.field.metadata["resume_safe"]}
    if serious := [line for key, line in changed.items() if key not in safe]:
        raise ConfigError(
            serious,
            f"the configuration: the run in {workdir} was started with other settings",
            f"Resume with the old settings, or start afresh with another --workdir than {workdir}.",
        )
    return list(changed.values())
