"""BERT (Devlin et al., 2019), a post-norm encoder of one or two texts."""

from pbr_jax.configs.common import Model
from pbr_jax.families import transformer
from pbr_jax.families.record import Architecture, Family


def _describe(model: Model) -> Architecture:
    return transformer.describe(model, model.max_length)


def _integers(model: Model) -> dict[str, int]:
    return {"tokens": model.vocab_size, "token_types": 2}


FAMILY = Family(
    name="bert",
    title="BERT",
    reads="text",
    settings=("vocab_size", "max_length"),
    describe=_describe,
    build="pbr_jax.models.bert:build",
    integers=_integers,
    lengths="lengths",
    exact="pbr_jax.bench.exact:bert_logits",
    published="pbr_jax.weights.bert:PUBLISHED",
)
