"""SmolLM2 as `smollm2.py` wrote it, beside llama.cpp with the GGUF file that it is from.

The forward pass here is written out in NumPy float32 and shares no code with `pbr_jax`. With 4-bit
weights llama.cpp rounds activations to 8 bits before each product, which changes a greedy answer.
So it is given the same file with float32 numbers, the tensors in its own names and order of rows.
"""

import json
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

TOLERANCE = 2e-3  # of the largest difference of log-probabilities
EVERY = 4  # positions of the text, of which one is compared
LONGEST = 16  # tokens of an answer
TEXT = (
    "The harbour was quiet in the morning. Two fishermen sat on the wall and mended their nets, and"
    " a dog slept in the shade of a boat. When the ferry came in at 9:45, forty-three people went"
    " ashore, most of them with suitcases, and walked up the narrow street to the old hotel."
)
QUESTION = "What is the capital of France?"
ASKED = (  # texts whose tokens are compared
    TEXT,
    "def f(x):\n    return x**2 + 1234567890  # it's\ttabs\r\n\n\n  and   spaces  ",
    "Größe, 東京の天気, naïve café, Ⅻ ½ ٣٤٥, 🙂👍🏽, e\u0301, \u00a0\u2003 wide",
    "<|im_start|>user\nIt'll cost $3.50, won't it?<|im_end|>\n<|im_start|>assistant\n",
)


def forward(
    weights: Mapping[str, np.ndarray], config: Mapping[str, Any], tokens: Sequence[int]
) -> Float[np.ndarray, "N V"]:
    """Log-probabilities of the token behind each of `tokens [N]`."""
    heads, groups, d = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    angles = np.arange(len(tokens))[:, None] * config["rope_theta"] ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32)
    hidden_later = np.triu(np.full((len(tokens), len(tokens)), -np.inf, np.float32), 1)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + config["rms_norm_eps"])
        return x * scale * weights[f"{name}.weight"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T

    def turned(x: np.ndarray) -> np.ndarray:
        """RoPE of `x [H, N, d]`: pairs are half a head apart."""
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def by_head(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(tokens), -1, d).transpose(1, 0, 2)

    x = weights["model.embed_tokens.weight"][list(tokens)]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        y = norm(x, f"{layer}.input_layernorm")
        q, k, v = (by_head(linear(y, f"{layer}.self_attn.{part}_proj")) for part in "qkv")
        k, v = (np.repeat(each, heads // groups, axis=0) for each in (turned(k), v))
        scores = turned(q) @ k.transpose(0, 2, 1) / np.sqrt(np.float32(d)) + hidden_later
        seen = np.exp(log_softmax(scores)) @ v
        mixed = seen.transpose(1, 0, 2).reshape(len(tokens), -1)
        x = x + linear(mixed, f"{layer}.self_attn.o_proj")
        y = norm(x, f"{layer}.post_attention_layernorm")
        gate = linear(y, f"{layer}.mlp.gate_proj")
        gated = gate / (1 + np.exp(-gate)) * linear(y, f"{layer}.mlp.up_proj")
        x = x + linear(gated, f"{layer}.mlp.down_proj")
    return log_softmax(linear(norm(x, "model.norm"), "model.embed_tokens"))


def log_softmax(x: Float[np.ndarray, "*B V"]) -> Float[np.ndarray, "*B V"]:
    """Logarithms of probabilities over the last axis."""
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def unquantised(source: Path, target: Path) -> None:
    """The GGUF file `source` with all tensors as float32, at `target`."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = "general.architecture"
    writer = gguf.GGUFWriter(target, reader.fields[architecture].contents())
    for key, field in reader.fields.items():
        if key != architecture and not key.startswith("GGUF."):  # which the writer writes itself
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp's server in this process, keys and values in float32 too."""

    def __init__(self, model: Path, vocabulary: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        flash = xllamacpp.llama_flash_attn_type
        params.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, -1
        self._server, self._vocabulary = xllamacpp.Server(params), vocabulary

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self._post("tokenize", {"content": text, "parse_special": True})["tokens"]

    def next(self, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Log-probabilities of the token behind `tokens`."""
        asked = {"prompt": list(tokens), "n_predict": 1, "n_probs": self._vocabulary}
        told = self._post("completion", {**asked, "temperature": 0})["completion_probabilities"][0]
        out = np.full(self._vocabulary, -np.inf, np.float32)
        for each in told["top_logprobs"]:
            out[each["id"]] = each["logprob"]
        return out

    def answer(self, tokens: Sequence[int]) -> str:
        """The greedy continuation of `tokens`, of at most `LONGEST` tokens."""
        asked = {"prompt": list(tokens), "n_predict": LONGEST, "temperature": 0}
        return self._post("completion", asked)["content"]

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        url = f"{self._server.listening_address}/{path}"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)


def chat(folder: Path, question: str) -> str:
    """The prompt of a chat that begins with `question`, by the template of the model."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    messages = [{"role": "user", "content": question}]
    made = ImmutableSandboxedEnvironment().from_string(template)
    return made.render(messages=messages, add_generation_prompt=True)


def check_against_llama_cpp(folder: Path, model: Path) -> None:
    """Prints how tokens, log-probabilities and the answer to a question agree.

    Raises:
      SystemExit: tokens or the answer differ, or log-probabilities by more than `TOLERANCE`.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unquantised(model, Path(scratch) / "float32.gguf")
        theirs = LlamaCpp(Path(scratch) / "float32.gguf", config["vocab_size"])
    wrong = [text for text in ASKED if tokenizer.encode(text).ids != theirs.tokens(text)]
    print(f"tokens: {len(ASKED) - len(wrong)} of {len(ASKED)} texts are cut alike")
    # The text, position by position.
    tokens = tokenizer.encode(TEXT).ids
    ours = forward(weights, config, tokens)
    told = np.mean([-ours[i, after] for i, after in enumerate(tokens[1:])])
    print(f"perplexity of {len(tokens)} tokens of English: {np.exp(told):.2f}")
    rows = range(EVERY, len(tokens), EVERY)
    apart = max(np.abs(theirs.next(tokens[: i + 1]) - ours[i]).max() for i in rows)
    print(f"log-probabilities at {len(rows)} positions: largest difference {apart:.1e}")
    # A chat.
    prompt, said = tokenizer.encode(chat(folder, QUESTION)).ids, list[int]()
    while len(said) < LONGEST and said[-1:] != [config["eos_token_id"]]:
        said.append(int(forward(weights, config, prompt + said)[-1].argmax()))
    answer, expected = tokenizer.decode(said), theirs.answer(prompt)
    print(f"{QUESTION} {answer!r}; llama.cpp: {expected!r}")
    if wrong or apart > TOLERANCE or answer != expected:
        raise SystemExit(f"not the same: texts differ, or the difference is above {TOLERANCE}")
