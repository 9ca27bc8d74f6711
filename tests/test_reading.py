"""Files of the user's: what is no regular file is named, and never waited for."""

import os
import socket

import pytest

from pbr_jax.reading import excerpt, few, read_bytes, read_lines


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (os.mkfifo, "is a named pipe, not a file"),
        (os.mkdir, "is a folder, not a file"),
        (make_socket, "is a socket, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: None, "cannot be read (No such file or directory)"),
        (
            lambda path: path.symlink_to("nowhere"),
            "cannot be read (No such file or directory; a link to nowhere)",
        ),
        (
            lambda path: path.symlink_to(path),
            "cannot be read (Too many levels of symbolic links; a link to {path})",
        ),
    ],
)
def test_what_is_no_file_is_named(tmp_path, make, cause):
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the message is compared whole)
        read_bytes(path, 10)
    assert str(raised.value) == f"{path}: {cause.format(path=path)}"


def test_too_large_a_file_is_not_read(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(ValueError, match=r"x\.png: has 5 bytes; at most 4 are read"):
        read_bytes(path, 4)


def test_a_name_that_is_not_utf_8_can_be_printed(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    with pytest.raises(ValueError, match=r"caf\\xe9\.png: cannot be read"):
        read_bytes(path, 10)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"\xef\xbb\xbfant\r\nbee\r\n", ["ant", "bee", ""]),
        (b"ant\rbee", ["ant", "bee"]),
        ("a\u2028b\x0cc\x85d\n".encode(), ["a\u2028b\x0cc\x85d", ""]),
        (b"", [""]),
    ],
)
def test_lines_end_as_editors_end_them(tmp_path, content, lines):
    (tmp_path / "classes.txt").write_bytes(content)
    assert read_lines(tmp_path / "classes.txt") == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ant\r\ncafé\r\n".encode("latin-1"), r"classes\.txt:2: is not UTF-8 \(byte 0xe9\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid s\n", "is a Git LFS pointer; `git"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><html>", "is a web page; download"),
        (b"PK\x03\x04", "is a zip archive or an Excel workbook: must be text in UTF-8; export it"),
        ("ant\n".encode("utf-16"), r"classes\.txt: is UTF-16: must be text in UTF-8"),
    ],
)
def test_what_is_no_text_in_utf_8_is_named(tmp_path, content, message):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_lines(tmp_path / "classes.txt")


def test_a_long_list_is_cut_and_counted():
    assert few(["a", "b", "c"]) == "a, b, c" and few(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert excerpt("a\x1b\ud800\xa0" + "b" * 60, 5) == "a\\x1b\\ud800\\xa0b..."
