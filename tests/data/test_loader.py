"""Batches depend on seed and index alone; evaluation sees every example once."""

import itertools
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbr_jax import data
from pbr_jax.data import Dataset, ImageInputs, TrainBatches, check_labels
from pbr_jax.data.arrays import ArrayRecords
from pbr_jax.data.loader import dropped_threads

PLAIN = ImageInputs(size=4, channels=1)
AFFINE = ImageInputs(size=4, channels=1, augment="affine")


def make_records(num=23, dtype=np.uint8):
    """Images that show their own number, so that batches can be traced to examples."""
    numbers = np.arange(num, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None, None], (num, 4, 4, 1)).copy()
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    return ArrayRecords("training", images, np.arange(num) % 5)


def make_loader(seed=0, inputs=PLAIN, num=23, batch_size=4, workers=0):
    return TrainBatches(make_records(num), inputs, batch_size, seed, workers)


def take(loader, count):
    return list(itertools.islice(loader, count))


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )


def numbers_in(batch):
    return np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


def test_batches_have_the_promised_types_and_range():
    batch = next(make_loader())
    assert batch["image"].dtype == np.float32 and batch["image"].shape == (4, 4, 4, 1)
    assert batch["label"].dtype == np.int32 and batch["label"].shape == (4,)
    ends = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    loader = TrainBatches(ArrayRecords("training", ends, np.arange(2)), ImageInputs(1, 1), 2, 0)
    assert sorted(next(loader)["image"].ravel()) == [-1, 1]


def test_chosen_records_are_batched_like_all():
    everything = make_records()
    some = data.ChosenRecords(everything, np.array([2, 3, 5, 7, 11, 13, 17]))
    np.testing.assert_array_equal(some.labels, everything.labels[[2, 3, 5, 7, 11, 13, 17]])
    assert len(some) == 7 and some[6].name == everything[17].name
    batches = list(data.eval_batches(some, PLAIN, 4))
    assert [int(batch["mask"].sum()) for batch in batches] == [4, 3]


def test_floats_and_bytes_give_the_same_batches():
    bytes_ = take(make_loader(), 6)
    floats = take(TrainBatches(make_records(dtype=np.float32), PLAIN, 4, 0), 6)
    for a, b in zip(bytes_, floats, strict=True):
        np.testing.assert_allclose(a["image"], b["image"], atol=1e-6)


def test_labels_stay_with_their_images():
    for batch in take(make_loader(), 12):
        assert [n % 5 for n in numbers_in(batch)] == batch["label"].tolist()


def test_epochs_are_permutations_that_drop_the_ragged_rest():
    loader = make_loader()
    assert loader.batches_per_epoch == 5
    epochs = [list(itertools.chain(*map(numbers_in, take(loader, 5)))) for _ in range(8)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 20
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert set(itertools.chain(*epochs)) == set(range(23))  # those dropped differ


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers):
    alone, helped = make_loader(3, AFFINE), make_loader(3, AFFINE, workers=workers)
    assert all(same(a, b) for a, b in zip(take(alone, 17), take(helped, 17), strict=True))
    helped.restore(alone.state() | {"batch_index": 5})
    alone.restore(helped.state())
    assert all(same(a, b) for a, b in zip(take(alone, 9), take(helped, 9), strict=True))
    assert alone.state() == helped.state()
    source = make_records()
    with_workers = data.eval_batches(source, PLAIN, 4, workers)
    for a, b in zip(data.eval_batches(source, PLAIN, 4), with_workers, strict=True):
        assert same(a, b)


def test_an_error_in_a_worker_reaches_the_loop():
    def prepare(records, generators):
        raise ValueError("broken.jpg: not a readable image")

    with pytest.raises(ValueError, match=r"broken\.jpg"):
        next(make_loader(inputs=prepare, workers=2))


@given(index=st.integers(0, 40), seed=st.integers(0, 2**40))
def test_next_batch_is_bit_equal_after_restore(index, seed):
    walked, resumed = make_loader(seed, AFFINE), make_loader(seed, AFFINE)
    take(walked, index)
    resumed.restore(json.loads(json.dumps(walked.state())))
    for a, b in zip(take(walked, 3), take(resumed, 3), strict=True):
        assert same(a, b)


