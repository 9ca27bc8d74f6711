"""Configuration files: the user's own programs, with all that can be wrong with them."""

import os
from pathlib import Path

import pytest

from pbr_jax.settings.load import SHIPPED, collect

HEAD = "from pbr_jax.configs.common import Config, Data, Model\nimport dataclasses\n"


def fault_of(spec: str) -> str:
    config, (fault,) = collect(spec, ())
    assert config.name == "run"  # the default takes its place
    return fault


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "defines no get_config; add `def get_config(variant=None)`"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3"),
        ("import sys\nsys.exit('no GPU')", "line 2: SystemExit: no GPU"),
        ("def get_config(v=None):\n    return get_config()", "line 2: RecursionError"),
        ("def get_config():\n    pass", "get_config must take the variant; write `def get_config("),
        ("def get_config(*, variant):\n    pass", "get_config must take the variant"),
        ("def get_config(a, b):\n    pass", "get_config must take the variant"),
        ("get_config = 3", "defines no get_config"),
        ("def get_config(v=None):\n    return None", "get_config returned builtins.NoneType"),
        (
            HEAD + "class Mine(Config): pass\ndef get_config(v=None):\n    return Mine()",
            "get_config returned mine.Mine; return a pbr_jax.configs.common.Config",
        ),
        (
            HEAD + "def get_config(v=None):\n    return Config(data={})",
            "data = {}: must be a Data(",
        ),
        (HEAD + "def get_config(v=None):\n    return Config(data=Data)", "must be a Data("),
        (
            HEAD + "def get_config(v=None):\n    return Config(epochs=3)",
            "unexpected keyword argument 'epochs'; a run is counted in steps: set steps to",
        ),
        ("def get_config(v=None):\n    raise ValueError('a\\nb' * 999)", "ValueError: 'a"),
        ("def get_config(v=None):\n    raise KeyError('x')", "line 2: KeyError: 'x'"),
        ("x = '\0'", "null bytes"),
        ("(" * 300, "SyntaxError"),
    ],
)
def test_a_faulty_file_is_named_with_what_to_do(tmp_path, text, told):
    path = tmp_path / "mine.py"
    path.write_text(text)
    fault = fault_of(str(path))
    assert told in fault and "\n" not in fault and len(fault) < 600
    assert str(path) in fault or fault.startswith("data = ")


def test_what_is_no_python_file_is_named(tmp_path):
    assert "is a folder; a configuration is a Python file such as" in fault_of(str(tmp_path))
    path = tmp_path / "mine.py"
    path.write_bytes(b"x = 'caf\xe9'\n")
    assert "mine.py" in (fault := fault_of(str(path))) and "SyntaxError" in fault
    path = tmp_path / "config.json"
    path.write_text('{"name": null}')
    assert fault_of(str(path)).endswith("; a configuration is a Python file")
    os.truncate(path, 2**20 + 1)
    assert "has 1048577 bytes, too many for a configuration" in fault_of(str(path))
    os.mkfifo(tmp_path / "pipe.py")
    assert "is no regular file" in fault_of(str(tmp_path / "pipe.py"))
    assert "File name too long" in fault_of("x" * 5000)
    assert "no such configuration file" in fault_of("a\0b")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((SHIPPED / "digits.py").read_text())
    config, faults = collect("~/mine.py:tiny", ())
    assert (config.name, faults) == ("digits-tiny", [])
    assert "no home folder is known for ~nobody-here" in fault_of("~nobody-here/mine.py")


def test_what_a_file_prints_is_no_output_of_a_command(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("print('hello')\n" + (SHIPPED / "digits.py").read_text())
    _, faults = collect(str(tmp_path / "mine.py"), ())
    assert faults == []
    assert tuple(capsys.readouterr()) == ("", "hello\n")


@pytest.mark.parametrize("variants", ["'tiny'", "5", "(1, 2)", "{'a': 1, None: 2}"])
def test_variants_are_names(tmp_path, variants):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + f"VARIANTS = {variants}\ndef get_config(v=None):\n    return Config()")
    assert fault_of(f"{path}:tiny").startswith(f"{path}: VARIANTS must be a tuple of names")


def test_a_crowded_folder_is_not_listed_whole(tmp_path):
    for number in range(50):
        Path(tmp_path, f"c{number}.py").touch()
    assert len(fault_of(str(tmp_path / "zebra.py"))) < 2000
