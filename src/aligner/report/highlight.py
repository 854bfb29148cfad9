"""The spans of an answer that the page highlights: where it names the ideas of its prompt."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from aligner.keywords.groups import KeywordGroup, searched
from aligner.keywords.text import SPACED, TOKEN, normalise, prepare

MOST_ALIGNED = 3000
Mark = tuple[int, int, int]


def marks(text: str, groups: Sequence[KeywordGroup], prompt: str | None = None) -> list[Mark]:
    """(start, end, number of the group) of each span of a text that names a group, in order, without overlaps.

    For display only. Groups are found in the plain form, as `score` finds them, and mapped back to the original text word by
    word. Where markup prevents the mapping, or the text is very long, a mark may be missing.
    """
    answer = prepare(text, prompt)
    spans = {(*span, number) for number, group in enumerate(map(searched, groups)) for span in group.spans(answer)}
    if not spans:
        return []
    origins = _origins(text, answer.plain)
    found: list[Mark] = []
    last = 0
    for start, end, number in sorted(spans, key=lambda span: (span[0], -span[1], span[2])):
        origin = [position for position in origins[start:end] if position is not None]
        if origin and origin[0] >= last:
            last = origin[-1] + 1
            found.append((origin[0], last, number))
    return found


def _origins(text: str, plain: str) -> list[int | None]:
    """For each character of the plain form, its position in the text; None where it has none."""
    if text.isascii() and " ".join(text.casefold().split()) == plain:
        positions = [position for word in SPACED.finditer(text) for position in (*range(*word.span()), None)]
        return positions[: len(plain)]
    origins: list[int | None] = [None] * len(plain)
    written, folded = list(TOKEN.finditer(text)), list(TOKEN.finditer(plain))
    if max(len(written), len(folded)) > MOST_ALIGNED:
        return origins
    words = [normalise(match[0]) for match in written]
    matcher = difflib.SequenceMatcher(None, words, [match[0] for match in folded], autojunk=False)
    for first, other, length in matcher.get_matching_blocks():
        for before, after in zip(written[first : first + length], folded[other : other + length], strict=True):
            origins[after.start()] = before.start()
            origins[after.end() - 1] = before.end() - 1
    return origins
