"""`pbr data check` and `pbr data prepare`, from the command line."""

import os

import numpy as np
import pytest
from small_data import (
    downloaded,
    image_bytes,
    truncate,
    write_cifar100,
    write_cub,
    write_image_folder,
    write_vocabulary,
)

from pbr_jax import cli, data


def words(capsys):
    """The lines printed, with single spaces."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_check_counts_an_image_folder(tmp_path, capsys):
    root = write_image_folder(tmp_path)
    (root / "test" / "bee" / "0.jpg").write_bytes((root / "train" / "bee" / "1.jpg").read_bytes())
    assert cli.main(["data", "check", str(root)]) == 0
    assert words(capsys) == [
        "image_folder: 2 classes, image",
        "",
        "train test",
        "examples 8 8",
        "width 40 40",
        "height 30 30",
        "ant 4 4",
        "bee 4 4",
        "",
        "1 of 8 test examples are in training too",
    ]


def test_check_lists_unreadable_images_and_fails(tmp_path, capsys):
    root = write_image_folder(tmp_path)
    broken = [truncate(root / "train" / "ant" / f"{i}.jpg") for i in (0, 2)]
    broken += [truncate(root / "test" / "bee" / "more" / "last.PNG")]
    assert cli.main(["data", "check", str(root)]) == 1
    lines = words(capsys)
    assert {"examples 6 7", "ant 2 4", "bee 4 3", "3 cannot be used:"} <= set(lines)
    for line, file in zip(lines[-3:], broken, strict=True):
        assert line.startswith(f"{file}: not a readable image (")


def test_check_lists_every_bad_row(tmp_path, capsys):
    (tmp_path / "train.csv").write_text("text,label\na b,x\n,x\nc,\nd,y\n,y\n,y\n,y\n")
    (tmp_path / "test.csv").write_text("text,label\na b c,x\n")
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    lines = words(capsys)
    assert {"words 1-2 3", "x 1 1", "y 1 0", "5 cannot be used:"} <= set(lines)
    assert [line.partition(": ")[0] for line in lines[-5:]] == [
        f"{tmp_path / 'train.csv'}:{line}" for line in (3, 4, 6, 7, 8)
    ]


def test_check_shows_bad_rows_beside_labels_of_no_use(tmp_path, capsys):
    (tmp_path / "train.csv").write_text('text,label\na,x\na,y\n"a" b,z\n')
    (tmp_path / "test.csv").write_text("text,label\na,x\na,z\n")
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    lines = words(capsys)
    assert [line for line in lines if line.startswith("test labels never seen in training: z (1 ")]
    assert lines[-1].startswith(f"{tmp_path / 'train.csv'}:4: a quote ")
    # So does training, where it leaves that row out.
    with pytest.raises(ValueError, match=r"never seen in training: z .*\nskipped 1 of 3 rows"):
        data.load("csv", str(tmp_path), on_error="skip")
    (tmp_path / "test.csv").write_text("text,label\na,x\n")
    (tmp_path / "train.csv").write_text("text,label\na,x\nz,x\n")
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    assert "all labels are x: a classifier needs two classes or more" in capsys.readouterr().out


def test_check_says_whether_a_tokenizer_suits_the_texts(tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\nun homme marche,x\nun homme,y\n")
    vocabulary = write_vocabulary(tmp_path)
    assert cli.main(["data", "check", str(tmp_path), "--tokenizer", vocabulary]) == 0
    assert "100% of the tokens of the first 2 texts are [UNK], such as un: " in "".join(
        words(capsys)
    )
    assert cli.main(["data", "check", "digits", "--tokenizer", vocabulary]) == 2
    assert "digits has no texts" in capsys.readouterr().err


def test_check_reads_arrays(tmp_path, capsys):
    images = np.zeros((4, 5, 6, 1), np.uint8)
    labels = np.array([0, 1, 0, 1])
    arrays = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "own.npz", **arrays, test_images=images + 1, test_labels=labels)
    assert cli.main(["data", "check", str(tmp_path / "own.npz")]) == 0
    assert {"npz: 2 classes, image", "width 6 6", "height 5 5"} <= set(words(capsys))


def test_check_counts_what_training_sees_and_says_what_it_leaves_out(tmp_path, capsys):
    root = write_image_folder(tmp_path)
    ant = root / "train" / "ant"
    (ant / ".ipynb_checkpoints").mkdir()
    (ant / ".ipynb_checkpoints" / "0-checkpoint.jpg").write_bytes(image_bytes())
    (ant / "notes.txt").write_text("no image")
    (ant / "linked").symlink_to(root / "test" / "ant" / "more")
    (ant / "9.JFIF").write_bytes(image_bytes(seed=99))
    (root / "train" / "stray.png").write_bytes(image_bytes("PNG"))
    (ant / "8.jpg").write_bytes(b"")
    os.mkfifo(ant / "7.jpg")
    assert cli.main(["data", "check", str(root)]) == 1
    lines = words(capsys)
    trained = data.load("image_folder", str(root), on_error="skip")
    counts = np.bincount(trained.train.labels)
    assert counts.tolist() == [6, 4]
    assert {f"examples {len(trained.train)} 8", "ant 6 4", "bee 4 4"} <= set(lines)
    # The words are the same, for what is no image and for images that cannot be used.
    assert set(trained.remarks) <= set(lines) and len(trained.remarks) == 1
    assert set(trained.skipped[0].faults) <= set(lines) and len(trained.skipped[0].faults) == 2


def test_check_says_that_one_class_is_too_few(tmp_path, capsys):
    root = write_image_folder(tmp_path, classes=("ant",))
    assert cli.main(["data", "check", str(root)]) == 1
    assert "ant 4 4" in words(capsys)
    with pytest.raises(ValueError, match="all labels are ant: a classifier needs two classes"):
        data.load("image_folder", str(root))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cifr10", "did you mean 'cifar10'?; nor is it a path"),
        (".", "must be an .npz file, or a folder that holds"),
        ("cifar10", "`pbr data prepare cifar10` downloads"),
    ],
)
def test_what_cannot_be_checked_is_told(tmp_path, monkeypatch, capsys, what, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert cli.main(["data", "check", what]) == 2
    assert message in capsys.readouterr().err


def test_prepare_makes_what_check_and_training_read(tmp_path, capsys):
    write_cifar100(tmp_path / "source")
    path = str(tmp_path / "prepared")
    with downloaded(tmp_path / "source"):
        assert cli.main(["data", "prepare", "cifar100", "--path", path]) == 0
    assert "cifar100: 30 training and 10 test examples of 100 classes in" in "".join(words(capsys))
    assert cli.main(["data", "check", "cifar100", "--path", path]) == 0
    assert {"examples 30 10", "width 32 32", "fine29 1 0", "fine3 1 1"} <= set(words(capsys))


def test_prepare_unpacks_the_birds(tmp_path, capsys):
    archive = str(write_cub(tmp_path / "CUB_200_2011.tgz"))
    words_given = ["data", "prepare", "cub200", "--path", str(tmp_path / "data")]
    assert cli.main([*words_given, "--archive", archive]) == 0
    assert "6 training and 6 test examples of 3 classes" in "".join(words(capsys))
    assert cli.main([*words_given[:2], "cifar10", "--archive", archive]) == 2
    assert "cub200 has archives" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [("digits", "needs no preparation"), ("cifar", "did you mean 'cifar10'?")],
)
def test_prepare_refuses_other_names(name, message, capsys):
    assert cli.main(["data", "prepare", name]) == 2
    assert message in capsys.readouterr().err
