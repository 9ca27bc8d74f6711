"""The tokenizer of `configs/answers`: a byte-level BPE, trained on the texts there.

    python benchmarks/small_tokenizer.py configs/answers

Writes `tokenizer.json` and `tokenizer_config.json`, with a chat template, beside the texts.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = 512
START, END = "<|start|>", "<|end|>"
# Without a line end behind what is written: Jinja would keep it.
TEMPLATE = """\
{% for message in messages %}
{{- bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ bos_token + 'assistant\\n' }}{% endif %}
"""


def texts(value: object) -> list[str]:
    """All texts in a value of JSON."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return [text for one in inside for text in texts(one)]
    return [str(value)]


def main(folder: Path) -> None:
    """Trains on `train.jsonl`."""
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts([json.loads(line) for line in lines]), trainer)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {"bos_token": START, "eos_token": END, "chat_template": TEMPLATE}
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
