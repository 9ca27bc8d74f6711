import builtins
import os
import subprocess
import sys
import types

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


def test_an_error_of_ours_passes(commands):
    with pytest.raises(KeyError):
        cli.main(["greet", "one", "you", "--fail", "KeyError"], commands)


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
