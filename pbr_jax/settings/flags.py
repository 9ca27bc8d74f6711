"""The command line of `train.py`: flags to a checked configuration, and errors as plain lines."""

import argparse
import shlex
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pbr_jax.configs.common import Config
from pbr_jax.methods import METHODS
from pbr_jax.settings import rules as config_rules
from pbr_jax.settings.load import ADVICE, DEFAULT_SPEC, ConfigError, collect, load
from pbr_jax.settings.rules import nearest, settings, show, value_at

_PACKAGE = Path(__file__).resolve().parent
_VALUE_FLAGS = ("--config", "--workdir")
_FLAGS = (*_VALUE_FLAGS, "--debug", "--help")


class Arguments(NamedTuple):
    """What the command line says."""

    config: Config
    spec: str  # FILE or FILE:variant
    overrides: tuple[str, ...]  # "a.b=value"
    workdir: Path
    debug: bool  # show tracebacks


class _Parsed(NamedTuple):
    spec: str
    overrides: list[str]
    workdir: str | None
    debug: bool
    help: bool
    faults: list[str]


def parse_args(argv: Sequence[str]) -> Arguments:
    """The arguments after the program's name.

    `--help` prints every key with the value it has in the chosen configuration and exits with 0.

    Raises:
        ConfigError: naming every unknown flag and every fault of the configuration together.
    """
    parsed = _split(argv)
    config, faults = collect(parsed.spec, parsed.overrides)
    if parsed.help:
        print(help_text(config, parsed.spec, shutil.get_terminal_size((100, 0)).columns))
        raise SystemExit(0)
    if faults := parsed.faults + faults:
        raise ConfigError(faults, f"the command line and configuration {parsed.spec}", ADVICE)
    workdir = Path(parsed.workdir) if parsed.workdir else default_workdir(config)
    return Arguments(config, parsed.spec, tuple(parsed.overrides), workdir, parsed.debug)


def add_config(parser: argparse.ArgumentParser, default: str | None = DEFAULT_SPEC) -> None:
    """Adds `--config` to a command of `pbr`; its `--config.KEY=VALUE` are left to `parse_args`."""
    parser.add_argument(
        "--config",
        default=default,
        metavar="FILE[:variant]",
        help=f"configuration file, default {default}; --config.KEY=VALUE sets a key of it",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds `RUN` and `--checkpoint` to a command of `pbr`, for `pbr_jax.runs.run.open_run`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="work directory of train.py")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="the most accurate checkpoint or the last one; default best",
    )


def default_workdir(config: Config) -> Path:
    """`runs/NAME-METHOD`, so that the same command resumes and another method starts afresh.

    A memory budget stands for the method that it chooses.
    """
    chosen = config.memory_budget or config.method
    return Path("runs") / f"{config.name}-{chosen.replace('/', '-')}"


def next_command(arguments: Arguments) -> tuple[str, str]:
    """A command worth trying after this run, and what it shows: the same run by another method."""
    config = arguments.config
    method = "prebackrazor" if config.method == "full" else "full"
    words = ["python", "train.py"]
    words += ["--config", arguments.spec] if arguments.spec != DEFAULT_SPEC else []
    # Full fine-tuning prunes nothing and would refuse to be told how.
    dropped = ["method=", "memory_budget=", *(("pruning.", "plan.") if method == "full" else ())]
    others = [word for word in arguments.overrides if not word.startswith(tuple(dropped))]
    if method == "full" and load(arguments.spec).pruning.keep is not None:
        others.append("pruning.keep=none")
    words += [f"--config.{word}" for word in (*others, f"method={method}")]
    if arguments.workdir != default_workdir(config):
        words += ["--workdir", f"{arguments.workdir}-{method}"]
    shows = "full fine-tuning" if method == "full" else "pruned columns"
    return shlex.join(words), f"the same run with {shows}, to compare accuracy, memory and time"


