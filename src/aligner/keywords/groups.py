"""Keyword groups: their rules, their validation, and where a text names one.

A *group* is one idea to be named: a string, or `{any: [synonyms], match: word|inflect|substring|number|regex,
negation: ignore|reject, weight: 1}`. It hits once or not at all, so repeating a word earns nothing.
"""

from __future__ import annotations

import bisect
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from aligner.keywords.text import NUMBER, UNSPACED, Text, base_forms, normalise, prepare, values_of

MATCH_MODES = ("word", "inflect", "substring", "number", "regex")
NEGATION_MODES = ("ignore", "reject")
GROUP_KEYS = ("any", "match", "negation", "weight")
NEGATION_WINDOW = 5
NUMBER_TOLERANCE = 1e-9
LARGEST_WEIGHT = 1e6  # so that sums of weights are finite, and a weight is still seen beside another

KeywordGroup = str | Mapping[str, Any]
Span = tuple[int, int]
Finder = partial[Iterable[Span]]  # calls one of the *_spans functions with a Text


# ---- Finding a keyword -----------------------------------------------------------------------------------------------

_INNER_GAP = re.compile(r"(?<=[^\s-])[\s-]+(?=[^\s-])")
_GAP = r"[\s\-]+"
UNSPACED_LETTER = re.compile(f"[{UNSPACED}]")
_INFLECTABLE = re.compile(rf"[^\W_{UNSPACED}]+(?:'[^\W_{UNSPACED}]+)*")


@lru_cache(maxsize=65536)
def _finder(keyword: str, match: str) -> Finder:
    """The function that finds the spans of a keyword in a Text; made once for each keyword and match mode.

    ValueError for a regular expression or a number that cannot be read. A keyword of which nothing is left never hits.
    """
    if match == "regex":
        return partial(_pattern_spans, _compiled_regex(keyword), "") if keyword else NOWHERE
    plain = normalise(keyword)
    if not plain:
        return NOWHERE
    if match == "number":
        return partial(number_spans, _keyword_number(keyword))
    if match == "inflect" and all(_INFLECTABLE.fullmatch(word) for word in _INNER_GAP.split(plain)):
        return partial(inflected_spans, [base_forms(word) for word in _INNER_GAP.split(plain)])
    if match == "substring":
        return partial(_pattern_spans, re.compile(re.escape(plain)), plain)
    pieces = _INNER_GAP.split(plain)
    return partial(word_spans, re.compile(_GAP.join(map(re.escape, pieces))), max(pieces, key=len))


def _compiled_regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"regex {pattern!r} cannot be compiled: {error}") from error


def _keyword_number(keyword: str) -> float:
    number = NUMBER.fullmatch(normalise(keyword))
    values = values_of(number[0]) if number else []
    if len(values) != 1:
        raise ValueError(f"number {keyword!r} cannot be read: write 42, -0.5, 1e-3 or 1/2")
    return values[0]


def _no_spans(text: Text) -> Iterable[Span]:
    return ()


NOWHERE: Finder = partial(_no_spans)


def _pattern_spans(pattern: re.Pattern[str], needle: str, text: Text) -> Iterable[Span]:
    """The matches of a pattern; `needle`, a literal part of it, spares the search in the many texts that lack it."""
    if needle not in text.plain:
        return ()
    return (each.span() for each in pattern.finditer(text.plain) if each[0])


def word_spans(pattern: re.Pattern[str], needle: str, text: Text) -> Iterable[Span]:
    """The matches that stand between word boundaries: no letter or digit goes on beyond either end.

    Not `\\b`, which is no boundary beside C++ or .NET and takes the underscore for a letter. A letter of an unspaced
    script neither needs a boundary nor breaks one. The search goes on one character later, for matches that overlap.
    """
    found = pattern.search(text.plain) if needle in text.plain else None
    while found:
        start, end = found.span()
        if not (_blocked(text.plain, start, start - 1) or _blocked(text.plain, end - 1, end)):
            yield start, end
        found = pattern.search(text.plain, start + 1)


