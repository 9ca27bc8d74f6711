"""The name that was probably meant."""

import difflib
import re
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of `words`, or the only one that `word` is a part of; None without one.

    Half of the letters make no similar word: `epochs` is not meant for `eps`.
    """
    words = list(words)
    if close := difflib.get_close_matches(word, words, n=1, cutoff=0.75):
        return close[0]
    whole = [known for known in words if word in re.split("[_/]", known)]
    return whole[0] if len(whole) == 1 else None
