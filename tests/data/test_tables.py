"""CSV and JSON lines: rows, labels, and every kind of bad row with its line."""

import csv
import json
import shutil
import subprocess
import sys
import unicodedata

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from pbr_jax import data
from pbr_jax.data.csv_rows import read_csv
from pbr_jax.data.lines import json_rows, read_lines
from pbr_jax.data.tables import Fault, read_rows
from pbr_jax.measure import memory

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
    "3": "3 fields, but the header has 2",
    "4": "1 fields, but the header has 2",
    "5": "text is empty",
    "6-7": "label is empty",
    "8": "text is not UTF-8 (byte 0xff)",
    "11": "a quote is not closed, or one in a field is not written twice (',' expected after",
    "14": "a quote is not closed, or one in a field is not written twice (unexpected end of data",
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
{"text": "x", "label": "a"},
{"text": "x", "text": "y", "label": "a"}
{"text": "x", "label": NaN}
{"text": "x", "label": 1.0}
{"text": "\\ud83d", "label": "a"}
{"text": "x", "text_b": "y", "label": "a"}
{"text": "x", "label": "\xe9"}
"""
BAD_JSON_LINES = {
    "2": "not JSON",
    "3": "not an object with the keys text and label",
    "5": "has neither text nor text_a, but label",
    "6": "text is 3",
    "7": "label is null: must be text or a whole number",
    "8": "label is true",
    "9": "label is 0.5",
    "11": "text_b is empty",
    "12": "text is not UTF-8",
    "13": "not JSON (Extra data: line 1 column 28 (char 27)); remove the comma at its end",
    "14": "not JSON (text is there twice)",
    "15": "label is NaN",
    "16": "label is 1.0: must be text or a whole number; write 1",
    "17": "text has half a character, \\ud83d",
    "18": "has text and text_b: a pair is text_a and text_b",
    "19": "label is not UTF-8 (byte 0xe9); if the file is of Windows or Latin-1, `iconv",
    "20": "not JSON that can be read (nested too deeply)",
    "21": "not JSON (a number of 5000 digits)",
    "22": "label has 2000 characters, xxxxxxxxxxxxxxxxxxxx...",
    "23": "text is an array",
}
BAD_JSON += b'{"text": ' + b"[" * 100_000 + b"\n"
BAD_JSON += b'{"text": "x", "label": ' + b"1" * 5000 + b"}\n"
BAD_JSON += b'{"text": "x", "label": "' + b"x" * 2000 + b'"}\n'
BAD_JSON += b'{"text": ["x"], "label": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [("csv", BAD_CSV, BAD_CSV_LINES), ("jsonl", BAD_JSON, BAD_JSON_LINES)],
)
def test_bad_rows_stop_with_their_line_or_are_counted(tmp_path, name, content, lines):
    train, test = tmp_path / f"train.{name}", tmp_path / f"test.{name}"
    train.write_bytes(content)
    test.write_bytes(b"text,label\nx,a\n" if name == "csv" else b'{"text": "x", "label": "a"}\n')
    faults = [row.text for row in read_rows(train) if isinstance(row, Fault)]
    for (line, expected), fault in zip(lines.items(), faults, strict=True):
        assert fault.startswith(f"{train}:{line}: {expected}"), fault
    first = next(iter(lines))
    message = rf"train\.{name}:{first}: .*and {len(faults) - 1} more(.|\n)*data\.on_error=skip"
    with pytest.raises(ValueError, match=message):
        data.load(name, str(tmp_path))
    dataset = data.load(name, str(tmp_path), on_error="skip")
    texts = [dataset.train[i].text_a for i in range(len(dataset.train))]
    assert texts[:2] == ["fine", "fine too"]
    assert name == "jsonl" or texts[3:] == ['and "this" is fine', "lost"]
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


def found_in(file):
    """The texts of a file's rows, and the line numbers of the faults in their place."""
    rows = read_rows(file)
    place = len(f"{file}:")
    return [r.text[place:].split(":")[0] if isinstance(r, Fault) else r.text_a for r in rows]


def complaints(file):
    """The faults of a file, or the error that names it."""
    try:
        return [row.text for row in read_rows(file) if isinstance(row, Fault)]
    except ValueError as error:
        return [str(error)]


