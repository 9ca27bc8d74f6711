"""Four devices give what one gives: outputs, gradients, and where these lie."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from four_devices import answer
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pbr_jax import layers
from pbr_jax.gpu import CARDS, card_devices, compile_for

CASES = [  # axes, parallel, net
    pytest.param(case, id=case, marks=pytest.mark.slow)
    for case in ("Explicit-fsdp-blocks", "Explicit-tensor-blocks", "Manual-data-blocks")
]
OTHERS = [
    pytest.param(case, id=case, marks=pytest.mark.exhaustive)
    for case in (
        "Auto-data-blocks",
        "Auto-fsdp-blocks",
        "Auto-tensor-blocks",
        "Explicit-data-blocks",
        "Local-data-blocks",
        "Unchecked-data-blocks",
        "Auto-data-elements",
        "Explicit-data-elements",
        "Manual-data-elements",
    )
]


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_equal_to_one_device(case):
    assert answer("layer_meshes.py", case, CASES, OTHERS) <= 5e-6


@pytest.mark.gpu_compile
@pytest.mark.parametrize("checked", [True, False])
def test_kernels_run_on_every_device_inside_shard_map(checked):
    """As many as on one device, also where JAX checks what varies."""
    card, x = CARDS["h200"], jax.ShapeDtypeStruct((4, 32, 64), jnp.float32)
    module = nn.Sequential([layers.LayerNorm(), layers.Dense(64, use_bias=False)])
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]

    def gradient(params, x):
        def loss(params):
            rngs = {"selection": jax.random.key(0)}
            y, _ = module.apply({"params": params}, x, rngs=rngs, mutable=["selection"])
            return jnp.sum(y)

        return jax.grad(loss)(params)

    mesh = jax.sharding.Mesh(card_devices(card, 2), ("data",))
    axes = {"in_specs": (P(), P("data")), "out_specs": P(), "check_vma": checked}
    many = jax.jit(
        jax.shard_map(gradient, mesh=mesh, **axes),
        in_shardings=(NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))),
    )
    programs = (
        compile_for(gradient, [params, x], card),
        compile_for(many, [params, x], card, mesh=mesh),
    )
    alone, each = (c.as_text().count('custom_call_target="__gpu$xla.gpu.triton"') for c in programs)
    assert alone == each > 0
