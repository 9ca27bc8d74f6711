"""The numbers a run leaves behind: complete after a kill, without duplicates after a resume."""

import contextlib
import csv
import json
import math

import pytest

from pbr_jax.files import DamagedFile
from pbr_jax.runs.metrics import (
    SUMMARY_KEYS,
    MetricsWriter,
    read_metrics,
    read_summary,
    write_csv,
    write_summary,
)

SUMMARY = dict.fromkeys(SUMMARY_KEYS) | {
    "method": "fast",
    "accuracy": 0.9,
    "steps": 3,
    "activation_bytes": 4,
}


def writing(workdir, resume_step=None, notify=pytest.fail):
    return contextlib.closing(MetricsWriter(workdir, resume_step, notify))


def record(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 1.0 / step, **more}


def test_records_are_on_disk_before_close(tmp_path):
    with writing(tmp_path) as writer:
        writer.write(record(1))
        writer.write({"step": 1, "accuracy": 0.5}, split="test")
        assert read_metrics(tmp_path) == [
            {"split": "train", "step": 1, "loss": 1.0},
            {"split": "test", "step": 1, "accuracy": 0.5},
        ]


def test_resume_removes_what_came_after_the_checkpoint(tmp_path):
    with writing(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.write(record(step))
    with writing(tmp_path, resume_step=2) as writer:
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
        writer.write(record(3))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    with writing(tmp_path) as writer:
        writer.write(record(1))
    with writing(tmp_path):
        assert read_metrics(tmp_path) == []


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    with writing(tmp_path) as writer:
        writer.write(record(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "step": 2, "lo')
    with writing(tmp_path, resume_step=2) as writer:
        writer.write(record(2))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


BROKEN = [
    b'{"split": "test", "step": 1',
    b'{"split": "test", "loss": 1}',
    b'{"split": "test", "step": 1, "loss": "low"}',
    b"[1]",
    b"",
    b"\0\0\0",
    b"\xff",
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_a_file_with_a_broken_line_is_named_and_set_aside_and_its_sound_lines_stay(tmp_path, line):
    sound = [{"split": "train", "step": step} for step in (1, 2)]
    text = b"\n".join([json.dumps(sound[0]).encode(), line, json.dumps(sound[1]).encode(), b""])
    (tmp_path / "metrics.jsonl").write_bytes(text)
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl, line 2: no record"):
        read_metrics(tmp_path)
    said = []
    with writing(tmp_path, 5, said.append):
        assert read_metrics(tmp_path) == sound
    assert "line 2" in said[0] and "metrics.jsonl.broken; 2 sound lines are kept" in said[0]
    assert (tmp_path / "metrics.jsonl.broken").read_bytes() == text


def test_a_folder_in_its_place_is_set_aside(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    said = []
    with writing(tmp_path, 5, said.append) as writer:
        writer.write(record(6))
    assert "metrics.jsonl: is a folder, not a file" in said[0] and len(read_metrics(tmp_path)) == 1


def test_values_that_are_not_finite_become_null(tmp_path):
    with writing(tmp_path) as writer:
        writer.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    loaded = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert loaded["loss"] is None
    assert loaded["grad_norm"] is None


def test_csv_has_every_record_and_name(tmp_path):
    with writing(tmp_path) as writer:
        writer.write(record(1))
        writer.write({"step": 1, "accuracy": 0.5}, split="test")
    write_csv(tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"split": "train", "step": "1", "loss": "1.0", "accuracy": ""}
    assert rows[1] == {"split": "test", "step": "1", "loss": "", "accuracy": "0.5"}


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


def test_a_summary_is_read_as_it_was_written(tmp_path):
    write_summary(tmp_path, SUMMARY)
    assert read_summary(tmp_path) == SUMMARY


@pytest.mark.parametrize(
    "change",
    [{"accuracy": "high"}, {"memory": {"parameters": 1}}, {"steps": None}, {"seconds": []}],
)
def test_a_summary_of_wrong_types_is_named(tmp_path, change):
    write_summary(tmp_path, SUMMARY)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY | change))
    with pytest.raises(DamagedFile, match=r"summary\.json: .*same training command makes it anew"):
        read_summary(tmp_path)
