"""Which implementation runs: the first choice of the device, or the one that was named."""

import math
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from measures import unchecked

from pbr_jax.gpu import CARDS, compile_for
from pbr_jax.gpu.cards import for_capability
from pbr_jax.kernels import attention_blocks, layer_norm, linear_tiles, weight_gradient
from pbr_jax.ops import dispatch
from pbr_jax.ops.dispatch import Kernel, Target, unfit


def kernel(refusal=None, preferred=True, op="linear", implementation="triton"):
    return Kernel(op, lambda: refusal, {}, lambda: preferred, implementation)


@pytest.fixture
def on(monkeypatch):
    """Makes the device that functions are traced for another one."""

    def put(name):
        card = CARDS[name]
        where = Target("gpu", card.description, card.capability)
        monkeypatch.setattr(dispatch, "target", lambda *args: where)

    return put


def test_a_cpu_runs_xla():
    assert dispatch.target().platform == "cpu"
    assert kernel().choose(None) == kernel().choose("xla") == "xla"


@pytest.mark.parametrize(
    ("card", "expected"),
    [("h200", "triton"), ("a100", "triton"), ("rtx4090", "triton"), ("rtx2080ti", "xla")],
)
def test_the_device_decides(on, card, expected):
    on(card)
    assert kernel().choose(None) == expected
    assert kernel().choose("xla") == "xla"


def test_a_kernel_that_refuses_or_is_not_preferred_gives_way(on):
    on("h200")
    assert kernel("K = 0: must be at least 1").choose(None) == "xla"
    assert kernel(preferred=False).choose(None) == "xla"
    assert kernel(preferred=False).choose("triton") == "triton"


@pytest.mark.parametrize(
    ("card", "implementation", "refusal", "message"),
    [
        (None, "triton", None, "of linear: needs a GPU, and this is cpu; name xla"),
        ("rtx2080ti", "triton", None, "needs compute capability 8.0, and NVIDIA .* has 7.5"),
        ("h200", "jax_triton", None, "'jax_triton': linear has xla, triton; name one of these"),
        ("h200", "triton", "K = 0: is bad", "'triton' of linear: K = 0: is bad; name xla"),
        ("h200", "cuda", None, "'cuda': must be one of xla, triton, "),
    ],
)
def test_a_named_one_raises_with_the_reason(on, card, implementation, refusal, message):
    if card:
        on(card)
    with pytest.raises(ValueError, match=message):
        unchecked(Kernel.choose)(kernel(refusal), implementation)


def test_a_missing_package_is_named(on, monkeypatch):
    on("h200")
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"jax-triton is not installed.*pbr_jax\[cuda\]"):
        kernel(op="gelu", implementation="jax_triton").choose("jax_triton")


class TestMeshOfSeveralDevices:
    @pytest.fixture(autouse=True)
    def mesh(self, monkeypatch):
        where = Target("gpu", "NVIDIA H200", (9, 0), num_devices=8)
        monkeypatch.setattr(dispatch, "target", lambda *args: where)
        monkeypatch.setattr(dispatch, "_warned", set())

    def test_a_named_kernel_is_refused(self):
        with pytest.raises(ValueError, match="runs on one device, and the mesh has 8"):
            kernel().choose("triton")

    def test_left_to_the_device_xla_runs_and_each_op_says_so_once(self):
        for op in ("linear", "attention"):
            with pytest.warns(UserWarning, match=f"^{op} runs by XLA: .* the mesh has 8; .*'xla'"):
                assert kernel(op=op).choose(None) == "xla"
            assert kernel(op=op).choose(None) == "xla"  # a second warning would be an error

    @pytest.mark.parametrize(
        "quiet", [kernel("x: is bad"), kernel(preferred=False)], ids=["refuses", "not preferred"]
    )
    def test_nothing_is_said_of_a_kernel_that_would_not_run_anyway(self, quiet):
        assert quiet.choose(None) == "xla"
        assert kernel().choose("xla") == "xla"


def test_interpreted_kernels_run_anywhere_but_only_by_name():
    with dispatch.interpreted():
        assert dispatch.interpreting()
        assert kernel().choose("triton") == "triton"
        assert kernel().choose(None) == "xla"
    assert not dispatch.interpreting()


