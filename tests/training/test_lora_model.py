"""LoRA in the trainer: what moves and what does not, what it saves, and what it is merged into."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import batch, config
from flax import traverse_util
from measures import as_jax, assert_close, normal

from pbr_jax import weights
from pbr_jax.configs.common import Data, Decoder, Lora, Model, Optimizer
from pbr_jax.memory.use import memory_use, saved_bytes
from pbr_jax.models import decoder
from pbr_jax.models import lora as models
from pbr_jax.plans import ResidualPlan
from pbr_jax.settings.resolve import family_faults
from pbr_jax.settings.variants import method_names
from pbr_jax.training import from_config, lora_model

pytest.importorskip("qwix")
FOUR = Lora(rank=4, alpha=6.0)
ADAMW = Optimizer(name="adamw", learning_rate=0.01, schedule="constant", weight_decay=0.3)


def settings(name, method, lora=FOUR):
    model = Model(image_size=8, channels=1, num_classes=4, family=f"own_models:{name}")
    data = Data(name="npz", path="no")
    return config(method, model=model, data=data, optimizer=ADAMW, lora=lora)


def examples():
    small = batch()
    return small | {"image": np.tile(small["image"], (1, 2, 2, 1))}


def start(name):
    config = settings(name, "lora")
    parts = from_config.build(config)
    params, extra, _ = parts.model.begin(0, None)
    return parts, from_config.new_state(config, parts, params, extra)


@pytest.fixture
def standard_promotion():
    """Optax's Adam mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def adapters_of(params):
    return {path: leaf for path, leaf in flat(params).items() if "_lora_" in path}


