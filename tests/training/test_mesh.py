"""A batch that several devices share: the same step, its bytes on the wire, its memory."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from fakes import config

from pbr_jax.configs.common import Mesh, Optimizer
from pbr_jax.gpu import CARDS, card_devices, compile_for, memory
from pbr_jax.gpu.launches import launches
from pbr_jax.settings import load
from pbr_jax.settings.ties import tie_faults
from pbr_jax.training import from_config
from pbr_jax.training.mesh import Placement, settled_devices

PROGRAM = pathlib.Path(__file__).parents[1] / "sharing.py"
ALWAYS = ["vit-full", "vit-lean-dropout-accumulated", "vit-prebackrazor/js50", "own-prebackrazor"]
OTHERS = [
    *(f"vit-{method}" for method in ("remat", "backrazor", "prebackrazor++", "fast", "tiny")),
    "bert-lean-dropout",
    "bert-prebackrazor-dropout-accumulated",
    "own-full",
]


def compared(cases):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(PROGRAM), *cases]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("cases", [ALWAYS, pytest.param(OTHERS, marks=pytest.mark.exhaustive)])
def test_eight_devices_take_the_step_of_one(cases):
    """To rounding; dropout and draws are those of one device, whoever has which samples."""
    for name, (loss, update, same) in compared(cases).items():
        assert loss < 3e-7, name
        assert update < 3e-5, name
        assert same, name


# Bytes of the packed gradients of ViT-B/16, float32, with the few that are not pruned.
WIRE = {"full": 344, "lean": 74, "prebackrazor": 39, "prebackrazor++/js50": 22}


@pytest.mark.gpu_compile
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.exhaustive] if m != "lean" else []) for m in WIRE]
)
def test_what_devices_exchange_and_need(method):
    """Of eight H200, 128 images each: packed gradients alone, and the memory of one device."""
    settings = load.load("configs/vit_b16.py", [f"method={method}", "batch_size=1024"])
    found = {}
    for count in (1, 8):
        run = dataclasses.replace(settings, mesh=Mesh(data=count), batch_size=128 * count)
        parts = from_config.build(run, card_devices(CARDS["h200"], count))
        step = compile_for(
            parts.placement.jit(parts.train_step, donate_argnums=0),
            (from_config.state_shapes(run, parts), from_config.batch_specs(run)),
            CARDS["h200"],
            compiler_options={"xla_backend_optimization_level": 0},
            mesh=parts.placement.mesh,
        )
        kernels = sorted(one.name for one in launches(step.as_text()) if one.kind == "kernel")
        need = memory(step)
        found[count] = need.wire_bytes, need.temp_bytes, kernels
    (nothing, alone, kernels), (wire, shared, same) = found[1], found[8]
    assert nothing == 0
    assert 0.9e6 * WIRE[method] < wire < 1e6 * WIRE[method]
    assert shared < 1.02 * alone
    assert kernels == same and kernels


def test_devices_are_those_that_divide_the_batch(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    settled, notes = settled_devices(config(batch_size=64))
    assert (settled.mesh.data, notes) == (8, [])
    settled, (note,) = settled_devices(config(batch_size=12))
    assert settled.mesh.data == 6
    assert note == "6 of 8 devices are used: more do not divide batch_size = 12"
    parts = config(batch_size=16, optimizer=Optimizer(accumulation_steps=4))
    assert settled_devices(parts)[0].mesh.data == 4
    with pytest.raises(ValueError, match=r"mesh.data = 9: JAX sees 8 .*; set mesh.data=8 or less"):
        settled_devices(config(mesh=Mesh(data=9)))


def test_devices_have_equal_parts():
    (fault,) = tie_faults(config(batch_size=64, mesh=Mesh(data=7)), ())
    assert fault == (
        "mesh.data = 7: devices must have equal parts of batch_size = 64; set mesh.data=1, or"
        " batch_size=63 or 70"
    )


def devices_of(*processes):
    """A mesh as `Placement` sees it: a device of each of these processes."""
    devices = [types.SimpleNamespace(process_index=process) for process in processes]
    return types.SimpleNamespace(size=len(devices), devices=np.array(devices))


def test_each_device_has_its_part_of_every_micro_batch():
    places = Placement(devices_of(0, 0), True).places(12, steps=3)
    first, second = places.reshape(2, 3, 2).tolist()
    assert first == [[0, 1], [4, 5], [8, 9]]  # of the micro-batches 0-3, 4-7 and 8-11
    assert second == [[2, 3], [6, 7], [10, 11]]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("per_device", [True, False])
def test_processes_prepare_what_their_devices_take(monkeypatch, per_device, steps):
    """Those of two processes in their order are those of one process."""
    found = []
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        place = Placement(devices_of(0, 0, 1, 1), per_device)
        found.append(place.places(16, steps))
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    alone = Placement(devices_of(0, 0, 0, 0), per_device).places(16, steps)
    assert np.concatenate(found).tolist() == alone.tolist()
    assert sorted(alone) == [*range(16)]


def test_processes_have_equally_many_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert settled_devices(config(batch_size=12))[0].mesh.data == 6
    with pytest.raises(ValueError, match=r"mesh.data = 3: must be a multiple of the 2 processes"):
        settled_devices(config(mesh=Mesh(data=3)))
    with pytest.raises(ValueError, match=r"batch_size = 9: must be a multiple of 2, so that each"):
        settled_devices(config(batch_size=9))
