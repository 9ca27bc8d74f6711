"""Reads a whole data set and says what is in it.

    pbr data check cifar100
    pbr data check my_images/          a folder with train/CLASS/*.jpg, or train.csv, or train.jsonl
    pbr data check my_arrays.npz

Prints the examples of each split and class, the sizes of the images or the words of the texts,
every image or row that cannot be used, what is left out as no example, and how many test examples
are in training too. The exit code is 1 if something cannot be used, or a class is tested that
training never shows.
"""

import argparse

from pbr_jax import data
from pbr_jax.data import check
from pbr_jax.data.check import Findings
from pbr_jax.data.records import label_faults
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


def _table(class_names: tuple[str, ...], kind: Kind, train: Findings, test: Findings) -> list[str]:
    """A line for all examples, for their sizes, and for each class."""
    lines = [("", "train", "test")]
    lines += [("examples", str(len(train.digests)), str(len(test.digests)))]
    names = ("width", "height") if kind == "image" else ("words",)
    for column, name in enumerate(names):
        lines += [(name, _range(train, column), _range(test, column))]
    for label, name in enumerate(class_names):
        lines += [(f"  {excerpt(name)}", str(train.counts[label]), str(test.counts[label]))]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in lines]


def _range(findings: Findings, column: int) -> str:
    if not len(findings.sizes):
        return "-"
    low, high = findings.sizes[:, column].min(), findings.sizes[:, column].max()
    return str(low) if low == high else f"{low}-{high}"
