"""Corrected texts: which words of the original they flag, and the rows that train on them.

    changed_spans("I'm sorry, we are closed.", "We are closed.")   # [(0, 14)]: "I'm sorry, we"

The alignment is a longest common subsequence of words, so one inserted word flags one word and
never the rest (comparing position by position, as T5Patches does, flags all that follows).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Corrections = dict[tuple[str, str], str]
"""(prompt input, completion text) -> the corrected text."""
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
"""A word, or one character that is neither of a word nor white space."""


def changed_spans(text: str, corrected: str) -> list[tuple[int, int]]:
    """Return the characters [start, end) of `text` that a correction changes.

    A word that was deleted or replaced is flagged. Words that were only inserted flag the word
    before which they were put, which stood in their place; at the end of the text they flag
    nothing. White space is not compared. Words side by side make one span.
    """
    said = [*_WORD.finditer(text)]
    flagged = _changed([word.group() for word in said], _WORD.findall(corrected))
    spans: list[tuple[int, int]] = []
    for i in flagged:
        start, end = said[i].span()
        if i - 1 in flagged:
            start = spans.pop()[0]
        spans.append((start, end))
    return spans


def _changed(said: Sequence[str], wanted: Sequence[str]) -> dict[int, None]:
    """Return the places in `said` of the words that are flagged, in order."""
    flagged: dict[int, None] = {}
    needless = _needless(said, wanted)
    i = j = 0
    deleted = inserted = False  # since the last word that both have
    while i < len(said):
        if j < len(wanted) and said[i] == wanted[j]:
            if inserted and not deleted:
                flagged[i] = None
            i, j, deleted, inserted = i + 1, j + 1, False, False
        elif j == len(wanted) or needless[j] >> (len(said) - 1 - i) & 1:
            flagged[i] = None
            i, deleted = i + 1, True
        else:
            j, inserted = j + 1, True
    return flagged


def _needless(said: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Return, for each j, which words of `said` add nothing to what it shares with wanted[j:].

    Bit len(said) - 1 - i of the number at j is 1 where said[i:] and said[i + 1:] have equally long
    common subsequences with wanted[j:]. A whole row of the usual table is one integer (Hyyrö 2004,
    "Bit-parallel LCS-length computation revisited"): microseconds for a completion.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(reversed(said)):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(said)) - 1
    row, rows = everything, []
    for word in reversed(wanted):
        shared = row & places.get(word, 0)
        row = ((row + shared) | (row - shared)) & everything
        rows.append(row)
    return rows[::-1]
