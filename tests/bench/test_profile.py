"""A profile: events of the device, joined with the floors of the program."""

import json

import fakes
import jax
import jax.numpy as jnp
import pytest

from pbr_jax import cli
from pbr_jax.bench import profile
from pbr_jax.gpu.launches import Launch, Loop
from pbr_jax.measure.timing import Ceilings

CEILINGS = Ceilings(flops=1e12, bandwidth=1e9)


def launch(name, kind, instruction, num_bytes=0, flops=0, trips=1):
    return Launch(name, kind, "jit(f)/dot", (Loop("", trips),), num_bytes, flops, instruction)


def test_events_of_an_instruction_meet_its_floor():
    program = [
        launch("gemm.1", "gemm", "gemm.1", flops=1e9, trips=3),  # 3 ms
        launch("layer_norm", "kernel", "custom-call.7", num_bytes=1e6),  # 1 ms
    ]
    events = [profile.Event("gemm.1", 2e-3)] * 6 + [profile.Event("custom-call.7", 5e-3)] * 2
    events += [profile.Event("memset", 1e-3)]
    rows = profile.by_kernel(events, program, CEILINGS, rounds=2)
    assert [(row["name"], row["kind"], row["times"]) for row in rows] == [
        ("layer_norm", "kernel", 1),  # loses 4 ms
        ("gemm.1", "gemm", 3),  # loses 3
        ("memset", "", 0.5),
    ]
    assert [row["seconds"] for row in rows] == pytest.approx([5e-3, 6e-3, 5e-4])
    assert [row["floor"] for row in rows[:2]] == pytest.approx([1e-3, 3e-3])
    assert rows[2]["floor"] is None
    first, second, _ = profile.table({"kernels": rows})
    assert (first["ms"], first["floor ms"], first["floor / ms"]) == ("5.000", "1.000", "0.20")
    assert second["of the step"] == f"{6 / 11.5:.1%}"


def test_a_kernel_that_only_has_its_own_name_gets_the_floor_of_all_its_launches():
    program = [launch("layer_norm", "kernel", f"custom-call.{i}", num_bytes=1e6) for i in range(2)]
    (row,) = profile.by_kernel([profile.Event("layer_norm", 4e-3)], program, CEILINGS, rounds=1)
    assert row["floor"] == pytest.approx(2e-3)


def test_events_are_read_from_a_trace(tmp_path):
    run = jax.jit(lambda x: jnp.tanh(x @ x) @ x)
    x = jnp.ones((64, 64))
    run(x)
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            jax.block_until_ready(run(x))
    (file,) = tmp_path.rglob("*.xplane.pb")
    events = profile.read_events(file)
    assert [event for event in events if "tanh" in event.name]
    assert all(0 < event.seconds < 1 for event in events)


def test_the_command_profiles_a_step(monkeypatch, tmp_path, capsys):
    config = fakes.config("full", batch_size=2)
    monkeypatch.setattr("pbr_jax.settings.flags.collect", lambda spec, overrides: (config, []))
    out = tmp_path / "profile.json"
    assert cli.main(["bench", "profile", "--rounds", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["method"] == "full" and len(found["seconds"]) == 1
    known = [row for row in found["kernels"] if row["floor"] is not None]
    assert len(known) > 10 and all(row["seconds"] > 0 for row in known)
    assert "sum of their floors" in capsys.readouterr().out
