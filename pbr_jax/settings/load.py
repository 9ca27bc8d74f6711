"""Load a configuration file, apply overrides, and say everything that is wrong at once.

    config = load("configs/digits.py:tiny", ["steps=20", "pruning.keep.fc2=0.1"])

A configuration file is Python: it defines `get_config(variant: str | None) -> Config` and, if it
has variants, their names in a module-level `VARIANTS` (a tuple, or a dict with a line on each).
"""

import contextlib
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pbr_jax.configs.common import Config
from pbr_jax.files import user_path
from pbr_jax.names import nearest
from pbr_jax.settings import foreign, rules
from pbr_jax.settings.overrides import override
from pbr_jax.settings.rules import settings, show
from pbr_jax.settings.ties import tie_faults

SHIPPED = Path(__file__).parents[1] / "configs"
_LARGEST = 2**20  # bytes of a configuration file
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
    for text in overrides:
        config, fault = override(config, text)
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
