"""Figures as text: bytes, seconds, ratios, and tables in Markdown."""

from collections.abc import Sequence


def format_bytes(count: float) -> str:
    """Three digits and a decimal unit: `38.7 MB` is 38.7 million bytes."""
    # 999.5 would be rounded to four digits.
    units = ("B", "kB", "MB", "GB", "TB")
    index = 0
    while count >= 999.5 and index < len(units) - 1:
        count, index = count / 1000, index + 1
    return f"{count:.0f} {units[0]}" if index == 0 else f"{three_digits(count)} {units[index]}"


def three_digits(number: float) -> str:
    """`7.68`, `38.7` or `139`; more before the point are not cut, up to a power, `1.20e+09`."""
    if number >= 1e9:
        return f"{number:.2e}"
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"


def format_seconds(seconds: float) -> str:
    """`850 us`, `51.2 ms`, `1.20 s`, and from a minute on `1:02 min` or `1:02:05 h`."""
    if seconds >= 59.995:
        return format_clock(seconds) + (" h" if round(seconds) >= 3600 else " min")
    if seconds >= 0.9995:
        return f"{three_digits(seconds)} s"
    small = seconds * 1e3
    return f"{three_digits(small)} ms" if small >= 0.9995 else f"{seconds * 1e6:.0f} us"


def format_clock(seconds: float) -> str:
    """`0:41`, `12:05` or `1:02:05`."""
    whole = round(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    minutes = whole // 60 % 60
    return f"{hours}{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def format_ratio(mine: float, full: float) -> str:
    """Compares `mine` to `full`: `8.1x less`, `1.2x more`, or nothing when about equal."""
    if mine <= 0 or full <= 0 or abs(mine / full - 1) < 0.01:
        return ""
    return f"{full / mine:.1f}x less" if mine < full else f"{mine / full:.1f}x more"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the titles first, as a table in Markdown whose columns stand in line."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in (lines[0], rule, *lines[1:])
    )
