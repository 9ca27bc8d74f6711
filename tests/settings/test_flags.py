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
    assert given.overrides == ("steps=9", "method=remat/js50")
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


def test_next_command_is_the_same_run_by_another_method():
    command, shows = next_command(parse(spec=default_spec()))
    assert command == "python train.py --config.method=full"
    assert "full fine-tuning" in shows
    words = ("--config.pruning.keep=0.2", "--config.seed=3")
    command, _ = next_command(parse(*words, spec=default_spec()))
    assert command == "python train.py --config.seed=3 --config.method=full"
    command, _ = next_command(parse(spec=str(SHIPPED / "bert_rte.py")))
    assert command.endswith("--config.pruning.keep=none --config.method=full")
    full = parse("--config.method=full", "--config.seed=3", spec=DIGITS + ":tiny")
    command, _ = next_command(full, Path("a b"))
    words = shlex.split(command)
    assert words[:5] == ["python", "train.py", "--config", DIGITS + ":tiny", "--config.seed=3"]
    assert words[5:] == ["--config.method=prebackrazor", "--workdir", "a b-prebackrazor"]
