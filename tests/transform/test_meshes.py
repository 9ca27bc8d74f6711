"""Four devices give what one gives, and move fewer bytes."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parents[1] / "meshes.py"


CASES = [  # axes, parallel, most that all-reduces move of what those of the dense model do
    pytest.param("Auto", "data", 0.2, id="Auto-data"),
    pytest.param("Explicit", "tensor", 0.5, id="Explicit-tensor"),
]
OTHERS = [
    pytest.param("Auto", "fsdp", 0.5, id="Auto-fsdp", marks=pytest.mark.exhaustive),
    pytest.param("Auto", "tensor", 0.5, id="Auto-tensor", marks=pytest.mark.exhaustive),
    pytest.param("Explicit", "data", 0.2, id="Explicit-data", marks=pytest.mark.exhaustive),
    pytest.param("Explicit", "fsdp", 0.5, id="Explicit-fsdp", marks=pytest.mark.exhaustive),
]


@functools.cache
def found(cases):
    """`meshes.py` in its own process: the number of devices is fixed with the first use."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, PROGRAM, *cases],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("axes", "parallel", "share"), [*CASES, *OTHERS])
def test_equal_to_one_device(axes, parallel, share):
    """To 2e-6, and all-reduces move at most so much of what the dense model's do."""
    case = f"{axes}-{parallel}"
    together = next(own for own in (CASES, OTHERS) if case in [param.id for param in own])
    error, moved, dense = found(tuple(param.id for param in together))[case]
    assert error <= 2e-6
    assert 0 < moved <= share * dense
