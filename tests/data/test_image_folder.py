"""Image folders, their splits and classes, and files that are broken."""

import os
import subprocess
import unicodedata

import numpy as np
import pytest
from PIL import Image
from small_data import image_bytes, truncate, write_image_folder

from pbr_jax import data
from pbr_jax.data import ImageInputs, TrainBatches, unlabelled


@pytest.fixture
def folder(tmp_path):
    return write_image_folder(tmp_path)


def test_folders_are_classes_and_files_examples(folder):
    (folder / "train" / "ant" / "notes.txt").write_text("not an image")
    (folder / "train" / "ant" / "._0.jpg").write_text("a file manager's own")
    (folder / "train" / ".cache").mkdir()
    dataset = data.load("image_folder", str(folder))
    assert dataset.class_names == ("ant", "bee")
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 == dataset.test.labels.tolist()
    names = [dataset.train[i].name for i in range(8)]
    assert names[:4] == [
        str(folder / "train" / "ant" / file)
        for file in ("0.jpg", "1.jpg", "2.jpg", "more/last.PNG")
    ]
    (folder / "classes.txt").write_text("bee\nant\n")
    assert data.load("image_folder", str(folder)).train.labels.tolist() == [1] * 4 + [0] * 4


def test_evaluation_sees_the_whole_image_resized(folder):
    dataset = data.load("image_folder", str(folder))
    (batch,) = data.eval_batches(dataset.test, ImageInputs(16, 3, "crop"), 8)
    for index in range(8):
        image = Image.open(dataset.test[index].name).resize((16, 16), Image.Resampling.BILINEAR)
        expected = np.asarray(image) / 127.5 - 1
        np.testing.assert_allclose(batch["image"][index], expected, atol=1e-6)


def test_training_sees_random_parts_bit_equal_after_restore(folder):
    records = data.load("image_folder", str(folder)).train
    inputs = ImageInputs(16, 3, "crop")
    walked = TrainBatches(records, inputs, 3, seed=1)
    first, state = next(walked), walked.state()
    following = next(walked)
    resumed = TrainBatches(records, inputs, 3, seed=1, workers=2)
    resumed.restore(state)
    assert following["image"].tobytes() == next(resumed)["image"].tobytes()
    still = TrainBatches(records, ImageInputs(16, 3), 3, seed=1)
    np.testing.assert_array_equal(next(still)["label"], first["label"])
    assert (
        next(TrainBatches(records, ImageInputs(16, 3), 3, 1))["image"].tobytes()
        != first["image"].tobytes()
    )


def test_truncated_images_stop_when_their_turn_comes_or_are_counted(folder):
    broken = truncate(folder / "train" / "ant" / "1.jpg")
    (folder / "train" / "bee" / "2.jpg").write_text("<html>")
    (folder / "train" / "bee" / "more" / "last.PNG").write_bytes(b"")
    (folder / "train" / "bee" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    dataset = data.load("image_folder", str(folder))
    with pytest.raises(ValueError, match=rf"{broken}: not a readable image \(.*truncated"):
        list(data.eval_batches(dataset.train, ImageInputs(16, 3), 2))
    skipping = data.load("image_folder", str(folder), on_error="skip")
    assert len(skipping.train) == 5 and len(skipping.test) == 8
    (note,) = skipping.notes
    assert note.startswith(f"skipped 4 of 9 images of {folder / 'train'}: {broken}: not a")
    assert "gone.jpg: cannot be read (No such file" in "".join(skipping.skipped[0].faults)
    assert len(list(data.eval_batches(skipping.train, ImageInputs(16, 3), 2))) == 3


@pytest.mark.parametrize(
    ("kind", "mode", "channels"),
    [
        ("PNG", "P", 3),
        ("PNG", "RGBA", 3),
        ("PNG", "L", 3),
        ("PNG", "1", 1),
        ("JPEG", "CMYK", 3),
        ("JPEG", "L", 1),
        ("GIF", "P", 1),
        ("WEBP", "RGB", 3),
    ],
)
def test_every_kind_of_file_becomes_the_models_channels(folder, kind, mode, channels):
    path = folder / "test" / "ant" / f"0.{kind.lower()}"
    path.write_bytes(image_bytes(kind, mode=mode))
    dataset = data.load("image_folder", str(folder))
    record = next(r for r in map(dataset.test.__getitem__, range(9)) if r.name == str(path))
    image = ImageInputs(16, channels)([record])["image"]
    assert image.shape == (1, 16, 16, channels) and np.ptp(image) > 0.3


def test_settings_that_files_cannot_have_are_refused(folder):
    record = data.load("image_folder", str(folder)).train[0]
    with pytest.raises(ValueError, match=r"model\.channels = 4: must be 1 or 3"):
        ImageInputs(16, 4)([record])
    with pytest.raises(ValueError, match="augment = affine: for small images in arrays only"):
        ImageInputs(16, 3, "affine")([record])


def test_more_than_8_bits_are_refused(folder):
    path = folder / "train" / "ant" / "deep.png"
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(path)
    dataset = data.load("image_folder", str(folder), on_error="skip")
    assert f"{path}: not a readable image (its pixels have more than 8 bits" in dataset.notes[0]


def test_a_large_jpeg_is_decoded_smaller_but_looks_the_same(folder):
    path = folder / "test" / "ant" / "large.jpg"
    path.write_bytes(image_bytes(size=(900, 700)))
    dataset = data.load("image_folder", str(folder))
    record = next(r for r in map(dataset.test.__getitem__, range(9)) if r.name == str(path))
    reduced = ImageInputs(32, 3)([record])["image"]
    whole = Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)
    assert abs(reduced[0] - (np.asarray(whole) / 127.5 - 1)).mean() < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mv train learn", "has no split train; its splits: learn, test"),
        (
            "mv test exam",
            r"no split to evaluate on; add one named test or val \(it has exam, train",
        ),
        ("cp -r test val", "has test and val; choose .* data.test_split=val"),
        ("rm -r train/ant && mkdir train/ant", "train/ant: holds no image"),
        ("rm -r train/ant", r"never seen in training: ant \(4 examples\)"),
        ("rm -r test/ant test/bee", "test: has no folder"),
    ],
)
def test_wrong_folders_are_named(folder, change, message):
    subprocess.run(change, shell=True, cwd=folder, check=True)
    with pytest.raises(ValueError, match=message):
        data.load("image_folder", str(folder))


