"""A BERT whose vocabulary is cut to the words of a task, so that a step takes less time.

    python benchmarks/real/cut.py --task swapped

reads `runs/real/minilm` and `runs/real/swapped`, and writes `runs/real/minilm_swapped`. Two of five
parameters of MiniLM-L6 are embeddings of words that a task's texts do not have, and AdamW visits
all parameters in every step. Kept are the pieces that the task's texts are cut into, in
their order, and the special tokens. A word is cut into pieces by the longest match at each place;
that match is kept, and so the same words are cut in the same way, and the model computes the same.
"""

import argparse
import csv
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from packages import check

from pbr_jax.data.vocabulary import load_tokenizer
from pbr_jax.files import write_json

WORDS = "embeddings.word_embeddings.weight"
WEIGHTS = {
    "documents": "b39600cc1a60b4c43fd2ee30a87db75fc4297cbcdd4fd89cb5456e396ab25fbd",
    "swapped": "1627208ff6f1810c6e1439014aa58061031dc95e0d6e61eba8a1d50e4afd84e6",
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def texts(folder: Path) -> list[str]:
    """All texts of the tables in a folder."""
    found = []
    for file in sorted(folder.glob("*.csv")):
        with file.open(newline="", encoding="utf-8") as table:
            found += [row["text"] for row in csv.DictReader(table)]
    return found


def pieces_of(vocabulary: Path, told: Iterable[str]) -> list[int]:
    """Numbers of the pieces that the texts are cut into, and of the special tokens, increasing."""
    tokenizer = load_tokenizer(str(vocabulary), None).tokenizer
    used = {tokenizer.token_to_id(word) for word in SPECIAL} - {None}
    for encoding in tokenizer.encode_batch(list(told), add_special_tokens=False):
        used.update(encoding.ids)
    return sorted(used)


def cut(model: Path, told: Iterable[str], out: Path) -> int:
    """Writes the model of fewer words into `out`; returns how many there are."""
    from safetensors.numpy import load_file, save_file

    kept = pieces_of(model / "vocab.txt", told)
    words = (model / "vocab.txt").read_text(encoding="utf-8").split("\n")
    arrays = load_file(model / "model.safetensors")
    (name,) = (name for name in arrays if name.endswith(WORDS))
    out.mkdir(parents=True, exist_ok=True)
    save_file(arrays | {name: arrays[name][kept]}, out / "model.safetensors")
    lines = "".join(f"{words[number]}\n" for number in kept)
    (out / "vocab.txt").write_text(lines, encoding="utf-8")
    known = json.loads((model / "config.json").read_text())
    write_json(out / "config.json", known | {"vocab_size": len(kept)})
    shutil.copy(model / "tokenizer_config.json", out)
    return len(kept)


def main() -> None:
    """Makes the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="swapped", choices=WEIGHTS)
    parser.add_argument("--folder", type=Path, default=Path("runs/real"), help="of all three")
    args = parser.parse_args()
    out = args.folder / f"minilm_{args.task}"
    print(f"{out}: {cut(args.folder / 'minilm', texts(args.folder / args.task), out)} word pieces")
    check(out / "model.safetensors", WEIGHTS[args.task])


if __name__ == "__main__":
    main()
