"""BERT (Devlin et al., 2019), a post-norm encoder of one or two texts."""

from pbr_jax.families import transformer
from pbr_jax.families.record import Family

FAMILY = Family(
    name="bert",
    title="BERT",
    reads="text",
    settings=("vocab_size", "max_length"),
    describe=lambda model: transformer.describe(model, model.max_length),
    build="pbr_jax.models.bert:build",
    integers=lambda model: {"tokens": model.vocab_size, "token_types": 2},
    lengths="lengths",
    exact="pbr_jax.models.exact:bert_logits",
    published="pbr_jax.weights.bert:PUBLISHED",
)
