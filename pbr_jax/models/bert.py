"""BERT (Devlin et al., 2019) for the classification of one or two sentences; scanned blocks.

Parameters, kernels `[in, out]`:

    embedding {word [V, D], position [max_length, D], type [2, D]}
    blocks    (see `pbr_jax.models.blocks`)
    norm {scale, bias [D]}   pooler {kernel [D, D], bias}   head {kernel [D, classes], bias}

BERT is post-norm, `LayerNorm(x + f(x))`. A block here begins with a LayerNorm and hands on a sum
that is not normalised yet (`pbr_jax.ops.half_blocks` says why), so in the names of the original:

    blocks.norm1[0]      embeddings.LayerNorm
    blocks.norm1[l]      encoder.layer[l - 1].output.LayerNorm
    blocks.norm2[l]      encoder.layer[l].attention.output.LayerNorm
    norm                 encoder.layer[L - 1].output.LayerNorm
    blocks.qkv           attention.self.{query, key, value} side by side
    blocks.proj, fc1, fc2    attention.output.dense, intermediate.dense, output.dense
    pooler, head         pooler.dense, classifier
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from pbr_jax.configs.common import SHAPE, Model
from pbr_jax.models.blocks import BLOCKS, LinearParams, NormParams, run_blocks
from pbr_jax.models.inputs import TEXT, text_specs
from pbr_jax.ops import half_blocks, layer_norm, linear
from pbr_jax.ops.arrays import Part
from pbr_jax.ops.exchange import Exchange
from pbr_jax.ops.visibility import Visibility
from pbr_jax.plans import ResidualPlan

_EPSILON = 1e-12  # the original's, of every LayerNorm
EMBEDDING = "embedding"
_TABLES = ("word", "position", "type")
_TOKEN_TYPES = 2  # of the first and of the second text
_INIT = nn.initializers.truncated_normal(0.02)


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, int32 `[B, N]` twice -> `[B, N, D]`."""

    width: int
    vocab_size: int
    max_length: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, tokens: jax.Array, token_types: jax.Array, exchange: Exchange | None
    ) -> jax.Array:
        if exchange is None:
            words = self.param("word", _INIT, (self.vocab_size, self.width))[tokens]
            position = self.param("position", _INIT, (self.max_length, self.width))
            kind = self.param("type", _INIT, (_TOKEN_TYPES, self.width))
        else:
            # Read as they are: Flax would refuse a share of a table by its shape.
            tables: dict[str, jax.Array]
            tables = {name: self.get_variable("params", name) for name in _TABLES}
            words = exchange.rows(tables.pop("word"), (EMBEDDING, "word"), tokens)
            position, kind = exchange.whole(tables, (EMBEDDING,)).values()
        x = words + kind[token_types] + position[None, : tokens.shape[1]]
        return x.astype(self.dtype)


class Bert(nn.Module):
    """BERT classifier: `{"tokens", "token_types", "lengths"}` -> logits float32 `[B, num_classes]`.

    `tokens` and `token_types` are int32 `[B, N]`, N at most `max_length`; `lengths`, int32 `[B]`,
    says how many tokens of each row are real, the others are padding on the right.
    """

    width: int  # D
    depth: int  # L
    heads: int  # H
    mlp_dim: int  # hidden width of the MLP
    vocab_size: int  # words, V
    max_length: int  # positions
    num_classes: int
    dropout: float = 0.0  # rate on embeddings, attention, both residual branches and pooled output
    dtype: jnp.dtype = jnp.float32  # of the activations; parameters stay float32
    approximate_gelu: bool = False  # tanh form instead of erf
    plan: ResidualPlan = ResidualPlan()  # what the blocks keep for the backward pass
    exchanges = (BLOCKS, EMBEDDING)

    @nn.compact
    def __call__(
        self,
        inputs: Mapping[str, jax.Array],
        *,
        train: bool = False,
        part: Part | None = None,
    ) -> jax.Array:
        tokens, token_types, lengths = self._checked(inputs)
        embeddings = Embeddings(
            self.width, self.vocab_size, self.max_length, self.dtype, name=EMBEDDING
        )
        # Post-norm: dropout and LayerNorm of the embeddings are the first block's.
        shape = half_blocks.BlockShape(
            self.heads,
            _EPSILON,
            self.dropout,
            self.approximate_gelu,
            post_norm=True,
            attention_dropout=self.dropout,
        )
        x = run_blocks(
            self,
            embeddings(tokens, token_types, None if part is None else part.exchange),
            {"visibility": Visibility(lengths=lengths)},
            shape,
            initializer=_INIT,
            train=train,
            part=part,
        )
        # LayerNorm acts on each token alone: the first token is taken first, to keep nothing else.
        norm = NormParams(self.width, name="norm")()
        x = layer_norm.layer_norm(x[:, 0], norm["scale"], norm["bias"], epsilon=_EPSILON)
        pooler = LinearParams(self.width, self.width, _INIT, name="pooler")()
        x = jnp.tanh(linear.linear(x, pooler["kernel"], pooler["bias"]))
        x = _dropout(nn.Dropout(self.dropout, deterministic=not train), x, part)
        head = LinearParams(self.width, self.num_classes, _INIT, name="head")()
        return linear.linear(x, head["kernel"], head["bias"]).astype(jnp.float32)

    @staticmethod
    def inputs(batch: Mapping[str, Any]) -> Any:
        """What the model reads of a batch."""
        return {name: batch[name] for name in TEXT}

    def input_specs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the inputs in a batch of the longest sequences."""
        return text_specs(batch_size, self.max_length)

    def _checked(self, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        tokens, token_types, lengths = (inputs[name] for name in TEXT)
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.max_length:
            raise ValueError(
                f"tokens have shape {tokens.shape}: must be [B, N] with N up to max_length ="
                f" {self.max_length}; cut longer sequences"
            )
        if token_types.shape != tokens.shape or lengths.shape != tokens.shape[:1]:
            raise ValueError(
                f"token_types and lengths have shapes {token_types.shape}, {lengths.shape}: must be"
                f" {tokens.shape} and {tokens.shape[:1]}, those of tokens"
            )
        return tokens, token_types, lengths


def _dropout(module: nn.Dropout, x: jax.Array, part: Part | None) -> jax.Array:
    """Flax' dropout, of which a device with a part of the batch takes its rows of the mask."""
    if part is None or module.deterministic or module.rate == 0:
        return module(x)
    kept = module(jnp.ones((part.total, *x.shape[1:]), x.dtype)) != 0
    kept = lax.dynamic_slice_in_dim(kept, part.first, x.shape[0])
    return jnp.where(kept, x / (1 - module.rate), jnp.zeros_like(x))


def build(model: Model, plan: ResidualPlan) -> Bert:
    """The BERT that a configuration describes."""
    fields = (*SHAPE, "vocab_size", "max_length", "num_classes", "dropout")
    settings = {name: getattr(model.resolved(), name) for name in fields}
    return Bert(**settings, dtype=jnp.dtype(model.dtype), plan=plan)
