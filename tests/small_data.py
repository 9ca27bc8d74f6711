"""Small data sets in the real formats, written where a test wants them."""

import io
import shutil
import tarfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "man",
    "walk",
    "##s",
    ".",
    "'",
    "it",
    "is",
    "1",
    "2",
    "caf",
    "##e",
    "##é",
]


def image_bytes(kind="JPEG", size=(40, 30), mode="RGB", seed=0) -> bytes:
    """Smooth noise, as a file of that kind."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, kind)
    return file.getvalue()


def write_image_folder(root: Path, splits=("train", "test"), classes=("ant", "bee"), count=4):
    """`root/SPLIT/CLASS/N.jpg`, the last of each class a PNG in a folder of its own."""
    seed = 0
    for split in splits:
        for name in classes:
            folder = root / split / name
            (folder / "more").mkdir(parents=True)
            for number in range(count):
                seed += 1
                last = number == count - 1
                file = folder / ("more/last.PNG" if last else f"{number}.jpg")
                file.write_bytes(image_bytes("PNG" if last else "JPEG", seed=seed))
    return root


def truncate(file: Path) -> Path:
    """Cuts the last quarter off."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    return file


def write_vocabulary(folder: Path) -> str:
    path = folder / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return str(path)


def write_cifar100(root: Path, train=30, test=10) -> dict[str, np.ndarray]:
    """The binary version, unpacked; pixels [N, 32, 32, 3] and labels of the training split."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for kind, count in (("fine", 100), ("coarse", 20)):
        names = "".join(f"{kind}{number}\n" for number in range(count))
        (folder / f"{kind}_label_names.txt").write_text(names)
    written = {}
    for split, count in (("train", train), ("test", test)):
        generator = np.random.default_rng(count)
        pixels = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 100
        rows = np.concatenate([labels[:, None] % 20, labels[:, None], pixels.reshape(count, -1)], 1)
        (folder / f"{split}.bin").write_bytes(rows.tobytes())
        written[split] = pixels.transpose(0, 2, 3, 1)
    return written


def write_rte(root: Path) -> None:
    """The files of RTE.zip, unpacked."""
    folder = root / "RTE"
    folder.mkdir(parents=True)
    head = "index\tsentence1\tsentence2\tlabel\n"
    names = ("entailment", "not_entailment")
    for file, count in (("train", 6), ("dev", 4)):
        rows = (f"{i}\tA man walks.\tIt's {i}\t{names[i % 2]}\n" for i in range(count))
        (folder / f"{file}.tsv").write_text(head + "".join(rows))
    (folder / "test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n")


@contextmanager
def downloaded(folder: Path):
    """TFDS finds what it would download, unpacked, in `folder`; no network is asked."""
    with (
        mock.patch("pbr_jax.data.tfds._check_reachable"),
        mock.patch(
            "tensorflow_datasets.download.DownloadManager.download_and_extract",
            return_value=str(folder),
        ),
    ):
        yield


def write_cub(archive: Path, classes=3, per_class=4) -> Path:
    """A `CUB_200_2011.tgz` with as many birds of each class, every other one for training."""
    root = archive.parent / "unpacked"
    base = root / "CUB_200_2011"
    lines = {"images": [], "image_class_labels": [], "train_test_split": [], "classes": []}
    number = 0
    for label in range(1, classes + 1):
        name = f"{label:03d}.Bird_{label}"
        lines["classes"].append(f"{label} {name}")
        (base / "images" / name).mkdir(parents=True)
        for index in range(per_class):
            number += 1
            file = f"{name}/Bird_{label}_{index}.jpg"
            (base / "images" / file).write_bytes(image_bytes(seed=number))
            lines["images"].append(f"{number} {file}")
            lines["image_class_labels"].append(f"{number} {label}")
            lines["train_test_split"].append(f"{number} {index % 2}")
    for table, rows in lines.items():
        (base / f"{table}.txt").write_text("\n".join(rows) + "\n")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(base, "CUB_200_2011")
    shutil.rmtree(root)
    return archive
