"""A text task that needs the order of words: were two neighbours of a sentence swapped?

    python benchmarks/real/swapped.py --out runs/real/swapped
    python benchmarks/real/cut.py --task swapped

It is "bigram shift" of Conneau et al., 2018 (arXiv:1805.01070), on the sentences by which WordNet
shows how a word is used: Debian's package wordnet-base, downloaded by `apt-get download` and read
where it is. Half of the sentences have two neighbouring words swapped, chosen by a hash of the
sentence. All sentences of a word, in all its senses, go whole to training, validation or test.
`train.csv`, `val.csv` and `test.csv` are for `--config.data.name=csv`.
"""

import argparse
import io
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import split
from packages import Package, fetched
from split import Sentence

from pbr_jax.data.vocabulary import load_tokenizer

DIGEST = "ba18a30273f6f367"
PACKAGE = Package(
    "wordnet-base",
    "1:3.0-37",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
)
FOLDER = "./usr/share/wordnet"
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
SHORTEST = 5  # words
LONGEST = 10  # pieces of MiniLM's vocabulary; with the two at the ends, 12 tokens
MOST = {"train": 2500, "val": 600, "test": 4350}  # sentences of a class
EACH = 20  # sentences of a word


def uses(line: str) -> tuple[str, list[str]]:
    """The first word of a set of synonyms, and the sentences that show its use.

    `line` is one of a file `data.*` in the format of wndb(5WN).
    """
    told, gloss = line.split(" | ", 1)
    return told.split(" ")[4].lower(), re.findall(r'"([^"]+)"', gloss)


def sentence(text: str, origin: str) -> Sentence | None:
    """The words of `text` without punctuation, two of them swapped in every other sentence.

    None where it has fewer than `SHORTEST` words, or its two words are the same.
    """
    words = re.findall(r"[\w'-]+", text)
    if len(words) < SHORTEST:
        return None
    drawn = split.place(f"swap {text}")
    if drawn < 0.5:
        return Sentence(" ".join(words), "as written", origin)
    first = int((2 * drawn - 1) * (len(words) - 1))
    one, other = words[first : first + 2]
    if one.lower() == other.lower():
        return None
    words[first : first + 2] = other, one
    return Sentence(" ".join(words), "swapped", origin)


def lines(package: Path) -> Iterator[str]:
    """All sets of synonyms; the licence, whose lines begin with spaces, is left out."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    content = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for part in PARTS_OF_SPEECH:
            file = archive.extractfile(f"{FOLDER}/data.{part}")
            assert file is not None
            told = file.read().decode("latin-1").splitlines()
            yield from (line for line in told if not line.startswith("  "))


def once(found: list[Sentence]) -> list[Sentence]:
    """Those whose words, in any order, no other sentence has."""
    words = [tuple(sorted(s.text.lower().split())) for s in found]
    count = Counter(words)
    return [s for s, mine in zip(found, words, strict=True) if count[mine] == 1]


def splits(found: list[Sentence]) -> dict[str, list[Sentence]]:
    """`{split: sentences}`; no word is in two."""
    parts = split.by_origin(once(found), lambda s: s.origin, lambda s: s.text)
    return {
        name: split.at_most(part, lambda s: s.label, MOST[name], lambda s: s.origin, EACH)
        for name, part in parts.items()
    }


def short(found: list[Sentence], vocabulary: Path) -> list[Sentence]:
    """Those of at most `LONGEST` pieces, so that none loses its swapped words to a cut."""
    tokenizer = load_tokenizer(str(vocabulary), None).tokenizer
    pieces = tokenizer.encode_batch([s.text for s in found], add_special_tokens=False)
    return [s for s, told in zip(found, pieces, strict=True) if len(told.ids) <= LONGEST]


def make(folder: Path, model: Path, downloads: Path) -> None:
    """Writes the three tables into `folder`.

    Raises:
      SystemExit: they are not those that the figures of this repository are of.
    """
    told = [uses(line) for line in lines(fetched(PACKAGE, downloads))]
    made = [sentence(text, word) for word, texts in told for text in texts]
    found = short([s for s in made if s is not None], model / "vocab.txt")
    split.write(folder, splits(found), "words")
    split.check_digest(folder, DIGEST)


def main() -> None:
    """Makes the task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real/swapped"))
    parser.add_argument("--model", type=Path, default=Path("runs/real/minilm"))
    parser.add_argument("--downloads", type=Path, default=Path("runs/real/packages"))
    args = parser.parse_args()
    make(args.out, args.model, args.downloads)


if __name__ == "__main__":
    main()
