"""A batch that several devices share: the same step, its bytes on the wire, its memory."""

import dataclasses
import functools
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
from jax.sharding import PartitionSpec

from pbr_jax.configs.common import Mesh, Optimizer
from pbr_jax.gpu import CARDS, card_devices, compile_for, memory
from pbr_jax.gpu.hlo import parse
from pbr_jax.gpu.launches import launches
from pbr_jax.memory.fit import estimated
from pbr_jax.settings import load
from pbr_jax.settings.ties import tie_faults
from pbr_jax.training import cuts, from_config
from pbr_jax.training.mesh import Placement, settled_devices

PROGRAM = pathlib.Path(__file__).parents[1] / "sharing.py"
ALWAYS = [
    *("bert-lean-dropout-words", "vit-prebackrazor/js50"),
    *("own-prebackrazor", "vit-lean-clipped-split"),
]
OTHERS = [
    *("vit-full", "vit-lean-clipped-moments", "vit-lean-dropout-accumulated"),
    *(f"vit-{method}-clipped-split" for method in ("full", "tiny", "prebackrazor")),
    *("vit-prebackrazor-weighted-split", "vit-prebackrazor/js50-split"),
    *("bert-lean-dropout-clipped-words-split", "vit-lean-dropout-accumulated-split"),
    *("vit-full-bfloat16-split", "own-prebackrazor-split", "own-full-moments"),
    *("vit-full-clipped-moments", "vit-prebackrazor/js50-accumulated-moments"),
    *(f"vit-{method}" for method in ("remat", "backrazor", "prebackrazor++", "fast", "tiny")),
    *("vit-lean-dropout", "bert-lean-dropout", "bert-lean-dropout-clipped-words"),
    "bert-prebackrazor-dropout-accumulated",
    *("own-full", "mixer-prebackrazor", "mixer-prebackrazor-clipped-split"),
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
    """To rounding; dropout and draws are those of one device, whoever has which samples.

    A device has a quarter of what is split, and all of the rest. Products of bfloat16 round the sum
    over the samples that a device has.
    """
    for name, (loss, update, learned, same, held) in compared(cases).items():
        assert loss < (2e-4 if "bfloat16" in name else 1e-6), name
        # A code of few bits that flips on a last bit moves the update of so small a model by 1e-4.
        coded = any(method in name for method in ("lean", "fast", "tiny"))
        assert update < (3e-3 if "bfloat16" in name else 3e-4 if coded else 3e-5), name
        assert learned < 1e-4, name
        assert same, name
        least = 0.25 if "split" in name else 0.625 if "moments" in name else 1
        if "clipped" in name and "moments" in name:  # AdamW has two moments, SGD one
            least = 0.5
        assert least <= held < least + 0.05, name


@functools.cache
def compiled(run):
    """The train step for as many H200 as the run has."""
    parts = from_config.build(run, card_devices(CARDS["h200"], run.mesh.data))
    return compile_for(
        parts.placement.jit(parts.train_step, donate_argnums=0),
        (from_config.state_shapes(run, parts), from_config.batch_specs(run)),
        CARDS["h200"],
        compiler_options={"xla_backend_optimization_level": 0},
        mesh=parts.placement.mesh,
    )


# Bytes of the packed gradients of ViT-B/16, float32, with the few that are not pruned.
WIRE = {"full": 344, "lean": 74, "lean/js50": 39, "prebackrazor": 39, "prebackrazor++/js50": 22}


# JointSPAR exchanges when all gradients are there, and drops blocks of them before.
OVERLAPPED = ("full", "lean", "prebackrazor")
WORK = ("fusion", "custom-call", "while")


def beside_all_reduces(program):
    """The operations between the halves of the first all-reduce in a loop, as scheduled."""
    computations, entry = parse(program)
    for name, body in computations.items():
        ops = [one.op for one in body.values()]
        if name != entry and "all-reduce-start" in ops:
            return ops[ops.index("all-reduce-start") : ops.index("all-reduce-done")]
    return []


@pytest.mark.gpu_compile
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.exhaustive] if m != "lean" else []) for m in WIRE]
)
def test_what_devices_exchange_and_need(method):
    """Of eight H200, 128 images each: packed gradients alone, and the memory of one device.

    A block's gradients are on the wire while the next block computes.
    """
    settings = load.load("configs/vit_b16.py", [f"method={method}", "batch_size=1024"])
    found = {}
    for count in (1, 8):
        run = dataclasses.replace(settings, mesh=Mesh(data=count), batch_size=128 * count)
        step = compiled(run)
        kernels = {one.name for one in launches(step.as_text()) if one.kind == "kernel"}
        need = memory(step)
        found[count] = need.wire_bytes, need.temp_bytes, kernels
    (nothing, alone, kernels), (wire, shared, same) = found[1], found[8]
    assert nothing == 0
    assert 0.9e6 * WIRE[method] < wire < 1e6 * WIRE[method]
    assert shared < 1.02 * alone
    assert kernels == same and kernels
    beside = sum(op in WORK for op in beside_all_reduces(step.as_text()))
    assert beside >= 5 if method in OVERLAPPED else beside == 0


# Of the state with SGD's momentum, by what is split; bytes on the wire are gradients' and kernels'.
SPLIT = {"parameters": (0.25, 379), "moments": (0.63, 74)}


