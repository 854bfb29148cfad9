"""Leakage: compares the eval prompts with every text that the models train on.

Texts are compared as words; letter case, spacing, punctuation and the width of characters play no part. An eval prompt can
*equal* a trained text, or *share a run* of words with it. Each level includes the ones before it:

    exact     a whole trained text equals the prompt
    ngram_13  a trained text contains 13 consecutive words of the prompt, or the whole prompt if it has fewer
    ngram_8   the same with 8 words

Shorter runs than 5 words do not count: "the law of large" is no leak, and a prompt of 4 words can only be equal.
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
    "case, spacing and punctuation are ignored; exact = a trained text equals the prompt; ngram_13, ngram_8 = a trained text "
    "contains 13 or 8 consecutive words of the prompt, or all words of a shorter one; each level includes those before it; "
    "runs below 5 words do not count"
)
SHOWN_LEAKS = 20

# Scripts that are written without spaces: every character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
# The same for ASCII, far faster: lower-case letters, digits and _ stay, and all else becomes a space.
_ASCII_WORDS = {code: chr(code).lower() if re.match(r"\w", chr(code)) else " " for code in range(128)}


def words(text: str) -> list[str]:
    """The words of a text in the form that is compared. A text without letters and digits is split at white space."""
    if text.isascii():
        return text.translate(_ASCII_WORDS).split() or text.casefold().split()
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(folded) or folded.split()


def digest(parts: Iterable[str]) -> int:
    """A 64-bit hash of these texts, in this order."""
    return int.from_bytes(blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def grams(sequence: Sequence[str], n: int) -> list[str]:
    """Every n consecutive words, joined by spaces. Slicing the whole text is faster than joining each gram."""
    text, sizes = " ".join(sequence), [len(word) + 1 for word in sequence]
    starts, ends = accumulate(sizes, initial=0), islice(accumulate(sizes, initial=-1), n, None)
    return [text[start:end] for start, end in zip(starts, ends, strict=False)]


class Match(NamedTuple):
    """A run that an eval prompt shares with a trained text. Of two, the smaller tuple is kept: longer run first, then by name."""

    unshared: int  # minus the number of shared words, so that longer runs come first
    where: str
    id: str
    start: int  # of the run in the prompt

    @property
    def length(self) -> int:
        return -self.unshared


class EvalPrompts:
    """The eval prompts and their longest match with the trained texts so far. Memory grows only with the number of prompts."""

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
        """Records which words of a trained text each prompt shares."""
        self.note(self.matches(where, id, text))

    def matches(self, where: str, id: str, text: list[str]) -> list[tuple[int, Match, bool]]:
        """What a trained text shares: the number of a prompt, the match, and whether the whole text equals the prompt."""
        equal = self._whole.get(" ".join(text), ())
        matches = [(number, Match(-len(text), where, id, 0), True) for number in equal]
        found = grams(text, SHORTEST_RUN)
        if self._places.keys().isdisjoint(found):
            return matches
        for place, gram in enumerate(found):
            for number, start in self._places.get(gram, ()):
                length = _run(self.words[number], start, text, place)
                matches.append((number, Match(-length, where, id, start), False))
        return matches

    def note(self, matches: Iterable[tuple[int, Match, bool]]) -> None:
        """Keeps the best match of each prompt; the order of calls plays no part."""
        for number, match, whole in matches:
            best = self.equal if whole else self.longest
            best[number] = _first(best[number], match)

    def level(self, number: int) -> str | None:
        """The first of LEVELS that applies to a prompt; None if it is clean."""
        if self.equal[number]:
            return "exact"
        found, size = self.longest[number], len(self.words[number])
        return next((name for name, n in RUNS.items() if found and found.length >= min(n, size)), None)

    def levels(self) -> dict[str, str]:
        """id -> level of the prompts that are not clean."""
        found = {id: self.level(number) for number, id in enumerate(self.ids)}
        return {id: level for id, level in found.items() if level}

    def counts(self) -> dict[str, int]:
        """The number of prompts at each level, including those at the levels before it."""
        found = list(self.levels().values())
        return {level: sum(found.count(name) for name in LEVELS[: place + 1]) for place, level in enumerate(LEVELS)}

    def overlaps(self) -> list[dict[str, Any]]:
        """One entry for each prompt that shares a run: its length, its source and the words. The worst comes first."""
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
    """The number of equal words in a row, from `start` in the prompt and from `place` in the text."""
    length = 0
    for one, other in zip(prompt[start:], text[place:], strict=False):
        if one != other:
            break
        length += 1
    return length


def require_clean(prompts: EvalPrompts, largest_share: float, path: str) -> None:
    """Raises InputError with the matches if more than this share of the prompts is at level `exact` or `ngram_13`."""
    leaked = [overlap for overlap in prompts.overlaps() if overlap["level"] in LEVELS[: LEVELS.index(GATED) + 1]]
    share = len(leaked) / len(prompts.ids)
    if share <= largest_share:
        return
    first = f"{len(leaked)} of {len(prompts.ids)} eval prompts ({share:.1%}) overlap with the training texts"
    lines = [f"{overlap['id']}: {_match_line(overlap)}" for overlap in leaked[:SHOWN_LEAKS]]
    if len(leaked) > SHOWN_LEAKS:
        lines.append(f"… and {len(leaked) - SHOWN_LEAKS} more")
    ways = f"Reword or remove them in {path}, evaluate on other prompts (prepare.eval), or remove the training rows"
    way = f"{ways} that hold them. Then run: dvc repro"
    raise InputError("\n".join([f"{first}; prepare.max_leakage allows {largest_share:.1%}.", *lines, way]))


def _match_line(overlap: dict[str, Any]) -> str:
    how = "equal to" if overlap["level"] == "exact" else f"{overlap['words']} of its {overlap['prompt_words']} words in"
    return f'{how} the {overlap["where"]} of row {overlap["row"]}: "{printable(overlap["shared"])}"'
