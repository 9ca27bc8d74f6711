"""Modules of a user's own, whose code knows nothing of this package; see `pbr_jax.families.own`."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

WIDTH = 64


class Mlp(nn.Module):
    """Linen, with running statistics, dropout and a flag of its own."""

    classes: int

    @nn.compact
    def __call__(self, images, train: bool):
        x = images.reshape(images.shape[0], -1)
        for i in range(2):
            x = nn.Dense(WIDTH, name=f"hidden_{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(self.classes, name="head")(x)


class Block(nn.Module):
    """A residual block for `nn.scan`."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(WIDTH, name="mlp")(nn.gelu(x)), None


class Scanned(nn.Module):
    """Linen, with rematerialised blocks in a scan."""

    classes: int

    @nn.compact
    def __call__(self, images):
        blocks = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = blocks(name="blocks")(images.reshape(images.shape[0], -1), None)
        return nn.Dense(self.classes, name="head")(x)


class Mixer(nnx.Module):
    """NNX, with dropout."""

    def __init__(self, classes: int, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [nnx.Linear(n, WIDTH, rngs=rngs) for n in (64, WIDTH)],
        )
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(WIDTH, classes, rngs=rngs)

    def __call__(self, images):
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(self.dropout(self.norm(x)))


class Bag(nn.Module):
    """A text model: the mean of its words, behind a product of kernel `[F, D]`."""

    words: int
    classes: int

    @nn.compact
    def __call__(self, ids, lengths, deterministic: bool = True):
        table = self.param("table", nn.initializers.normal(0.1), (self.words, WIDTH))
        kernel = self.param("kernel", nn.initializers.normal(0.1), (WIDTH, WIDTH))
        real = jnp.arange(ids.shape[1])[None] < lengths[:, None]
        x = jnp.where(real[..., None], table[ids] @ kernel.T, 0).sum(1)
        x = x / lengths[:, None].astype(x.dtype)
        return nn.Dense(self.classes, name="head")(nn.gelu(x))


def mlp(model):
    return Mlp(model.num_classes), "image"


def scanned(model):
    return Scanned(model.num_classes), "image"


def pretrained_mlp(model):
    """Without the head of its new classes."""
    module = Mlp(model.num_classes)
    example = np.zeros((1, model.image_size, model.image_size, model.channels), np.float32)
    variables = module.init(jax.random.key(7), example, train=False)
    del variables["params"]["head"]
    return module, ["image"], variables


def mixer(model, rngs):
    return Mixer(model.num_classes, rngs), "image"


def ready_mixer(model):
    """Made by itself, whatever the seed."""
    return Mixer(model.num_classes, nnx.Rngs(5)), "image"


def bag(model):
    return Bag(model.vocab_size, model.num_classes), {"ids": "tokens", "lengths": "lengths"}


def nothing(model):
    return Mlp(model.num_classes)


def of_another_array(model):
    return Mlp(model.num_classes), "pixels"


def of_another_shape(model):
    return Mlp(model.num_classes + 1), "image"
