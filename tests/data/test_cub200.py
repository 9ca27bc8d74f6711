"""CUB-200-2011 from a small archive with the structure of the real one."""

import tarfile

import pytest
from small_data import image_bytes, truncate, write_cub

from pbr_jax import data
from pbr_jax.data import ImageInputs


@pytest.fixture
def archive(tmp_path):
    return write_cub(tmp_path / "CUB_200_2011.tgz")


def test_the_archive_is_unpacked_and_read(archive, tmp_path):
    path = str(tmp_path / "data")
    folder = data.prepare("cub200", path, str(archive))
    assert folder == data.prepare("cub200", path)  # there already
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["CUB_200_2011"]
    dataset = data.load("cub200", path)
    assert dataset.class_names == ("001.Bird_1", "002.Bird_2", "003.Bird_3")
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    names = [dataset.train[i].name.rpartition("_")[2] for i in range(6)]
    assert names == ["1.jpg", "3.jpg"] * 3  # as train_test_split.txt has it
    (batch,) = data.eval_batches(dataset.train, ImageInputs(16, 3), 6)
    assert batch["image"].shape == (6, 16, 16, 3)


def test_without_the_archive_the_way_to_it_is_told(tmp_path):
    with pytest.raises(
        ValueError, match=r"Download https://data\.caltech.*\n`pbr data prepare cub200"
    ):
        data.load("cub200", str(tmp_path))
    with pytest.raises(ValueError, match="needs --archive FILE; download https"):
        data.prepare("cub200", str(tmp_path))
    with pytest.raises(ValueError, match="no such file"):
        data.prepare("cub200", str(tmp_path), str(tmp_path / "CUB_200_2011.tgz"))


GOOGLE = (
    b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOGLE, "Google's warning that it cannot scan the file"),
        (b"\n<html>not found</html>", "a web page; download the file itself; take https"),
        (b"PK\x03\x04", "not a tar archive"),
        (b"", "an empty file"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, message):
    path = tmp_path / "CUB_200_2011.tgz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.prepare("cub200", str(tmp_path / "data"), str(path))
    assert not (tmp_path / "data").exists()


def test_a_download_that_was_cut_short_leaves_nothing(archive, tmp_path):
    truncate(archive)
    with pytest.raises(ValueError, match=r"cannot be unpacked .* cut short"):
        data.prepare("cub200", str(tmp_path / "data"), str(archive))
    assert not list((tmp_path / "data").iterdir())


def test_another_archive_is_named(tmp_path):
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as tar:
        tar.add(__file__, "CUB_200/images.txt")
    with pytest.raises(ValueError, match=r"has no CUB_200_2011/images\.txt"):
        data.prepare("cub200", str(tmp_path / "data"), str(tmp_path / "other.tgz"))


def test_broken_images_and_tables_are_named(archive, tmp_path):
    path = str(tmp_path / "data")
    folder = data.prepare("cub200", path, str(archive))
    broken = truncate(folder / "images" / "002.Bird_2" / "Bird_2_1.jpg")
    dataset = data.load("cub200", path, on_error="skip")
    assert len(dataset.train) == 5 and str(broken) in dataset.notes[0]
    with pytest.raises(ValueError, match=r"data\.test_split = val: cub200 has train and test"):
        data.load("cub200", path, test_split="val")
    (folder / "classes.txt").write_text("1 a\n2\n")
    with pytest.raises(ValueError, match=r"classes\.txt:2: must have a number and a value"):
        data.load("cub200", path)
    for classes in ("1 a\n2 b\n", "1 a\n2 b\n3 c\n5 e\n", "1 a\n2 b\n3 c\nx d\n"):
        (folder / "classes.txt").write_text(classes)
        with pytest.raises(ValueError, match=r"classes\.txt, .* do not agree; remove the folder"):
            data.load("cub200", path)
    (folder / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"classes\.txt: cannot be read .* prepare it again"):
        data.load("cub200", path)


def test_birds_that_tfds_prepared_elsewhere_are_read(tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["Albatross", "Auklet"]),
    }
    with tfds.core.registered.skip_registration():

        class CaltechBirds2011(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("0.2.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, downloads):
                return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

            def _generate_examples(self, count):
                for number in range(count):
                    yield number, {"image": image_bytes(seed=number), "label": number % 2}

    CaltechBirds2011(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    dataset = data.load("cub200", str(tmp_path))
    assert dataset.class_names == ("Albatross", "Auklet")
    (batch,) = data.eval_batches(dataset.train, ImageInputs(16, 3), 4)
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("filters", [True, False])
def test_what_leads_outside_is_not_unpacked(tmp_path, monkeypatch, filters):
    """By Python's own filter, and by ours where Python has none."""
    if not filters:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    path = tmp_path / "CUB_200_2011.tgz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("../outside.txt")
        tar.addfile(member)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        data.prepare("cub200", str(tmp_path / "data" / "cub"), str(path))
    assert not list(tmp_path.rglob("outside.txt"))
