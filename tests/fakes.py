"""A model, a configuration and a batch that are small enough to compile in a test."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax.configs.common import Config, Data, Decoder, Model, Optimizer
from pbr_jax.models.bert import Bert
from pbr_jax.models.vit import ViT
from pbr_jax.plans import SITES
from pbr_jax.weights import published

CLASSES = 4
SMALL = Model(
    width=16, depth=2, heads=2, mlp_dim=32, patch=2, image_size=4, channels=1, num_classes=CLASSES
)


def config(method: str = "prebackrazor", **changes) -> Config:
    """A run of a two-block ViT of width 16: of 16 columns every method keeps 8, of 32 too."""
    settings = {
        "name": "tiny",
        "method": method,
        "steps": 50,
        "batch_size": 8,
        "model": SMALL,
        "data": Data(name="npz", path="four_classes.npz"),
        "optimizer": Optimizer(learning_rate=0.05, schedule="constant"),
    }
    return Config(**settings | changes)


def batch(size: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise around one image per class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(size, dtype=np.int32) % CLASSES
    centres = np.random.default_rng(99).standard_normal((CLASSES, 4, 4, 1))
    images = centres[labels] + 0.1 * generator.standard_normal((size, 4, 4, 1))
    return {"image": images.astype(np.float32), "label": labels}


SMALL_BERT = Model(
    family="bert",
    width=16,
    depth=2,
    heads=2,
    mlp_dim=32,
    vocab_size=20,
    max_length=8,
    num_classes=CLASSES,
    dropout=0.1,
)


def bert_config(method: str = "prebackrazor", **changes) -> Config:
    """A run of a two-block BERT of width 16 with AdamW."""
    optimizer = Optimizer(name="adamw", learning_rate=0.01, schedule="constant")
    return config(method, **{"model": SMALL_BERT, "optimizer": optimizer} | changes)


SMALL_DECODER = Model(
    family="decoder",
    width=16,
    depth=2,
    heads=4,
    mlp_dim=24,
    vocab_size=20,
    max_length=12,
    decoder=Decoder(kv_heads=2, head_dim=8),
)


def token_batch(size: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Sequences of 4 to 8 words with one word of their class, 1 to 4, at a random place."""
    generator = np.random.default_rng(seed)
    labels = np.arange(size, dtype=np.int32) % CLASSES
    lengths = generator.integers(4, 9, size)
    tokens = generator.integers(5, 20, (size, 8))
    tokens[np.arange(size), generator.integers(1, lengths)] = labels + 1
    tokens[np.arange(8) >= lengths[:, None]] = 0
    arrays = {"tokens": tokens, "token_types": np.zeros((size, 8)), "lengths": lengths}
    return {name: array.astype(np.int32) for name, array in arrays.items()} | {"label": labels}


def vit(**changes) -> ViT:
    """An RGB ViT of width 16 and 2 blocks."""
    sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "patch": 2, "image_size": 4}
    return ViT(**sizes | {"num_classes": 5} | changes)


def bert(**changes) -> Bert:
    """A BERT of width 16 and 2 blocks, 20 words and 8 positions."""
    sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "vocab_size": 20, "max_length": 8}
    return Bert(**sizes | {"num_classes": 5} | changes)


def words(model: ViT | Bert) -> tuple[str, dict[str, int]]:
    """Family of a model, and what the words of its public weights mean there."""
    fields = {field.name for field in dataclasses.fields(Model)} - {"dtype"}
    own = {name: getattr(model, name) for name in fields if hasattr(model, name)}
    family = "bert" if isinstance(model, Bert) else "vit"
    return family, published(family).sizes(Model(family=family, **own))


def param_shapes(model: ViT | Bert):
    """Shapes of the parameter tree; nothing is computed."""
    inputs = model.inputs(model.input_specs(1))
    return jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]


def random_params(model: ViT | Bert, seed: int = 0):
    """Parameters none of which is zero or one, as biases, scales and the head are at first."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        values = generator.standard_normal(leaf.shape).astype(np.float32) * 0.3
        return jnp.asarray(values + (path[-1].key == "scale"))

    return jax.tree_util.tree_map_with_path(draw, param_shapes(model))


def columns(depth: int, width: int, mlp_dim: int, kept: int = 8) -> dict[str, jax.Array]:
    """Distinct columns for every site of every block, `{site: int32 [L, K]}`."""
    generator = np.random.default_rng(5)

    def draw(size):
        rows = [np.sort(generator.permutation(size)[:kept]) for _ in range(depth)]
        return jnp.asarray(np.stack(rows), jnp.int32)

    return {site: draw(mlp_dim if site == "fc2" else width) for site in SITES}
