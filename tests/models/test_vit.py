"""The ViT against a plain float32 ViT that autodiff differentiates."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import bert, columns, param_shapes, random_params, vit
from measures import assert_close, equations, value_and_pullback

from pbr_jax.configs.common import MODEL_SIZES
from pbr_jax.methods import OF_HALF_BLOCKS, resolve
from pbr_jax.plans import SITES, Keep, ResidualPlan

COLUMNS = ResidualPlan(linear="columns", keep=Keep(0.1))


def images(batch: int = 3, side: int = 4, channels: int = 3) -> jax.Array:
    generator = np.random.default_rng(1)
    return jnp.asarray(generator.standard_normal((batch, side, side, channels)), jnp.float32)


def reference(params, pictures, *, heads=2, patch=2, pool="cls"):
    """Dosovitskiy et al. (2021), equations 1-4, as one would write it in NumPy."""

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    def attend(x, p, q_k_v):
        def split(part):
            return part.reshape(*part.shape[:2], heads, -1).swapaxes(1, 2)

        q, k, v = (split(part) for part in jnp.split(linear(x, q_k_v), 3, axis=-1))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        return linear((jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape), p)

    with jax.numpy_rank_promotion("allow"):
        rows = []
        side = pictures.shape[1] // patch
        for i in range(side):
            for j in range(side):
                square = pictures[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                rows.append(square.reshape(len(pictures), -1))
        x = linear(jnp.stack(rows, axis=1), params["embedding"])
        if pool == "cls":
            x = jnp.concatenate([jnp.repeat(params["cls"], len(x), axis=0), x], axis=1)
        x = x + params["pos_embedding"]
        for i in range(len(params["blocks"]["norm1"]["scale"])):
            p = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
            x = x + attend(norm(x, p["norm1"]), p["proj"], p["qkv"])
            hidden = linear(norm(x, p["norm2"]), p["fc1"])
            x = x + linear(jax.nn.gelu(hidden, approximate=False), p["fc2"])
        x = norm(x, params["norm"])
        return linear(x[:, 0] if pool == "cls" else x.mean(1), params["head"])


@jax.jit(static_argnums=0)
def evaluate(model, params, pictures):
    return model.apply({"params": params}, pictures)


def with_columns(chosen):
    return {"blocks": {site: {"columns": value} for site, value in chosen.items()}}


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_forward_is_that_of_a_plain_vit(pool):
    model = vit(pool=pool)
    params = random_params(model)
    assert ("cls" in params) == (pool == "cls")
    actual = evaluate(model, params, images())
    assert actual.dtype == jnp.float32
    plain = jax.jit(functools.partial(reference, pool=pool))(params, images())
    assert_close(actual, plain, 1e-5)


@pytest.fixture(scope="module")
def expected():
    """Parameters, a cotangent, and what autodiff of the reference gives."""
    params = random_params(vit())
    cotangent = jnp.asarray(np.random.default_rng(2).standard_normal((4, 5)), jnp.float32)
    _, (grads, dx) = value_and_pullback(reference, cotangent, params, images(4))
    return params, cotangent, grads, dx


@pytest.fixture(scope="module")
def gradients(expected):
    """`plan -> (gradients of the parameters, of the images)`, each plan compiled once."""
    params, cotangent, _, _ = expected

    @functools.cache
    def run(plan):
        model = vit(plan=plan)

        def train(params, pictures):
            return model.apply({"params": params}, pictures, train=True)

        return value_and_pullback(train, cotangent, params, images(4))[1]

    return run


def test_gradients_of_full_fine_tuning_are_those_of_autodiff(expected, gradients):
    _, _, grads, dx = expected
    actual_grads, actual_dx = gradients(resolve("full").plan)
    assert_close(actual_grads, grads, 2e-5)
    assert_close(actual_dx, dx, 2e-5)


def test_rematerialisation_changes_nothing_but_rounding(gradients):
    full, remat = gradients(resolve("full").plan), gradients(resolve("remat").plan)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), full, remat)


def test_pruned_gradients_are_the_dense_ones_at_the_chosen_rows(expected):
    params, cotangent, grads, dx = expected
    model, chosen = vit(plan=COLUMNS), columns(2, 16, 32)

    def train(params, pictures):
        variables = {"params": params, "selection": with_columns(chosen)}
        return model.apply(variables, pictures, train=True)

    _, (pruned, pruned_dx) = value_and_pullback(train, cotangent, params, images(4))
    assert_close(pruned_dx, dx, 2e-5)
    for site in SITES:
        for block in range(2):
            kept = np.zeros(grads["blocks"][site]["kernel"].shape[1], bool)
            kept[chosen[site][block]] = True
            actual = pruned["blocks"][site]["kernel"][block]
            assert_close(actual[kept], grads["blocks"][site]["kernel"][block][kept], 2e-5)
            assert not np.any(actual[~kept])
        assert_close(pruned["blocks"][site]["bias"], grads["blocks"][site]["bias"], 2e-5)
    for name in ("embedding", "norm", "head"):
        assert_close(pruned[name], grads[name], 2e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_names_and_shapes_of_the_parameters(pool):
    tokens = 5 if pool == "cls" else 4
    shapes = jax.tree.map(lambda s: s.shape, param_shapes(vit(pool=pool)))
    norm = {"scale": (2, 16), "bias": (2, 16)}

    def stacked(fan_in, fan_out):
        return {"kernel": (2, fan_in, fan_out), "bias": (2, fan_out)}

    expected = {
        "embedding": {"kernel": (12, 16), "bias": (16,)},
        "pos_embedding": (1, tokens, 16),
        "blocks": {
            "norm1": norm,
            "norm2": norm,
            "qkv": stacked(16, 48),
            "proj": stacked(16, 16),
            "fc1": stacked(16, 32),
            "fc2": stacked(32, 16),
        },
        "norm": {"scale": (16,), "bias": (16,)},
        "head": {"kernel": (16, 5), "bias": (5,)},
    }
    assert shapes == expected | ({"cls": (1, 1, 16)} if pool == "cls" else {})


def test_parameters_start_as_they_should():
    model = vit()
    params = jax.jit(model.init)(jax.random.key(0), images(1))["params"]
    for site, fan in (("qkv", 16 + 48), ("proj", 32), ("fc1", 48), ("fc2", 48)):
        first, second = params["blocks"][site]["kernel"]
        assert not np.array_equal(first, second)
        assert np.abs(first).max() <= math.sqrt(6 / fan)  # xavier_uniform
        assert np.abs(first).max() > 0.8 * math.sqrt(6 / fan)
    assert not np.any(params["head"]["kernel"])
    assert np.std(params["pos_embedding"]) == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("model", [vit(), bert()], ids=["vit", "bert"])
def test_parameters_are_drawn_without_running_the_blocks(model):
    def primitives(method):
        inputs = model.inputs(model.input_specs(1))
        jaxpr = jax.make_jaxpr(method)(jax.random.key(0), inputs).jaxpr
        return {equation.primitive.name for equation in equations(jaxpr)}

    def run(key, inputs):
        return model.apply({"params": random_params(model)}, inputs)

    assert {"exp", "erfc"} <= primitives(run) - primitives(model.init)  # softmax and GELU


@pytest.mark.parametrize(
    ("size", "count"),  # of timm's vit_{tiny, small, base, large}_patch16_224
    [("Ti", 5_717_416), ("S", 22_050_664), ("B", 86_567_656), ("L", 304_326_632)],
)
def test_published_sizes(size, count):
    width, depth, heads, mlp_dim = MODEL_SIZES[size]
    model = vit(
        width=width,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_dim,
        patch=16,
        image_size=224,
        num_classes=1000,
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model))) == count


@pytest.mark.parametrize("shape", [(3, 4, 4, 1), (3, 8, 8, 3), (3, 4, 3)])
def test_images_of_another_shape_are_refused(shape):
    model = vit()
    with pytest.raises(ValueError, match=r"must be \[B, 4, 4, 3\], the image_size and channels"):
        jax.eval_shape(lambda p, x: evaluate(model, p, x), param_shapes(model), jnp.zeros(shape))


def loss(model, params, selection):
    variables = {"params": params} | ({} if selection is None else {"selection": selection})
    return jnp.sum(model.apply(variables, images(), train=True))


def test_a_missing_selection_is_named_when_differentiated():
    model = vit(plan=COLUMNS)
    grad = jax.grad(lambda p, s: loss(model, p, s))
    with pytest.raises(ValueError, match="selection is missing for qkv, proj, fc1, fc2:"):
        jax.eval_shape(grad, param_shapes(model), None)
    some = with_columns(columns(2, 16, 32))
    del some["blocks"]["proj"], some["blocks"]["fc2"]
    with pytest.raises(ValueError, match="selection is missing for proj, fc2:"):
        jax.eval_shape(grad, param_shapes(model), some)


def test_no_selection_is_needed_without_differentiation():
    model = vit(plan=COLUMNS)
    jax.eval_shape(lambda p: loss(model, p, None), param_shapes(model))


@pytest.mark.parametrize("name", OF_HALF_BLOCKS)
def test_evaluation_is_the_same_by_every_method(name):
    def program(model):
        apply = functools.partial(model.apply, mutable=False)
        return str(jax.make_jaxpr(apply)({"params": param_shapes(model)}, images(4)))

    assert program(vit(plan=resolve(name).plan, dropout=0.5)) == program(vit())


@pytest.mark.parametrize("name", ["full", "prebackrazor", "fast", "tiny"])
def test_programs_do_not_grow_with_depth(name):
    sizes = []
    for depth in (2, 8):
        model = vit(plan=resolve(name, batch_chunks=1).plan, depth=depth)
        chosen = with_columns(columns(depth, 16, 32)) if name != "full" else {}
        grad = jax.grad(lambda p, m=model, s=chosen: loss(m, p, s))
        sizes.append(len(list(equations(jax.make_jaxpr(grad)(param_shapes(model)).jaxpr))))
    assert sizes[0] == sizes[1] > 100


def test_bfloat16_activations_keep_float32_parameters_and_logits():
    model = vit(dtype=jnp.bfloat16)
    params = random_params(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(param_shapes(model))} == {jnp.dtype("float32")}
    actual = evaluate(model, params, images())
    assert actual.dtype == jnp.float32
    expected = jax.jit(reference)(params, images())
    assert_close(actual, expected, 0.05)
    assert np.abs(actual - expected).max() > 1e-4  # the activations were rounded


def test_dropout_follows_its_key_and_only_in_training():
    model = vit(dropout=0.5)
    params = random_params(model)

    @jax.jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, images(), train=True, rngs=rngs)

    np.testing.assert_array_equal(train(0), train(0))
    assert not np.allclose(train(0), train(1))
