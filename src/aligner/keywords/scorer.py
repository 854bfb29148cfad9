"""The score of a response on its prompt's keyword groups, and an index that searches a text for very many groups.

The score is the share of groups that the response hits. Text that only repeats the prompt does not count, and a response that
is stuffed with keywords, or that loops, scores 0.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aligner.keywords.groups import (
    NOWHERE,
    NUMBER_TOLERANCE,
    UNSPACED_LETTER,
    Finder,
    KeywordGroup,
    SearchedGroup,
    inflected_runs,
    inflected_spans,
    keywords_of,
    number_spans,
    option,
    searched,
    word_spans,
)
from aligner.keywords.text import LETTER_RUN, Text, normalise, prepare
from aligner.text_health import degenerate

STUFFED_DENSITY = 0.30
STUFFED_GROUPS = 2


# ---- The score of a response -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeywordScore:
    """The score of one response on the keyword groups of its prompt.

    A stuffed response has `hits` 0, while `matched` keeps the matches, group by group. Novel groups are those that the
    prompt does not hit itself; both novel fields are None without a prompt. `density` is the share of tokens that belong
    to a matched keyword, None for a response without tokens. `flags` lists all that apply: empty (no text), echo (text
    repeated from the prompt was removed), degenerate (see text_health), stuffed (degenerate, or density above 0.30 with
    at least two groups hit), forbidden (a forbidden group hit).
    """

    hits: int
    groups: int
    matched: tuple[bool, ...]
    weighted_hits: float
    total_weight: float
    novel_hits: int | None
    novel_groups: int | None
    forbidden: tuple[bool, ...]
    density: float | None
    flags: tuple[str, ...]

    @property
    def rate(self) -> float:
        """hits / groups, in [0, 1]: the per-prompt score s_i."""
        return self.hits / self.groups

    @property
    def weighted_rate(self) -> float:
        """The same with each group counted by its weight."""
        return self.weighted_hits / self.total_weight

    @property
    def novel_rate(self) -> float | None:
        """Hits among the groups that the prompt does not hit; None without a prompt or if it hits all of them."""
        return self.novel_hits / self.novel_groups if self.novel_hits is not None and self.novel_groups else None

    @property
    def all_hit(self) -> bool:
        return self.hits == self.groups

    @property
    def stuffed(self) -> bool:
        return "stuffed" in self.flags


def score(
    text: str,
    groups: Sequence[KeywordGroup],
    forbidden: Sequence[KeywordGroup] = (),
    prompt: str | None = None,
) -> KeywordScore:
    """The KeywordScore of a response. Raises ValueError without a group, since then there is no rate."""
    return Scorer(groups, forbidden, prompt).score(text)


class Scorer:
    """The groups of one prompt, compiled once to score any number of responses."""

    def __init__(self, groups: Sequence[KeywordGroup], forbidden: Sequence[KeywordGroup] = (), prompt: str | None = None):
        _check_groups(groups, forbidden)
        self._groups, self._forbidden, self._prompt = [*map(searched, groups)], [*map(searched, forbidden)], prompt
        self._weights = [float(option(group, "weight", 1)) for group in groups]
        self._novel = None if prompt is None else [not group.is_in(prepare(prompt)) for group in self._groups]

    def score(self, text: str, found: Sequence[frozenset[int] | None] | None = None) -> KeywordScore:
        """The KeywordScore of a response; `found`, the tokens of each group from an Index, replaces the search."""
        answer = prepare(text, self._prompt)
        if found is None:
            found = [group.tokens(answer) for group in self._groups]
        matched = tuple(tokens is not None for tokens in found)
        denied = tuple(group.is_in(answer) for group in self._forbidden)
        loops = degenerate(text)
        stuffed = loops or is_stuffed(found, len(answer.tokens))
        counted = [hit and not stuffed for hit in matched]
        raised = {"empty": not text.strip(), "echo": answer.echoes, "degenerate": loops, "stuffed": stuffed}
        return KeywordScore(
            hits=sum(counted),
            groups=len(found),
            matched=matched,
            weighted_hits=math.fsum(itertools.compress(self._weights, counted)),
            total_weight=math.fsum(self._weights),
            novel_hits=None if self._novel is None else sum(itertools.compress(counted, self._novel)),
            novel_groups=None if self._novel is None else sum(self._novel),
            forbidden=denied,
            density=_density(found, len(answer.tokens)),
            flags=tuple(name for name, is_raised in (raised | {"forbidden": any(denied)}).items() if is_raised),
        )

    def hits_within(self, text: Text, words: int, matched: Sequence[bool]) -> int:
        """The number of groups that the first `words` words of a prepared text name; 0 if these are stuffed with keywords.

        `matched` marks the groups that the whole text names; its beginning can name no others.
        """
        end = text.word_ends[min(words, len(text.word_ends)) - 1] if words and text.word_ends else 0
        found = [group.tokens(text, end) if hit else None for group, hit in zip(self._groups, matched, strict=True)]
        stuffed = is_stuffed(found, bisect.bisect_left(text.starts, end))
        return 0 if stuffed else sum(tokens is not None for tokens in found)


def _check_groups(groups: Sequence[KeywordGroup], forbidden: Sequence[KeywordGroup]) -> None:
    for name, value in (("groups", groups), ("forbidden", forbidden)):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list of keyword groups, got {value!r}")
    if not groups:
        raise ValueError(f"groups must hold at least one keyword group, got {groups!r}")


def is_stuffed(found: Iterable[frozenset[int] | None], tokens: int) -> bool:
    """Whether a text of so many tokens is a heap of keywords: two or more groups hit, with more than 30 % of its tokens.

    `found` holds the tokens of each group's matches, or None for a group without a match.
    """
    hit = [each for each in found if each is not None]
    return len(hit) >= STUFFED_GROUPS and (_density(hit, tokens) or 0) > STUFFED_DENSITY


def _density(found: Iterable[frozenset[int] | None], tokens: int) -> float | None:
    """Tokens in a match of any group / all tokens."""
    return len(frozenset().union(*filter(None, found))) / tokens if tokens else None


# ---- Many groups at once ---------------------------------------------------------------------------------------------


class Index:
    """Finds which of very many groups a text hits; it tries a keyword only if the text has the words that it needs."""

    def __init__(self, groups: Sequence[KeywordGroup]):
        self.groups = list(groups)
        self._entries: list[tuple[int, SearchedGroup]] = []
        self._always: set[int] = set()
        self._by_run: dict[str, list[tuple[int, frozenset[str]]]] = {}
        self._by_base: dict[str, list[tuple[int, list[frozenset[str]]]]] = {}
        self._inflected: dict[int, list[frozenset[str]]] = {}
        self._targets: list[tuple[float, int]] = []
        literals: list[tuple[str, Finder]] = []
        for number, group in enumerate(self.groups):
            read = searched(group)
            for keyword, finder in zip(keywords_of(group), read.finders, strict=True):
                if finder is not NOWHERE:
                    literals.append((keyword, finder))
                    self._entries.append((number, read._replace(finders=[finder])))
                    if finder.func is inflected_spans and not read.rejects:
                        self._inflected[len(self._entries) - 1] = finder.args[0]
        inflected = [finder.args[0] for _, finder in literals if finder.func is inflected_spans]
        self._uses = Counter(base for words in inflected for bases in words for base in bases)
        for entry, (keyword, finder) in enumerate(literals):
            self._enter(entry, keyword, finder)
        self._targets.sort()

    def _enter(self, entry: int, keyword: str, finder: Finder) -> None:
        """Files a keyword under a word that every match holds: one that few others use, or the longest, mostly the rarest."""
        runs = LETTER_RUN.findall(normalise(keyword))
        if finder.func is number_spans:
            self._targets.append((finder.args[0], entry))
        elif finder.func is inflected_spans:
            rarest, *others = sorted(finder.args[0], key=lambda bases: sum(self._uses[base] for base in bases))
            for base in rarest:
                self._by_base.setdefault(base, []).append((entry, others))
        elif finder.func is word_spans and runs and not UNSPACED_LETTER.search(normalise(keyword)):
            self._by_run.setdefault(max(runs, key=len), []).append((entry, frozenset(runs)))
        else:
            self._always.add(entry)

    def found(self, text: Text) -> dict[int, frozenset[int]]:
        """Number of each group that the text hits -> the tokens that belong to its matches."""
        found: dict[int, frozenset[int]] = {}
        for entry in sorted(self._candidates(text)):
            number, keyword = self._entries[entry]
            words = self._inflected.get(entry)
            tokens = keyword.tokens(text) if words is None else _tokens_of_runs(words, text)
            if tokens is not None:
                found[number] = found[number] | tokens if number in found else tokens
        return found

    def _candidates(self, text: Text) -> set[int]:
        found = set(self._always)
        for run in self._by_run.keys() & text.words if self._by_run else ():
            found.update(entry for entry, runs in self._by_run[run] if runs <= text.words)
        there = frozenset(text.places) if self._by_base else frozenset()  # a set is faster than the keys of a dict
        for base in self._by_base.keys() & there:
            for entry, others in self._by_base[base]:
                if not others or not any(map(there.isdisjoint, others)):
                    found.add(entry)
        for value, _, _ in text.numbers if self._targets else ():
            slack = 2 * NUMBER_TOLERANCE * max(1.0, abs(value))
            first = bisect.bisect_left(self._targets, (value - slack, -1))
            last = bisect.bisect_right(self._targets, (value + slack, len(self._entries)))
            found.update(entry for _, entry in self._targets[first:last])
        return found


def _tokens_of_runs(words: Sequence[frozenset[str]], text: Text) -> frozenset[int] | None:
    """The result of `SearchedGroup.tokens` for a keyword of inflected words, without the detour through characters."""
    if len(words) == 1:
        return text.sharing(words[0]) or None
    runs = inflected_runs(words, text)
    return frozenset(first + offset for first in runs for offset in range(len(words))) if runs else None
