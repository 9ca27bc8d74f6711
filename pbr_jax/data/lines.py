"""Lines of a table on disk: text in UTF-8, and JSON lines with what each holds or what is wrong.

Every line of a file belongs to a row, to a fault or to the header, or is empty.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pbr_jax.measure.memory import shortage
from pbr_jax.reading import START, check_text, regular_size

COLUMNS = ("text", "text_a", "text_b", "label")  # those that are read
_KEYS = (*COLUMNS, "prompt", "completion", "messages")  # that are not there twice
_LONGEST_NUMBER = 1000  # digits; Python itself refuses more than 4300


class Line(NamedTuple):
    """A row of a table: what its line holds, or what is wrong with it."""

    first: int  # line number, from 1
    last: int  # the same, unless a field in quotes holds line ends
    content: Any


def read_lines(file: Path) -> list[str]:
    r"""The lines of a file, each with its end, `\n`, `\r\n` or `\r`, and without a byte-order mark.

    Bytes that are not UTF-8 become lone surrogates, so that their row can be named.

    Raises:
      ValueError: it is no file, or of another format; says what converts it.
    """
    size = regular_size(file)  # a pipe of that name would be waited for
    # Lines, and the fields that are cut out of them, are held at once.
    if short := shortage(2 * size):
        raise ValueError(f"{file}: its rows {short}; take fewer rows")
    with open(file, "rb") as stream:
        check_text(file, stream.read(START))
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        return list(stream)


def json_rows(file: Path, lines: Sequence[str]) -> Iterator[Line]:
    """Yields the value of each line that is not empty, or a `ValueError` with what is wrong.

    Raises:
      ValueError: the file is one JSON array, or its objects take several lines; says what
        converts it.
    """
    _refuse_values_over_lines(file, lines)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield Line(number, number, _value(line))


def _value(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_object, parse_int=_whole)
    except RecursionError:
        return ValueError("not JSON that can be read (nested too deeply)")
    except ValueError as error:
        hint = "; remove the comma at its end" if line.rstrip().endswith(",") else ""
        return ValueError(f"not JSON ({error}){hint}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python would take the last of equal keys without a word.
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        if twice := [key for key in _KEYS if keys.count(key) > 1]:
            raise ValueError(f"{twice[0]} is there twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse_values_over_lines(file: Path, lines: Sequence[str]) -> None:
    rows = "json.load(sys.stdin)"
    begin = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    start = lines[begin].strip() if begin < len(lines) else ""
    if re.match(r"\[\s*(\{|$)", start):
        what = "a JSON array"
    elif start.startswith("{") and _goes_on(lines[begin : begin + 1000]):
        what = "JSON whose objects take several lines"
        # No JSON text has a line end inside, so this one is between two objects.
        rows = r"json.loads('[' + re.sub('}[ \n]*\n[ \n]*{', '},{', sys.stdin.read()) + ']')"
    else:
        return
    program = f"import json, re, sys; [print(json.dumps(row)) for row in {rows}]"
    name = shlex.quote(str(file))
    raise ValueError(
        f"{file}: is {what}: must be JSON lines, one object a line\n"
        f'`python -c "{program}" < {name} > new.jsonl` converts it'
    )


def _goes_on(lines: Sequence[str]) -> bool:
    """Whether lines begin with a JSON value that is sound and longer than the first of them."""
    try:
        _, end = json.JSONDecoder().raw_decode("".join(lines).lstrip())
    except (ValueError, RecursionError):
        return False
    return end > len(lines[0].strip())
