"""Four devices give what one gives, and move fewer bytes."""

import pytest
from four_devices import answer

CASES = [  # axes, parallel, most that all-reduces move of what those of the dense model do
    pytest.param("Auto", "data", 0.2, id="Auto-data"),
    pytest.param("Explicit", "tensor", 0.5, id="Explicit-tensor"),
    pytest.param("Manual", "data", 0.2, id="Manual-data"),
]
OTHERS = [
    pytest.param("Auto", "fsdp", 0.5, id="Auto-fsdp", marks=pytest.mark.exhaustive),
    pytest.param("Auto", "tensor", 0.5, id="Auto-tensor", marks=pytest.mark.exhaustive),
    pytest.param("Explicit", "data", 0.2, id="Explicit-data", marks=pytest.mark.exhaustive),
    pytest.param("Explicit", "fsdp", 0.5, id="Explicit-fsdp", marks=pytest.mark.exhaustive),
    pytest.param("Local", "data", 0.2, id="Local-data", marks=pytest.mark.exhaustive),
    pytest.param("Unchecked", "data", 0.2, id="Unchecked-data", marks=pytest.mark.exhaustive),
    # 12 layers of width 1024, keep 0.1, compiled and not run.
    pytest.param("decoder", "data", 0.5, id="decoder-data", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("axes", "parallel", "share"), [*CASES, *OTHERS])
def test_equal_to_one_device(axes, parallel, share):
    """To 2e-6, and all-reduces move at most so much of what the dense model's do."""
    error, moved, dense = answer("meshes.py", f"{axes}-{parallel}", CASES, OTHERS)
    assert error <= 2e-6
    assert 0 < moved <= share * dense
