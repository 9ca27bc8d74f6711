"""Figures as text."""

import pytest

from pbr_jax.measure import text


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (38_732_544, "38.7 MB"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (7.68e9, "7.68 GB"),
        (139e9, "139 GB"),
        (5e16, "50000 TB"),
    ],
)
def test_bytes(count, expected):
    assert text.format_bytes(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.00085, "850 us"),
        (0.0512, "51.2 ms"),
        (0.9999, "1.00 s"),
        (59.9, "59.9 s"),
        (62, "1:02 min"),
        (3725, "1:02:05 h"),
    ],
)
def test_seconds(seconds, expected):
    assert text.format_seconds(seconds) == expected


def test_clock():
    assert [text.format_clock(s) for s in (0, 41.4, 725, 3725)] == [
        "0:00",
        "0:41",
        "12:05",
        "1:02:05",
    ]


def test_ratio():
    assert text.format_ratio(1.0, 8.1) == "8.1x less"
    assert text.format_ratio(3.0, 2.0) == "1.5x more"
    assert text.format_ratio(1.0, 1.005) == ""
    assert text.format_ratio(0, 1) == ""


def test_the_columns_of_a_table_stand_in_line():
    assert text.markdown([("method", "ms"), ("full", "1.25"), ("prebackrazor", "9")]).split(
        "\n"
    ) == [
        "| method       | ms   |",
        "| ------------ | ---- |",
        "| full         | 1.25 |",
        "| prebackrazor | 9    |",
    ]