def moved(params, seed=9):
    """The parameters with a B that is not zero."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    drawn = [
        as_jax(0.1 * normal(seed + i, *leaf.shape)) if models.is_adapter(path) else leaf
        for i, (path, leaf) in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


@pytest.mark.parametrize("name", ["scanned", pytest.param("mlp", marks=pytest.mark.exhaustive)])
def test_a_step_moves_a_and_b_alone(name, standard_promotion):
    parts, state = start(name)
    model, before = parts.model, flat(jax.tree.map(np.asarray, state.params))
    trained, frozen = model.split(state.params, {})
    batch, key = examples(), jax.random.key(0)
    grads, _ = jax.grad(model.loss, has_aux=True)(trained, frozen, state.extra, {}, batch, key)
    adapted = adapters_of(state.params)
    assert {path for path, g in flat(grads).items() if g.size} == set(adapted)
    assert {leaf.dtype for leaf in adapted.values()} == {jnp.dtype("float32")}
    # Since B is zero, only B has a gradient at first.
    b = [np.abs(g).max() for path, g in flat(grads).items() if path.endswith("_lora_b")]
    assert min(b) > 0

    step = jax.jit(parts.train_step)
    after, _ = step(state, batch)
    after, metrics = step(after, batch)
    assert bool(metrics.finite)
    for path, leaf in flat(jax.tree.map(np.asarray, after.params)).items():
        assert np.array_equal(leaf, before[path]) != ("_lora_" in path), path


def test_the_model_begins_as_it_was_and_is_merged_into_it():
    parts, state = start("scanned")
    plain = from_config.build(settings("scanned", "full")).model
    batch = examples()
    base = models.base_of(state.params)
    assert jax.tree.structure(base) == jax.tree.structure(plain.shapes()[0])
    np.testing.assert_array_equal(
        parts.model.outputs(state.variables, batch), plain.outputs((base, state.extra), batch)
    )
    params = moved(state.params)
    merged = parts.model.merged(params)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    expected = parts.model.outputs((params, state.extra), batch)
    assert np.abs(expected - plain.outputs((base, state.extra), batch)).max() > 0.01
    assert_close(plain.outputs((merged, state.extra), batch), expected, 1e-5)


def test_a_merged_kernel_of_several_axes_and_of_bfloat16():
    shapes = {
        "dense": ((8, 6), (8, 2), (2, 6)),
        "scanned": ((3, 8, 6), (3, 8, 2), (3, 2, 6)),
        "heads": ((3, 8, 2, 3), (3, 8, 2), (3, 2, 6)),
        "out": ((2, 3, 8), (6, 2), (2, 8)),
        "convolution": ((3, 3, 4, 8), (3, 3, 4, 2), (2, 8)),
    }
    params = {
        name: {
            f"kernel{end}": as_jax(normal(i, *shape))
            for i, (end, shape) in enumerate(zip(("", "_lora_a", "_lora_b"), three, strict=True))
        }
        for name, three in shapes.items()
    }
    params["dense"]["kernel"] = params["dense"]["kernel"].astype(jnp.bfloat16)
    params["dense"]["bias"] = jnp.ones(6)
    merged = models.merged(params, Lora(rank=2, alpha=3.0))
    assert merged["dense"]["bias"] is params["dense"]["bias"]
    for name, (shape, *_) in shapes.items():
        w, a, b = (np.float64(params[name][f"kernel{end}"]) for end in ("", "_lora_a", "_lora_b"))
        wide = name in ("scanned", "heads")
        a, b = (
            np.float64(m).reshape(*m.shape[:wide], *new) for m, new in ((a, (-1, 2)), (b, (2, -1)))
        )
        expected = w + 1.5 * (a @ b).reshape(shape)
        found = merged[name]["kernel"]
        if name == "dense":  # rounded once
            np.testing.assert_array_equal(found, jnp.asarray(expected, jnp.bfloat16))
        else:
            assert_close(found, expected, 1e-6)


# --- the decoder: LoRA with rematerialised blocks ---

SHAPE = Model(
    family="decoder", width=16, depth=3, heads=2, mlp_dim=24, vocab_size=32, max_length=8,
    decoder=Decoder(kv_heads=1), param_dtype="bfloat16", dtype="bfloat16",
)  # fmt: skip
TOKENS = 2 * SHAPE.max_length


def decoder_case(recompute, dtype="bfloat16", modules=None):
    model = dataclasses.replace(SHAPE, dtype=dtype, param_dtype=dtype)
    settings = Lora(rank=4, modules=modules)
    plain = decoder.build(model, ResidualPlan(recompute=recompute))
    adapted = models.with_lora(plain, settings)
    batch = {
        "tokens": jnp.arange(TOKENS, dtype=jnp.int32).reshape(2, -1),
        "segments": jnp.ones((2, 8), jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32), (2, 8)),
    }

    def init(key):
        return models.cast(adapted.init(key, batch)["params"], jnp.float32)

    def loss(params, extra, batch, key):
        hidden, _ = adapted.apply({"params": models.cast(params, dtype)}, batch)
        return jnp.sum(hidden.astype(jnp.float32)), ({}, extra)

    return plain, adapted, batch, init, lora_model.adapters(loss, settings)


def test_a_scanned_and_rematerialised_decoder():
    plain, adapted, batch, init, fields = decoder_case(True, "float32", "blocks/(q|down)")
    params = moved(init(jax.random.key(0)))
    assert {path.split("/")[1] for path in adapters_of(params)} == {"q", "down"}
    hidden, _ = adapted.apply({"params": params}, batch)
    expected, _ = plain.apply({"params": fields["merged"](params)}, batch)
    assert_close(hidden, expected, 1e-5)


def test_a_rematerialised_decoder_saves_what_its_blocks_begin_with():
    """Without it a layer keeps its input for dA, and `x A`, [T, R], for dB."""

    def saved(recompute):
        *_, batch, init, fields = decoder_case(recompute)
        params = jax.eval_shape(init, jax.random.key(0))
        trained, frozen = jax.eval_shape(lambda p: fields["split"](p, {}), params)
        loss = lambda t, f, b: fields["loss"](t, f, (), {}, b, None)[0]  # noqa: E731
        return saved_bytes(loss, trained, frozen, batch)

    found = {recompute: saved(recompute) for recompute in (False, True)}
    width, hidden, rank, bf16 = SHAPE.width, SHAPE.mlp_dim, 4, 2
    blocks = SHAPE.depth * TOKENS * bf16
    # Inputs of q k v, o, gate up and down, what silu and attention need, and `x A` of seven layers.
    least = blocks * (3 * width + hidden + 7 * rank)
    assert found[False] > least
    assert blocks * width <= found[True] < 0.4 * found[False]


# --- what is refused ---


def test_memory_of_a_step_counts_a_and_b():
    config = settings("scanned", "lora")
    shapes, _ = from_config.build(config).model.shapes()
    a_and_b = 4 * sum(leaf.size for leaf in adapters_of(shapes).values())
    assert memory_use(config).gradients == a_and_b


@pytest.mark.parametrize(
    ("name", "modules", "message"),
    [
        ("mixer", None, "is an NNX module"),
        ("scanned", "blocks", "none of the layers of own_models:scanned .* blocks/mlp, head"),
    ],
)
def test_what_has_no_place_for_a_and_b_says_so(name, modules, message):
    with pytest.raises(ValueError, match=message):
        from_config.build(settings(name, "lora", dataclasses.replace(FOUR, modules=modules)))


def test_settings_ask_for_qwix_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (fault,) = family_faults(settings("scanned", "lora"))
    assert fault == (
        "method = lora: needs the package qwix; install it with: pip install 'pbr_jax[lora]'"
    )
    assert "lora" not in method_names(settings("scanned", "full"))


def test_blocks_of_ours_have_no_place_for_it():
    (fault,) = family_faults(config("lora"))
    assert "set method=tiny; its blocks have a backward pass of their own" in fault


def test_an_export_begins_the_next_run(tmp_path):
    """Its kernels are the merged ones; A and B are new."""
    parts, state = start("scanned")
    params = parts.model.merged(moved(state.params))
    place, out = parts.family.build, tmp_path / "orbax"
    run = settings("scanned", "lora")
    weights.save(out, "orbax", place, params, weights.published(place).sizes(run.model), ["a"] * 4)
    again = dataclasses.replace(run, model=dataclasses.replace(run.model, weights=str(out)))
    begun, _, notes = from_config.build(again).model.begin(0, None)
    jax.tree.map(np.testing.assert_array_equal, models.base_of(begun), params)
    assert all((leaf == 0).all() for path, leaf in flat(begun).items() if path.endswith("_lora_b"))
    assert not any("lora" in note for note in notes)
