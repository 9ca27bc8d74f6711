"""The command line of a training: its settings, its help, and the command that comes next."""

import shlex
from pathlib import Path

import pytest

from pbr_jax import cli
from pbr_jax.settings import rules
from pbr_jax.settings.flags import default_workdir, next_command, parse_config
from pbr_jax.settings.load import SHIPPED, ConfigError, default_spec

DIGITS = str(SHIPPED / "digits.py")


def parse(*words, spec=DIGITS):
    return parse_config(spec, words, ("--config", "--workdir", "--debug", "--help"))


def test_arguments():
    default = parse()
    assert default_workdir(default.config) == Path("runs/digits-lean")
    given = parse("--config.steps", "9", "--config.method=remat/js50", spec=DIGITS + ":tiny")
    assert given.config.steps == 9
    assert given.config.method == "remat/js50"
    assert default_workdir(given.config) == Path("runs/digits-tiny-remat-js50")


def test_unknown_flags_join_the_list_of_faults():
    words = "--steps 3 --debugg --conifg=a.py --zzz --config.seed=-1 mine.py --config.steps"
    with pytest.raises(ConfigError) as caught:
        parse(*words.split())
    assert caught.value.faults == (
        "--steps: no such flag; settings are given as --config.steps",
        "--debugg: no such flag; the nearest is --debug",
        "--conifg: no such flag; the nearest is --config",
        "--zzz: no such flag; there are --config.KEY, --config, --workdir, --debug, --help",
        "mine.py: not a flag; a configuration file is given as --config mine.py",
        "--config.steps: has no value; write --config.steps=VALUE",
        "seed = -1: must be from 0 to 4294967295; a larger one would be cut to its last 32 bits",
    )


def test_help_lists_every_key_with_its_value_here(capsys):
    assert cli.main(["train", "--help", "--config", DIGITS + ":tiny"]) == 0
    text = capsys.readouterr().out
    for entry in rules.settings():
        assert f"  {entry.key}=" in text
    assert "  steps=8 " in text
    # Paths are as long as they are: an installed package may lie deep.
    lines = [line for line in text.splitlines() if "digits.py" not in line]
    assert max(map(len, lines)) <= 100


def test_errors_are_plain_lines_with_exit_code_2(capsys):
    assert cli.main(["train", "--config.seed=-1"]) == 2
    output = capsys.readouterr()
    assert output.err.splitlines()[1].startswith("  seed = -1: must be from 0 to 4294967295;")
    assert "Traceback" not in output.err
    assert not output.out
    assert cli.main(["train", "--config.seed=-1", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def following(*words, spec, workdir=None):
    """The words of the next command after a run that these words ask for; they are sound."""
    arguments = parse(*words, spec=spec)
    command, _ = next_command(arguments, arguments.config.method, workdir)
    begin, *rest = shlex.split(command)[1:]
    assert begin == "train.py"
    for at, word in enumerate(rest):
        spec = rest[at + 1] if word == "--config" else spec
    assert parse(*(word for word in rest if word.startswith("--config.")), spec=spec)
    return rest


def test_next_command_is_the_same_run_by_another_method():
    command, shows = next_command(parse(spec=default_spec()), "lean")
    assert command == "python train.py --config.method=full"
    assert "full fine-tuning" in shows
    words = ("--config.pruning.keep=0.2", "--config.seed=3")
    assert following(*words, spec=default_spec()) == ["--config.seed=3", "--config.method=full"]
    words = following(spec=str(SHIPPED / "bert_rte.py"))
    assert words[2:] == ["--config.method=full", "--config.pruning.keep=none"]
    words = following(
        "--config.method=full", "--config.seed=3", spec=DIGITS + ":tiny", workdir=Path("a b")
    )
    assert words[:2] == ["--config", DIGITS + ":tiny"]
    assert words[2:] == [
        *("--config.seed=3", "--config.method=prebackrazor", "--workdir", "a b-prebackrazor")
    ]
    assert following(spec=DIGITS, workdir=Path("."))[-1] == f"{Path.cwd()}-full"


def test_next_command_overrides_what_the_file_says_for_its_own_method(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        """
import dataclasses
from pbr_jax.configs import digits
from pbr_jax.configs.common import Keep, Optimizer, Plan, Pruning

def get_config(variant=None):
    return dataclasses.replace(
        digits.get_config("tiny"), steps=2, memory_budget="8GiB", plan=Plan(linear="columns"),
        pruning=Pruning(keep=Keep(0.1, fc2=0.3)), optimizer=Optimizer(warmup_steps=3))
"""
    )
    # By itself the file is faulty, as `steps` is.
    words = ("--config.steps=4", "--config.name=a b")
    assert following(*words, spec=str(file)) == [
        *("--config", str(file), "--config.name=a b", "--config.method=full"),
        *("--config.memory_budget=none", "--config.steps=4"),
        *("--config.pruning.keep=none", "--config.plan.linear=none"),
    ]
    words = [*words, "--config.method=full", "--config.plan.linear=none"]
    words += ["--config.pruning.keep=none"]
    assert "--config.method=prebackrazor" in following(*words, spec=str(file))
