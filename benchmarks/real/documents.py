"""A text task of real documents: which of twelve manuals is a sentence from?

    python benchmarks/real/documents.py --out runs/real/documents

The manuals are Debian's packages of documentation, English HTML or DocBook. They are downloaded by
`apt-get download` and read where they are; nothing is installed, and no text of theirs is part of
this repository. A document (a page of a manual) goes whole to training, validation or test. A
sentence that two documents have is left out, and so is one that names its manual. `train.csv`,
`val.csv` and `test.csv` are for `--config.data.name=csv`.
"""

import argparse
import io
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import split
from manuals import MANUALS, Manual
from packages import fetched
from split import Sentence

DIGEST = "d4bfc78e94b0b88d"
MOST = {"train": 500, "val": 100, "test": 250}  # sentences of a class
EACH = 60  # sentences of a document


class _Paragraphs(HTMLParser):
    """Collects the text of paragraphs, items and definitions, without code and tables."""

    _OPEN = frozenset({"p", "dd", "li", "para"})
    _SKIP = frozenset({"pre", "script", "style", "table", "nav", "programlisting"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._words: list[str] = []
        self._inside, self._skipped = False, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # The Debian handbook has its paragraphs in `<div class="para">`.
        if tag in self._OPEN or (tag == "div" and ("class", "para") in attrs):
            self._flush()
            self._inside = True
        if tag in self._SKIP:
            self._flush()
            self._skipped += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in self._OPEN or tag == "div":
            self._flush()
            self._inside = False
        if tag in self._SKIP:
            self._skipped = max(0, self._skipped - 1)

    def handle_data(self, data: str) -> None:
        if self._inside and not self._skipped:
            self._words.append(data)

    def _flush(self) -> None:
        if text := " ".join("".join(self._words).split()):
            self.found.append(text)
        self._words = []

    def close(self) -> None:
        super().close()
        self._flush()


def sentences(markup: str) -> list[str]:
    """The sentences of 8 to 30 words of a document, each once, in their order."""
    parser = _Paragraphs()
    parser.feed(markup)
    parser.close()
    whole = [
        text
        for paragraph in parser.found
        for text in re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph)
        if 8 <= len(text.split()) <= 30 and text[0].isupper() and text[-1] in ".!?"
    ]
    return list(dict.fromkeys(whole))


def documents(manual: Manual, package: Path) -> Iterator[tuple[str, str]]:
    """`(path, markup)` of every document; one that is a link, or joins others, is left out."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    content = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for entry in sorted(archive.getmembers(), key=lambda entry: entry.name):
            path = Path(entry.name)
            joined = "big-page" in path.name or "singlepage" in path.name
            inside = path.is_relative_to(manual.folder)
            if entry.isfile() and inside and path.suffix in (".html", ".xml") and not joined:
                file = archive.extractfile(entry)
                assert file is not None
                yield str(path), file.read().decode("utf-8", "replace")


def found_in(manual: Manual, pages: Iterator[tuple[str, str]]) -> list[Sentence]:
    """The sentences of a manual that do not name it."""
    names = re.compile("|".join(manual.named.split()), re.IGNORECASE)
    return [
        Sentence(text, manual.label, f"{manual.package.name}/{path}")
        for path, markup in pages
        for text in sentences(markup)
        if not names.search(text)
    ]


def once(found: list[Sentence]) -> list[Sentence]:
    """Those whose letters and digits no other sentence has."""
    letters = [re.sub(r"\W+", " ", sentence.text).lower() for sentence in found]
    count = Counter(letters)
    return [sentence for sentence, text in zip(found, letters, strict=True) if count[text] == 1]


def splits(found: list[Sentence]) -> dict[str, list[Sentence]]:
    """`{split: sentences}`; no document is in two."""
    parts = split.by_origin(once(found), lambda s: s.origin, lambda s: s.text)
    return {
        name: split.at_most(part, lambda s: s.label, MOST[name], lambda s: s.origin, EACH)
        for name, part in parts.items()
    }


def make(folder: Path, downloads: Path) -> None:
    """Writes the three tables into `folder`.

    Raises:
      SystemExit: they are not those that the figures of this repository are of.
    """
    packages = {manual: fetched(manual.package, downloads) for manual in MANUALS}
    found = [s for m, package in packages.items() for s in found_in(m, documents(m, package))]
    split.write(folder, splits(found), "documents")
    split.check_digest(folder, DIGEST)


def main() -> None:
    """Makes the task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real/documents"))
    parser.add_argument("--downloads", type=Path, default=Path("runs/real/packages"))
    args = parser.parse_args()
    make(args.out, args.downloads)


if __name__ == "__main__":
    main()
