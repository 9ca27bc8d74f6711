"""Data sets by name: what their examples are, and which module of `pbr_jax.data` reads them.

A new data set is a module with `load(request) -> Dataset` and a line in `SOURCES`; choices, help,
defaults and checks follow from that line. Configurations import this module, so it imports nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["image", "text", "language"]  # a text has a class, language only words
Augment = Literal["off", "affine", "crop"]
OnError = Literal["stop", "skip"]


class Tfds(NamedTuple):
    """A data set in TensorFlow Datasets (TFDS)."""

    name: str  # as it is called there
    test_split: str  # what evaluation reads, unless another split is asked for
    host: str = ""  # where it is downloaded from; empty if TFDS does not prepare it for us
    texts: tuple[str, ...] = ()  # the features that hold texts, one or two; empty for images


class Source(NamedTuple):
    """A data set that has a name."""

    kind: Kind  # what an example is
    module: str  # the module of `pbr_jax.data` whose `load(request)` opens it
    num_classes: int | None = None  # None where the user's data say so
    augments: tuple[Augment, ...] = ()  # what its images can take, the default first
    is_at: Callable[[Path], bool] | None = None  # of the user's own: whether a path holds one
    prepared: bool = False  # `pbr data prepare` readies it, by `prepare(name, path, archive)`
    tfds: Tfds | None = None  # how TFDS has it, if it does


_ARRAYS: tuple[Augment, ...] = ("affine", "crop")  # small images in memory
_FILES: tuple[Augment, ...] = ("crop",)  # images of any size, decoded as they are needed


def _cifar(name: str, num_classes: int) -> Source:
    tfds = Tfds(name, "test", "https://www.cs.toronto.edu")
    return Source("image", "tfds", num_classes, _FILES, prepared=True, tfds=tfds)


def _glue(name: str, *texts: str, classes: int = 2, split: str = "validation") -> Source:
    """GLUE keeps the labels of its test splits to itself, so validation is what is evaluated."""
    tfds = Tfds(f"glue/{name}", split, "https://dl.fbaipublicfiles.com", texts)
    return Source("text", "tfds", classes, prepared=True, tfds=tfds)


SOURCES: dict[str, Source] = {
    "digits": Source("image", "digits", 10, _ARRAYS),
    # A path is guessed to hold the first of these that it looks like.
    "npz": Source("image", "npz", None, _ARRAYS, lambda p: p.suffix.lower() == ".npz"),
    "image_folder": Source("image", "image_folder", None, _FILES, lambda p: (p / "train").is_dir()),
    "csv": Source("text", "tables", is_at=lambda p: any(p.glob("*.csv"))),
    "jsonl": Source("text", "tables", is_at=lambda p: any(p.glob("*.jsonl"))),
    "language": Source("language", "language", is_at=lambda p: any(p.glob("*.jsonl"))),
    "cifar10": _cifar("cifar10", 10),
    "cifar100": _cifar("cifar100", 100),
    # Unpacked from its archive; the form of TFDS is read if it was prepared elsewhere.
    "cub200": Source(
        "image", "cub200", 200, _FILES, prepared=True, tfds=Tfds("caltech_birds2011", "test")
    ),
    "glue/cola": _glue("cola", "sentence"),
    "glue/mnli": _glue("mnli", "premise", "hypothesis", classes=3, split="validation_matched"),
    "glue/mrpc": _glue("mrpc", "sentence1", "sentence2"),
    "glue/qnli": _glue("qnli", "question", "sentence"),
    "glue/qqp": _glue("qqp", "question1", "question2"),
    "glue/rte": _glue("rte", "sentence1", "sentence2"),
    "glue/sst2": _glue("sst2", "sentence"),
    "glue/wnli": _glue("wnli", "sentence1", "sentence2"),
}
