"""The program `pbr`: one command per module of `pbr_jax.commands`, imported when it is called.

A command's module has `add_arguments(parser)` and `main(args) -> int`, the exit code. One that
calls `flags.add_config(parser)` takes `--config FILE[:variant]` and `--config.KEY=VALUE` as
`train.py` does, and finds them, checked, as `args.arguments` where there is one. Every command
finds all that was typed as `args.command_line`.
"""

import argparse
import importlib
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pbr_jax import __version__

_PACKAGE = Path(__file__).resolve().parent

# Name -> what it does. `pbr a b` is the module `pbr_jax.commands.a_b`.
COMMANDS: dict[str, str] = {
    "train": "fine-tune a model, or resume the run that is there; the same as train.py",
    "compare": "methods side by side: memory, time, accuracy",
    "predict": "classes of images or texts, by the model of a run",
    "export": "write the model of a run for other programs",
    "weights check": "what a file of weights is, and which configuration it fits",
    "data check": "what is in a data set: counts, classes, sizes, what is broken",
    "data prepare": "download a data set and prepare it for training",
    "bench linear": "a linear layer: dense, BackRazor, pruned; the paper's Figure 1 and Table 3",
    "bench attention": "implementations of attention: time and memory; the paper's Table 2",
    "bench step": "time and memory of a train step by every method; the paper's Tables 1, 4, 5",
    "bench memory": "memory of a train step: the compiler's plan and what the GPU has in use",
    "bench check": "whether kernels and train steps compute on this device what they should",
    "bench profile": "the kernels of a train step as the device ran them, beside their floors",
    "bench kernels": "kernels against XLA and cuDNN; registers, spills and floors without a GPU",
    "fit": "what every method needs on a graphics card, before the run",
}


class _Parser(argparse.ArgumentParser):
    """Leaves every error to `main`, as a `ValueError` that says which command it is of."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; `{self.prog} --help` says more")


def main(argv: Sequence[str] | None = None, commands: Mapping[str, str] = COMMANDS) -> int:
    """Runs the command that `argv` names; returns its exit code, 2 after an error of the user's.

    An `ArithmeticError` (a run that diverged), `OSError`, `RuntimeError` or `ValueError` is printed
    to stderr without its traceback, unless `--debug` is given. Other exceptions pass.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((n for n in (" ".join(words[:2]), *words[:1]) if n in commands), None)
    if name is None:
        return _usage(commands, words)
    try:
        return _run(name, words)
    except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
        if "--debug" in words:
            traceback.print_exc()
        else:
            print(error_text(error), file=sys.stderr)
        return 2


def _run(name: str, words: Sequence[str]) -> int:
    from pbr_jax.gpu.presence import use_cpu_without_gpu
    from pbr_jax.settings import flags

    use_cpu_without_gpu()
    module = importlib.import_module(f"pbr_jax.commands.{name.replace(' ', '_')}")
    # `--help` is read below, where settings are known, and not by argparse.
    parser = _Parser(
        f"pbr {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    module.add_arguments(parser)
    given = words[name.count(" ") + 1 :]
    if {"-h", "--help"} & {*given}:
        print(parser.format_help())
        if name == "train":  # its settings are its flags
            args, others = parser.parse_known_args(given)
            width = shutil.get_terminal_size((100, 0)).columns
            print(flags.help_text(args.config, others, width))
        return 0
    # What the command itself does not know are settings, if it takes any.
    args, others = parser.parse_known_args(given)
    config = getattr(args, "config", None)
    if others and config is None:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    args.command_line = shlex.join(["pbr", *words])
    if config is not None:
        known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        args.arguments = flags.parse_config(config, others, known)
    return module.main(args)


def _usage(commands: Mapping[str, str], words: Sequence[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"pbr_jax {__version__}")
        return 0
    listed = "\n".join(f"  {name:<16}{text}" for name, text in commands.items())
    usage = (
        f"usage: pbr COMMAND ...\n\n{listed}\n\n`pbr COMMAND --help` says more of one;"
        " `pbr train --help` lists every setting."
    )
    if not words or words[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"pbr {words[0]}: no such command\n{usage}", file=sys.stderr)
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


if __name__ == "__main__":
    sys.exit(main())
