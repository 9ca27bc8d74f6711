"""Code in README.md and docs runs as it stands there; promises are those of pyproject.toml."""

import os
import pathlib
import re
import subprocess
import sys

from pbr_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _examples(page):
    return re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.M)


def test_every_example_runs(tmp_path):
    examples = _examples(README)
    # In docs, those that are whole.
    layers = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    examples += [code for code in _examples(layers) if code.startswith("import jax")]
    assert len(examples) == 2
    # Without a choice of platform, as a user has it; the package is the one under test.
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    for example in examples:
        command = [sys.executable, "-W", "error", "-c", example]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_module_of_the_docs_is_trained(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = (code for code in _examples(page) if code.startswith("# my_models.py"))
    (tmp_path / "my_models.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (words,) = re.findall(r"^python train.py (.*my_models:mlp.*)$", page, re.M)
    more = ["--config.steps=2", "--config.optimizer.warmup_steps=0", "--config.eval_every=2"]
    assert cli.main(["train", *words.split(), *more, "--workdir", str(tmp_path / "run")]) == 0


def test_the_installation_promises_what_pyproject_has():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "`jax>=0.10,<0.12`" in README
    assert '"jax>=0.10,<0.12"' in pyproject
    extras = re.findall(r"pip install (?:-e )?\"\.\[([\w-]+)\]\"", README)
    assert extras
    for extra in extras:
        assert re.search(rf"^{extra} = \[", pyproject, re.M), f"no extra {extra} in pyproject.toml"
