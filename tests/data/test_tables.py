"""CSV and JSON lines: rows, labels, and every kind of bad row with its line."""

import json

import numpy as np
import pytest

from pbr_jax import data
from pbr_jax.data.tables import read_rows

GOOD = [("a b", "yes"), ("c", "no"), ("d, e", "yes")]


def write_csv(folder, **splits):
    for split, text in splits.items():
        (folder / f"{split}.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return str(folder)


def rows_of(records):
    return [tuple(records[i][:3]) for i in range(len(records))]


def test_csv_and_jsonl_say_the_same(tmp_path):
    table = 'id,text,label\n1,a b,yes\n2,c,no\n3,"d, e",yes\n'
    path = write_csv(tmp_path, train=table, test="text,label\nx,no\n")
    objects = [json.dumps({"text": text, "label": label}) for text, label in GOOD]
    (tmp_path / "train.jsonl").write_text("\n".join(objects) + "\n\n")
    (tmp_path / "test.jsonl").write_text('{"label": "no", "text": "x", "id": 3}')
    for name in ("csv", "jsonl"):
        dataset = data.load(name, path)
        assert dataset.class_names == ("no", "yes")
        assert rows_of(dataset.train) == [("a b", None, 1), ("c", None, 0), ("d, e", None, 1)]
        assert rows_of(dataset.test) == [("x", None, 0)]
        np.testing.assert_array_equal(dataset.train.labels, [1, 0, 1])
        assert dataset.train[1].name == f"{tmp_path / 'train'}.{name}:{3 if name == 'csv' else 2}"


def test_pairs_numbers_and_given_classes(tmp_path):
    table = "\ufefftext_a,text_b,label\n" + "".join(f"a,b,{n}\n" for n in (10, 9, 2, "02"))
    path = write_csv(tmp_path, train=table, dev=table)
    dataset = data.load("csv", path)
    assert dataset.class_names == ("02", "2", "9", "10")
    assert dataset.train[0][:3] == ("a", "b", 3)
    (tmp_path / "classes.txt").write_text("9\n10\n2\n02\n")
    assert data.load("csv", path).class_names == ("9", "10", "2", "02")
    (tmp_path / "classes.txt").write_text("9\n10\n")
    with pytest.raises(ValueError, match=r"classes\.txt: does not list 02, 2"):
        data.load("csv", path)
    (tmp_path / "classes.txt").write_text("9\n10\n2\n02\n9\n")
    with pytest.raises(ValueError, match=r"classes\.txt: lists 9 more than once"):
        data.load("csv", path)


BAD_CSV = b"""text,label
fine,a
too,many,fields
few
,a
"two
lines",
\xff\xfe,a
fine too,b
nul\x00,a
"quoted" badly,a

and "this" is fine,b
"never closed,a
lost,b
"""
BAD_CSV_LINES = {
    3: "3 fields, but the header has 2",
    4: "1 fields, but the header has 2",
    5: "text is empty",
    6: "label is empty",
    8: "text is not UTF-8",
    11: "',' expected after",
    14: "unexpected end of data",
}
BAD_JSON = b"""{"text": "fine", "label": "a"}
{"text": "x", "label": "a"
["x", "a"]

{"label": "a"}
{"text": 3, "label": "a"}
{"text": "x"}
{"text": "x", "label": true}
{"text": "x", "label": 0.5}
{"text": "fine too", "label": "b"}
{"text_a": "x", "text_b": "", "label": "a"}
{"text": "\xff", "label": "a"}
"""
BAD_JSON_LINES = {
    2: "not JSON",
    3: "not an object with the keys text and label",
    5: "has neither text nor text_a, but label",
    6: "text is 3",
    7: "label is null: must be text or a whole number",
    8: "label is true",
    9: "label is 0.5",
    11: "text_b is empty",
    12: "text is not UTF-8",
}


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [("csv", BAD_CSV, BAD_CSV_LINES), ("jsonl", BAD_JSON, BAD_JSON_LINES)],
)
def test_bad_rows_stop_with_their_line_or_are_counted(tmp_path, name, content, lines):
    train, test = tmp_path / f"train.{name}", tmp_path / f"test.{name}"
    train.write_bytes(content)
    test.write_bytes(b"text,label\nx,a\n" if name == "csv" else b'{"text": "x", "label": "a"}\n')
    faults = [row for row in read_rows(train) if isinstance(row, str)]
    for (line, expected), fault in zip(lines.items(), faults, strict=True):
        assert fault.startswith(f"{train}:{line}: {expected}"), fault
    first = next(iter(lines))
    message = rf"train\.{name}:{first}: .*and {len(faults) - 1} more(.|\n)*data\.on_error=skip"
    with pytest.raises(ValueError, match=message):
        data.load(name, str(tmp_path))
    dataset = data.load(name, str(tmp_path), on_error="skip")
    texts = [dataset.train[i].text_a for i in range(len(dataset.train))]
    assert texts[:2] == ["fine", "fine too"]
    assert name == "jsonl" or texts[3] == 'and "this" is fine'
    total = len(faults) + len(texts)
    assert dataset.notes[0].startswith(f"skipped {len(faults)} of {total} rows of {train}")
    assert len(dataset.notes) == 1


def test_a_split_of_bad_rows_alone_is_an_error(tmp_path):
    path = write_csv(tmp_path, train="text,label\n,a\n", test="text,label\nx,a\n")
    with pytest.raises(ValueError, match=r"train\.csv: has no rows that can be used"):
        data.load("csv", path, on_error="skip")
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match=r"train\.csv: has no rows that can be used"):
        data.load("csv", path)


@pytest.mark.parametrize("header", ["", "sentence,label\n", "text,class\n"])
def test_a_header_without_the_columns_is_named(tmp_path, header):
    path = write_csv(tmp_path, train=header, test=header)
    with pytest.raises(ValueError, match=r"train\.csv:1: the header must name a column label"):
        data.load("csv", path, on_error="skip")


def test_a_header_that_is_no_csv_is_named(tmp_path):
    path = write_csv(tmp_path, train='"text" label\n', test="text,label\n")
    with pytest.raises(ValueError, match=r"train\.csv:1: not a CSV header"):
        data.load("csv", path)


def test_labels_never_seen_in_training_are_named(tmp_path):
    path = write_csv(tmp_path, train="text,label\nx,a\n", test="text,label\nx,a\ny,z\n")
    with pytest.raises(ValueError, match=r"never seen in training: z \(1 examples\)"):
        data.load("csv", path)
