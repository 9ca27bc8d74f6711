"""The programs of examples/ run as a reader starts them, say what is pruned, and learn."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
pytestmark = [pytest.mark.exhaustive, pytest.mark.slow]


def run(name, steps):
    """The last line that the program prints."""
    command = [sys.executable, str(EXAMPLES / name), f"--steps={steps}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Not pruned, the largest first:" in done.stdout
    return done.stdout.splitlines()[-1]


def test_an_nnx_vision_transformer_learns_digits():
    accuracy = run("nnx_vit.py", steps=100).split()[2]
    assert float(accuracy.rstrip("%")) > 80


def test_a_rematerialised_linen_decoder_learns_bytes():
    loss = run("linen_decoder.py", steps=60).split()[2]
    assert float(loss) < 3.3  # the entropy of single bytes is about 3.4


def test_a_flax_model_of_transformers_runs():
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers==4.57.6")
    assert run("huggingface_bert.py", steps=20).startswith("accuracy ")
