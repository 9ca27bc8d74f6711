"""From the words of a command line to a checked configuration."""

import argparse
import dataclasses
import itertools
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pbr_jax.configs.common import Config, Rule
from pbr_jax.files import user_path
from pbr_jax.names import nearest
from pbr_jax.plans import Keep
from pbr_jax.settings import foreign
from pbr_jax.settings.load import ADVICE, ConfigError, collect, default_spec
from pbr_jax.settings.rules import as_text, choices, settings, show, value_at
from pbr_jax.settings.variants import fully_fine_tuned, with_method


class Arguments(NamedTuple):
    """A configuration and how it was asked for."""

    config: Config
    spec: str  # FILE or FILE:variant


def parse_config(spec: str, words: Sequence[str], flags: Sequence[str]) -> Arguments:
    """The configuration that `--config SPEC` and further words ask for.

    Words are `--config.KEY=VALUE` or `--config.KEY VALUE`; every other word is a fault, for which
    the nearest of the command's `flags` is named.

    Raises:
      ConfigError: naming every unknown flag and every fault of the configuration together.
    """
    overrides, unknown = _split(words, flags)
    config, faults = collect(spec, overrides)
    if faults := unknown + faults:
        raise ConfigError(faults, f"the command line and configuration {spec}", ADVICE)
    return Arguments(config, spec)


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds `--config` to a command; its `--config.KEY=VALUE` are left to `parse_config`.

    Where it is not `required`, there is no configuration unless one is named.
    """
    default = default_spec() if required else None
    parser.add_argument(
        "--config",
        default=default,
        metavar="FILE[:variant]",
        help=f"configuration file, default {default}; --config.KEY=VALUE sets a key of it",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds `RUN` and `--checkpoint` to a command of `pbr`, for `pbr_jax.runs.run.open_run`."""
    parser.add_argument("run", type=user_path, metavar="RUN", help="work directory of a training")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="the most accurate checkpoint or the last one; default best",
    )


def number_faults(flag: str, rule: Rule, *numbers: float) -> list[str]:
    """A line if a number that was given for a command's own flag does not obey `rule`."""
    if all(map(rule.holds, numbers)):
        return []
    each = " each" if len(numbers) > 1 else ""
    return [f"{flag} {' '.join(map(show, numbers))}: must be {rule.phrase}{each}"]


def default_workdir(config: Config) -> Path:
    """`runs/NAME-METHOD`, so that the same command resumes and another method starts afresh.

    A memory budget stands for the method that it chooses.
    """
    chosen = config.memory_budget or config.method
    return Path("runs") / f"{config.name}-{chosen.replace('/', '-')}"


def next_command(arguments: Arguments, method: str, workdir: Path | None = None) -> tuple[str, str]:
    """A command worth trying after a run by `method`, and what it shows: the run by another."""
    # Pruning is compared with full fine-tuning, and full fine-tuning with pruning.
    if method == "full":
        other, shows = with_method(arguments.config, "prebackrazor"), "pruned columns"
    else:
        other, shows = fully_fine_tuned(arguments.config), "full fine-tuning"
    words = train_words(arguments.spec, other)
    if workdir is not None:
        named = workdir if workdir.name not in ("", "..") else workdir.resolve()
        words += ["--workdir", f"{named}-{other.method}"]
    return shlex.join(words), f"the same run with {shows}, to compare accuracy, memory and time"


def train_words(spec: str, config: Config) -> list[str]:
    """The words of a command that trains as `config` says, by its method, from the file of `spec`.

    They are what differs from the file, whose own settings another method may have no use for.
    """
    config = dataclasses.replace(config, memory_budget=None)
    there, _ = collect(spec, ())  # what is faulty there is set by `config`
    words = ["--config", spec] if spec != default_spec() else []
    for entry in settings():
        old, new = (value_at(tree, entry.key) for tree in (there, config))
        if old != new or entry.key == "method":
            sites = new.sites if isinstance(new, Keep) else {}
            values = {entry.key: new.default if isinstance(new, Keep) else new}
            values |= {f"{entry.key}.{site}": share for site, share in sites.items()}
            words += [f"--config.{key}={as_text(value)}" for key, value in values.items()]
    return ["python", "train.py", *words]


def _split(argv: Sequence[str], flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides among words, "a.b=value" each, and a fault for every other word."""
    overrides: list[str] = []
    faults, words = [], list(argv)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if not flag.startswith("--config."):
            faults.append(_unknown_flag(flag, flags))
            if flag.startswith("-") and not equals and words and not words[0].startswith("-"):
                words.pop(0)  # its value
        elif not equals and (not words or words[0].startswith("--")):
            faults.append(f"{flag}: has no value; write {flag}=VALUE")
        else:
            value = value if equals else words.pop(0)
            overrides.append(f"{flag.removeprefix('--config.')}={value}")
    return overrides, faults


def _unknown_flag(flag: str, flags: Sequence[str]) -> str:
    name = flag.lstrip("-")
    if not flag.startswith("-"):
        return f"{flag}: not a flag; a configuration file is given as --config {flag}"
    # "confg.steps" is meant for --config.steps as "confg" is for --config.
    head, dot, tail = name.partition(".")
    if close := nearest(head, [known.lstrip("-") for known in flags]):
        return f"{flag}: no such flag; the nearest is --{close}{dot}{tail}"
    # What another trainer calls it, or the name of a setting without its section.
    if advice := foreign.advice(name):
        return f"{flag}: no such flag; {advice}"
    if close := nearest(name, [entry.key.rpartition(".")[2] for entry in settings()]):
        keys = [entry.key for entry in settings() if f".{entry.key}".endswith(f".{close}")]
        return f"{flag}: no such flag; settings are given as --config.{' or --config.'.join(keys)}"
    return f"{flag}: no such flag; there are --config.KEY, {', '.join(flags)}"


def help_text(spec: str, words: Sequence[str], width: int = 100) -> str:
    """Every key with its value in a configuration, its meaning and its rule, to `width` characters.

    Faults of the configuration are left to the command itself.
    """
    config, _ = collect(spec, _split(words, ())[0])
    lines = [f"Keys, with their values in {spec}:"]
    for section, entries in itertools.groupby(settings(), lambda e: e.key.rpartition(".")[0]):
        lines += [""] if section else []
        for entry in entries:
            # The names of a choice and the rule, where the comment does not say them already.
            rule, notes = entry.field.metadata["rule"], [entry.field.metadata["comment"]]
            if not all(choice in notes[0] for choice in choices(entry)):
                notes.append(" | ".join(choices(entry)))
            notes += [rule.phrase] if rule else []
            head = f"{entry.key}={show(value_at(config, entry.key))}"
            line, indent = f"  {head:<38} {'; '.join(notes)}", " " * 41
            lines += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)
