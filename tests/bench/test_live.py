"""Memory of a step: the plan of the compiler, and what is in use where a device says so."""

import fakes
import pytest

from pbr_jax.bench import live


def test_the_table_divides_use_by_plan():
    need = {"saved_bytes": 10**6, "temp_bytes": 2 * 10**6, "peak_bytes": 4 * 10**6}
    found = {
        "memory": {
            "full": need | {"compiling": 10**6, "running": 5 * 10**6},
            "tiny": need | {"compiling": None, "running": None},
        }
    }
    full, tiny = live.table(found)
    assert (full["in use"], full["in use / peak"]) == ("5.00 MB", "1.250")
    assert tiny["in use"] == tiny["in use / peak"] == tiny["in use after compiling"] == "-"


@pytest.mark.slow
def test_every_method_runs_in_a_process_of_its_own():
    config = fakes.config("full", batch_size=6)
    found = live.measure(config, ["full", "remat/chunks4"])
    assert list(found["memory"]) == ["full"]
    assert "must divide the batch of 6" in found["refused"]["remat/chunks4"]
