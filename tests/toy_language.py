"""A language model in one file: the next word from the last one alone, with a table for each.

--config.model.family=toy_language:FAMILY
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from pbr_jax.families import Family
from pbr_jax.models.inputs import input_specs
from pbr_jax.ops import vocabulary
from pbr_jax.training.pruned_model import PrunedModel
from pbr_jax.training.task import objective, token_weights
from pbr_jax.training.traced import dense

FAMILY = Family(
    name="toy",
    title="Toy",
    reads="language",
    describe=None,
    build="toy_language:Toy",
    provider="toy_language:provider",
    methods=("full",),
    shape=("width",),
    settings=("vocab_size", "max_length"),
    integers=lambda model: {"tokens": model.vocab_size, "targets": model.vocab_size},
    task="pbr_jax.training.task:LANGUAGE",
)


class Toy(nn.Module):
    """`batch -> hidden [B, N, D], table [V, D]`."""

    words: int
    width: int

    @nn.compact
    def __call__(self, batch):
        first = nn.initializers.normal(0.1)
        table = self.param("table", first, (self.words, self.width))
        head = self.param("head", first, (self.words, self.width))
        return vocabulary.embed(table, batch["tokens"]), head


def provider(config, family, method, task):
    model = config.model
    module = Toy(model.vocab_size, model.width)
    specs = functools.partial(input_specs, "language", model)

    def scores(call, params, batch, weights):
        hidden, table = module.apply({"params": params}, batch)
        flat = hidden.reshape(-1, hidden.shape[-1]), table, batch["targets"].reshape(-1)
        return call(*flat, weights.reshape(-1))

    def shaped(found, batch):
        return tuple(one.reshape(batch["targets"].shape) for one in found)

    def loss(params, extra, batch, key):
        value, found = scores(vocabulary.loss, params, batch, token_weights(batch))
        _, figures = objective(task, shaped(found, batch), batch)
        return value, (figures, extra)

    def outputs(variables, batch, part=None):
        found = scores(vocabulary.scores, variables[0], batch, token_weights(batch))
        return shaped(found, batch)

    def fresh(seed):
        example = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), specs(1))
        return module.init(jax.random.key(seed), example)["params"], ()

    return PrunedModel(
        module=module,
        input_specs=specs,
        shapes=lambda: jax.eval_shape(lambda: fresh(0)),
        begin=lambda seed, names=None: (*fresh(seed), []),
        outputs=outputs,
        **dense(loss),
    )
