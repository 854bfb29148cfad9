"""Keyword groups: their rules, their validation, and the search for them in a text.

A *group* is one idea that an answer should name: a string, or `{any: [synonyms], match: word|inflect|substring|number|regex,
negation: ignore|reject, weight: 1}`. It hits once or not at all, so repeating a word earns nothing.

Text and keyword are first brought to one plain form (`normalise`). A text hits a group if it matches one of its keywords:

    word       the keyword, between word boundaries; its words may be joined by spaces or hyphens
    inflect    the same, and each word may be inflected (-s, -ed, -ing, or an irregular form); never derived words
    substring  the keyword anywhere, also inside a word
    number     a number of the same value, however it is written: 0.5, .5, 1/2, 5e-1
    regex      a regular expression, searched in the plain form, in which all letters are lower case; case is ignored

With `negation: reject`, a match does not count if a negator is among the five words before it in the same clause.
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
LARGEST_WEIGHT = 1e6  # keeps sums of weights finite and small weights significant beside large ones

KeywordGroup = str | Mapping[str, Any]
Offsets = tuple[int, int]  # start and end in a plain form
Finder = partial[Iterable[Offsets]]  # calls one of the *_spans functions with a Text


# ---- Finding a keyword -----------------------------------------------------------------------------------------------

_INNER_GAP = re.compile(r"(?<=[^\s-])[\s-]+(?=[^\s-])")
_GAP = r"[\s\-]+"
UNSPACED_LETTER = re.compile(f"[{UNSPACED}]")
_INFLECTABLE = re.compile(rf"[^\W_{UNSPACED}]+(?:'[^\W_{UNSPACED}]+)*")


@lru_cache(maxsize=65536)
def _finder(keyword: str, match: str) -> Finder:
    """The function that finds the spans of a keyword in a Text; cached by keyword and match mode.

    Raises ValueError for an invalid regular expression or number. A keyword whose plain form is empty never hits.
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


def _no_spans(text: Text) -> Iterable[Offsets]:
    return ()


NOWHERE: Finder = partial(_no_spans)


def _pattern_spans(pattern: re.Pattern[str], needle: str, text: Text) -> Iterable[Offsets]:
    """The matches of a pattern; texts without `needle`, a literal part of it, are not searched."""
    if needle not in text.plain:
        return ()
    return (each.span() for each in pattern.finditer(text.plain) if each[0])


def word_spans(pattern: re.Pattern[str], needle: str, text: Text) -> Iterable[Offsets]:
    """The matches between word boundaries: no letter or digit continues beyond either end.

    `\\b` would not do: it is no boundary beside C++ or .NET, and it counts the underscore as a letter. A letter of an unspaced
    script neither needs a boundary nor breaks one. The search continues one character later, so it finds overlapping matches.
    """
    found = pattern.search(text.plain) if needle in text.plain else None
    while found:
        start, end = found.span()
        if not (_blocked(text.plain, start, start - 1) or _blocked(text.plain, end - 1, end)):
            yield start, end
        found = pattern.search(text.plain, start + 1)


def _blocked(plain: str, end: int, beside: int) -> bool:
    """Whether the character beside this end of a match is a letter or digit of a spaced script."""
    if not 0 <= beside < len(plain) or not plain[beside].isalnum():
        return False
    return not (UNSPACED_LETTER.match(plain[beside]) or UNSPACED_LETTER.match(plain[end]))


def inflected_spans(words: Sequence[frozenset[str]], text: Text) -> Iterable[Offsets]:
    for first in sorted(inflected_runs(words, text)):
        yield text.tokens[first][1], text.tokens[first + len(words) - 1][2]


def inflected_runs(words: Sequence[frozenset[str]], text: Text) -> frozenset[int]:
    """First tokens of runs of adjacent tokens (or with only hyphens between) that share base forms with `words`, one by one."""
    first = text.sharing(words[0])
    for offset, bases in enumerate(words[1:], start=1):
        places = text.sharing(bases)
        first = frozenset(index for index in first if index + offset in places)
    return first


def number_spans(target: float, text: Text) -> Iterable[Offsets]:
    """Numbers x with |x - target| <= 1e-9 max(1, |target|)."""
    tolerance = NUMBER_TOLERANCE * max(1.0, abs(target))
    return ((start, end) for value, start, end in text.numbers if abs(value - target) <= tolerance)


# ---- Negation --------------------------------------------------------------------------------------------------------

_NEGATORS = frozenset("no not never none nobody nothing nowhere neither nor cannot without".split())
_SCOPE_ENDS = frozenset(". ! ? ; : but however although though instead except".split())
_PSEUDO = frozenset("only just merely simply solely doubt wonder matter less fewer question".split())
_PSEUDO_PHRASES = frozenset({("a", "doubt"), ("to", "mention")})


def _negated(text: Text, start: int) -> bool:
    """Whether the mention at `start` is negated: one of the five words before it, in the same clause, is a negator.

    After NegEx (Chapman et al. 2001). "not only", "no doubt", "not to mention" and similar phrases negate nothing.
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
    """All faults of a keyword group, as messages; an empty list for a valid one."""
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
    """Faults of a group's structure: wrong types, unknown keys, modes and weights."""
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
        return [f"keyword {keyword!r} is empty" + (" after normalisation" if keyword else "")]
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
    """A group compiled for the search in texts."""

    finders: list[Finder]
    rejects: bool
    is_regex: bool

    def spans(self, text: Text) -> Iterator[Offsets]:
        """The spans of the group's keywords, without negated ones if the group rejects these."""
        for finder in self.finders:
            for span in finder(text):
                if not (self.rejects and _negated(text, span[0])):
                    yield span

    def is_in(self, text: Text) -> bool:
        return next(self.spans(text), None) is not None

    def tokens(self, text: Text, end: int | None = None) -> frozenset[int] | None:
        """Indices of the tokens in a match that ends by `end`; None if the group has no match.

        Only the first token of a regex match counts, since a pattern may span any number of words that are not keywords.
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
    """Compiles a group; raises ValueError, which names the group, if it is invalid."""
    problems = _shape_problems(group)
    if problems:
        raise ValueError(f"keyword group {group!r}: {'; '.join(problems)}")
    match, rejects = option(group, "match", "word"), option(group, "negation", "ignore") == "reject"
    return SearchedGroup([_finder(keyword, match) for keyword in keywords_of(group)], rejects, match == "regex")


def hits(text: str | Text, group: KeywordGroup, prompt: str | None = None) -> bool:
    """Whether the text names the group: one of its keywords matches by the rules of its match mode.

    With `prompt`, text that only repeats the prompt is removed first. An empty keyword never hits. To try many groups on
    one text, call `prepare(text, prompt)` once and pass the result as text. Raises ValueError for an invalid group.
    """
    if isinstance(text, Text):
        if prompt is not None:
            raise ValueError(f"a prepared text has its prompt removed already, got prompt {prompt!r}")
        return searched(group).is_in(text)
    return searched(group).is_in(prepare(text, prompt))


def idea(group: KeywordGroup) -> str:
    """The group's first keyword, as a name for its idea."""
    return keywords_of(group)[0]