def test_paths_that_are_no_folder_are_named(folder):
    for path in (None, str(folder / "nowhere"), str(folder / "train" / "ant" / "0.jpg")):
        with pytest.raises(ValueError, match=rf"data\.path = {path or 'none'}: .*must be a folder"):
            data.load("image_folder", path)


def test_the_split_of_evaluation_can_be_chosen(folder):
    (folder / "test").rename(folder / "mine")
    assert len(data.load("image_folder", str(folder), test_split="mine").test) == 8
    with pytest.raises(ValueError, match=r"data\.test_split = tset: .* it has mine, train"):
        data.load("image_folder", str(folder), test_split="tset")


def tree(root, *files):
    """Small images at these places."""
    for seed, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(image_bytes(size=(8, 8), seed=seed))


def names_of(records):
    return [records[row].name for row in range(len(records))]


def test_what_is_left_out_is_counted_and_said_by_kind(folder):
    ant = folder / "train" / "ant"
    tree(ant, ".ipynb_checkpoints/0-checkpoint.jpg", ".ipynb_checkpoints/more/1.jpg")
    tree(ant, "__MACOSX/ant/._0.jpg", "._0.jpg", "@eaDir/0.jpg")
    tree(folder / "train", "stray.jpg", ".cache/0.jpg")
    for name in ("Thumbs.db", "notes.txt", "more/notes.TXT", "a.heic", "LICENSE"):
        (ant / name).write_text("no image")
    (ant / "folder.png").mkdir()
    dataset = data.load("image_folder", str(folder))
    assert len(dataset.train) == 8
    assert dataset.notes == [
        f"{folder / 'train'}: left out: 5 files in hidden folders (.cache, .ipynb_checkpoints, "
        "@eaDir and 1 more), 2 hidden files (._0.jpg, Thumbs.db), 4 files of other endings (.heic, "
        ".txt, none), 1 file beside the class folders (stray.jpg), 1 folder named like an image, "
        "without one (folder.png); convert .heic to JPEG or PNG"
    ]
    assert unlabelled.find([ant], "image").notes[0].startswith(f"{ant}: left out: 4 files in")
    # A class of which nothing is left is refused, with what was there.
    tree(folder, "train/moth/.cache/0.jpg", "test/moth/0.jpg")
    (folder / "train" / "moth" / "a.svg").write_text("<svg/>")
    with pytest.raises(ValueError, match=r"moth: holds no image(.|\n)*convert \.svg") as raised:
        data.load("image_folder", str(folder))
    assert "1 file in hidden folders (.cache), 1 file of another ending" in str(raised.value)


@pytest.mark.parametrize("name", ["x.jfif", "x.JPG", "x.Jpeg", "x.jpe", "x.TIF"])
def test_all_endings_of_images_count(folder, name):
    tree(folder / "train" / "ant", name)
    dataset = data.load("image_folder", str(folder))
    assert len(dataset.train) == 9 and not dataset.notes


