import builtins
import errno
import os
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from pbr_jax import cli
from pbr_jax.settings import flags


@pytest.fixture
def commands(monkeypatch):
    """A command `greet`, which says what it was given, or fails as it is told to."""

    def main(args):
        if args.fail:
            raise getattr(builtins, args.fail)("the reason")
        print(f"hello {args.name}")
        return 0

    def add_arguments(parser):
        parser.add_argument("name")
        parser.add_argument("--fail")

    module = types.ModuleType("pbr_jax.commands.greet_one", "Greets.")
    module.main, module.add_arguments = main, add_arguments
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return {"greet one": "greets one"}


def test_a_command_of_two_words_gets_its_arguments(commands, capsys):
    assert cli.main(["greet", "one", "you"], commands) == 0
    assert capsys.readouterr().out == "hello you\n"


def test_a_users_error_is_a_line_and_exit_code_2(commands, capsys):
    assert cli.main(["greet", "one", "you", "--fail", "ValueError"], commands) == 2
    error = capsys.readouterr().err
    assert "the reason" in error and "Traceback" not in error
    assert cli.main(["greet", "one", "you", "--fail", "ValueError", "--debug"], commands) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_has_its_place_and_code_1(commands, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_PACKAGE", Path(__file__).parent)
    assert cli.main(["greet", "one", "you", "--fail", "KeyError"], commands) == 1
    error = capsys.readouterr().err
    assert "KeyError: 'the reason' at " in error and "test_cli.py:" in error
    assert "run again with --debug" in error and "Traceback" not in error


def failing(monkeypatch, commands, error):
    """Has the command raise `error` itself."""

    def main(args):
        raise error

    monkeypatch.setattr(sys.modules["pbr_jax.commands.greet_one"], "main", main)
    return cli.main(["greet", "one", "you"], commands)


ERRORS = [
    (FileNotFoundError(errno.ENOENT, "No such file", "x.csv"), 2, "x.csv: No such file"),
    (OSError(errno.EXDEV, "Cross-device", "a", None, "b"), 2, "a -> b: Cross-device"),
    (MemoryError(), 2, "this machine's memory did not suffice"),
    (ModuleNotFoundError("No module named 'beartype'", name="beartype"), 2, "pip install"),
    (RecursionError("too deep"), 2, "too deep"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 2, "Broken pipe"),  # to somebody else
]


@pytest.mark.parametrize(("error", "code", "words"), ERRORS, ids=lambda value: str(value)[:20])
def test_whatever_ends_a_command_is_a_line(commands, capsys, monkeypatch, error, code, words):
    assert failing(monkeypatch, commands, error) == code
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_the_extra_that_brings_a_package_is_named(monkeypatch):
    needs = ["numpy>=2", 'jax-triton==0.3.*; sys_platform == "linux" and extra == "cuda"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needs)
    assert cli._extra_of("jax_triton") == "'pbr_jax[cuda]'"
    assert cli._extra_of("numpy") == cli._extra_of("other") == ""


def pbr(*words, first="pass", **streams):
    """`pbr` in a process of its own, as installed, with the statement `first` before it."""
    program = f"import sys; from pbr_jax.cli import main; {first}; sys.exit(main())"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", program, *words]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **streams)


def test_a_reader_that_is_gone_ends_it_without_a_word():
    reading, writing = os.pipe()
    os.close(reading)
    with pbr("--help", stdout=writing) as process:
        os.close(writing)
        assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_an_output_that_is_full_is_named():
    with open("/dev/full", "w") as full, pbr("--help", stdout=full) as process:
        error = process.stderr.read()
    assert (error, process.returncode) == (b"standard output: No space left on device\n", 2)


def test_a_gpu_that_is_asked_for_and_not_there_is_a_line():
    """JAX would print the traceback of its plugin, and then end with an empty AssertionError."""
    from pbr_jax.gpu.presence import gpu_is_present

    if gpu_is_present():
        pytest.skip("there is one")
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    program = "import sys; from pbr_jax.cli import main; sys.exit(main(['fit', '--gpu', 'h100']))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "JAX_PLATFORMS=cuda: no NVIDIA GPU is here; unset it, or set JAX_PLATFORMS=cpu\n"
    )


def test_a_terminal_of_few_letters_and_a_closed_output_do(tmp_path):
    program = "import sys; from pbr_jax.cli import main; print(main([])); "
    program += r"print('\u00b7', '\udcff')"
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0\n\\xb7 \\udcff\n")
    closed = subprocess.run(["sh", "-c", f"{shlex.join(command)} >&-"], capture_output=True)
    assert (closed.returncode, closed.stderr) == (0, b"")


@pytest.mark.parametrize("seconds", [0.05, 0.3])
def test_an_interrupt_in_the_first_seconds_is_a_line(seconds):
    """It comes while libraries are imported, and some of them turn it into an ImportError."""
    ready = "print(flush=True)"
    with pbr("fit", "--gpu", "h100", first=ready, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read().decode()
    assert process.returncode == 130
    assert error.strip("\x1b[?25h\n") == "interrupted"


def test_an_unknown_argument_is_refused(commands, capsys):
    assert cli.main(["greet", "one", "you", "--laud"], commands) == 2
    assert "pbr greet one: unrecognized arguments: --laud" in capsys.readouterr().err


def test_a_missing_argument_is_named(commands, capsys):
    assert cli.main(["greet", "one"], commands) == 2
    error = capsys.readouterr().err
    assert "the following arguments are required: name" in error and "--help" in error


@pytest.mark.parametrize("kind", [ArithmeticError, OSError, RuntimeError])
def test_what_a_run_can_end_with_is_a_line_too(commands, capsys, kind):
    assert cli.main(["greet", "one", "you", "--fail", kind.__name__], commands) == 2
    assert "the reason" in capsys.readouterr().err


class TestConfig:
    @pytest.fixture
    def commands(self, monkeypatch):
        """A command `show` that prints two settings."""

        def main(args):
            print(args.arguments.config.steps, args.arguments.config.method, args.rows)
            return 0

        def add_arguments(parser):
            flags.add_config(parser)
            parser.add_argument("--rows", type=int)

        module = types.ModuleType("pbr_jax.commands.show", "Shows.")
        module.main, module.add_arguments = main, add_arguments
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return {"show": "shows"}

    def test_a_command_takes_settings_as_training_does(self, commands, capsys):
        words = ["show", "--config.steps=300", "--rows", "2", "--config.method", "fast"]
        assert cli.main(words, commands) == 0
        assert capsys.readouterr().out == "300 fast 2\n"

    def test_all_faults_are_named_at_once(self, commands, capsys):
        assert cli.main(["show", "--config.stepz=3", "--laud", "--config.seed=-1"], commands) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in ("stepz", "--laud", "seed = -1"))


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_lists_the_commands(commands, words, capsys):
    assert cli.main(words, commands) == 0
    assert "greets one" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_list(commands, capsys):
    assert cli.main(["gret"], commands) == 2
    error = capsys.readouterr().err
    assert "gret: no such command" in error and "greets one" in error


def test_every_command_explains_itself(capsys):
    for name in cli.COMMANDS:
        assert cli.main([*name.split(), "--help"]) == 0
        assert len(capsys.readouterr().out.splitlines()) > 5


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_what_needs_no_jax_imports_none(words):
    program = f"import sys; from pbr_jax import cli; cli.main({words}); print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"
