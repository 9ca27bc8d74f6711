"""The shipped recipes: what each of their variants trains on, and the sentences that come along."""

from pathlib import Path

import numpy as np
import pytest

from pbr_jax import data
from pbr_jax.settings.load import SHIPPED, load
from pbr_jax.settings.variants import with_method


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("vit_b16.py", ("cifar100", 100, 20_000, 128)),
        ("vit_b16.py:cifar100", ("cifar100", 100, 20_000, 128)),
        ("vit_b16.py:cifar10", ("cifar10", 10, 20_000, 128)),
        ("vit_b16.py:cub200", ("cub200", 200, 6_000, 128)),
        ("vit_b16.py:smoke", ("digits", 10, 2, 4)),
        ("bert_rte.py", ("glue/rte", 2, 5 * 77, 32)),
        ("bert_rte.py:batch32-keep20", ("glue/rte", 2, 5 * 77, 32)),
        ("bert_rte.py:batch8-keep10", ("glue/rte", 2, 5 * 311, 8)),
        ("bert_rte.py:smoke", ("csv", 2, 2, 4)),
    ],
)
def test_recipes(spec, expected):
    config = load(str(SHIPPED / spec))
    assert config.model.size == "B"
    assert expected == (
        config.data.name,
        config.model.num_classes,
        config.steps,
        config.batch_size,
    )
    assert (config.model.weights is None) == spec.endswith(":smoke")
    load(str(SHIPPED / spec), ["method=full", "pruning.keep=none"])


@pytest.mark.parametrize(
    ("variant", "batch", "keep"),
    [("", 32, 0.1), (":batch32-keep20", 32, 0.2), (":batch8-keep10", 8, 0.1)],
)
def test_variants_of_the_bert_recipe_differ_in_batch_and_keep(variant, batch, keep):
    config = load(str(SHIPPED / "bert_rte.py") + variant)
    assert (config.batch_size, config.pruning.keep) == (batch, keep)
    assert f"batch{batch}-keep{round(100 * keep)}" in config.name


@pytest.mark.parametrize("variant", ["", ":qwen3-0.6b", ":qwen3-4b", ":gemma3-1b", ":smoke"])
def test_language_models(variant):
    """Every method of a decoder takes what the recipe sets for `tiny`."""
    spec = str(SHIPPED / "llm.py") + variant
    config = load(spec)
    assert (config.model.family, config.data.name) == ("decoder", "language")
    assert (config.method, config.pruning.state) == ("tiny", "packed")
    assert (config.model.weights is None) == (variant == ":smoke")
    for method in ("full", "remat", "lora", "static", "tiny+offload"):
        with_method(config, method)
        load(spec, [f"method={method}"])


def test_the_shipped_sentences_are_all_in_their_vocabulary():
    d = load(str(SHIPPED / "bert_rte.py:smoke")).data
    dataset = data.load(d.name, d.path)
    inputs = data.TextInputs(d.tokenizer, 64)
    assert dataset.class_names == ("entailment", "not_entailment")
    unknown = Path(d.tokenizer).read_text().split("\n").index("[UNK]")
    for records in (dataset.train, dataset.test):
        batch = inputs([records[i] for i in range(len(records))])
        assert batch["lengths"].max() < 64 and not np.any(batch["tokens"] == unknown)
        assert np.bincount(batch["label"]).tolist() == [len(records) / 2] * 2
