"""The program `pbr`: one command per module of `pbr_jax.commands`, imported when it is called.

A command's module has `add_arguments(parser)` and `main(args) -> int`, the exit code. One that
calls `flags.add_config(parser)` takes `--config FILE[:variant]` and `--config.KEY=VALUE` as
`train.py` does, and finds them, checked, as `args.arguments` where there is one. Every command
finds all that was typed as `args.command_line`.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import select
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from pbr_jax import __version__
from pbr_jax.runs.signals import interruptible, leave

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
    """Runs the command that `argv` names; returns its exit code.

    Whatever ends a command is printed to stderr without its traceback, unless `--debug` is given:
    an error of the user's, of files or of the device (code 2), and one that nobody foresaw, with
    its place in this package (code 1). An interrupt gives 130; a reader of the output that is gone,
    as after `| head`, gives 141 and no word. Without `argv` this is the program, of which an
    interrupt is the end: JAX may crash where it was interrupted, and threads compile on.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        with interruptible():
            code = _chosen(words, commands)
    except KeyboardInterrupt:
        if argv is None:
            leave("interrupted", 130)
        _say("interrupted")
        code = 130
    except BrokenPipeError as error:
        code = 141 if _lost(sys.stdout) or _lost(sys.stderr) else 2
        if code == 2:  # a pipe to somebody else
            _say(error_text(error))
    except Exception as error:  # the one place where errors end
        _say(traceback.format_exc() if "--debug" in words else error_text(error))
        code = 2 if isinstance(error, _FORESEEN) else 1
    return _flushed(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def _chosen(words: Sequence[str], commands: Mapping[str, str]) -> int:
    name = next((n for n in (" ".join(words[:2]), *words[:1]) if n in commands), None)
    return _usage(commands, words) if name is None else _run(name, words)


def _prepare_streams() -> None:
    """Has output streams take any text: one that was closed, or cannot encode a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the shell's `>&-`
            stream = open(os.devnull, "w")  # noqa: SIM115  # until the program ends
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _lost(stream: TextIO) -> bool:
    """Whether the stream is a pipe without a reader."""
    with contextlib.suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _flushed(code: int) -> int:
    """Has all that was printed written; returns the exit code, another if that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # What it holds would be tried again, and complained of, when the interpreter ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            lost = isinstance(error, BrokenPipeError)
            code = code or (141 if lost else 2)
            if not lost:
                _say(f"standard output: {error.strerror}")
    return code


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


# What users, files and devices cause. Others are mistakes of this package.
_FORESEEN = (ArithmeticError, ImportError, MemoryError, OSError, RuntimeError, ValueError)


def error_text(error: Exception) -> str:
    """The lines printed for an error.

    One raised inside a library also names its type, and how to see where it happened: its message
    was not written for the reader of a command line. One that nobody foresaw names its place, too.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).resolve().is_relative_to(_PACKAGE)]
    kind = type(error).__name__
    if not isinstance(error, _FORESEEN):
        place = f" at {ours[-1].filename}:{ours[-1].lineno}" if ours else ""
        return f"{kind}: {error}{place}\nThis was not foreseen; run again with --debug to see more."
    if isinstance(error, OSError) and error.strerror:
        names = " -> ".join(str(n) for n in (error.filename, error.filename2) if n is not None)
        return f"{names or kind}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return f"{error}; it comes with: pip install {_extra_of(package) or package}"
    if isinstance(error, MemoryError):
        advice = "a smaller batch_size, fewer data.workers or less data need less"
        return f"this machine's memory did not suffice ({error or kind}); {advice}"
    if frames[-1:] == ours[-1:]:
        return str(error)
    return f"{kind}: {error}\nRun again with --debug to see where it happened."


def _extra_of(package: str) -> str:
    """`'pbr_jax[cuda]'` for a package that an extra brings; empty if none does."""
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("pbr_jax") or ():
            needed, _, condition = line.partition(";")
            named = re.match(r"[\w-]+", needed)
            extra = re.search(r"extra == ['\"](.*?)['\"]", condition)
            if named and extra and named[0].replace("-", "_") == package:
                return f"'pbr_jax[{extra[1]}]'"
    return ""


if __name__ == "__main__":
    sys.exit(main())
