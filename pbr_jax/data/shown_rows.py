"""Rows of a language model as a reader sees them: what is learned stands in brackets."""

import itertools

import numpy as np

from pbr_jax.data.language_tokens import LanguageTokenizer
from pbr_jax.data.packing import LanguageRow

_LONGEST = 800  # characters of a text


def shown(row: LanguageRow, tokenizer: LanguageTokenizer) -> list[str]:
    """A line for each text of a row: its tokens and, in [[...]], those that are learned."""
    lines = []
    for number in range(1, int(row.segments.max()) + 1):
        own = row.segments == number
        # The last of a text is a target alone, and its first is none.
        ids = np.append(row.tokens[own], row.targets[own][-1])
        learned = np.append(False, row.scored[own])
        text = ""
        for is_learned, run in itertools.groupby(range(len(ids)), key=lambda at: learned[at]):
            part = tokenizer.decode([int(ids[at]) for at in run])
            text += f"[[{part}]]" if is_learned else part
        text = "".join(c if c.isprintable() else {"\n": "↵"}.get(c, ascii(c)[1:-1]) for c in text)
        cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        lines.append(f"{number:>3}  {np.sum(own):>5} tokens  {cut}")
    return lines
