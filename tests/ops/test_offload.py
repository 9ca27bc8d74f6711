"""Block inputs on the host: by `ops.stack` and by `jax.checkpoint`, on the CPU and in the plan."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import batch, config
from small_block import B, D, L, N

from pbr_jax.configs.common import Decoder, Model, Plan
from pbr_jax.gpu import CARDS, compile_for, memory
from pbr_jax.memory import room
from pbr_jax.memory.use import Saved, memory_use, offloaded_bytes, saved
from pbr_jax.models import decoder
from pbr_jax.ops import offload, pair
from pbr_jax.ops.stack import stack
from pbr_jax.plans import ResidualPlan
from pbr_jax.training import from_config

REMAT = ResidualPlan(recompute=True, batch_chunks=2)
INPUTS = 4 * L * B * N * D


def gradients(method, **changes):
    run = config(method, **changes)
    parts = from_config.build(run)
    params, extra, _ = parts.model.begin(0, None)
    _, selection = parts.model.select(jax.random.key(1), parts.model.policies(), jnp.int32(0))
    trained, frozen = parts.model.split(params, selection)
    loss = jax.value_and_grad(parts.model.loss, has_aux=True)
    return jax.jit(loss)(trained, frozen, extra, selection, batch(), jax.random.key(0))


def test_gradients_are_those_without_it():
    """A CPU's own memory is that of the host: the copies are made, and change nothing."""
    (value, _), grads = gradients("remat")
    (same_value, _), same = gradients("remat+offload")
    assert value == same_value
    jax.tree.map(np.testing.assert_array_equal, grads, same)


def test_bytes_are_counted_where_they_lie():
    here, away = config("remat"), config("remat+offload")
    moved = offloaded_bytes(away)
    assert offloaded_bytes(here) == 0 < moved
    assert memory_use(here).activations == memory_use(away).activations + moved


# --- a decoder: the same by a policy of `jax.checkpoint` ---


def decoder_loss(plan, dtype="float32", **sizes):
    shape = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 24, "max_length": 8} | sizes
    own = Model(
        family="decoder", vocab_size=32, dtype=dtype, param_dtype=dtype,
        decoder=Decoder(kv_heads=1), **shape,
    )  # fmt: skip
    module = decoder.build(own, plan)
    row = jnp.broadcast_to(
        jnp.arange(shape["max_length"], dtype=jnp.int32), (2, shape["max_length"])
    )
    inputs = {"tokens": row % 32, "segments": jnp.ones_like(row), "positions": row}

    def loss(params, inputs):
        return jnp.sum(jnp.sin(module.apply({"params": params}, inputs)[0].astype(jnp.float32)))

    return module, inputs, loss


def test_a_decoder_offloads_the_inputs_of_its_blocks():
    def kept(away):
        module, inputs, loss = decoder_loss(ResidualPlan(recompute=True, offload=away))
        params = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
        return saved(loss, params, inputs)

    here, block_inputs = kept(False), 4 * 3 * 2 * 8 * 16
    assert kept(True) == Saved(here.device - block_inputs, block_inputs)


@pytest.mark.exhaustive
def test_gradients_of_a_decoder_are_those_without_it():
    def grads(away):
        module, inputs, loss = decoder_loss(ResidualPlan(recompute=True, offload=away))
        params = module.init(jax.random.key(0), inputs)["params"]
        return jax.jit(jax.grad(loss))(params, inputs)

    jax.tree.map(np.testing.assert_array_equal, grads(True), grads(False))


@pytest.mark.gpu_compile
@pytest.mark.parametrize(
    "family", ["stack", pytest.param("decoder", marks=[pytest.mark.exhaustive, pytest.mark.slow])]
)
def test_the_compiler_plans_block_inputs_on_the_host(family):
    """Temp falls by them, but for two that are here at a time, or one more; the host has them."""
    depth, tokens, width = 8, 4096, 256
    inputs, reports = depth * tokens * width * 2, []
    for away in (False, True):
        plan = ResidualPlan(recompute=True, offload=away)
        if family == "stack":
            one = [pair.recompute(_dense())]
            loss = _summed(pair.bind(stack(one, on_host=away)))
            args = {"w": _spec(depth, width, width)}, _spec(tokens, width)
        else:
            module, some, loss = decoder_loss(
                plan, "bfloat16", width=width, depth=depth, mlp_dim=512, max_length=tokens // 2
            )
            args = jax.eval_shape(module.init, jax.random.key(0), some)["params"], some
        reports.append(memory(compile_for(jax.grad(loss), args, CARDS["rtx4090"])))
    here, there = reports
    assert (here.host_bytes, there.host_bytes) == (0, inputs)
    fell = here.temp_bytes - there.temp_bytes
    assert inputs * (1 - 3 / depth) <= fell <= inputs * (1 + 1 / depth)


def _dense():
    def forward(params, x, aux):
        return jnp.tanh(x @ params["w"]), x

    def backward(params, x, aux, dy):
        du = dy * (1 - jnp.tanh(x @ params["w"]) ** 2)
        return {"w": x.T @ du}, du @ params["w"].T

    return pair.Pair(forward, backward)


def _summed(function):
    return lambda params, x: jnp.sum(function(params, x, None).astype(jnp.float32))


def _spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


# --- what is refused ---


def device(*kinds):
    memories = [types.SimpleNamespace(kind=kind) for kind in kinds]
    return types.SimpleNamespace(addressable_memories=lambda: memories, device_kind="Card X")


def test_a_device_without_pinned_memory_says_what_to_set(monkeypatch):
    assert offload.refusal(jax.devices()[0]) is None
    assert offload.refusal(device()) is None  # one that is only compiled for
    monkeypatch.setattr(jax, "local_devices", lambda: [device("device", "unpinned_host")])
    why = "Card X has no pinned_host memory; it has device, unpinned_host"
    assert room.offload_fault(config("lean")) is None
    for run, setting, instead in (
        (config("tiny+offload/js50"), "method = tiny+offload/js50", "method=tiny/js50"),
        (config("remat", plan=Plan(offload=True)), "plan.offload = true", "plan.offload=none"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{setting}: {why}; set {instead}")):
            room.check_room(run)
