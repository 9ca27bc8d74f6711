"""Arrays of images and labels: one check for training, `pbr data check` and prediction.

Every message's advice is followed, and must then be enough.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as hypothesis_arrays

from pbr_jax import cli, data
from pbr_jax.data import unlabelled

rng = np.random.default_rng(0)
DIGITS = rng.integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
COLOUR = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def save(folder, images=DIGITS, labels=LABELS, **others):
    path = folder / "own.npz"
    arrays = {"train_images": images, "train_labels": labels}
    np.savez(path, **arrays, test_images=images, test_labels=labels, **others)
    return path


WRONG_IMAGES = [
    (DIGITS.astype(np.int64), "images are int64", "images.astype(np.uint8)"),
    (DIGITS.astype(np.float32), r"lie in \[\d+, 25\d\]", "images.round().astype(np.uint8)"),
    (DIGITS > 100, "images are bool", "images.astype(np.float32)"),
    (DIGITS.astype(np.uint16) * 256, "images are uint16", "(images / 65535).astype(np.float32)"),
    (DIGITS * 1e6, r"lie in", None),
    (DIGITS / 127.5 - 1, r"lie in \[-1, 1\]|lie in \[-", "(images + 1) / 2"),
    (DIGITS.astype(np.float32) - 100, "undo the normalisation", None),
    (COLOUR.transpose(0, 3, 1, 2), r"shape \(6, 3, 8, 8\)", "images.transpose(0, 2, 3, 1)"),
    (DIGITS.transpose(0, 3, 1, 2), r"shape \(6, 1, 8, 8\)", "images.transpose(0, 2, 3, 1)"),
    (DIGITS[..., 0], r"shape \(6, 8, 8\)", "images[..., None]"),
    (DIGITS.reshape(6, 64), r"shape \(6, 64\)", "images.reshape(-1, 8, 8, 1)"),
    (DIGITS[:, :0], "images are empty", None),
    (DIGITS.astype(str), "images are <U3", None),
    (DIGITS.astype(complex), "images are complex128", None),
]


@pytest.mark.parametrize(("images", "message", "advice"), WRONG_IMAGES)
def test_wrong_images_are_refused_everywhere_with_advice_that_works(
    tmp_path, capsys, images, message, advice
):
    path = save(tmp_path, images)
    with pytest.raises(ValueError, match=message) as trained:
        data.load("npz", str(path))
    with pytest.raises(ValueError, match=message) as predicted:
        unlabelled.find([path], "image")
    assert cli.main(["data", "check", str(path)]) == 2
    # The same words but for the name of the array.
    rest = str(trained.value).removeprefix("training images ")
    assert rest in capsys.readouterr().err
    assert str(predicted.value) == f"{path}: test_images {rest}"
    if advice is not None:
        assert advice in rest
        repaired = save(tmp_path, eval(advice, {"images": images, "np": np}))
        assert len(data.load("npz", str(repaired)).train) == 6
        assert len(unlabelled.find([repaired], "image")) == 6


def test_arrays_of_python_objects_are_named_and_can_be_converted(tmp_path):
    objects = np.empty(6, object)
    objects[:] = list(DIGITS)
    with pytest.raises(ValueError, match=r"data\.path = .* train_images holds Python objects"):
        data.load("npz", str(save(tmp_path, objects)))
    repaired = save(tmp_path, np.array(list(objects)))
    assert data.load("npz", str(repaired)).train.images.tobytes() == DIGITS.tobytes()


def test_all_faults_of_arrays_are_told_at_once(tmp_path):
    path = save(tmp_path, COLOUR.transpose(0, 3, 1, 2).astype(float), np.eye(3)[LABELS])
    with pytest.raises(ValueError, match="labels are") as raised:
        data.load("npz", str(path))
    advice = "transpose(0, 2, 3, 1)", "images.round().astype(np.uint8)", "labels.argmax(axis=1)"
    for line, words in zip(str(raised.value).splitlines(), advice, strict=True):
        assert words in line


@pytest.mark.parametrize("images", [DIGITS, COLOUR, DIGITS / 255, (DIGITS / 255).astype("f2")])
def test_sound_images_pass(tmp_path, images):
    path = save(tmp_path, images)
    assert data.load("npz", str(path)).train.images.tobytes() == images.tobytes()
    assert len(unlabelled.find([path], "image")) == 6


def test_two_channels_more_or_less_are_explained():
    batch = [data.records.ImageRecord(np.zeros((8, 8, 4), np.uint8), 0, "here")]
    with pytest.raises(ValueError, match=r"here has 4 channels; .*model\.channels=4, or .* :3\]"):
        data.ImageInputs(8, 3)(batch)
    assert data.ImageInputs(8, 4)(batch)["image"].shape == (1, 8, 8, 4)
    batch = [data.records.ImageRecord(np.zeros((8, 8, 2), np.uint8), 0, "here")]
    with pytest.raises(ValueError, match=r"here has 2 channels; .* images\[\.\.\., :1\]"):
        data.ImageInputs(8, 3)(batch)


def test_where_all_images_have_nan_to_leave_them_out_is_no_advice(tmp_path):
    path = save(tmp_path, np.full(DIGITS.shape, np.nan))
    with pytest.raises(ValueError, match=r"in 6 of 6 examples, first in example 0: repair them$"):
        data.load("npz", str(path))


def test_images_with_nan_stop_or_are_left_out_and_counted(tmp_path, capsys):
    images = (DIGITS / 255).astype(np.float32)
    images[[1, 4], 0, 0, 0] = np.nan, np.inf
    path = save(tmp_path, images, np.array([0, 1, 0, 0, 1, 1]))
    with pytest.raises(ValueError, match=r"NaN or infinity in 2 of 6 .* example 1.*on_error=skip"):
        data.load("npz", str(path))
    skipping = data.load("npz", str(path), on_error="skip")
    assert skipping.train.labels.tolist() == [0, 0, 0, 1] and len(skipping.test) == 4
    assert skipping.notes[0].startswith("skipped 2 of 6 images of")
    # Prediction names them, one by one.
    found = unlabelled.find([path], "image")
    assert found[0].name == f"{path}[0]" and len(found) == 6
    with pytest.raises(ValueError, match=r"own\.npz\[4\]: has NaN or infinity"):
        found[4]
    assert cli.main(["data", "check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "4 cannot be used" in out and "train_images[1]: has NaN" in out


WRONG_LABELS = [
    (LABELS.astype(bool), "labels are bool", "labels.astype(np.int64)"),
    (LABELS.astype(float), "labels are float64", "labels.astype(np.int64)"),
    (np.eye(3)[LABELS], r"shape \(6, 3\)", "labels.argmax(axis=1)"),
    (np.eye(3, dtype=int)[LABELS], r"shape \(6, 3\)", "labels.argmax(axis=1)"),
    (LABELS[:, None], r"shape \(6, 1\)", "labels[:, 0]"),
    (LABELS + 0.5, "labels are float64 .* with a fraction", None),
    (np.full(6, np.nan), "labels are float64 .* or NaN", None),
    (LABELS - 1, "label -1 of example 0: must be 0 or more", None),
]


@pytest.mark.parametrize(("labels", "message", "advice"), WRONG_LABELS)
def test_wrong_labels_are_refused_with_advice_that_works(tmp_path, labels, message, advice):
    path = save(tmp_path, labels=labels)
    with pytest.raises(ValueError, match=message) as raised:
        data.load("npz", str(path))
    if advice is not None:
        assert advice in str(raised.value)
        repaired = save(tmp_path, labels=eval(advice, {"labels": labels, "np": np}))
        assert data.load("npz", str(repaired)).num_classes == labels.max() + 1 or 3


IDS = np.array([30_000_000, 7, 10_010])[LABELS]
NAMES = np.array(["bee", "ant", "cat"])[LABELS]


@pytest.mark.parametrize("labels", [IDS, IDS.astype(np.uint64), IDS.astype("u8") << 38, NAMES])
def test_labels_that_are_ids_or_names_are_refused_and_numbering_them_helps(tmp_path, labels):
    path = save(tmp_path, labels=labels)
    with pytest.raises(ValueError, match=r"labels are .*np\.unique\(train_labels") as raised:
        data.load("npz", str(path))
    assert len(str(raised.value)) < 600
    # As the message says.
    class_names, train_labels = np.unique(labels, return_inverse=True)
    test_labels = np.searchsorted(class_names, labels)
    np.testing.assert_array_equal(train_labels, test_labels)
    repaired = save(tmp_path, labels=train_labels, class_names=class_names)
    assert data.load("npz", str(repaired)).class_names == tuple(map(str, class_names))


def test_the_first_gap_between_ids_is_named(tmp_path):
    path = save(tmp_path, labels=np.array([0, 1, 5000, 0, 1, 5000]))
    message = "3 different numbers up to 5000, and 2 is the first that is missing"
    with pytest.raises(ValueError, match=message):
        data.load("npz", str(path))
    # A few gaps are no fault, and neither are many where the classes are named.
    assert data.load("npz", str(save(tmp_path, labels=LABELS * 2))).num_classes == 5
    many = np.arange(5001).astype(bytes)
    named = save(tmp_path, labels=np.array([0, 1, 5000, 0, 1, 5000]), class_names=many)
    assert data.load("npz", str(named)).class_names[-1] == "5000"


DTYPES = ["?", "u1", "i1", "u2", "i8", "u8", "f2", "f4", "f8", "c8", "U2", "S2", "M8[D]", "O"]
ANY = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hypothesis_arrays(
        np.dtype(dtype),
        st.sampled_from([(2, 3, 3, 1), (2, 1, 5, 5), (2,), (0,)])
        | st.lists(st.integers(0, 3), max_size=5).map(tuple),
        elements=st.integers(0, 5) if dtype == "O" else None,
    )
)


@pytest.mark.filterwarnings("ignore:overflow")
@settings(max_examples=60)
@given(
    ANY | st.just(DIGITS[:2]),
    ANY | st.just(LABELS[:2]),
    ANY | st.none(),
    st.sampled_from(["stop", "skip"]),
)
def test_any_arrays_are_a_data_set_or_a_message(
    tmp_path_factory, images, labels, class_names, on_error
):
    others = {} if class_names is None else {"class_names": class_names}
    path = save(tmp_path_factory.getbasetemp(), images, labels, **others)
    texts = []
    for read in (
        lambda: data.load("npz", str(path), on_error=on_error),
        lambda: unlabelled.find([path], "image"),
    ):
        try:
            texts.append(read())
        except ValueError as error:
            texts.append(str(error))
    trained, predicted = texts
    for text in filter(lambda one: isinstance(one, str), texts):
        assert any(word in text for word in ("images", "label", "class")) and len(text) < 800
    # What prediction refuses, training refuses too.
    assert isinstance(trained, str) or not isinstance(predicted, str)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int16])
def test_labels_of_any_integers_count_their_classes(tmp_path, dtype):
    labels = np.arange(256).astype(dtype)
    images = np.zeros((256, 2, 2, 1), np.uint8)
    assert data.load("npz", str(save(tmp_path, images, labels))).num_classes == 256