def test_linked_folders_are_followed_once_and_without_loops(folder, tmp_path):
    ant = folder / "train" / "ant"
    tree(tmp_path / "store", "0.jpg", "deep/1.jpg")
    before = names_of(data.load("image_folder", str(folder)).train)
    (ant / "a_link").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(ant)
    (ant / "b_again").symlink_to(tmp_path / "store" / "deep")
    (ant / "c_itself").symlink_to(".")
    (ant / "d_above").symlink_to("../..")
    (ant / "e_more").symlink_to("more")
    (folder / "train" / "cow").symlink_to(tmp_path / "store")
    tree(folder, "test/cow/0.jpg")
    (ant / "f_gone").symlink_to(tmp_path / "unmounted")
    (folder / "train" / "all").symlink_to(".")
    dataset = data.load("image_folder", str(folder))
    names = names_of(dataset.train)
    (note,) = dataset.notes
    assert "2 links that lead nowhere (f_gone), " in note and "(a_link, all, b_again " in note
    # What was there keeps its path and its order.
    assert [name for name in names if name in before] == before
    new = sorted(set(names) - set(before))
    assert [name for name in new if "/ant/" in name.removeprefix(str(folder))] == [
        str(ant / "a_link" / "0.jpg"),
        str(ant / "a_link" / "deep" / "1.jpg"),
    ]
    # A linked class, in which `back` leads to the other one.
    assert len(new) == 2 + 2 + 4
    assert dataset.train.labels.tolist().count(0) == 6


def test_a_folder_named_like_an_image_is_a_folder(folder):
    tree(folder / "train" / "ant", "set.png/0.jpg")
    dataset = data.load("image_folder", str(folder))
    assert str(folder / "train" / "ant" / "set.png" / "0.jpg") in names_of(dataset.train)
    assert len(dataset.train) == 9 and not dataset.notes
    batches = list(data.eval_batches(dataset.train, ImageInputs(16, 3), 3))
    assert len(batches) == 3


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (os.mkfifo, "is a named pipe, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.symlink_to(path), "cannot be read (Too many levels"),
        (lambda path: path.symlink_to("gone"), "cannot be read (No such file or directory; a link"),
    ],
)
def test_what_is_no_file_is_never_waited_for(folder, make, cause):
    path = folder / "train" / "ant" / "9.jpg"
    make(path)
    dataset = data.load("image_folder", str(folder))
    with pytest.raises(ValueError, match=r"9\.jpg: ") as raised:
        list(data.eval_batches(dataset.train, ImageInputs(16, 3), 4))
    assert cause in str(raised.value)
    skipping = data.load("image_folder", str(folder), on_error="skip")
    assert len(skipping.train) == 8 and cause in skipping.notes[0]
    for where in (path, path.parent):
        found = unlabelled.find([where], "image")
        with pytest.raises(ValueError, match=r"9\.jpg: "):
            [found[row] for row in range(len(found))]


def test_accents_may_be_composed_or_not(folder):
    forms = [unicodedata.normalize(form, "fougère") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    tree(folder, f"train/{forms[0]}/0.jpg", f"test/{forms[1]}/0.jpg")
    dataset = data.load("image_folder", str(folder))
    assert dataset.num_classes == 3 and dataset.train.labels[-1] == dataset.test.labels[-1] == 2
    tree(folder, f"train/{forms[1]}/1.jpg")
    assert data.load("image_folder", str(folder)).train.labels.tolist()[-2:] == [2, 2]
    for form in forms:
        (folder / "classes.txt").write_text(f"bee\n{form}\nant\n", "utf-8")
        dataset = data.load("image_folder", str(folder))
        assert dataset.class_names == ("bee", form, "ant")
        assert dataset.train.labels[-1] == dataset.test.labels[-1] == 1
    (folder / "classes.txt").write_text(f"bee\n{forms[0]}\nant\n{forms[1]}\n", "utf-8")
    with pytest.raises(ValueError, match=r"classes\.txt: lists fougère more than once"):
        data.load("image_folder", str(folder))


def test_the_list_of_classes_may_be_from_any_editor(folder):
    listed = folder / "classes.txt"
    for content in (b"\xef\xbb\xbfbee\r\nant\r\n", b"bee\rant", b"\nbee \n\n ant\n\n"):
        listed.write_bytes(content)
        assert data.load("image_folder", str(folder)).class_names == ("bee", "ant")
    listed.write_bytes("bee\nant\nfougère".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes\.txt:3: is not UTF-8 \(byte 0xe8\)"):
        data.load("image_folder", str(folder))
    listed.unlink()
    os.mkfifo(listed)
    with pytest.raises(ValueError, match=r"classes\.txt: is a named pipe"):
        data.load("image_folder", str(folder))


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"ant/more: cannot be read \(Permission denied\)"):
        data.load("image_folder", str(folder))


def test_names_that_are_not_utf_8_can_be_printed(folder):
    strange = os.fsdecode(os.fsencode(folder / "train" / "ant") + b"/caf\xe9.jpg")
    tree(folder, strange)
    dataset = data.load("image_folder", str(folder))
    assert r"caf\xe9.jpg" in "".join(names_of(dataset.train))
    assert len(list(data.eval_batches(dataset.train, ImageInputs(16, 3), 3))) == 3
