"""TensorBoard's events: what they hold, and that a full disk costs events and nothing else."""

import contextlib

import pytest
from full_disk import full_at

from pbr_jax.runs.events import Events


def events_in(workdir):
    """Every event of the one file, its checksums left out."""
    from tensorboardX.proto import event_pb2

    (path,) = workdir.glob("events.out.tfevents.*")
    events, data = [], path.read_bytes()
    while data:  # length, its checksum, event, its checksum
        length = int.from_bytes(data[:8], "little")
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        assert len(data) >= 16 + length
        data = data[16 + length :]
    return events


def scalars(workdir):
    return [
        (value.tag, event.step, value.simple_value)
        for event in events_in(workdir)
        for value in event.summary.value
    ]


def test_events_hold_the_values_and_purge_the_old_branch(tmp_path):
    with contextlib.closing(Events(tmp_path, resume_step=4)) as events:
        events.logged({"step": 5, "loss": 0.25, "accuracy": 0.5})
        events.evaluated(5, None, {"loss": 2.0}, True)
    assert scalars(tmp_path) == [
        ("train/loss", 5, 0.25),
        ("train/accuracy", 5, 0.5),
        ("test/loss", 5, 2.0),
    ]
    written = events_in(tmp_path)
    assert written[0].file_version == "brain.Event:2"
    assert [e.step for e in written if e.session_log.status] == [5]


def test_tensorboards_checksums_are_right(tmp_path):
    from tensorboardX.crc32c import crc32c

    with contextlib.closing(Events(tmp_path)):
        pass
    data = next(tmp_path.iterdir()).read_bytes()
    length, stored = data[:8], int.from_bytes(data[8:12], "little")
    crc = crc32c(length)
    assert stored == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def test_a_full_disk_costs_events_and_never_waits(tmp_path):
    """With the writer of tensorboardX, the twelfth event or so waited for ever."""
    with contextlib.closing(Events(tmp_path)) as events:
        events.logged({"step": 1, "loss": 1.0})
        with full_at(150):
            for step in range(2, 40):
                with pytest.raises(OSError, match=r"events\.out\.tfevents"):
                    events.logged({"step": step, "loss": 1.0})
        events.logged({"step": 40, "loss": 1.0})
    assert [step for _, step, _ in scalars(tmp_path)] == [1, 40]
