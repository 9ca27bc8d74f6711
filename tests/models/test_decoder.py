"""What a decoder computes, what it keeps, and what `prune` sees of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_oracle import SHAPES, drawn, logits_of, row_of, small
from measures import assert_close, equations

from pbr_jax.configs.common import named_decoder
from pbr_jax.models.decoder import build
from pbr_jax.models.decoder_block import BLOCK_INPUT, gated, rms_norm
from pbr_jax.models.rotary import rotate
from pbr_jax.plans import ResidualPlan

ONE, OTHER = [3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5]
# As their authors count them: bytes of the published files, over those of a number.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "llama3.2-1b": 1_235_814_400,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "gemma3-1b": 999_885_952,
}


def run(module, params, row):
    """Logits `[N, V]` of a row."""
    function = jax.jit(lambda p, row: module.apply({"params": p}, row, method="logits"))
    return np.asarray(function(params, row)[0])


@pytest.mark.parametrize("kind", SHAPES)
def test_two_texts_in_a_row_have_the_logits_of_each_alone_in_float64(kind):
    """Norms, positions, windows, groups and the gate are right, and no text sees another."""
    model, module = small(kind)
    params = drawn(module)
    packed = run(module, params, row_of(ONE, OTHER))
    expected = np.concatenate([logits_of(model, params, text) for text in (ONE, OTHER)])
    assert_close(packed[: len(expected)], expected, 2e-5)


@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma3", marks=pytest.mark.exhaustive)])
def test_a_rematerialised_block_keeps_its_input_and_gives_the_same_gradient(kind):
    found = []
    for recompute in (False, True):
        model, module = small(kind, ResidualPlan(recompute=recompute))
        params, row = drawn(module), jax.tree.map(jnp.asarray, row_of(ONE, OTHER))

        def loss(params, module=module, row=row):
            return jnp.sum(jnp.sin(module.apply({"params": params}, row, method="logits")))

        kept = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)
        stacked = {leaf.shape for leaf in jax.tree.leaves(kept) if leaf.shape[1:3] == (1, 12)}
        found.append((jax.jit(jax.grad(loss))(params), stacked))
    (plain, many), (again, few) = found
    assert few == {(model.depth, 1, 12, model.width)} < many
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), again, plain)


def test_the_input_of_a_block_is_named_inside_what_is_checkpointed():
    """On the output of the scan the name would do nothing, silently."""
    _, module = small(plan=ResidualPlan(recompute=True))
    jaxpr = jax.make_jaxpr(lambda p, row: module.apply({"params": p}, row))(
        drawn(module), row_of(ONE)
    )
    checkpoints = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "remat2"] or [
        e for e in equations(jaxpr.jaxpr) if "checkpoint" in e.primitive.name
    ]
    block = max(checkpoints, key=lambda e: len(e.params["jaxpr"].eqns))
    names = [e.params["name"] for e in equations(block.params["jaxpr"]) if "name" in e.params]
    assert BLOCK_INPUT in names


def test_norm_gate_and_rotation_keep_their_inputs_only_and_have_exact_gradients():
    x, y = (jnp.asarray(np.random.default_rng(i).standard_normal((2, 3, 5, 8))) for i in (0, 1))
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    scale, places = jnp.ones(8, jnp.float32), jnp.ones((2, 5), jnp.int32)
    turns = jnp.ones(4, jnp.float32)
    for function, args, kept in (
        (lambda x, s: rms_norm(x, s, 1e-6, True), (x, scale), {x.shape, scale.shape}),
        (lambda x, y: gated(x, y, "silu"), (x, y), {x.shape}),
        (lambda x: rotate(x, places, turns), (x,), {places.shape, turns.shape}),
    ):
        leaves = jax.tree.leaves(jax.vjp(function, *args)[1])
        assert {leaf.shape for leaf in leaves} <= kept
        assert all(leaf.dtype != jnp.float32 or leaf.ndim == 1 for leaf in leaves)

    wide, angles = np.asarray(x, np.float64), np.ones(4)
    z = (wide[..., :4] + 1j * wide[..., 4:]) * np.exp(1j * angles)
    expected = np.concatenate([z.real, z.imag], axis=-1)
    assert_close(np.asarray(rotate(x.astype(jnp.float32), places, turns)), expected, 1e-6)
    # A rotation is undone by its transpose.
    dy = rotate(x.astype(jnp.float32), places, turns)
    (dx,) = jax.vjp(lambda x: rotate(x, places, turns), x.astype(jnp.float32))[1](dy)
    assert_close(np.asarray(dx), wide, 1e-6)


def test_activations_and_parameters_have_the_types_that_are_set():
    _, module = small("gemma3", dtype="bfloat16", param_dtype="bfloat16")
    params = drawn(module)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    hidden, table = jax.eval_shape(module.apply, {"params": params}, row_of(ONE))
    assert (hidden.dtype, hidden.shape) == (jnp.bfloat16, (1, 12, 16))
    assert (table.dtype, table.shape) == (jnp.bfloat16, (20, 16))
    _, single = small("gemma3")
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    exact, rounded = run(single, wide, row_of(ONE)), run(module, params, row_of(ONE))
    assert rounded.dtype == np.float32
    assert np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_a_layer_is_local_by_its_number_alone():
    """Gemma's fifth sees a window, its sixth all, with angles of its own."""
    model = named_decoder("gemma3-1b")
    module = build(model, ResidualPlan())
    specs = module.input_specs(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), specs)["params"]
    scans = [
        e
        for e in jax.make_jaxpr(module.apply)({"params": shapes}, specs).eqns
        if e.primitive.name == "scan"
    ]
    assert len(scans) == 1 and scans[0].params["length"] == 26


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_shapes_have_as_many_parameters_as_their_files(name):
    module = build(named_decoder(name), ResidualPlan())
    shapes = jax.eval_shape(module.init, jax.random.key(0), module.input_specs(1))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


def test_a_shape_that_is_not_published_is_named():
    with pytest.raises(ValueError, match=r"'llama3': must be one of smollm2-135m, llama3.2-1b"):
        named_decoder("llama3")