@pytest.mark.exhaustive
@pytest.mark.gpu_compile
def test_devices_exchange_the_words_that_a_batch_has():
    """2 048 of 30 522 rows of the word embedding, whose gradient is 15.6 MB."""
    shape = {"size": "none", "width": 128, "depth": 1, "heads": 2, "mlp_dim": 256}
    changes = [f"model.{name}={value}" for name, value in (shape | {"max_length": 32}).items()]
    run = load.load("configs/bert_rte.py", [*changes, "batch_size=64"])
    step = compiled(dataclasses.replace(run, mesh=Mesh(data=8)))
    assert 0.5e6 < memory(step).wire_bytes < 0.9e6  # half of 1.05 MB, since rows move once


@pytest.mark.exhaustive
@pytest.mark.gpu_compile
@pytest.mark.parametrize("what", ["parameters", "moments"])
def test_what_devices_need_that_split_their_state(what):
    """Of eight H200: shares of the state, and of whole kernels those of a block or two.

    Where moments are split, the wire has no more than without. Where parameters are, it has half an
    all-reduce of packed gradients, and all kernels twice.
    """
    settings = load.load("configs/vit_b16.py", ["method=lean", "batch_size=1024"])
    found = []
    for devices in (Mesh(data=8), Mesh(data=8, fsdp=8, split=what)):
        run = dataclasses.replace(settings, mesh=devices)
        step = compiled(run)
        found.append(need := memory(step))
        said = estimated(run)
        assert said.wire_bytes == pytest.approx(need.wire_bytes, rel=0.01)
        assert said.argument_bytes == pytest.approx(need.argument_bytes, rel=0.01)
    replicated, split = found
    fraction, wire = SPLIT[what]
    assert split.argument_bytes < fraction * replicated.argument_bytes
    assert split.temp_bytes < 1.02 * replicated.temp_bytes
    assert 0.98e6 * wire < split.wire_bytes < 1e6 * wire


def test_moments_are_split_like_their_parameters():
    """By name, wherever an optimizer keeps them; what policies have learned is whole."""
    parts = from_config.build(config("prebackrazor", optimizer=Optimizer(name="adamw")))
    path = ("blocks", "fc1", "kernel")
    devices = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"))
    place = Placement(devices, True, 1, split={path: True, path[-1:]: False})
    shapes = from_config.state_shapes(config("prebackrazor"), parts)
    leaves = jax.tree_util.tree_leaves_with_path(place.state_shardings(shapes))
    split = {jax.tree_util.keystr(keys) for keys, own in leaves if not own.is_fully_replicated}
    inside = "".join(f"['{name}']" for name in path)
    assert {name.removesuffix(inside).rpartition(".")[2] for name in split} == {
        "params",
        "mu",
        "nu",
    }
    specs = {own.spec for _, own in leaves}
    assert specs == {PartitionSpec(), PartitionSpec(None, None, "fsdp")}


def test_large_matrices_are_split(monkeypatch):
    monkeypatch.setattr(cuts, "SPLIT_FROM", 4 * 2 * 16 * 32)
    shapes = from_config.build(config()).model.shapes()[0]
    names = {"/".join(path) for path, cut in cuts.split_of(shapes, 4).items() if cut}
    assert names == {f"blocks/{site}/kernel" for site in ("qkv", "fc1", "fc2")}
    assert cuts.split_of(shapes, 1) == {}
    assert cuts.split_of(shapes, 5) == {}  # no last axis is a multiple of 5


def test_devices_that_split_parameters_share_the_batch(monkeypatch):
    (fault,) = tie_faults(config(batch_size=24, mesh=Mesh(data=6, fsdp=4)), ())
    assert fault == (
        "mesh.fsdp = 4: must divide mesh.data = 6, the devices that share a batch; set mesh.fsdp=2"
    )
    (fault,) = tie_faults(config(mesh=Mesh(split="moments")), ())
    assert fault.startswith("mesh.split = 'moments': splits nothing with mesh.fsdp = 1; set")
    monkeypatch.setattr(jax, "devices", lambda: [*devices_of(*[0] * 8).devices])
    settled, _ = settled_devices(config(batch_size=12, mesh=Mesh(fsdp=4)))
    assert settled.mesh.data == 4
    with pytest.raises(ValueError, match="batch_size = 6: has no equal parts on any"):
        settled_devices(config(batch_size=6, mesh=Mesh(fsdp=4)))


def test_devices_are_those_that_divide_the_batch(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [*devices_of(*[0] * 8).devices])
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
    devices = [
        types.SimpleNamespace(process_index=process, device_kind="cpu") for process in processes
    ]
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
    devices = devices_of(0, 0, 0, 0, 0, 1, 1, 1, 1).devices  # nine, of which eight take part
    monkeypatch.setattr(jax, "devices", lambda: [*devices])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert settled_devices(config(batch_size=64))[0].mesh.data == 8
    assert settled_devices(config(batch_size=12))[0].mesh.data == 6
    with pytest.raises(ValueError, match=r"mesh.data = 3: must be a multiple of the 2 processes"):
        settled_devices(config(mesh=Mesh(data=3)))
    with pytest.raises(ValueError, match="batch_size = 9: has no equal parts on any"):
        settled_devices(config(batch_size=9))