def _blocked(plain: str, end: int, beside: int) -> bool:
    """Does a letter or digit of a spaced script stand beside this end of a match?"""
    if not 0 <= beside < len(plain) or not plain[beside].isalnum():
        return False
    return not (UNSPACED_LETTER.match(plain[beside]) or UNSPACED_LETTER.match(plain[end]))


def inflected_spans(words: Sequence[frozenset[str]], text: Text) -> Iterable[Span]:
    for first in sorted(inflected_runs(words, text)):
        yield text.tokens[first][1], text.tokens[first + len(words) - 1][2]


def inflected_runs(words: Sequence[frozenset[str]], text: Text) -> frozenset[int]:
    """First tokens of runs, nothing but space and hyphens between, each of which shares a base form with its keyword word."""
    first = text.sharing(words[0])
    for offset, bases in enumerate(words[1:], start=1):
        places = text.sharing(bases)
        first = frozenset(index for index in first if index + offset in places)
    return first


def number_spans(target: float, text: Text) -> Iterable[Span]:
    """Numbers x with |x - target| <= 1e-9 max(1, |target|)."""
    tolerance = NUMBER_TOLERANCE * max(1.0, abs(target))
    return ((start, end) for value, start, end in text.numbers if abs(value - target) <= tolerance)


# ---- Negation --------------------------------------------------------------------------------------------------------

_NEGATORS = frozenset("no not never none nobody nothing nowhere neither nor cannot without".split())
_SCOPE_ENDS = frozenset(". ! ? ; : but however although though instead except".split())
_PSEUDO = frozenset("only just merely simply solely doubt wonder matter less fewer question".split())
_PSEUDO_PHRASES = frozenset({("a", "doubt"), ("to", "mention")})


def _negated(text: Text, start: int) -> bool:
    """Is the mention at `start` denied: is there a negator among the five words before it, in the same clause?

    After NegEx (Chapman et al. 2001). "not only", "no doubt", "not to mention" and their like deny nothing.
    """
    words: list[str] = []
    for index in range(bisect.bisect_left(text.starts, start) - 1, -1, -1):
        token = text.tokens[index][0]
        if token in _SCOPE_ENDS or len(words) == NEGATION_WINDOW:
            break
        if token[0].isalnum():
            words.insert(0, token)
    return any(_denies(words, index) for index in range(len(words)))


def _denies(words: Sequence[str], index: int) -> bool:
    if words[index] not in _NEGATORS and not words[index].endswith("n't"):
        return False
    following = tuple(words[index + 1 : index + 3])
    return _PSEUDO.isdisjoint(following[:1]) and following not in _PSEUDO_PHRASES


# ---- Groups ----------------------------------------------------------------------------------------------------------


def validate_group(group: KeywordGroup) -> list[str]:
    """Everything that is wrong with a keyword group, in words; an empty list for a good one."""
    problems = _shape_problems(group)
    if not isinstance(group, str) and not (isinstance(group, Mapping) and _are_strings(group.get("any"))):
        return problems
    keywords, match = keywords_of(group), option(group, "match", "word")
    if not keywords:
        problems.append("any must list at least one keyword")
    if match in MATCH_MODES:
        problems += [problem for keyword in keywords for problem in _keyword_problems(keyword, match)]
        problems += [f"keyword {keyword!r} is listed twice" for keyword in sorted(_repeated(keywords, match))]
    return problems


def _shape_problems(group: KeywordGroup) -> list[str]:
    """What hinders the reading of a group: wrong types, unknown keys, modes and weights."""
    if isinstance(group, str):
        return []
    if not isinstance(group, Mapping):
        return [f"a group must be a string or a mapping with the key any, got {group!r}"]
    problems = [_unknown_key(key) for key in group if key not in GROUP_KEYS]
    if not _are_strings(group.get("any")):
        problems.append(f"any must be a list of strings, got {group.get('any')!r}")
    for key, known in (("match", MATCH_MODES), ("negation", NEGATION_MODES)):
        if group.get(key, known[0]) not in known:
            problems.append(f"{key} must be one of {', '.join(known)}, got {group[key]!r}")
    if not _is_weight(group.get("weight", 1)):
        problems.append(f"weight must be a number > 0 and <= {LARGEST_WEIGHT:,.0f}, got {group['weight']!r}")
    return problems