@pytest.mark.gpu_compile
def test_the_target_is_the_card_that_is_compiled_for():
    seen = []

    @jax.jit
    def double(x):
        seen.append(dispatch.target())
        return jax.lax.scan(
            lambda c, _: (seen.append(dispatch.target()) or c + x, None), x, length=2
        )

    x = jnp.ones(8)
    double(x)
    compile_for(double, [x], CARDS["rtx3090"])
    double(x)
    assert {(t.platform, t.capability) for t in seen} == {("cpu", None), ("gpu", (8, 6))}


def test_a_device_described_by_the_mesh_alone_is_looked_up():
    def traced_for(kind):
        device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform="gpu")
        mesh = jax.sharding.AbstractMesh((4,), ("x",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            return dispatch.target()

    assert traced_for("NVIDIA A100-SXM4-80GB") == ("gpu", "NVIDIA A100-SXM4-80GB", (8, 0), 4)
    assert traced_for("NVIDIA Something").capability is None


def test_a_card_of_this_machine_that_no_table_has_keeps_its_capability(monkeypatch):
    """`jax.set_mesh` describes the device by name alone."""
    live = types.SimpleNamespace(
        platform="gpu", device_kind="NVIDIA Something", compute_capability="8.9"
    )
    device = jax.sharding.AbstractDevice(
        device_kind=live.device_kind, num_cores=1, platform=live.platform
    )
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        monkeypatch.setattr(jax, "devices", lambda: [live])
        assert dispatch.target() == ("gpu", "NVIDIA Something", (8, 9), 1)
        assert kernel().choose(None) == "triton"


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_arrays_tell_their_mesh_where_none_is_in_scope(kind):
    mesh = jax.sharding.AbstractMesh((4,), ("x",), axis_types=(kind,))
    x = jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    assert dispatch.target({"beside": 1.0}, x).num_devices == 4
    assert dispatch.target(jnp.ones(2)).num_devices == 1


def test_manual_axes_do_not_count():
    kinds = (AxisType.Manual, AxisType.Auto)
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((4, 2), ("x", "y"), axis_types=kinds)
    ):
        assert dispatch.target().num_devices == 2


def test_the_capability_of_a_live_device_is_read_from_its_text():
    assert dispatch._parse_capability("12.0") == (12, 0)
    assert dispatch._parse_capability("gfx942") is None
    assert dispatch._parse_capability(None) is None


def test_dtype_and_size_are_refused_by_name():
    def spec(size, dtype):
        return jax.ShapeDtypeStruct((size,), dtype)

    fine = spec(8, jnp.bfloat16)
    assert unfit(x=fine, dy=spec(2**31 - 1, jnp.float32)) is None
    assert unfit(x=fine, u=spec(8, jnp.int8)) == (
        "u has dtype int8: must be bfloat16, float16 or float32"
    )
    assert unfit(x=spec(0, jnp.float32)) == (
        "x has 0 elements: must be at least 1 and fewer than 2^31"
    )
    assert unfit(x=fine, dy=spec(2**31, jnp.float16)).startswith("dy has 2147483648 elements")
    assert unfit(math.inf, x=spec(0, jnp.float32)) == "x has 0 elements: must be at least 1"


# Tiles of every kernel by compute capability: those of 9.0 on a card, or those of 8.0.
CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
HOPPER = {
    attention_blocks: [False, False, False, True, True, False],
    layer_norm: [False, False, False, True, True, True],
    linear_tiles: [False, False, False, True, True, True],
    weight_gradient: [False, False, False, True, True, True],
}


@pytest.mark.parametrize("module", HOPPER, ids=lambda module: module.__name__.split(".")[-1])
def test_tiles_by_capability(module):
    tiles = module.TILES
    assert tiles[8, 0] != tiles[9, 0]
    for capability, is_hopper in zip(CAPABILITIES, HOPPER[module], strict=True):
        assert for_capability(tiles, capability) == tiles[(9, 0) if is_hopper else (8, 0)], (
            capability
        )
    assert for_capability(tiles, None) == for_capability(tiles, (7, 5)) == tiles[8, 0]
