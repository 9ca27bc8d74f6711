"""Image folders, their splits and classes, and files that are broken."""

import subprocess

import numpy as np
import pytest
from PIL import Image
from small_data import image_bytes, truncate, write_image_folder

from pbr_jax import data
from pbr_jax.data import ImageInputs, TrainBatches


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