@pytest.mark.parametrize(
    ("table", "found"),
    [
        # A quote that nothing closes, or the next one closes in the wrong place.
        ('"never,a\ngood,b\nmore,a\n', ["2", "good", "more"]),
        ('good,b\n"never,a\ngood,b\n"a, b",a\nmore,a\n', ["good", "3", "good", "a, b", "more"]),
        ('"never,a\ngood,b\n"two\nlines",a\n', ["2", "good", "two\nlines"]),
        ('"never,a\n"never,a\ngood,b\n', ["2", "3", "good"]),
        # A row of several lines with a quote too many is one row.
        ('"two\nlines" badly,a\ngood,b\n', ["2-3", "good"]),
        ('"two\n\nand\nmore" badly,a\n"x",b\n', ["2-5", "x"]),
        ('"never,a\ngood,b\nend" badly,a\nx,b\n', ["2", "good", "4", "x"]),
        # The quotes close each other: every line within is a row, with a label of others.
        ('x,a\ny,b\n"never,a\ngood,b\n6" pipe,b\n', ["x", "y", "4", "good", "6"]),
        ('x,a\ny,b\n"never,a\ngood,b\n6",b\n', ["x", "y", "4", "good", '6"']),
        ('x,a\ny,b\n"Dear all,\nthanks,\nbye",b\n', ["x", "y", "Dear all,\nthanks,\nbye"]),
        ('x,a\ny,b\n"a,c\nd",b\n"two\nlines",b,c\n', ["x", "y", "a,c\nd", "6-7"]),
        # A second file behind the first.
        ("x,a\n\ufefftext,label\ny,b\ntext,label\nz,a\n", ["x", "3", "y", "5", "z"]),
        # Line ends of every system, and what is within a line.
        ("a,a\r\nb,b\rc,a\n\n\x0bd\u2028d,b", ["a", "b", "c", "\x0bd\u2028d"]),
        ('6" pipe,a\n"a ""b"" c",b\n"",a\n\x00,b\n', ['6" pipe', 'a "b" c', "4", "\x00"]),
    ],
)
def test_a_quote_too_many_costs_its_own_row(tmp_path, table, found):
    file = tmp_path / "train.csv"
    file.write_bytes(b"text,label\n" + table.encode())
    assert found_in(file) == found


def test_rows_behind_an_open_quote_are_trained_on(tmp_path):
    table = "text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(1000))
    path = write_csv(tmp_path, train=table.replace("text 10,", '"text 10,'), test=table[:38])
    with pytest.raises(ValueError, match=r"train\.csv:12: a quote .*\n1 of 1000 rows"):
        data.load("csv", path)
    dataset = data.load("csv", path, on_error="skip")
    assert len(dataset.train) == 999 and dataset.notes[0].startswith("skipped 1 of 1000 rows")
    # What a row of several lines takes is counted in lines too.
    (tmp_path / "train.csv").write_text(table + '"a\nb" c,a\n')
    dataset = data.load("csv", path, on_error="skip")
    train = tmp_path / "train.csv"
    assert dataset.notes[0].startswith(f"skipped 1 of 1001 rows of {train} (2 lines): {train}:1002")


def test_lines_that_each_open_a_quote_take_bounded_time(tmp_path):
    class Lines(list):
        read = 0

        def __getitem__(self, place):
            self.read += 1
            return super().__getitem__(place)

    lines = Lines(["text,label\n", *['x",",\n'] * 3000])
    rows = read_csv(tmp_path / "train.csv", lines, True)
    assert len(rows) == 3000 and lines.read < 120 * 3000


def test_a_long_text_is_read_and_the_limit_of_others_stays(tmp_path):
    limit = csv.field_size_limit()
    long = "word " * 40_000
    path = write_csv(tmp_path, train=f"text,label\n{long},a\nx,b\n", test="text,label\nx,a\n")
    assert data.load("csv", path).train[0].text_a == long and csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("Text, Label \n", r"nearest to text is 'Text'.*nearest to label is ' Label ': rename it"),
        ("text,lable\n", "nearest to label is 'lable': rename it"),
        ("text,label,text\n", "names text more than once"),
        ("text;label\nx;a\n", "separated by semicolons"),
        ("Text\tLabel\n", "separated by tabs"),
        ('"text,label\nx,a\n', r"not a CSV header \(.*is a quote not closed"),
        ("\nx,a\n", "it has nothing"),
        ("caf\u00e9 \x1b[1m\n", r"it has caf\u00e9 \\x1b\[1m$"),
    ],
)
def test_a_header_says_what_to_change(tmp_path, header, message):
    path = write_csv(tmp_path, train=header, test=header)
    with pytest.raises(ValueError, match=rf"train\.csv:1: .*{message}"):
        data.load("csv", path, on_error="skip")


