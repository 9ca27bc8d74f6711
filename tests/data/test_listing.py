"""Lists of examples: a later change of them is named, and examples that are only gone are told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import write_image_folder

from pbr_jax import data
from pbr_jax.data.arrays import ArrayRecords
from pbr_jax.data.listing import compare, digest, from_bytes, listing, to_bytes
from pbr_jax.data.tables import Row, TextRecords


def texts(*words):
    return TextRecords([Row(word, None, "a", f"t.csv:{i}") for i, word in enumerate(words)], ("a",))


def images(values, labels=None):
    pixels = np.array(values, np.uint8).reshape(-1, 1, 1, 1)
    return ArrayRecords("training", pixels, np.array(labels or [0] * len(values)))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (texts("x", "y"), texts("x", "y"), None),
        (texts("x", "y", "z"), texts("x", "z"), "1 lost (t.csv:1)"),
        (texts("x", "x", "y"), texts("x", "y"), "1 lost (t.csv:1)"),
        (texts("x"), texts("x", "y"), "1 gained (t.csv:1)"),
        (texts("x", "y"), texts("x", "w"), "1 gained (t.csv:1), 1 lost (t.csv:1)"),
        (texts("x", "y"), texts("y", "x"), "in another order"),
        (images([1, 2, 3]), images([1, 3]), "1 lost (training example 1)"),
        (
            images([1, 2], [0, 1]),
            images([1, 2], [0, 0]),
            "1 gained (training example 1), 1 lost (training example 1)",
        ),
    ],
)
def test_what_changed_is_named(before, after, expected):
    change = compare(listing(before), listing(after))
    assert (digest({"test": listing(before)}) == digest({"test": listing(after)})) == (not change)
    assert (None if change is None else str(change)) == expected
    only_lost = change is not None and str(change).startswith("1 lost")
    assert change is None or change.only_lost == only_lost


def test_files_are_known_by_name_and_size_and_are_not_read(tmp_path, monkeypatch):
    write_image_folder(tmp_path, count=2)
    before = data.load("image_folder", str(tmp_path)).train
    monkeypatch.setattr("pbr_jax.data.image_folder.read_image", None)
    old = listing(before)
    file = tmp_path / "train" / "ant" / "0.jpg"
    file.write_bytes(file.read_bytes() + b"\0")
    assert str(compare(old, listing(before))) == f"1 changed ({file})"
    file.unlink()
    after = data.load("image_folder", str(tmp_path)).train
    assert str(compare(old, listing(after))) == f"1 lost ({file})"
    some = data.ChosenRecords(after, np.arange(2))
    assert listing(some).names == listing(after).names[:2]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=2), max_size=8), st.data())
def test_what_is_left_of_a_list_is_only_lost(words, drawn):
    kept = [word for word in words if drawn.draw(st.booleans())]
    change = compare(listing(texts(*words)), listing(texts(*kept)))
    assert (change is None) == (kept == words)
    assert change is None or (change.only_lost and len(change.lost) == len(words) - len(kept))


def test_a_list_is_stored_whole_or_is_none(tmp_path):
    names = ["t.csv:1", "caf\u00e9\n\udcff.png", ""]
    rows = [Row("x", None, "a", name) for name in names]
    lists = {"train": listing(TextRecords(rows, ("a",))), "test": listing(texts())}
    stored = to_bytes(lists)
    found = from_bytes(stored, lists)
    assert found["train"].names == tuple(names)
    assert all(compare(lists[split], found[split]) is None for split in lists)
    for damaged in (b"", stored[: len(stored) // 2], b"PK" + stored[2:40], b"\x93NUMPY"):
        with pytest.raises(ValueError, match="no list of examples"):
            from_bytes(damaged, lists)
