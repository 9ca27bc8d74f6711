"""Four devices give what one gives, and move fewer bytes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parents[1] / "meshes.py"


@pytest.fixture(scope="module")
def found():
    """`meshes.py` in its own process: the number of devices is fixed with the first use."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, PROGRAM],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
@pytest.mark.parametrize(("parallel", "share"), [("data", 0.2), ("fsdp", 0.5), ("tensor", 0.5)])
def test_equal_to_one_device(found, axes, parallel, share):
    """To 2e-6, and all-reduces move at most so much of what the dense model's do."""
    error, moved, dense = found[f"{axes}-{parallel}"]
    assert error <= 2e-6
    assert 0 < moved <= share * dense
