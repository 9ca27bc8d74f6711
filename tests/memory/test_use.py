"""Bytes that a step needs: of arrays, of what differentiation saves, of a configured run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import SMALL, config

from pbr_jax.configs.common import Config, Data, Model, Optimizer, Pruning
from pbr_jax.memory.use import MemoryUse, memory_use, saved_bytes, tree_bytes
from pbr_jax.training import from_config

WIDTH, MLP, TOKENS, BATCH, DEPTH = 32, 128, 17, 8, 3
WIDE = dataclasses.replace(SMALL, width=WIDTH, mlp_dim=MLP, depth=DEPTH, image_size=8)
ACTIVATION = 4 * BATCH * TOKENS * WIDTH  # bytes of [B, N, D]


def use(method, model=WIDE, **changes):
    return memory_use(config(method, model=model, batch_size=BATCH, **changes))


def test_the_total_is_the_sum():
    assert MemoryUse(1, 20, 300, 4000).total == 4321


def test_bytes_of_a_tree():
    tree = {"a": jnp.zeros((3, 5)), "b": [jax.ShapeDtypeStruct((7,), jnp.int8)]}
    assert tree_bytes(tree) == 3 * 5 * 4 + 7
    assert tree_bytes({}) == 0
    assert tree_bytes(jax.random.key(0)) == 8  # two words


def test_saved_bytes_of_known_functions():
    x, w = jnp.zeros((10, 3)), jnp.zeros((3, 4))
    assert saved_bytes(lambda x: 2 * x, x) == 0
    assert saved_bytes(jnp.sin, x) == 4 * 30  # its cosine
    assert saved_bytes(lambda x: jnp.sin(jnp.sin(x)), x) == 2 * 4 * 30
    assert saved_bytes(lambda w, x: x @ w, w, x) == 0  # x, which is an argument
    assert saved_bytes(lambda w, x: jnp.abs(x) @ w, w, x) == 4 * 30
    # One array that two operations need is there once.
    assert saved_bytes(lambda w, x: (y := jnp.cos(x)) @ w[0] + y @ w[1], (w, w), x) == 4 * 30


def test_saved_bytes_compute_nothing():
    huge = jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)
    assert saved_bytes(jnp.sin, huge) == 4 * 10**12


def test_parameters_gradients_and_optimizer():
    settings = config("full", model=WIDE)
    parts = from_config.build(settings)
    count = sum(
        leaf.size for leaf in jax.tree.leaves(from_config.state_shapes(settings, parts).params)
    )
    full = use("full")
    assert (full.parameters, full.gradients) == (4 * count, 4 * count)
    assert full.optimizer == 4 * count + 4  # momentum, and the counter of the schedule
    adam = use("full", optimizer=Optimizer(name="adamw"))
    assert adam.optimizer == 2 * 4 * count + 8
    assert use("full", optimizer=Optimizer(momentum=0.0)).optimizer == 4


def test_gradients_of_pruned_kernels_are_packed():
    pruned, full = use("prebackrazor"), use("full")
    # K = 8 of the inputs of qkv, proj and fc1, and 16 of those of fc2.
    fewer = (WIDTH - 8) * (3 * WIDTH + WIDTH + MLP) + (MLP - 16) * WIDTH
    assert full.gradients - pruned.gradients == 4 * DEPTH * fewer
    assert (pruned.parameters, pruned.optimizer) == (full.parameters, full.optimizer)


def outside_blocks(method):
    """What is kept whatever the depth, and what each block adds."""
    shallow, deep = (
        use(method, dataclasses.replace(WIDE, depth=depth)).activations for depth in (2, 5)
    )
    each = (deep - shallow) // 3
    assert deep - shallow == 3 * each
    return shallow - 2 * each, each


def test_rematerialisation_keeps_the_input_of_each_block():
    outside, each = outside_blocks("remat")
    assert each == ACTIVATION
    # Class token before and behind the last LayerNorm, and small change; the patches are the
    # batch's own images.
    assert outside < 0.3 * ACTIVATION


def test_full_fine_tuning_keeps_what_its_plan_says():
    """x-hat twice (with 1/sigma), q, k, v and output with log-sum-exp, and u and gelu(u)."""
    _, each = outside_blocks("full")
    rows = 4 * BATCH * TOKENS
    assert each == (2 + 4) * ACTIVATION + 2 * rows + SMALL.heads * rows + 2 * rows * MLP


def test_prebackrazor_keeps_columns_of_the_input_of_fc2():
    _, full = outside_blocks("full")
    _, pruned = outside_blocks("prebackrazor")
    assert full - pruned == 4 * BATCH * TOKENS * (MLP - 16)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("prebackrazor", "full"),
        ("prebackrazor++", "prebackrazor"),
        ("fast", "prebackrazor"),
        ("lean", "fast"),
        ("tiny", "lean"),
        ("remat", "prebackrazor"),
    ],
)
def test_methods_in_the_order_of_their_memory(less, more):
    assert use(less).activations < use(more).activations


def test_accumulation_keeps_one_part_of_the_batch_at_a_time():
    whole, parts = use("full"), use("full", optimizer=Optimizer(accumulation_steps=2))
    assert parts.activations == pytest.approx(whole.activations / 2, rel=0.02)


def test_more_columns_take_more():
    # 95 % of 32 columns are 30.4, and so the next multiple of 8 is all of them: trained dense.
    sizes = [use("prebackrazor", pruning=Pruning(keep=keep)) for keep in (0.1, 0.5, 0.95)]
    assert np.all(np.diff([size.activations for size in sizes]) > 0)
    assert np.all(np.diff([size.gradients for size in sizes]) > 0)
    assert sizes[-1].activations == use("full").activations


def test_post_norm_keeps_no_more_of_a_block_than_pre_norm():
    """BERT and ViT of one size, 50 tokens each: what they keep differs around the blocks only."""
    tokens, sizes = 50, {"width": 64, "depth": 4, "heads": 4, "mlp_dim": 256}
    vit = Model(**sizes, patch=4, image_size=28, num_classes=2)
    bert = Model(**sizes, family="bert", vocab_size=100, max_length=tokens, num_classes=2)

    def of_a_block(model, data, method):
        """Bytes that a block more keeps."""
        used = []
        for depth in (4, 5):
            deep = dataclasses.replace(model, depth=depth)
            config = Config(batch_size=8, method=method, model=deep, data=Data(name=data))
            used.append(memory_use(config).activations)
        return used[1] - used[0]

    for method in ("full", "lean", "backrazor"):
        expected = of_a_block(vit, "digits", method)
        assert of_a_block(bert, "glue/rte", method) == expected > 8 * tokens * 64
