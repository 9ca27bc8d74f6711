"""The numbers a run leaves behind: complete after a kill, without duplicates after a resume."""

import csv
import json
import math

import pytest

from pbr_jax.runs.metrics import (
    SUMMARY_KEYS,
    MetricsWriter,
    read_metrics,
    write_summary,
)

SUMMARY = dict.fromkeys(SUMMARY_KEYS) | {"method": "fast", "accuracy": 0.9, "steps": 3}


def record(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 1.0 / step, **more}


def test_records_are_on_disk_before_close(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(record(1))
        writer.write({"step": 1, "accuracy": 0.5}, split="test")
        assert read_metrics(tmp_path) == [
            {"split": "train", "step": 1, "loss": 1.0},
            {"split": "test", "step": 1, "accuracy": 0.5},
        ]


def test_resume_removes_what_came_after_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.write(record(step))
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
        writer.write(record(3))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(record(1))
    with MetricsWriter(tmp_path):
        assert read_metrics(tmp_path) == []


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(record(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "step": 2, "lo')
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.write(record(2))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("line", ['{"step": 1', '{"loss": 1}', "[1]", ""])
def test_a_broken_line_is_named(tmp_path, line):
    text = '{"step": 1}\n' + line + '\n{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: no record"):
        MetricsWriter(tmp_path, resume_step=5)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_values_that_are_not_finite_become_null(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    loaded = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert loaded["loss"] is None
    assert loaded["grad_norm"] is None


def test_csv_has_every_record_and_name(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(record(1))
        writer.write({"step": 1, "accuracy": 0.5}, split="test")
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"split": "train", "step": "1", "loss": "1.0", "accuracy": ""}
    assert rows[1] == {"split": "test", "step": "1", "loss": "", "accuracy": "0.5"}


def test_tensorboard_events_hold_the_values_and_purge_the_old_branch(tmp_path):
    from tensorboardX.proto import event_pb2

    with MetricsWriter(tmp_path, resume_step=4) as writer:
        writer.write({"step": 5, "loss": 0.25})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    events, data = [], path.read_bytes()
    while data:  # length, its checksum, event, its checksum
        length = int.from_bytes(data[:8], "little")
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    scalars = [
        (value.tag, event.step, value.simple_value)
        for event in events
        for value in event.summary.value
    ]
    assert scalars == [("train/loss", 5, 0.25)]
    starts = [e.step for e in events if e.session_log.status == event_pb2.SessionLog.START]
    assert starts == [5]


def test_summary_is_complete_and_replaced_in_one_piece(tmp_path):
    write_summary(tmp_path, SUMMARY)
    write_summary(tmp_path, SUMMARY | {"accuracy": 0.95, "note": "second"})
    assert json.loads((tmp_path / "summary.json").read_text())["accuracy"] == 0.95
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_faulty_summary_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="lacks accuracy, steps"):
        write_summary(tmp_path, {k: None for k in SUMMARY_KEYS if k not in ("accuracy", "steps")})
    with pytest.raises(ValueError, match="accuracy = 95 must be a fraction"):
        write_summary(tmp_path, SUMMARY | {"accuracy": 95})
    assert list(tmp_path.iterdir()) == []
