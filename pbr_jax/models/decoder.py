"""Decoders of language: Llama, SmolLM2, Qwen3 and Gemma 3, by their settings; scanned blocks.

Parameters, in `param_dtype`, with V words:

    embedding {table [V, D]}
    blocks    (see `pbr_jax.models.decoder_block`, stacked [L, ...])
    norm {scale [D]}
    lm_head {table [V, D]}, unless the embedding is the head too

The module gives hidden states and the table that makes logits of them: a loss goes over the
vocabulary by parts (`pbr_jax.ops.vocabulary`) and never holds logits of all tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from pbr_jax.configs.common import SHAPE, Decoder, Model
from pbr_jax.families.decoder import filled
from pbr_jax.models.decoder_block import BLOCK_INPUT, INIT, Block, Layer, RMSNorm, Row
from pbr_jax.models.inputs import language_specs
from pbr_jax.models.rotary import frequencies
from pbr_jax.ops import attention, offload
from pbr_jax.plans import ResidualPlan

BLOCKS = "blocks"
_READ = ("tokens", "segments", "positions")
Caches = tuple[Float[Array, "L B G M C"], Float[Array, "L B G M C"]]


class Table(nn.Module):
    """A vector for each word, `[V, D]`."""

    words: int
    width: int
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("table", INIT, (self.words, self.width), self.param_dtype)


class DecoderLM(nn.Module):
    """`{"tokens", "segments", "positions"}`, int32 `[B, N]` each -> hidden `[B, N, D]`, `[V, D]`.

    `segments` says of which text a token is, and `positions` where in it; a row may hold several
    texts one after the other, none of which sees another.
    """

    width: int  # D
    depth: int  # L
    heads: int  # H, of queries
    mlp_dim: int  # F
    vocab_size: int  # V
    max_length: int  # N of a batch; nothing else depends on it
    shape: Decoder  # with `kv_heads` and `head_dim`
    dtype: jnp.dtype = jnp.float32  # of activations; norms and rotations are float32 inside
    param_dtype: jnp.dtype = jnp.float32
    plan: ResidualPlan = ResidualPlan()  # reads `recompute`, `offload`, `attention`, ...

    def __call__(
        self, inputs: Mapping[str, jax.Array], embedded: Float[Array, "B N D"] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """With `embedded` the table is not read: tokens were looked up where that has gradients."""
        tokens, segments, positions = (inputs[name] for name in _READ)
        hidden, table, _ = self.run(tokens, Row(positions, segments), embedded)
        return hidden, table

    def logits(self, inputs: Mapping[str, jax.Array]) -> Float[Array, "B N V"]:
        """Logits of the next token after every token, float32."""
        return logits(*self(inputs))

    @nn.compact
    def run(
        self,
        tokens: Int[Array, "B N"],
        row: Row,
        embedded: Float[Array, "B N D"] | None = None,
        cache: Caches | None = None,
        keeps_cache: bool = False,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "V D"], Any]:
        """Hidden states, the table of the head, and keys and values of all blocks if they are kept.

        With a cache, `[L, B, G, M, C]` twice, rows have one token each; it sees the slots of the
        cache up to its position and is written to that slot.
        """
        # Words become vectors, unless somebody looked them up already.
        embedding = Table(self.vocab_size, self.width, self.param_dtype, name="embedding")()
        if embedded is None:
            embedded = jnp.take(embedding, tokens, axis=0, mode="clip")
        x = embedded.astype(self.dtype)
        if self.shape.embedding_scale:
            x = x * jnp.asarray(self.width**0.5, self.dtype)
        # All blocks are turns of one loop; the plan says what a turn keeps for its backward pass.
        block = Block
        if self.plan.recompute:
            block = nn.remat(Block, prevent_cse=False, policy=_policy(self.plan))
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
            in_axes=(0, nn.broadcast),
        )(
            *(self.heads, self.mlp_dim, self.shape, self.dtype, self.param_dtype, self.plan),
            keeps_cache,
            name=BLOCKS,
        )
        x, kept = blocks(x, layers(self.shape, self.depth)._replace(cache=cache), row)
        # The head is given as its table, so that no logits are made here.
        x = RMSNorm(self.shape, self.param_dtype, name="norm")(x)
        if self.shape.tied:
            return x, embedding, kept
        return x, Table(self.vocab_size, self.width, self.param_dtype, name="lm_head")(), kept

    @staticmethod
    def inputs(batch: Mapping[str, Any]) -> Any:
        """What the model reads of a batch."""
        return {name: batch[name] for name in _READ}

    def input_specs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a batch, with what a loss reads beside."""
        return language_specs(batch_size, self.max_length)


def _policy(plan: ResidualPlan) -> Callable[..., Any] | None:
    """What a block that is made again keeps beside its input, and where that input waits."""
    saved = [attention.OUTPUT] if plan.save_attention else []
    if plan.offload:
        return offload.policy(BLOCK_INPUT, saved=saved)
    return jax.checkpoint_policies.save_only_these_names(*saved) if saved else None


def layers(shape: Decoder, depth: int) -> Layer:
    """What every block has of its own, stacked: its frequencies and its window."""
    every = shape.global_every
    local = np.full(depth, shape.window is not None)
    if every is not None:
        local &= np.arange(1, depth + 1) % every != 0
    each = np.stack([frequencies(shape, bool(one)) for one in local])
    if shape.window is None:
        return Layer(jnp.asarray(each), None)
    return Layer(jnp.asarray(each), jnp.asarray(np.where(local, shape.window, 0), jnp.int32))


def logits(hidden: Float[Array, "... D"], table: Float[Array, "V D"]) -> Float[Array, "... V"]:
    """Logits, float32, of hidden states by a head whose kernel is `[V, D]`."""
    table = table.astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


def build(model: Model, plan: ResidualPlan) -> DecoderLM:
    """The decoder that a configuration describes."""
    settings = {name: getattr(model.resolved(), name) for name in (*SHAPE, "vocab_size")}
    return DecoderLM(
        **settings,
        max_length=model.max_length,
        shape=filled(model),
        dtype=jnp.dtype(model.dtype),
        param_dtype=jnp.dtype(model.param_dtype),
        plan=plan,
    )