def _unknown_key(key: object) -> str:
    near = difflib.get_close_matches(str(key), GROUP_KEYS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(GROUP_KEYS)}"
    return f"{key!r} is not a key of a group ({hint})"


def _are_strings(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST_WEIGHT


def _keyword_problems(keyword: str, match: str) -> list[str]:
    if not (keyword if match == "regex" else normalise(keyword)):
        return [f"keyword {keyword!r} is empty" + (" once it is normalised" if keyword else "")]
    try:
        _finder(keyword, match)
    except ValueError as error:
        return [str(error)]
    if match == "regex" and _compiled_regex(keyword).search(""):
        return [f"regex {keyword!r} matches the empty text, so it would match every text"]
    return []


def _repeated(keywords: Sequence[str], match: str) -> set[str]:
    plain = [keyword if match == "regex" else normalise(keyword) for keyword in keywords]
    return {keyword for index, keyword in enumerate(plain) if keyword and keyword in plain[:index]}


def keywords_of(group: KeywordGroup) -> Sequence[str]:
    return (group,) if isinstance(group, str) else group["any"]


def option(group: KeywordGroup, key: str, default: Any) -> Any:
    return default if isinstance(group, str) else group.get(key, default)


class SearchedGroup(NamedTuple):
    """A group in the form in which texts are searched for it."""

    finders: list[Finder]
    rejects: bool
    is_regex: bool

    def spans(self, text: Text) -> Iterator[Span]:
        """Where the keywords of the group stand, as far as they count."""
        for finder in self.finders:
            for span in finder(text):
                if not (self.rejects and _negated(text, span[0])):
                    yield span

    def is_in(self, text: Text) -> bool:
        return next(self.spans(text), None) is not None

    def tokens(self, text: Text, end: int | None = None) -> frozenset[int] | None:
        """The tokens (by index) that belong to a match, of those that end by `end`; None when the group is not hit.

        Of a regex match only the first token counts, since a pattern may run over any number of words that are no keywords.
        """
        spans = [span for span in self.spans(text) if end is None or span[1] <= end]
        if not spans:
            return None
        tokens: set[int] = set()
        for start, stop in spans:
            first, last = bisect.bisect_left(text.starts, start), bisect.bisect_left(text.starts, stop)
            tokens.update(range(first, min(last, first + 1) if self.is_regex else last))
        return frozenset(tokens)


def searched(group: KeywordGroup) -> SearchedGroup:
    """ValueError names the group that cannot be read."""
    problems = _shape_problems(group)
    if problems:
        raise ValueError(f"keyword group {group!r}: {'; '.join(problems)}")
    match, rejects = option(group, "match", "word"), option(group, "negation", "ignore") == "reject"
    return SearchedGroup([_finder(keyword, match) for keyword in keywords_of(group)], rejects, match == "regex")


def hits(text: str | Text, group: KeywordGroup, prompt: str | None = None) -> bool:
    """Does the text name the group? True when one of its keywords is found by the rules of its match mode.

    With `prompt`, what the text merely repeats from it is taken away first. An empty keyword never hits. To try many
    groups on one text, `prepare(text, prompt)` once and give the result as text. ValueError for a group that cannot be
    read.
    """
    if isinstance(text, Text):
        if prompt is not None:
            raise ValueError(f"a prepared text has its prompt taken away already, got prompt {prompt!r}")
        return searched(group).is_in(text)
    return searched(group).is_in(prepare(text, prompt))


def idea(group: KeywordGroup) -> str:
    """A group's first keyword stands for the idea."""
    return group if isinstance(group, str) else str(group["any"][0])
