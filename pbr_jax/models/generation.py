"""Text that a decoder writes: prompts are read once, then each token is one step with a cache.

Pure functions of parameters. A cache has the keys and values of all blocks, `[L, B, G, M, C]`, slot
i of a row for the token at position i. Prompts of a batch end in their own places: what is behind
the end of one is overwritten before anything sees it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pbr_jax.kernels.attention_arguments import HIDDEN
from pbr_jax.models.decoder import Caches, DecoderLM, logits
from pbr_jax.models.decoder_block import Row

PyTree = Any


def prefill(
    module: DecoderLM,
    params: PyTree,
    tokens: Int[Array, "B N"],
    lengths: Int[Array, " B"],
    room: int,
) -> tuple[Float[Array, "B V"], Caches]:
    """Logits after every prompt, and a cache of `room` slots with its keys and values.

    Args:
      tokens: prompts, filled up on the right with any token.
      lengths: how many tokens of each row are the prompt, at least one.
      room: M, at least N.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    found: Any = module.apply(
        {"params": params}, tokens, Row(positions, None), keeps_cache=True, method="run"
    )
    hidden, table, kept = found
    # Only the last state of a prompt meets the vocabulary.
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    empty = [(0, 0)] * 3 + [(0, room - tokens.shape[1]), (0, 0)]
    k, v = (jnp.pad(leaf, empty) for leaf in kept)
    return logits(last, table), (k, v)


def decode(
    module: DecoderLM,
    params: PyTree,
    tokens: Int[Array, " B"],
    positions: Int[Array, " B"],
    cache: Caches,
) -> tuple[Float[Array, "B V"], Caches]:
    """Logits after one more token of every row, which stands at that position, and the cache."""
    found: Any = module.apply(
        {"params": params},
        tokens[:, None],
        Row(positions[:, None], None),
        cache=cache,
        keeps_cache=True,
        method="run",
    )
    hidden, table, cache = found
    return logits(hidden[:, 0], table), cache


def choose(
    keys: Array, logits: Float[Array, "B V"], temperature: Array, top_p: Array
) -> Int[Array, " B"]:
    """A token of every row: the likeliest where the temperature is 0, else one drawn.

    Drawn is from the softmax of `logits / temperature`, of the likeliest tokens that together have
    the probability `top_p` (Holtzman et al., 2020), with a key for every row.
    """
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = logits / jnp.where(temperature > 0, temperature, 1)
    order = jnp.argsort(-scaled, axis=-1)
    sorted_logits = jnp.take_along_axis(scaled, order, axis=-1)
    probability = jax.nn.softmax(sorted_logits, axis=-1)
    # A token is taken where those that are likelier do not have it all, so the first always is.
    before = jnp.cumsum(probability, axis=-1) - probability
    allowed = jnp.where(before < top_p, sorted_logits, HIDDEN)
    drawn = jax.vmap(jax.random.categorical)(keys, allowed)
    drawn = jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)
    return jnp.where(temperature > 0, drawn, likeliest)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _generate(
    module: DecoderLM,
    params: PyTree,
    tokens: Int[Array, "B N"],
    lengths: Int[Array, " B"],
    keys: Array,
    max_new: int,
    temperature: Array,
    top_p: Array,
    ends: Int[Array, " E"],
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """New tokens of every row, and how many they are."""
    rows = tokens.shape[0]
    after, cache = prefill(module, params, tokens, lengths, tokens.shape[1] + max_new)

    def pick(step: Array, after: jax.Array) -> jax.Array:
        of_step = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        return choose(of_step, after, temperature, top_p)

    def going(state: tuple[Any, ...]) -> Bool[Array, ""]:
        step, _, _, _, done, _ = state
        return (step < max_new) & ~jnp.all(done)

    def turn(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, after, cache, made, done, counts = state
        token = pick(step, after)
        done = done | jnp.any(token[:, None] == ends[None], axis=-1)
        made = lax.dynamic_update_slice_in_dim(made, token[:, None], step, axis=1)
        counts = counts + (~done).astype(jnp.int32)
        after, cache = decode(module, params, token, lengths + step, cache)
        return step + 1, after, cache, made, done, counts

    made = jnp.zeros((rows, max_new), jnp.int32)
    none = jnp.zeros(rows, jnp.int32)
    start = (jnp.int32(0), after, cache, made, none.astype(bool), none)
    _, _, _, made, _, counts = lax.while_loop(going, turn, start)
    return made, counts


def generate(
    module: DecoderLM,
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    key: Array,
    temperature: float = 0.0,
    eos: int | Sequence[int] | None = None,
    top_p: float = 1.0,
) -> list[list[int]]:
    """What the model writes after each prompt, without the token that ends it.

    One program for all prompts of as many rows and, up to a power of two, tokens. What follows a
    prompt depends on its row and the key, not on the other prompts.

    Args:
      module, params: of the decoder.
      prompts: tokens, at least one each.
      max_new: most tokens to write, at least one.
      key: of what is drawn.
      temperature: 0 takes the likeliest token every time, 1 draws as the model has learned.
      eos: the token, or tokens, that end a text; None goes on to `max_new`.
      top_p: share of the probability from which is drawn, in (0, 1].

    Raises:
      ValueError: an argument breaks its rule.
    """
    _check(module, prompts, max_new, temperature, top_p)
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), 1 << (longest - 1).bit_length()), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([*map(len, prompts)], np.int32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, np.arange(len(prompts)))
    ends = np.atleast_1d(np.array(-1 if eos is None else eos, np.int32))  # no token is -1
    how = (np.float32(temperature), np.float32(top_p), ends)
    made, counts = _generate(module, params, tokens, lengths, keys, max_new, *how)
    return [
        row[:count].tolist() for row, count in zip(*map(np.asarray, (made, counts)), strict=True)
    ]


def _check(
    module: DecoderLM,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    temperature: float,
    top_p: float,
) -> None:
    if not prompts or not all(map(len, prompts)):
        raise ValueError(f"prompts = {prompts!r:.60}: must be one or more, of a token or more each")
    lowest, highest = min(map(min, prompts)), max(map(max, prompts))
    if lowest < 0 or highest >= module.vocab_size:
        raise ValueError(
            f"prompts have tokens from {lowest} to {highest}: must be 0 to"
            f" {module.vocab_size - 1}, of the vocabulary of the model"
        )
    if max_new < 1:
        raise ValueError(f"max_new = {max_new}: must be 1 or more")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature = {temperature}: must be 0, for the likeliest, or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: must be in (0, 1]; 1 draws from all tokens")
