"""Was it trained on? Eval prompts against every trained text.

Texts are compared as words: letter case, spacing, punctuation and the width of characters play no part. An eval prompt can
be *equal* to a trained text, or *share a run* of words with it. Levels, each of which includes the ones before:

    exact     a whole trained text is the prompt
    ngram_13  13 words in a row of the prompt stand in a trained text, or all of its words if it has fewer
    ngram_8   the same with 8 words

Runs below 5 words are not looked for: "what is the law of" is no leak, and a prompt that short can only be equal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate, islice
from typing import Any, NamedTuple

from aligner.run.errors import InputError
from aligner.run.terminal import printable

SHORTEST_RUN = 5
RUNS = {"ngram_13": 13, "ngram_8": 8}
LEVELS = ("exact", *RUNS)
GATED = "ngram_13"
RULE = (
    "case, spacing and punctuation aside: exact = a trained text is the prompt; ngram_13, ngram_8 = so many words in a row of "
    "the prompt, or all of a shorter one, stand in a trained text; each includes those before; runs below 5 words do not count"
)
SHOWN_LEAKS = 20

# Scripts that are written without spaces: every character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
# The same in ASCII, far faster: letters made small, digits and _ kept, and a space for all else.
_ASCII_WORDS = {code: chr(code).lower() if re.match(r"\w", chr(code)) else " " for code in range(128)}


def words(text: str) -> list[str]:
    """The words of a text as they are compared, none with white space in it; a text without any is cut at its spaces."""
    if text.isascii():
        return text.translate(_ASCII_WORDS).split() or text.casefold().split()
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(folded) or folded.split()


def digest(parts: Iterable[str]) -> int:
    """64 bits that stand for these texts, in this order."""
    return int.from_bytes(blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def grams(sequence: Sequence[str], n: int) -> list[str]:
    """Every n words in a row, joined by spaces: cut out of the whole text, which is faster than joining each."""
    text, sizes = " ".join(sequence), [len(word) + 1 for word in sequence]
    starts, ends = accumulate(sizes, initial=0), islice(accumulate(sizes, initial=-1), n, None)
    return [text[start:end] for start, end in zip(starts, ends, strict=False)]


class Match(NamedTuple):
    """Where an eval prompt and a trained text meet. Of two, the smaller tuple is told: the longer run, then the first by name."""

    unshared: int  # minus the number of shared words, so that longer runs come first
    where: str
    id: str
    start: int  # of the run in the prompt

    @property
    def length(self) -> int:
        return -self.unshared


class EvalPrompts:
    """The eval prompts, and what of them has been met in trained texts so far. Memory grows with the prompts alone."""

    def __init__(self, references: Sequence[dict[str, Any]]) -> None:
        self.ids = [row["id"] for row in references]
        self.words = [words(row["prompt"]) for row in references]
        self.equal: list[Match | None] = [None] * len(self.ids)
        self.longest: list[Match | None] = [None] * len(self.ids)
        self._whole: dict[str, list[int]] = {}
        self._places: dict[str, list[tuple[int, int]]] = {}
        for number, prompt in enumerate(self.words):
            self._whole.setdefault(" ".join(prompt), []).append(number)
            for start, gram in enumerate(grams(prompt, SHORTEST_RUN)):
                self._places.setdefault(gram, []).append((number, start))

    def look(self, where: str, id: str, text: list[str]) -> None:
        """Notes what the words of a trained text share with each prompt."""
        for number in self._whole.get(" ".join(text), ()):
            self.equal[number] = _first(self.equal[number], Match(-len(text), where, id, 0))
        found = grams(text, SHORTEST_RUN)
        if self._places.keys().isdisjoint(found):
            return
        for place, gram in enumerate(found):
            for number, start in self._places.get(gram, ()):
                length = _run(self.words[number], start, text, place)
                self.longest[number] = _first(self.longest[number], Match(-length, where, id, start))

    def level(self, number: int) -> str | None:
        """The first of LEVELS that holds for a prompt; None when it is clean."""
        if self.equal[number]:
            return "exact"
        found, size = self.longest[number], len(self.words[number])
        return next((name for name, n in RUNS.items() if found and found.length >= min(n, size)), None)

    def levels(self) -> dict[str, str]:
        """id -> level of the prompts that are not clean."""
        found = {id: self.level(number) for number, id in enumerate(self.ids)}
        return {id: level for id, level in found.items() if level}

    def counts(self) -> dict[str, int]:
        """How many prompts each level holds for, those of the levels before included."""
        found = list(self.levels().values())
        return {level: sum(found.count(name) for name in LEVELS[: place + 1]) for place, level in enumerate(LEVELS)}

    def overlaps(self) -> list[dict[str, Any]]:
        """For every prompt that shares a run: how long it is, where it was found, and the words; the worst first."""
        found = []
        for number, id in enumerate(self.ids):
            if match := self.equal[number] or self.longest[number]:
                shared = " ".join(self.words[number][match.start : match.start + match.length])
                level, size = self.level(number), len(self.words[number])
                known = {"id": id, "level": level, "words": match.length, "prompt_words": size}
                found.append(known | {"where": match.where, "row": match.id, "shared": shared})
        return sorted(found, key=_severity)


def _severity(overlap: dict[str, Any]) -> tuple:
    levels = (*LEVELS, None)
    return levels.index(overlap["level"]), -overlap["words"], overlap["id"]


def _first(known: Match | None, new: Match) -> Match:
    return new if known is None or new < known else known


def _run(prompt: list[str], start: int, text: list[str], place: int) -> int:
    """How many words from `start` of the prompt and from `place` of the text are the same."""
    length = 0
    for one, other in zip(prompt[start:], text[place:], strict=False):
        if one != other:
            break
        length += 1
    return length


def require_clean(prompts: EvalPrompts, largest_share: float, path: str) -> None:
    """Raises InputError with the matches when more than this share of the prompts has the level `exact` or `ngram_13`."""
    leaked = [overlap for overlap in prompts.overlaps() if overlap["level"] in LEVELS[: LEVELS.index(GATED) + 1]]
    share = len(leaked) / len(prompts.ids)
    if share <= largest_share:
        return
    first = f"{len(leaked)} of {len(prompts.ids)} eval prompts ({share:.1%}) stand in what is trained on"
    lines = [f"{overlap['id']}: {_match_line(overlap)}" for overlap in leaked[:SHOWN_LEAKS]]
    if len(leaked) > SHOWN_LEAKS:
        lines.append(f"… and {len(leaked) - SHOWN_LEAKS} more")
    ways = f"Reword or remove them in {path}, evaluate on other prompts (prepare.eval), or remove the training rows"
    way = f"{ways} that hold them. Then run: dvc repro"
    raise InputError("\n".join([f"{first}; prepare.max_leakage allows {largest_share:.1%}.", *lines, way]))


def _match_line(overlap: dict[str, Any]) -> str:
    how = "equal to" if overlap["level"] == "exact" else f"{overlap['words']} of its {overlap['prompt_words']} words in"
    return f'{how} the {overlap["where"]} of row {overlap["row"]}: "{printable(overlap["shared"])}"'
