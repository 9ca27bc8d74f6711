"""Generation: with a cache comes out what comes out without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_oracle import SHAPES, drawn, row_of, small
from measures import assert_close

from pbr_jax.models.generation import choose, decode, generate, prefill

TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
PROMPTS = [TEXT[:5], TEXT[4:5], TEXT[2:5]]
KEY = jax.random.key(3)


def all_logits(module, params, text):
    function = jax.jit(lambda row: module.apply({"params": params}, row, method="logits"))
    return np.asarray(function(row_of(text))[0])


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.exhaustive] * (k != "gemma3")) for k in SHAPES],
)
def test_a_cache_gives_the_logits_of_the_whole_text(kind):
    """Two rows whose prompts end in other places; what fills one up is never seen."""
    _, module = small(kind)
    params = drawn(module)
    expected = all_logits(module, params, TEXT)
    lengths = np.array([5, 2], np.int32)
    tokens = np.array([TEXT[:5], [*TEXT[:2], 7, 7, 7]], np.int32)
    after, cache = prefill(module, params, tokens, lengths, 12)
    one = jax.jit(decode, static_argnums=0)
    for step in range(8):
        places = lengths + step - 1
        assert_close(np.asarray(after), expected[places], 1e-5)
        if step == 7:  # the longer one is at its end
            break
        after, cache = one(
            module, params, np.array(TEXT, np.int32)[places + 1], jnp.asarray(places + 1), cache
        )


@pytest.fixture(scope="module")
def model():
    _, module = small("qwen3")
    return module, drawn(module)


def test_greedy_text_is_the_likeliest_of_the_whole_forward_pass(model):
    made = generate(*model, PROMPTS, 6, KEY)
    for prompt, text in zip(PROMPTS, made, strict=True):
        likeliest = all_logits(*model, prompt + text).argmax(-1)
        assert text == likeliest[len(prompt) - 1 : len(prompt) + 5].tolist()
    # A prompt has the text that it has alone, and ends where its end is written.
    assert generate(*model, PROMPTS[1:2], 6, KEY) == made[1:2]
    end = made[0][2]
    cut = [text[: text.index(end)] if end in text else text for text in made]
    assert generate(*model, PROMPTS, 6, KEY, eos=end) == cut
    assert generate(*model, PROMPTS, 6, KEY, eos=[end, made[1][0]])[1] == []


def test_sampled_text_comes_of_its_key_and_row(model):
    made = generate(*model, PROMPTS, 6, KEY, temperature=2.0)
    assert made == generate(*model, PROMPTS, 6, KEY, temperature=2.0)
    assert made != generate(*model, PROMPTS, 6, jax.random.key(4), temperature=2.0)
    assert made[:2] == generate(*model, [PROMPTS[0], TEXT[4:5], TEXT], 6, KEY, temperature=2.0)[:2]
    # The smallest share leaves the likeliest token alone.
    greedy = generate(*model, PROMPTS, 6, KEY)
    assert generate(*model, PROMPTS, 6, KEY, temperature=2.0, top_p=1e-6) == greedy


def test_tokens_are_drawn_by_their_probability_among_the_likeliest():
    share = np.array([0.5, 0.3, 0.15, 0.05], np.float32)[[2, 0, 3, 1]]
    logits = jnp.broadcast_to(jnp.log(share), (4000, 4))
    keys = jax.random.split(KEY, 4000)
    for top_p, expected in ((1.0, share), (0.7, np.where(share >= 0.3, share, 0) / 0.8)):
        drawn = choose(keys, logits, jnp.float32(1), jnp.float32(top_p))
        counts = np.bincount(drawn, minlength=4) / 4000
        assert np.abs(counts - expected).max() < 0.03
    assert set(np.asarray(choose(keys, logits, jnp.float32(0), jnp.float32(1)))) == {1}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"prompts": []}, "prompts = .*: must be one or more"),
        ({"prompts": [[1], []]}, "prompts = .*: must be one or more, of a token or more each"),
        ({"prompts": [[20]]}, "tokens from 20 to 20: must be 0 to 19"),
        ({"max_new": 0}, "max_new = 0: must be 1 or more"),
        ({"temperature": -1.0}, "temperature = -1.0: must be 0"),
        ({"top_p": 0.0}, r"top_p = 0.0: must be in \(0, 1\]"),
    ],
)
def test_arguments_that_mean_nothing_are_named(model, arguments, told):
    good = {"prompts": [[1]], "max_new": 1, "key": KEY}
    with pytest.raises(ValueError, match=told):
        generate(*model, **good | arguments)
