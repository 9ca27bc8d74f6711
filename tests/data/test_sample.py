"""A part of a split that stands for all of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbr_jax import data
from pbr_jax.data.arrays import ArrayRecords
from pbr_jax.data.sample import shares


def records(labels):
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ArrayRecords("test", images, np.array(labels))


def test_a_sample_has_all_classes_in_proportion_and_in_order():
    everything = records([0] * 60 + [1] * 30 + [2] * 9 + [3])
    some, line = data.sample(everything, 20)
    assert line == "evaluation on 20 of 100 test examples, of all 4 classes"
    assert np.bincount(some.labels).tolist() == [11, 6, 2, 1]
    rows = [int(some[i].image.item()) for i in range(len(some))]
    assert rows == sorted(rows) and rows[:3] == [0, 5, 10] and rows[-1] == 99
    assert [some[i].label for i in range(len(some))] == some.labels.tolist()
    again, _ = data.sample(everything, 20)
    assert [int(again[i].image.item()) for i in range(20)] == rows


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 70))
def test_every_sample_is_of_the_right_size_and_without_repeats(labels, number):
    everything = records(labels)
    classes = set(labels)
    if number < min(len(classes), len(labels)):
        with pytest.raises(ValueError, match=f"max_test = {number}: .* must be {len(classes)} or"):
            data.sample(everything, number)
        return
    some, _ = data.sample(everything, number)
    assert len(some) == min(number, len(labels)) and {*some.labels.tolist()} == classes
    assert len({int(some[i].image.item()) for i in range(len(some))}) == len(some)


def test_a_sample_as_large_as_all_is_all():
    everything = records([0, 1, 1])
    for number in (3, 4):
        some, line = data.sample(everything, number)
        assert some is everything and line == "evaluation on all 3 test examples: there are no more"


def test_where_labels_are_unknown_the_first_are_taken_and_that_is_said():
    class Unknown:
        labels = None

        def __len__(self):
            return 9

        def __getitem__(self, index):
            return index

    some, line = data.sample(Unknown(), 4)
    assert [some[i] for i in range(len(some))] == [0, 1, 2, 3] and some.labels is None
    assert line.startswith("evaluation on the first 4 of 9 test examples: their classes are not")


def test_shares_add_up():
    assert shares(np.array([5, 3, 2]), 4).tolist() == [2, 1, 1]
    assert shares(np.array([0, 0]), 0).tolist() == [0, 0]
