"""The examples of README.md run as they stand there."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.M
)


def marked(number: int, example: str):
    marks = [pytest.mark.gpu_compile] if "pbr_jax.gpu" in example else []
    return pytest.param(example, marks=marks, id=f"example{number}")


@pytest.mark.parametrize("example", [marked(i, text) for i, text in enumerate(EXAMPLES)])
def test_example_runs(example, tmp_path):
    without_platforms = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        env=without_platforms | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_installation_promises_what_pyproject_has():
    text = README.read_text(encoding="utf-8")
    pyproject = (README.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert "`jax>=0.10,<0.12`" in text
    assert '"jax>=0.10,<0.12"' in pyproject
    for extra in re.findall(r"pip install (?:-e )?\"\.\[([\w-]+)\]\"", text):
        assert re.search(rf"^{extra} = \[", pyproject, re.M), f"no extra {extra} in pyproject.toml"