JSON_ROWS = [{"text": "one } {", "label": "a"}, {"text": "\u00e9\n", "label": "b"}]
CONVERTED = {
    "csv": [
        (b'text;label\none } {;a\n"\xc3\xa9\n";b\n', "semicolons"),
        (b'text\tlabel\none } {\ta\n"\xc3\xa9\n"\tb\n', "tabs"),
        ('text,label\none } {,a\n"\u00e9\n",b\n'.encode("utf-16"), "is UTF-16"),
        ('text,label\none } {,a\n"\u00e9\n",b\n'.encode("utf-16-le"), "is UTF-16"),
        ('text,label\none } {,a\n"\u00e9\n",b\n'.encode("latin-1"), "byte 0xe9"),
    ],
    "jsonl": [
        (json.dumps(JSON_ROWS).encode(), "is a JSON array"),
        (json.dumps(JSON_ROWS, indent=1).encode(), "is a JSON array"),
        ("\n".join(json.dumps(row, indent=1) for row in JSON_ROWS).encode(), "several lines"),
    ],
}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [(name, *case) for name, cases in CONVERTED.items() for case in cases],
)
def test_the_command_in_a_message_converts_the_file(tmp_path, name, content, message):
    file = tmp_path / f"it's train.{name}"
    file.write_bytes(content)
    text = complaints(file)[0]
    assert text.startswith(str(file)) and message in text
    command = text[text.index("`") + 1 : text.rindex("`")]
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"has no {command.split()[0]}")
    subprocess.run(
        command.replace("python", sys.executable, 1), shell=True, cwd=tmp_path, check=True
    )
    new = next(path for path in tmp_path.iterdir() if path != file).rename(file)
    assert [row[0] for row in read_rows(new)] == ["one } {", "\u00e9\n"]


def test_foreign_files_and_folders_are_named(tmp_path):
    file = tmp_path / "train.csv"
    for content, message in [(b"PK\x03\x04", "an Excel workbook"), (b"\x1f\x8b", "gunzip")]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"train\.csv: is .*{message}"):
            read_rows(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"train\.csv: is a folder"):
        read_rows(file)


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_what_was_saved_in_place_of_a_table_is_named(tmp_path, name):
    file = tmp_path / f"train.{name}"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(ValueError, match=rf"train\.{name}: is a Git LFS pointer; `git lfs pull`"):
        read_rows(file)


def test_a_table_that_the_memory_cannot_hold_is_not_read(tmp_path, monkeypatch):
    file = tmp_path / "train.csv"
    file.write_text("text,label\n" + "a,b\n" * 2500)
    monkeypatch.setattr(memory, "host_room", lambda: memory.Room(10**6, 10_000, "this machine"))
    with pytest.raises(ValueError, match=r"train\.csv: its rows take 20\.0 kB of memory, and 10"):
        read_rows(file)


@pytest.mark.parametrize("name", ["Train.csv", "train.CSV", "train.tsv", "train.csv.gz"])
def test_a_file_of_nearly_the_right_name_is_named(tmp_path, name):
    (tmp_path / name).write_text("text,label\n")
    with pytest.raises(ValueError, match=rf"has {name}, but no train\.csv; rename or convert it"):
        data.load("csv", str(tmp_path))


