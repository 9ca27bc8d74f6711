"""A decoder in the trainer: what it trains, by which methods, against autodiff of the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax.configs.common import Config, Data, Decoder, Model, Optimizer, Pruning
from pbr_jax.models import lora
from pbr_jax.training import from_config
from pbr_jax.training.slices import is_slices

WORDS, LENGTH = 48, 16
SMALL = Model(
    family="decoder",
    width=32,
    depth=2,
    heads=4,
    mlp_dim=64,
    vocab_size=WORDS,
    max_length=LENGTH,
    decoder=Decoder(kv_heads=2),
)


def settings(method: str = "tiny", **changes) -> Config:
    optimizer = Optimizer(name="adamw", learning_rate=0.01, schedule="constant")
    known = {"name": "tiny", "method": method, "steps": 50, "batch_size": 4, "model": SMALL}
    data = Data(name="language", path="texts", tokenizer="tokenizer.json")
    return Config(**known | {"data": data, "optimizer": optimizer} | changes)


def texts(size: int = 4, seed: int = 0) -> dict[str, jax.Array]:
    """Rows of two texts that count upwards, with some padding behind."""
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, WORDS, (size, 2))
    positions = np.concatenate([np.arange(9), np.arange(5), np.zeros(2, int)])
    segments = np.repeat([1, 2, 0], [9, 5, 2])
    tokens = (np.repeat(starts, [9, 7], axis=1) + positions) % WORDS
    rows = {"tokens": tokens, "segments": segments, "positions": positions}
    rows["targets"] = (tokens + 1) % WORDS
    arrays = {k: np.broadcast_to(v, (size, LENGTH)).astype(np.int32) for k, v in rows.items()}
    # The last token of a text has no next one.
    last = np.isin(np.arange(LENGTH), [8, 13])
    arrays["scored"] = np.broadcast_to((segments > 0) & ~last, (size, LENGTH))
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def started(config: Config):
    parts = from_config.build(config)
    params, extra, _ = parts.model.begin(0)
    return parts, from_config.new_state(config, parts, params, extra)


def dense_loss(module, params, batch):
    """The mean over scored tokens, from all logits at once."""
    hidden, table = module.apply({"params": params}, module.inputs(batch))
    log_probs = jax.nn.log_softmax(hidden @ table.T)
    own = jnp.take_along_axis(log_probs, batch["targets"][..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(batch["scored"], own, 0.0)) / jnp.sum(
        batch["scored"], dtype=own.dtype
    )


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("method", ["full", "tiny"])
def test_gradients_are_rows_of_those_of_all(method, tied):
    """Every packed gradient, the tied table's both uses included, against plain autodiff."""
    config = settings(method, pruning=Pruning(keep=0.25 if method == "tiny" else None))
    decoder = dataclasses.replace(SMALL.decoder, tied=tied)
    config = dataclasses.replace(config, model=dataclasses.replace(SMALL, decoder=decoder))
    parts, state = started(config)
    batch, key = texts(), jax.random.key(1)
    _, selection = parts.model.select(key, state.pruning, state.step)

    @jax.jit
    def both(params):
        trained, frozen = parts.model.split(params, selection)
        gradient = jax.value_and_grad(parts.model.loss, has_aux=True)
        (value, (figures, _)), grads = gradient(trained, frozen, (), selection, batch, key)
        plain = jax.value_and_grad(lambda p: dense_loss(parts.model.module, p, batch))(params)
        slices = parts.model.slices(selection, params)
        rows = jax.tree.map(lambda part, g: part.gather(g), slices, plain[1], is_leaf=is_slices)
        return (value, grads), (plain[0], rows), figures

    ours, plain, figures = both(state.params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, ours, plain)
    assert 0.0 <= float(figures["accuracy"]) <= 1.0
    packed = ours[1]["embedding"]["table"].shape
    assert packed == ((8, WORDS) if method == "tiny" else (WORDS, 32))


def learns(config: Config, steps: int = 30):
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
        parts, state = started(config)
        step, losses = jax.jit(parts.train_step), []
        for i in range(steps):
            state, metrics = step(state, texts(seed=i))
            losses.append(float(metrics.loss))
    assert step._cache_size() == 1
    return losses, parts, state


@pytest.mark.parametrize(
    "method",
    ["tiny", *(pytest.param(m, marks=pytest.mark.exhaustive) for m in ("full", "remat", "static"))],
)
def test_it_learns(method):
    losses, *_ = learns(settings(method))
    assert losses[-1] < 0.8 * losses[0]


def test_it_learns_in_bfloat16_with_masters_of_the_rows_alone():
    model = dataclasses.replace(SMALL, param_dtype="bfloat16", dtype="bfloat16")
    pruning = Pruning(state="packed", interval=10)
    losses, _, state = learns(settings("tiny", model=model, pruning=pruning))
    assert losses[-1] < 0.8 * losses[0]
    own, masters = state.params["blocks"]["down"]["kernel"], state.opt_state.masters
    rows = masters["blocks"]["down"]["kernel"]
    assert (own.dtype, rows.dtype, rows.shape) == (jnp.bfloat16, jnp.float32, (2, 8, 32))
    columns = state.opt_state.selection["blocks/down/kernel"]
    kept = jnp.take_along_axis(own, columns[..., None], axis=1)
    np.testing.assert_array_equal(kept, rows.astype(jnp.bfloat16))


def test_evaluation_scores_every_token():
    parts, state = started(settings("full"))
    batch = texts()
    nll, right = jax.jit(parts.model.outputs)(state.variables, batch)
    expected = dense_loss(parts.model.module, state.params, batch)
    mean = float(np.sum(nll)) / int(np.sum(batch["scored"]))
    assert mean == pytest.approx(float(expected), rel=1e-5)
    assert right.shape == nll.shape == (4, LENGTH)


def test_lora_moves_a_and_b_alone_and_keeps_state_of_nothing_else():
    losses, parts, state = learns(settings("lora"), 20)
    assert losses[-1] < losses[0]
    begun, _, _ = parts.model.begin(0)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, begun)
    for path, changed in jax.tree_util.tree_leaves_with_path(moved):
        assert changed == lora.is_adapter(path), jax.tree_util.keystr(path)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state.moments))
    own = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(begun) if lora.is_adapter(path)
    ]
    assert kept == 2 * sum(leaf.size for leaf in own)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Rows have different numbers of scored tokens; each token counts the same."""
    batch = texts()
    batch["scored"] = batch["scored"].at[0, 3:].set(False)
    norms = []
    for parts_of_it in (1, 2):
        optimizer = Optimizer(learning_rate=0.1, accumulation_steps=parts_of_it)
        parts, state = started(settings("full", optimizer=optimizer))
        _, metrics = jax.jit(parts.train_step)(state, batch)
        norms.append((float(metrics.loss), float(metrics.grad_norm)))
    np.testing.assert_allclose(*norms, rtol=1e-5)
