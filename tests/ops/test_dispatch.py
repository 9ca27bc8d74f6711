"""Which implementation runs: the first choice of the device, or the one that was named."""

import jax
import jax.numpy as jnp
import pytest
from measures import unchecked

from pbr_jax.gpu import CARDS, compile_for
from pbr_jax.ops import dispatch
from pbr_jax.ops.dispatch import Offer, Target, choose

KERNELS = {"triton": Offer()}


@pytest.fixture
def on(monkeypatch):
    """Makes the device that functions are traced for another one."""

    def put(name):
        card = CARDS[name]
        where = Target("gpu", card.description, card.capability)
        monkeypatch.setattr(dispatch, "target", lambda: where)

    return put


def test_a_cpu_runs_xla():
    assert dispatch.target().platform == "cpu"
    assert choose("linear", None, KERNELS) == choose("linear", "xla", KERNELS) == "xla"


@pytest.mark.parametrize(
    ("card", "expected"),
    [("h200", "triton"), ("a100", "triton"), ("rtx4090", "triton"), ("rtx2080ti", "xla")],
)
def test_the_device_decides(on, card, expected):
    on(card)
    assert choose("linear", None, KERNELS) == expected
    assert choose("linear", "xla", KERNELS) == "xla"


def test_a_kernel_that_refuses_or_is_not_preferred_gives_way(on):
    on("h200")
    assert choose("linear", None, {"triton": Offer("K = 0: must be at least 1")}) == "xla"
    assert choose("linear", None, {"triton": Offer(preferred=False)}) == "xla"
    assert choose("linear", "triton", {"triton": Offer(preferred=False)}) == "triton"
    both = {"jax_triton": Offer("head = 48: must be a power of two"), "triton": Offer()}
    assert choose("attention", None, both) == "triton"


@pytest.mark.parametrize(
    ("card", "implementation", "offers", "message"),
    [
        (None, "triton", KERNELS, "of linear: needs a GPU, and this is cpu; name xla"),
        ("rtx2080ti", "triton", KERNELS, "needs compute capability 8.0, and NVIDIA .* has 7.5"),
        ("h200", "jax_triton", KERNELS, "'jax_triton': linear has xla, triton; name one of these"),
        ("h200", "triton", {"triton": Offer("K = 0: is bad")}, "'triton' of linear: K = 0: is bad"),
        ("h200", "cuda", KERNELS, "'cuda': must be one of xla, triton, jax_triton"),
    ],
)
def test_a_named_one_raises_with_the_reason(on, card, implementation, offers, message):
    if card:
        on(card)
    with pytest.raises(ValueError, match=message):
        unchecked(choose)("linear", implementation, offers)


def test_a_missing_package_is_named(on, monkeypatch):
    on("h200")
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"jax-triton is not installed.*pbr_jax\[cuda\]"):
        choose("gelu", "jax_triton", {"jax_triton": Offer()})


def test_kernels_run_on_one_device(on, monkeypatch):
    where = Target("gpu", "NVIDIA H200", (9, 0), num_devices=8)
    monkeypatch.setattr(dispatch, "target", lambda: where)
    assert choose("linear", None, KERNELS) == "xla"
    with pytest.raises(ValueError, match="runs on one device, and the mesh has 8"):
        choose("linear", "triton", KERNELS)


def test_interpreted_kernels_run_anywhere_but_only_by_name():
    with dispatch.interpreted():
        assert dispatch.interpreting()
        assert choose("linear", "triton", KERNELS) == "triton"
        assert choose("linear", None, KERNELS) == "xla"
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


def test_the_capability_of_a_live_device_is_read_from_its_text():
    assert dispatch._parse_capability("12.0") == (12, 0)
    assert dispatch._parse_capability("gfx942") is None
    assert dispatch._parse_capability(None) is None