def _split(argv: Sequence[str]) -> _Parsed:
    parsed = _Parsed(DEFAULT_SPEC, [], None, False, False, [])
    words = list(argv)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if flag in ("-h", "--help"):
            parsed = parsed._replace(help=True)
        elif flag == "--debug" and not equals:
            parsed = parsed._replace(debug=True)
        elif flag in _VALUE_FLAGS or flag.startswith("--config."):
            if not equals:
                if not words or words[0].startswith("--"):
                    parsed.faults.append(f"{flag}: has no value; write {flag}=VALUE")
                    continue
                value = words.pop(0)
            if flag.startswith("--config."):
                parsed.overrides.append(f"{flag.removeprefix('--config.')}={value}")
            else:
                parsed = (
                    parsed._replace(spec=value)
                    if flag == "--config"
                    else parsed._replace(workdir=value)
                )
        else:
            parsed.faults.append(_unknown_flag(flag))
            if flag.startswith("-") and not equals and words and not words[0].startswith("-"):
                words.pop(0)  # its value
    return parsed


def _unknown_flag(flag: str) -> str:
    name = flag.lstrip("-")
    if not flag.startswith("-"):
        return f"{flag}: not a flag; a configuration file is given as --config {flag}"
    # "confg.steps" is meant for --config.steps as "confg" is for --config.
    head, dot, tail = name.partition(".")
    if close := nearest(head, [known.lstrip("-") for known in _FLAGS]):
        return f"{flag}: no such flag; the nearest is --{close}{dot}{tail}"
    if close := nearest(name, [entry.key.rpartition(".")[2] for entry in settings()]):
        keys = [entry.key for entry in settings() if f".{entry.key}".endswith(f".{close}")]
        return f"{flag}: no such flag; settings are given as --config.{' or --config.'.join(keys)}"
    return f"{flag}: no such flag; there are --config.KEY, {', '.join(_FLAGS)}"


def help_text(config: Config, spec: str, width: int = 100) -> str:
    """What `--help` prints, wrapped to `width` characters.

    First the flags, then each key with its value in `config`, its meaning and its rule.
    """
    lines = [
        "usage: python train.py [--config FILE[:variant]] [--config.KEY=VALUE ...]",
        "                       [--workdir DIR] [--debug] [--help]",
        "",
        f"  --config FILE[:variant]   configuration file, default {DEFAULT_SPEC}",
        "  --config.KEY=VALUE        another value for a key below",
        f"  --workdir DIR             where the run is kept; default {default_workdir(config)}",
        "                            (the same command resumes the run that is there)",
        "  --debug                   show the traceback of an error",
        "",
        f"Keys, with their values in {spec}:",
    ]
    section = ""
    for key, annotation, field in settings():
        head = key.partition(".")[0] if "." in key else ""
        lines += [""] if head != section else []
        section = head
        choices = METHODS if key == "method" else tuple(config_rules.choices(annotation))
        rule = field.metadata["rule"]
        notes = [field.metadata["comment"]]
        if not all(choice in notes[0] for choice in choices):
            notes.append(" | ".join(choices))
        notes += [rule.text.partition(";")[0].removeprefix("must be ")] if rule else []
        lines += textwrap.wrap(
            f"  {key + '=' + show(value_at(config, key)):<38} {'; '.join(notes)}",
            width,
            subsequent_indent=" " * 41,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    return "\n".join(lines)


def run_cli(
    main: Callable[[Arguments], int | None],
    argv: Sequence[str] | None = None,
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
) -> int:
    """Parse `argv`, call `main`, and return the exit code.

    It is what `main` returns (None is 0), or 2 after one of `errors`, which is printed to stderr
    without its traceback unless `--debug` is given. Other exceptions pass.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        return main(parse_args(words)) or 0
    except errors as error:
        if "--debug" in words:
            traceback.print_exc()
        else:
            print(error_text(error), file=sys.stderr)
        return 2


def error_text(error: Exception) -> str:
    """The lines printed for an error.

    One raised inside a library also names its type, and how to see where it happened: its message
    was not written for the reader of a command line.
    """
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if raised_in.resolve().is_relative_to(_PACKAGE):
        return str(error)
    return f"{type(error).__name__}: {error}\nRun again with --debug to see where it happened."
