"""Reads a whole data set and says what is in it.

    pbr data check cifar100
    pbr data check my_images/          a folder with train/CLASS/*.jpg, or train.csv, or train.jsonl
    pbr data check my_arrays.npz
    pbr data check language --path my_texts/ --tokenizer FOLDER --max-length 2048

Prints the examples of each split and class, the sizes of the images or the words of the texts,
every image or row that cannot be used, what is left out as no example, and how many test examples
are in training too. The exit code is 1 if something cannot be used, or a class is tested that
training never shows. Of texts for language models it counts tokens and rows, and shows a row.
"""

import argparse
from collections.abc import Iterable

from pbr_jax import data
from pbr_jax.data import check
from pbr_jax.data.check import Findings
from pbr_jax.data.packing import PackedRecords
from pbr_jax.data.records import label_faults
from pbr_jax.data.shown_rows import shown
from pbr_jax.datasets import SOURCES, Kind
from pbr_jax.files import user_path
from pbr_jax.reading import excerpt
from pbr_jax.training.inputs import input_notes

_LONGEST = 512  # tokens of a text, as published BERTs have it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="NAME|PATH", help=f"{', '.join(SOURCES)}, or a path")
    parser.add_argument("--path", help="where a data set that has a name lies, as data.path")
    parser.add_argument("--test-split", help="the split that evaluation reads, as data.test_split")
    parser.add_argument("--tokenizer", metavar="FILE", help="says if its words suit the texts")
    rows = f"tokens of a row of texts for language models, default {_LONGEST}"
    parser.add_argument("--max-length", type=int, default=_LONGEST, metavar="N", help=rows)


def main(args: argparse.Namespace) -> int:
    """Prints the findings; returns 1 if something is wrong with the data."""
    # One argument is a name or a path; a path is given the name of what lies there.
    name, path = args.what, args.path
    if name not in SOURCES:
        if not user_path(name).exists():
            raise ValueError(f"{data.unknown(name)}; nor is it a path")
        name, path = check.guess_name(args.what), args.what
        if name is None:
            raise ValueError(
                f"{path}: must be an .npz file, or a folder that holds train/CLASS/*.jpg, "
                "train.csv or train.jsonl"
            )
    kind = SOURCES[name].kind
    if kind == "language":
        return _language(path, args)
    if args.tokenizer is not None and kind != "text":
        raise ValueError(f"--tokenizer {args.tokenizer}: {name} has no texts")
    # Rows and arrays are all read to begin with; files are decoded below, broken or not.
    in_files = kind == "image" and "affine" not in SOURCES[name].augments
    on_error: data.OnError = "stop" if in_files else "skip"
    dataset = data.load(name, path, test_split=args.test_split, on_error=on_error, any_labels=True)
    notes = list(dataset.remarks)
    if args.tokenizer is not None:
        notes += input_notes(data.TextInputs(args.tokenizer, _LONGEST), dataset.train)
    train, test = check.examine(dataset.train), check.examine(dataset.test)
    # Faults of both ways to read, in the order of the files.
    faults = [fault for skipped in dataset.skipped for fault in skipped.faults]
    faults += [*train.faults, *test.faults]
    print(f"{name}: {dataset.num_classes} classes, {kind}\n")
    print("\n".join(_table(dataset.class_names, kind, train, test)))
    if repeated := check.shared(train, test):
        print(f"\n{repeated} of {len(test.digests)} test examples are in training too")
    wrong = label_faults(dataset.class_names, train.counts, test.counts)
    if wrong or notes:
        print("", *wrong, *notes, sep="\n")
    if faults:
        print(f"\n{len(faults)} cannot be used:", *faults, sep="\n  ")
    return 1 if faults or wrong else 0


def _language(path: str | None, args: argparse.Namespace) -> int:
    """The same for texts of language models."""
    if args.tokenizer is None:
        raise ValueError(
            "--tokenizer: must be the tokenizer.json of the model, or its folder, which says what"
            " the tokens of the texts are"
        )
    if args.max_length < 1:
        raise ValueError(f"--max-length {args.max_length}: must be 1 or more tokens")
    tokenizer = data.LanguageTokenizer(args.tokenizer)
    texts = data.load("language", path, test_split=args.test_split, on_error="skip")
    rows = data.packed(texts, tokenizer, args.max_length, on_error="skip")
    train, test = rows.train, rows.test
    assert isinstance(train, PackedRecords) and isinstance(test, PackedRecords)
    print(f"language: rows of {args.max_length} tokens\n")
    one, other = train.counts, test.counts
    called = {"scored": "tokens learned", "split": "texts split", "cut": "texts cut"}
    names = ("texts", "tokens", "scored", "rows", "split", "cut")
    lines = [("", "train", "test")]
    lines += [(called.get(n, n), str(getattr(one, n)), str(getattr(other, n))) for n in names]
    lines += [("places filled", f"{one.fill:.1%}", f"{other.fill:.1%}")]
    print("\n".join(_columns(lines)))
    contents = [
        [repr(split[row]._replace(name="")) for row in range(len(split))]
        for split in (texts.train, texts.test)
    ]
    seen = {*contents[0]}
    if repeated := sum(one in seen for one in contents[1]):
        print(f"\n{repeated} of {len(contents[1])} test texts are in training too")
    print("\nThe first row of training; what is learned stands in [[...]]:")
    print("\n".join(shown(train[0], tokenizer)))
    faults = [fault for skipped in rows.skipped for fault in skipped.faults]
    if faults:
        print(f"\n{len(faults)} cannot be used:", *faults, sep="\n  ")
    return 1 if faults else 0


def _table(class_names: tuple[str, ...], kind: Kind, train: Findings, test: Findings) -> list[str]:
    """A line for all examples, for their sizes, and for each class."""
    lines = [("", "train", "test")]
    lines += [("examples", str(len(train.digests)), str(len(test.digests)))]
    names = ("width", "height") if kind == "image" else ("words",)
    for column, name in enumerate(names):
        lines += [(name, _range(train, column), _range(test, column))]
    for label, name in enumerate(class_names):
        lines += [(f"  {excerpt(name)}", str(train.counts[label]), str(test.counts[label]))]
    return _columns(lines)


def _columns(lines: Iterable[tuple[str, str, str]]) -> list[str]:
    lines = list(lines)
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in lines]


def _range(findings: Findings, column: int) -> str:
    if not len(findings.sizes):
        return "-"
    low, high = findings.sizes[:, column].min(), findings.sizes[:, column].max()
    return str(low) if low == high else f"{low}-{high}"