def test_restore_can_go_back():
    loader = make_loader(inputs=AFFINE)
    start = loader.state()
    first = take(loader, 12)
    loader.restore(start)
    assert all(same(a, b) for a, b in zip(first, take(loader, 12), strict=True))


def test_another_seed_or_index_gives_other_bits():
    a, b = take(make_loader(0, AFFINE), 6), take(make_loader(1, AFFINE), 6)
    assert not any(same(x, y) for x, y in zip(a, b, strict=True))
    moved = make_loader(0, AFFINE)
    moved.restore(moved.state() | {"batch_index": 1})
    assert not same(a[0], next(moved)) and same(a[1], take(make_loader(0, AFFINE), 2)[1])


def test_augmentation_does_not_change_the_order():
    plain, augmented = take(make_loader(), 10), take(make_loader(inputs=AFFINE), 10)
    for a, b in zip(plain, augmented, strict=True):
        assert a["label"].tobytes() == b["label"].tobytes()
        assert a["image"].tobytes() != b["image"].tobytes()


@pytest.mark.parametrize("change", [{"seed": 1}, {"num": 24}, {"batch_size": 5}])
def test_restore_refuses_another_loaders_state(change):
    with pytest.raises(ValueError, match="the checkpoint was saved with"):
        make_loader(**change).restore(make_loader().state())


@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_evaluation_covers_every_example_once(batch_size):
    source = make_records()
    batches = list(data.eval_batches(source, PLAIN, batch_size))
    assert {b["image"].shape for b in batches} == {(batch_size, 4, 4, 1)}
    mask = np.concatenate([b["mask"] for b in batches])
    assert mask.dtype == bool and mask.sum() == 23
    assert list(itertools.chain(*map(numbers_in, batches)))[:23] == list(range(23))
    labels = np.concatenate([b["label"] for b in batches])
    np.testing.assert_array_equal(labels[mask], source.labels)
    assert labels.dtype == np.int32 and set(labels[~mask]) <= {source.labels[-1]}


IMAGES, LABELS = make_records(6).images, make_records(6).labels


@pytest.mark.parametrize("batch_size", [0, 24])
def test_wrong_batch_size_is_named(batch_size):
    with pytest.raises(ValueError, match=f"batch_size = {batch_size}: must be between 1 and"):
        make_loader(batch_size=batch_size)


def test_negative_seed_is_named():
    with pytest.raises(ValueError, match="seed = -1"):
        make_loader(seed=-1)


def test_labels_that_training_never_shows_are_named():
    train = ArrayRecords("training", IMAGES[:3], np.array([0, 1, 1]))
    test = ArrayRecords("test", IMAGES, LABELS)
    names = ("ant", "bee", "cat", "dog", "eel")
    with pytest.raises(ValueError, match=r"cat \(1 examples\), dog \(1 examples\), eel"):
        check_labels(Dataset(train, test, names))
    check_labels(Dataset(test, train, names))


def test_an_error_does_not_wait_for_what_is_queued():
    begun, go_on = [], threading.Event()

    def work(number):
        begun.append(number)
        go_on.wait(10)

    with pytest.raises(KeyboardInterrupt), dropped_threads() as threads:
        threads.map(work, range(10_000))
        raise KeyboardInterrupt
    number = len(begun)
    go_on.set()
    assert number < 100 and len(begun) <= number + 1


@pytest.mark.parametrize("parts", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[3, 0], [2, 1]]])
def test_processes_that_share_a_batch_have_its_examples(parts):
    records = make_records(11)
    whole = TrainBatches(records, AFFINE, 4, 7)
    shares = [TrainBatches(records, AFFINE, 4, 7, places=places) for places in parts]
    for batch in take(whole, 6):  # two epochs and more
        for places, share in zip(parts, shares, strict=True):
            assert same(next(share), {name: array[places] for name, array in batch.items()})
    ends = list(data.eval_batches(records, PLAIN, 4))
    assert [batch["mask"].sum() for batch in ends] == [4, 4, 3]
    for places in parts:
        for batch, share in zip(
            ends, data.eval_batches(records, PLAIN, 4, places=places), strict=True
        ):
            there = share["mask"]
            assert there.tolist() == batch["mask"][places].tolist()
            assert share["image"].shape == (len(places), 4, 4, 1)
            assert share["image"][there].tobytes() == batch["image"][places][there].tobytes()