SCORES = ["0.0", "1.25", "2.6", "3.0", "3.8", "4.4", "4.75", "5.0"]


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_scores_are_no_classes_unless_they_are_listed(tmp_path, name):
    def write(labels, quoted):
        rows = [f"x,{label}" for label in labels]
        if name == "jsonl":
            quote = '"' if quoted else ""
            rows = [f'{{"text": "x", "label": {quote}{label}{quote}}}' for label in labels]
        head = ["text,label"] if name == "csv" else []
        for split in ("train", "test"):
            (tmp_path / f"{split}.{name}").write_text("\n".join([*head, *rows]))

    write(SCORES, quoted=False)
    message = r"labels look like scores \(0\.0, 1\.25, .*regression is not supported; round or bin"
    with pytest.raises(ValueError, match=message):
        data.load(name, str(tmp_path), on_error="skip")
    # Both pieces of advice lead to classes.
    write([round(float(score)) for score in SCORES], quoted=False)
    assert data.load(name, str(tmp_path)).class_names == ("0", "1", "3", "4", "5")
    write(SCORES, quoted=True)
    (tmp_path / "classes.txt").write_text("\n".join(SCORES))
    assert data.load(name, str(tmp_path)).num_classes == len(SCORES)


def test_labels_that_may_not_be_meant_are_told(tmp_path):
    ids = "".join(f"x,{n}\n" for n in range(30))
    with pytest.raises(ValueError, match="30 rows have 30 different labels"):
        data.load("csv", write_csv(tmp_path, train="text,label\n" + ids, test="text,label\nx,1\n"))
    one = "text,label\nx,only\n,b\n"
    path = write_csv(tmp_path, train=one, test=one)
    with pytest.raises(ValueError, match=r"all labels are only: .*\nskipped 1 of 2 rows"):
        data.load("csv", path, on_error="skip")
    whole = "text,label\nx,0.0\nx,1.0\n"
    (note,) = data.load("csv", write_csv(tmp_path, train=whole, test=whole)).notes
    assert "label 0.0 is a class as it is written; 0 would be another one" in note


def test_accents_are_one_class_however_they_are_written(tmp_path):
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    table = f"text,label\nx,{composed}\ny,tea\n"
    path = write_csv(tmp_path, train=table, test=table.replace(composed, apart))
    dataset = data.load("csv", path)
    assert dataset.num_classes == 2 and dataset.train[0].label == dataset.test[0].label
    (tmp_path / "classes.txt").write_text(f"tea\n{apart}\nTea\n", encoding="utf-8")
    assert data.load("csv", path).train[0].label == 1
    assert "tea, Tea are different classes" in data.load("csv", path).notes[1]
    assert "caf\u00e9 is written with composed and with decomposed accents" in dataset.notes[0]


PIECES = [
    '"',
    '""',
    '","',
    ",",
    "\n",
    "\r\n",
    "\r",
    "a",
    '"a"',
    "x,b",
    "\nx,a\n",
    " ",
    "\0",
    "\u2028",
]
JSON_PIECES = ['{"text": "x", "label": "a"}', "\n", "{", "}", "[", '"', ",", "\\", "1", "\r", "-"]


def assert_every_line_is_accounted_for(rows, lines, header):
    """Rows and faults are in order and apart, and what is between them is empty."""
    rest = {*range(header + 1, len(lines) + 1)}
    before = header
    for row in rows:
        assert before < row.first <= row.last
        before = row.last
        rest -= {*range(row.first, row.last + 1)}
    assert not [lines[number - 1] for number in rest if lines[number - 1].strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.lists(st.sampled_from(PIECES)), st.binary(max_size=3))
def test_every_line_of_a_csv_file_is_of_a_row_or_of_a_fault(folder, pieces, odd):
    file = folder / "train.csv"
    file.write_bytes(b"text,label\n" + "".join(pieces).encode() + odd)
    lines = read_lines(file)
    assert_every_line_is_accounted_for(read_csv(file, lines, True), lines, 1)
    for row in read_rows(file):
        assert isinstance(row, Fault) or (row.text_a.strip() and row.label)


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.lists(st.sampled_from(JSON_PIECES)), st.binary(max_size=3))
def test_every_line_of_a_json_file_is_of_a_row_or_of_a_fault(folder, pieces, odd):
    file = folder / "train.jsonl"
    file.write_bytes(b"{}\n" + "".join(pieces).encode() + odd)
    lines = read_lines(file)
    assert_every_line_is_accounted_for([*json_rows(file, lines)], lines, 0)
    read_rows(file)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.sampled_from([".csv", ".jsonl"]), st.binary(max_size=60))
def test_any_bytes_give_rows_or_an_error_that_names_the_file(folder, suffix, content):
    file = folder / f"any{suffix}"
    file.write_bytes(content)
    assert all(text.startswith(f"{file}:") and text.encode() for text in complaints(file))
