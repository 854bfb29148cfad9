"""Where an answer names the ideas of its prompt: the stretches that the page highlights."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from aligner.keywords.groups import KeywordGroup, searched
from aligner.keywords.text import SPACED, TOKEN, normalise, prepare

Mark = tuple[int, int, int]


# ---- Where a text names its groups -----------------------------------------------------------------------------------

MOST_ALIGNED = 3000


def marks(text: str, groups: Sequence[KeywordGroup], prompt: str | None = None) -> list[Mark]:
    """(start, end, number of the group) of every stretch of a text that names a group, in order, without overlaps.

    For people to look at. Groups are searched in the plain form, as `score` searches them, and mapped back to the text as it was
    written, word by word; where its markup hides the way back, or the text is very long, a mark may be missing.
    """
    answer = prepare(text, prompt)
    spans = {(*span, number) for number, group in enumerate(map(searched, groups)) for span in group.spans(answer)}
    if not spans:
        return []
    origins = _origins(text, answer.plain)
    found: list[Mark] = []
    last = 0
    for start, end, number in sorted(spans, key=lambda span: (span[0], -span[1], span[2])):
        places = [place for place in origins[start:end] if place is not None]
        if places and places[0] >= last:
            last = places[-1] + 1
            found.append((places[0], last, number))
    return found


def _origins(text: str, plain: str) -> list[int | None]:
    """For every character of the plain form its place in the text; None where it has none."""
    if text.isascii() and " ".join(text.casefold().split()) == plain:
        places = [place for word in SPACED.finditer(text) for place in (*range(*word.span()), None)]
        return places[: len(plain)]
    origins: list[int | None] = [None] * len(plain)
    written, folded = list(TOKEN.finditer(text)), list(TOKEN.finditer(plain))
    if max(len(written), len(folded)) > MOST_ALIGNED:
        return origins
    words = [normalise(each[0]) for each in written]
    matcher = difflib.SequenceMatcher(None, words, [each[0] for each in folded], autojunk=False)
    for first, other, length in matcher.get_matching_blocks():
        for before, after in zip(written[first : first + length], folded[other : other + length], strict=True):
            origins[after.start()] = before.start()
            origins[after.end() - 1] = before.end() - 1
    return origins
