"""`pbr predict`: a line per file or row, the same numbers as evaluation, faults by name."""

import csv
import dataclasses
import io
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from saved_runs import NAMES, bert_run, vit_run
from scipy import special

from pbr_jax import cli
from pbr_jax.configs.common import Data
from pbr_jax.data import ImageInputs, TextInputs
from pbr_jax.data.records import ImageRecord, TextRecord
from pbr_jax.runs.run import read_config
from pbr_jax.training import from_config


@pytest.fixture(scope="module", autouse=True)
def quick():
    """The command compiles once a call; that is most of the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "vit"
    return workdir, vit_run(workdir)[0]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "bert"
    return workdir, bert_run(workdir)[0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eleven grey images of 4 x 4 pixels in PNG files; batches have eight."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (11, 4, 4), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder, pixels[..., None]


def predict(workdir, *words):
    return cli.main(["predict", str(workdir), *map(str, words)])


@jax.jit(static_argnums=0)
def evaluate(model, params, inputs):
    return model.apply({"params": params}, inputs)


def expected(workdir, params, batch):
    """Probabilities, computed directly."""
    model = from_config.build(read_config(workdir)).model.module
    logits = evaluate(model, params, jax.tree.map(jnp.asarray, model.inputs(batch)))
    return special.softmax(np.asarray(logits, np.float64), axis=-1)


def image_probabilities(vit, pixels):
    workdir, params = vit
    batch = ImageInputs(4, 1)([ImageRecord(image, 0, "") for image in pixels])
    return expected(workdir, params, batch)


def assert_rows(text, names, probabilities):
    """The CSV has the best class of every example, in order."""
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["example"] for row in rows] == names
    for row, p in zip(rows, probabilities, strict=True):
        assert row["class"] == NAMES[int(np.argmax(p))]
        assert float(row["probability"]) == pytest.approx(p.max(), abs=2e-6)


def test_files_a_folder_and_arrays_give_the_same_numbers(vit, pictures, tmp_path, capsys):
    folder, pixels = pictures
    files = sorted(folder.iterdir())
    probabilities = image_probabilities(vit, pixels)
    for paths in (files, [folder]):
        assert predict(vit[0], *paths, "--csv", tmp_path / "out.csv") == 0
        text = (tmp_path / "out.csv").read_text()
        assert text.splitlines()[0] == "example,class,probability"
        assert_rows(text, list(map(str, files)), probabilities)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"11 of 11 examples predicted with checkpoint 1 of {vit[0]}" in captured.err
    np.savez(tmp_path / "own.npz", test_images=pixels)
    assert predict(vit[0], tmp_path / "own.npz") == 0
    names = [f"{tmp_path / 'own.npz'}[{row}]" for row in range(11)]
    assert_rows(capsys.readouterr().out, names, probabilities)


def test_batches_of_any_size_give_the_same_numbers(vit, pictures, capsys):
    folder, pixels = pictures
    assert predict(vit[0], folder, "--batch-size", 3) == 0
    names = [str(file) for file in sorted(folder.iterdir())]
    assert_rows(capsys.readouterr().out, names, image_probabilities(vit, pixels))


def test_top_lists_the_most_probable_classes(vit, pictures, capsys):
    folder, pixels = pictures
    assert predict(vit[0], folder / "00.png", "--top", 4) == 0
    header, row = csv.reader(capsys.readouterr().out.splitlines())
    names = "class_2,probability_2,class_3,probability_3,class_4,probability_4"
    assert ",".join(header[3:]) == names
    order = np.argsort(-image_probabilities(vit, pixels[:1])[0])
    assert row[1::2] == [NAMES[label] for label in order]
    assert sum(map(float, row[2::2])) == pytest.approx(1, abs=1e-5)
    assert predict(vit[0], folder, "--top", 5) == 2
    assert "--top 5: must be between 1 and 4" in capsys.readouterr().err


def test_the_last_checkpoint_can_be_asked_for(vit, pictures, capsys):
    assert predict(vit[0], pictures[0], "--checkpoint", "last") == 0
    assert "checkpoint 2 of" in capsys.readouterr().err


@pytest.fixture
def broken(pictures, tmp_path):
    """A good image between one that is none and one that is missing."""
    (tmp_path / "a.png").write_bytes(b"no image")
    return [tmp_path / "a.png", pictures[0] / "03.png", tmp_path / "missing.png"]


def test_an_unreadable_file_stops_the_command_and_nothing_is_written(vit, broken, tmp_path, capsys):
    assert predict(vit[0], *broken, "--csv", tmp_path / "out.csv") == 2
    error = capsys.readouterr().err
    assert f"{broken[0]}: not a readable image" in error and "--skip leaves out" in error
    assert not (tmp_path / "out.csv").exists()


def test_skipping_counts_and_names_what_is_left_out(vit, broken, pictures, capsys):
    assert predict(vit[0], *broken, "--skip") == 0
    captured = capsys.readouterr()
    assert_rows(captured.out, [str(broken[1])], image_probabilities(vit, pictures[1][3:4]))
    lines = captured.err.splitlines()
    assert lines[0].startswith(f"skipped: {broken[0]}: not a readable image")
    assert lines[1] == f"skipped: {broken[2]}: cannot be read (No such file or directory)"
    assert lines[2].startswith("1 of 3 examples predicted")
    assert predict(vit[0], broken[0], "--skip") == 1


def saved(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("folder", None, "a folder without images"),
        ("texts.csv", b"text\na\n", "text, but the model of this run reads images"),
        ("own.npz", b"PK", r"own.npz: not a readable .npz file"),
        ("own.npz", saved(images=np.zeros((2, 4, 4, 1), int)), "images are int64: must be uint8"),
        ("own.npz", saved(images=np.full((2, 4, 4, 1), np.nan)), "own.npz[0]: has NaN or infinity"),
        ("own.npz", saved(images=np.zeros((0, 4, 4, 1))), "images are empty"),
        ("own.npz", saved(images=np.zeros((2, 4, 4, 2))), "has 2 channels"),
        ("own.npz", saved(pictures=np.zeros(1)), "no array images or test_images; it has pictures"),
    ],
)
def test_what_is_no_image_is_refused(vit, tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    assert predict(vit[0], path) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/out.csv", "there is no folder"),
        ("folder", "is no file"),
        ("pipe", "is no file; leave out --csv for standard output"),
        ("own.npz", "is one of the inputs"),
        ("folder/../own.npz", "is one of the inputs"),
    ],
)
def test_where_nothing_can_be_written_nothing_is_computed(tmp_path, capsys, name, message):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "own.npz").write_bytes(b"PK")
    assert predict(tmp_path, tmp_path / "own.npz", "--csv", tmp_path / name) == 2
    assert f"--csv {tmp_path / name}: {message}" in capsys.readouterr().err
    assert (tmp_path / "own.npz").read_bytes() == b"PK"


def text_probabilities(bert, *texts):
    workdir, params = bert
    inputs = TextInputs(read_config(workdir).data.tokenizer, 12)
    return expected(workdir, params, inputs([TextRecord(*text, 0, "") for text in texts]))


def test_rows_of_text_with_and_without_a_second_one(bert, tmp_path, capsys):
    table, lines = tmp_path / "texts.CSV", tmp_path / "texts.jsonl"
    table.write_text('label,text\n7,a man walks\n,"it\'s 1\n2"\n,man\n')
    lines.write_text(json.dumps({"text_a": "a man", "text_b": "it is"}) + "\n")
    assert predict(bert[0], table, lines) == 0
    names = [f"{table}:{line}" for line in (2, 3, 5)] + [f"{lines}:1"]
    texts = [("a man walks", None), ("it's 1\n2", None), ("man", None), ("a man", "it is")]
    assert_rows(capsys.readouterr().out, names, text_probabilities(bert, *texts))


def test_texts_of_unknown_words_are_told(bert, tmp_path, capsys):
    file = tmp_path / "texts.csv"
    file.write_text('text\nun homme marche\n"bad" row\n')
    assert predict(bert[0], file, "--skip") == 0
    captured = capsys.readouterr()
    assert "100% of the tokens of the first 1 texts are [UNK], such as un: " in captured.err
    assert captured.out.count("\n") == 2


def test_a_bad_row_stops_or_is_skipped(bert, tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a man"}\n{"txt": "a"}\n{"text": ""}\nno\n')
    assert predict(bert[0], file) == 2
    assert f"{file}:2: has neither text nor text_a" in capsys.readouterr().err
    assert predict(bert[0], file, "--skip") == 0
    captured = capsys.readouterr()
    assert_rows(captured.out, [f"{file}:1"], text_probabilities(bert, ("a man", None)))
    places = [line.split(": ")[1] for line in captured.err.splitlines()[:3]]
    assert places == [f"{file}:{line}" for line in (2, 3, 4)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"", "must be one of .csv, .jsonl; the model of this run reads texts"),
        ("a.csv", b"txt\na\n", "a.csv:1: the header must name text or text_a"),
        ("a.jsonl", b"\n", "no examples to predict"),
    ],
)
def test_what_is_no_text_is_refused(bert, tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert predict(bert[0], tmp_path / name) == 2
    assert message in capsys.readouterr().err


def test_images_are_resized_as_in_evaluation(vit, tmp_path, capsys):
    """Whole, and without the changes that training makes."""
    workdir = tmp_path / "run"
    params = vit_run(workdir, data=Data(name="npz", path="no", augment="affine"))[0]
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    image.save(tmp_path / "large.png")
    assert predict(workdir, tmp_path / "large.png") == 0
    record = ImageRecord((tmp_path / "large.png").read_bytes(), 0, "")
    batch = ImageInputs(4, 1)([record])
    probabilities = expected(workdir, params, batch)
    assert_rows(capsys.readouterr().out, [str(tmp_path / "large.png")], probabilities)
    assert dataclasses.asdict(read_config(workdir).data)["augment"] == "affine"
