"""Does a response name what it should? Keyword groups, matched by rules that a reader can check.

A *group* is one idea to be named: a string, or `{any: [synonyms], match: word|inflect|substring|number|regex,
negation: ignore|reject, weight: 1}`. It hits once or not at all, so saying a word often earns nothing. Text and keyword
are first brought to one plain form (`normalise`); then `hits` tells whether one group is there, and `score` what a
response gets on all of its prompt's groups.
"""

import bisect
import difflib
import html
import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

from aligner.text_health import degenerate

MATCH_MODES = ("word", "inflect", "substring", "number", "regex")
NEGATION_MODES = ("ignore", "reject")
GROUP_KEYS = ("any", "match", "negation", "weight")

STUFFED_DENSITY = 0.30
STUFFED_GROUPS = 2
SHORTEST_ECHO = 20
NEGATION_WINDOW = 5
NUMBER_TOLERANCE = 1e-9
LARGEST_WEIGHT = 1e6  # so that sums of weights are finite, and a weight is still seen beside another

Group = str | Mapping[str, object]
Span = tuple[int, int]
Mark = tuple[int, int, int]
Finder = Callable[["Text"], Iterable[Span]]


# ---- One plain form for text and keyword -----------------------------------------------------------------------------

# Scripts written without spaces between words: Thai, Han, Kana, Hangul. A word boundary cannot be asked of them.
_UNSPACED = (
    "\u0e00-\u0e7f\u1100-\u11ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)

# Soft hyphen, zero-width characters, bidi marks, variation selectors.
_INVISIBLE = [0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]
_BEFORE_NFKC = dict.fromkeys([*_INVISIBLE, *range(0xFE00, 0xFE10), 0xFEFF]) | {0xB4: "'"}
_AFTER_NFKC = (
    dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
    | dict.fromkeys([0x2018, 0x2019, 0x201A, 0x201B, 0x2BC], "'")
    | dict.fromkeys([0x201C, 0x201D, 0x201E, 0x201F], '"')
    | {0x2044: "/", 0xD7: "*", 0x22C5: "*"}
)
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b\u2071\u207f]+")
_FRACTION_AFTER_DIGIT = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
# U+0338 stays: it is no accent, but the stroke that makes "not equal" of "equal".
_ACCENT = re.compile("[\u0300-\u0337\u0339-\u036f]+")

_CODE_FENCE = re.compile(r"^[ \t]*```[^`\n]*$", re.MULTILINE)
_LINK = re.compile(r"!?(?<!\\)\[([^\[\]]*)(?<!\\)\]\([^()\s]*(?:\([^()]*\)[^()\s]*)*(?:\s+\"[^\"]*\")?\)")
_AUTOLINK = re.compile(r"<(?:https?|ftp|mailto):[^<>\s]*>", re.IGNORECASE)
_COMMENT = re.compile(r"<!--(?:(?!<!--).)*?-->", re.DOTALL)
_TAG_END = r"(?:\s+[a-z][\w:-]*=(?:\"[^\"]*\"|'[^']*'|[^\s>\"']+))*\s*/?>"
_BLOCK_TAG = re.compile(r"</?(?:br|p|div|li|[uo]l|t[rdh]|table|h[1-6r]|pre|blockquote)" + _TAG_END, re.IGNORECASE)
_SUPERSCRIPT_TAG = re.compile(r"<sup>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][a-z0-9-]*" + _TAG_END, re.IGNORECASE)

_STRONG = re.compile(r"(?<![\d*\\])(\*{2,3})(?=[^\s*])((?:[^*\n]|\*(?!\*))+?)(?<=\S)\1(?![\d*])")
_EMPHASIS = re.compile(r"(?<![\w)\]*\\])\*(?=[^\s*])([^*\n]+)(?<=[^\s\\])\*(?![\w(*])")
_UNDERSCORED = re.compile(r"(?<![\w\\])(_{1,3})(?=[^\s_])([^_\n]+)(?<=[^\s\\])\1(?!\w)")
_STRUCK = re.compile(r"~~([^~\n]+)~~")

_BEFORE_FRACTION = re.compile(r"(?<=[^\W_])(?=\\[dt]?frac)")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)\s*(\d))")
_WRAPPER = re.compile(r"\\(?:(?:text|math)[a-z]*|boxed|emph|operatorname)\*?\s*\{([^{}]*)\}")
_SCRIPT = re.compile(r"([\^_])\{([^{}]*)\}")
_DELIMITER = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[()\[\]]|(?<!\S)\$+(?!\S)")
_SPACE = re.compile(r"\\(?:[,;:!]|q?quad(?![a-zA-Z]))")
_DISPLAY = re.compile(r"(?<!\\)\$\$([^$]*)\$\$")
_INLINE = re.compile(r"(?<![\\$\w])\$(?=\S)((?:[^$\n\\]|\\.)+)(?<=\S)\$(?!\d)")
_TIMES = re.compile(r"\\(?:cdot|times)(?![a-zA-Z])")
_ESCAPED = re.compile(r"\\([$%&#_{}*])")
_COMMA_IN_NUMBER = re.compile(r",\d{3}")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")
_NESTING = 8


def normalise(text: str) -> str:
    """The plain form in which text and keyword are compared.

    In turn: HTML entities; invisible characters dropped; superscript digits to ^d; NFKC; dashes and quotes to ASCII;
    Markdown, HTML and LaTeX unwrapped to what they show; casefold; accents dropped; 1,000 to 1000; runs of whitespace
    to one space. A dollar sign goes where it delimits mathematics and stays where it is money. ValueError when text is
    not a string.
    """
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {text!r}")
    text = _latex(_markup(_characters(html.unescape(text))))
    text = _without_accents(text.casefold())
    if _COMMA_IN_NUMBER.search(text):
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    return " ".join(text.split())


def _characters(text: str) -> str:
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(r"^\g<0>", text.translate(_BEFORE_NFKC))
    text = _FRACTION_AFTER_DIGIT.sub(" ", text)
    return unicodedata.normalize("NFKC", text).translate(_AFTER_NFKC)


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFD", text)))


def _markup(text: str) -> str:
    """Links, code marks and tags gone, their text kept; a block tag parts words, an inline tag does not."""
    if "`" in text:
        text = _CODE_FENCE.sub("", text).replace("`", "")
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    if "<" in text:
        text = _BLOCK_TAG.sub(" ", _COMMENT.sub("", _AUTOLINK.sub("", text)))
        text = _TAG.sub("", _SUPERSCRIPT_TAG.sub("^", text))
    return text


def _latex(text: str) -> str:
    """LaTeX and emphasis unwrapped: emphasis when braces are gone and \\cdot has not yet become a star."""
    if "\\" in text or "$" in text or "{" in text:
        text = _INLINE.sub(r"\1", _DISPLAY.sub(r"\1", _unbrace(text)))
        text = _DELIMITER.sub("", _SPACE.sub(" ", text))
    if "*" in text:
        text = _EMPHASIS.sub(r"\1", _STRONG.sub(r"\2", text))
    if "_" in text:
        text = _UNDERSCORED.sub(r"\2", text)
    return _ESCAPED.sub(r"\1", _TIMES.sub("*", _STRUCK.sub(r"\1", text)))


def _unbrace(text: str) -> str:
    """\\frac{a}{b} to a/b, \\text{x} to x, ^{x} to ^x; innermost first, down to eight levels."""
    text = _BEFORE_FRACTION.sub(" ", text.replace("{,}", ","))
    for _ in range(_NESTING):
        before = text
        text = _SCRIPT.sub(r"\1\2", _WRAPPER.sub(r"\1", text))
        text = _FRACTION.sub(lambda each: f"{each[1] or each[3] or ''}/{each[2] or each[4] or ''}", text)
        if text == before:
            break
    return text


# ---- A text, ready to be searched ------------------------------------------------------------------------------------

_TOKEN = re.compile(rf"\d+(?:[.:]\d+)+|[^\W_{_UNSPACED}]+(?:'[^\W_{_UNSPACED}]+)*|[{_UNSPACED}]|[^\w\s-]|_")
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]])[-+])?(?<![^\W{_UNSPACED}])(?<!\d\.)(?:\d+(?:\.\d+)?|\.\d+)"
    r"(?:e[-+]?\d+|\s?\*\s?10\^[-+]?\d+)?(?:\s?/\s?\d+(?:\.\d+)?)*(?!\.?\d)"
)
_RUN = re.compile(rf"[^\W_{_UNSPACED}]+")
_SPACED = re.compile(r"\S+")
_TIMES_TEN_TO = re.compile(r"\s?\*\s?10\^")


class Text:
    """A response in plain form; what the match modes look up (tokens, base forms, numbers) is made once, on first use.

    `echoes` tells whether something repeated from the prompt was taken away.
    """

    def __init__(self, plain: str, echoes: bool = False):
        self.plain = plain
        self.echoes = echoes
        self._sharing: dict[frozenset[str], frozenset[int]] = {}

    @cached_property
    def tokens(self) -> list[tuple[str, int, int]]:
        """(token, start, end) of words, decimals, letters of unspaced scripts, and punctuation marks but the hyphen."""
        return [(each[0], *each.span()) for each in _TOKEN.finditer(self.plain)]

    @cached_property
    def starts(self) -> list[int]:
        return [start for _, start, _ in self.tokens]

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Base form -> indices of the tokens that may be an inflection of it."""
        where: dict[str, list[int]] = {}
        for index, (word, _, _) in enumerate(self.tokens):
            where.setdefault(word, []).append(index)
        places: dict[str, list[int]] = {}
        for word, indices in where.items():
            for base in base_forms(word):
                places[base] = places[base] + indices if base in places else indices
        return places

    def sharing(self, bases: frozenset[str]) -> frozenset[int]:
        """Indices of the tokens that share a base form with a word of these; looked up once, since many keywords have it."""
        found = self._sharing.get(bases)
        if found is None:
            found = self._sharing[bases] = frozenset(index for base in bases for index in self.places.get(base, ()))
        return found

    @cached_property
    def words(self) -> frozenset[str]:
        """The runs of letters and digits, those of unspaced scripts left out: what stands between two word boundaries."""
        return frozenset(_RUN.findall(self.plain))

    @cached_property
    def word_ends(self) -> list[int]:
        """Where each word ends, a word being what stands between two spaces."""
        return [each.end() for each in _SPACED.finditer(self.plain)]

    @cached_property
    def numbers(self) -> list[tuple[float, int, int]]:
        """(value, start, end) of every number written in digits."""
        return [(value, *each.span()) for each in _NUMBER.finditer(self.plain) for value in _values(each[0])]


def _values(number: str) -> list[float]:
    """The value of a matched number: a/b is one value; a date such as 2024/05/06 is three; a/0 is none."""
    parts = [float(_TIMES_TEN_TO.sub("e", part)) for part in number.split("/")]
    if len(parts) == 2:
        parts = [parts[0] / parts[1]] if parts[1] else []
    return [part for part in parts if math.isfinite(part)]


def prepare(text: str, prompt: str | None = None) -> Text:
    """The text in plain form, without what it repeats from the prompt; `hits` takes it in place of a string.

    What goes are the lines that are lines of the prompt, and then a beginning of 20 characters or more that is the
    beginning of the prompt. ValueError when text or prompt is not a string.
    """
    for name, value in (("text", text), ("prompt", prompt)):
        if not isinstance(value, str) and (name == "text" or value is not None):
            raise ValueError(f"{name} must be a string, got {value!r}")
    return _prepared(text, prompt)


@lru_cache(maxsize=256)
def _prepared(text: str, prompt: str | None) -> Text:
    if prompt is None:
        return Text(normalise(text))
    asked = {_folded(line) for line in prompt.splitlines()} - {""}
    lines = text.splitlines()
    kept = [line for line in lines if _folded(line) not in asked]
    whole = _prepared("\n".join(kept), None)
    novel = _without_beginning(whole.plain, _prepared(prompt, None).plain)
    if len(kept) == len(lines) and novel == whole.plain:
        return whole
    return Text(novel, echoes=True)


def _without_beginning(plain: str, prompt: str) -> str:
    """The text after a beginning shared with the prompt, cut at a word boundary so that no half word is left behind."""
    cut = _common_prefix(plain, prompt)
    if cut < SHORTEST_ECHO:
        return plain
    while 0 < cut < len(plain) and plain[cut - 1].isalnum() and plain[cut].isalnum():
        cut -= 1
    return plain[cut:].strip()


def _folded(line: str) -> str:
    return " ".join(line.casefold().split())


def _common_prefix(left: str, right: str) -> int:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


# ---- Inflection ------------------------------------------------------------------------------------------------------

_IRREGULAR = """
child children; man men; woman women; person people; foot feet; tooth teeth; goose geese; mouse mice; ox oxen
leaf leaves; life lives; half halves; knife knives; wolf wolves; shelf shelves; calf calves; wife wives; self selves
analysis analyses; basis bases; axis axes; hypothesis hypotheses; thesis theses; crisis crises; datum data
matrix matrices; index indices; vertex vertices; appendix appendices; criterion criteria; phenomenon phenomena
maximum maxima; minimum minima; optimum optima; extremum extrema; spectrum spectra; medium media; formula formulae
corpus corpora; radius radii; nucleus nuclei; focus foci; locus loci; modulus moduli; parenthesis parentheses
be am is are was were been; have has had; do does did done; go goes went gone; die dying; tie tying; lie lying
become became; begin began begun; break broke broken; bring brought; build built; buy bought; catch caught
choose chose chosen; come came; draw drew drawn; drive drove driven; eat ate eaten; fall fell fallen; feel felt
fly flew flown; forget forgot forgotten; free freed; get got gotten; give gave given; grow grew grown; hold held
keep kept; know knew known; lead led; lose lost; make made; meet met; pay paid; rise rose risen; run ran; say said
see saw seen; sell sold; send sent; show shown; speak spoke spoken; spend spent; stand stood; take took taken
teach taught; tell told; think thought; throw threw thrown; understand understood; win won; write wrote written
"""
_BASES: dict[str, set[str]] = {}
for _entry in _IRREGULAR.strip().replace("\n", ";").split(";"):
    _base, *_forms = _entry.split()
    for _form in _forms:
        _BASES.setdefault(_form, set()).add(_base)

_SIBILANT = ("s", "x", "z", "ch", "sh", "o")
_VOWEL = re.compile("[aeiouy]")


@lru_cache(maxsize=65536)
def base_forms(word: str) -> frozenset[str]:
    """The words of which this word may be an inflected form, itself among them.

    -s, -es, -ies, 's, -ed, -ied, -ing (with a lost e put back, a doubled letter undone) and a short table of irregular
    forms. Inflection only, never derivation: Porter's stemmer takes "university" for "universe". Without a dictionary
    some over-matches remain ("news" for "new", "caring" for "car"); the word mode is for those.
    """
    word = word.removesuffix("'s")
    return frozenset({word, *_BASES.get(word, ()), *_from_plural(word), *_from_past(word), *_from_participle(word)})


def _from_plural(word: str) -> Iterator[str]:
    if len(word) < 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return
    yield word[:-1]
    if word.endswith("ies") and len(word) > 4:
        yield word[:-3] + "y"
    elif word.endswith("es") and word[:-2].endswith(_SIBILANT):
        yield word[:-2]


def _from_past(word: str) -> Iterator[str]:
    if word.endswith("eed"):
        yield from (word[:-1],) if len(word) > 5 else ()
    elif word.endswith("ed"):
        yield from _verb_stems(word[:-2])
        if word.endswith("ied"):
            yield word[:-3] + "y"


def _from_participle(word: str) -> Iterator[str]:
    if word.endswith("ing"):
        yield from _verb_stems(word[:-3])


def _verb_stems(stem: str) -> Iterator[str]:
    """What a verb may be whose -ed or -ing form begins with this stem: walk-, lov(e)-, run(n)-."""
    if len(stem) < 2 or not _VOWEL.search(stem):
        return
    yield stem
    yield stem + "e"
    if stem[-1] == stem[-2]:
        yield stem[:-1]


# ---- Finding a keyword -----------------------------------------------------------------------------------------------

_INNER_GAP = re.compile(r"(?<=[^\s-])[\s-]+(?=[^\s-])")
_GAP = r"[\s\-]+"
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_INFLECTABLE = re.compile(rf"[^\W_{_UNSPACED}]+(?:'[^\W_{_UNSPACED}]+)*")


@lru_cache(maxsize=65536)
def _finder(keyword: str, match: str) -> Finder:
    """The function that finds the spans of a keyword in a Text; made once for each keyword and match mode.

    ValueError for a regular expression or a number that cannot be read. A keyword of which nothing is left never hits.
    """
    if match == "regex":
        return partial(_pattern_spans, _compiled_regex(keyword), "") if keyword else _nowhere
    plain = normalise(keyword)
    if not plain:
        return _nowhere
    if match == "number":
        return partial(_number_spans, _keyword_number(keyword))
    if match == "inflect" and all(_INFLECTABLE.fullmatch(word) for word in _INNER_GAP.split(plain)):
        return partial(_inflected_spans, [base_forms(word) for word in _INNER_GAP.split(plain)])
    if match == "substring":
        return partial(_pattern_spans, re.compile(re.escape(plain)), plain)
    pieces = _INNER_GAP.split(plain)
    return partial(_word_spans, re.compile(_GAP.join(map(re.escape, pieces))), max(pieces, key=len))


def _compiled_regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"regex {pattern!r} cannot be compiled: {error}") from error


def _keyword_number(keyword: str) -> float:
    number = _NUMBER.fullmatch(normalise(keyword))
    values = _values(number[0]) if number else []
    if len(values) != 1:
        raise ValueError(f"number {keyword!r} cannot be read: write 42, -0.5, 1e-3 or 1/2")
    return values[0]


def _nowhere(text: Text) -> Iterable[Span]:
    return ()


def _pattern_spans(pattern: re.Pattern[str], needle: str, text: Text) -> Iterable[Span]:
    """The matches of a pattern; `needle`, a literal part of it, spares the search in the many texts that lack it."""
    if needle not in text.plain:
        return ()
    return (each.span() for each in pattern.finditer(text.plain) if each[0])


def _word_spans(pattern: re.Pattern[str], needle: str, text: Text) -> Iterator[Span]:
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
    return not (_UNSPACED_LETTER.match(plain[beside]) or _UNSPACED_LETTER.match(plain[end]))


def _inflected_spans(words: Sequence[frozenset[str]], text: Text) -> Iterator[Span]:
    for first in sorted(_inflected_runs(words, text)):
        yield text.tokens[first][1], text.tokens[first + len(words) - 1][2]


def _inflected_runs(words: Sequence[frozenset[str]], text: Text) -> frozenset[int]:
    """First tokens of runs, nothing but space and hyphens between, each of which shares a base form with its keyword word."""
    first = text.sharing(words[0])
    for offset, bases in enumerate(words[1:], start=1):
        places = text.sharing(bases)
        first = frozenset(index for index in first if index + offset in places)
    return first


def _number_spans(target: float, text: Text) -> Iterator[Span]:
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


def validate_group(group: Group) -> list[str]:
    """Everything that is wrong with a keyword group, in words; an empty list for a good one."""
    problems = _shape_problems(group)
    if not isinstance(group, str | Mapping) or not _are_strings(_keywords(group)):
        return problems
    keywords, match = _keywords(group), _option(group, "match", "word")
    if not keywords:
        problems.append("any must list at least one keyword")
    if match in MATCH_MODES:
        problems += [problem for keyword in keywords for problem in _keyword_problems(keyword, match)]
        problems += [f"keyword {keyword!r} is listed twice" for keyword in sorted(_repeated(keywords, match))]
    return problems


def _shape_problems(group: Group) -> list[str]:
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


def _keywords(group: Group) -> Sequence[str]:
    return (group,) if isinstance(group, str) else group.get("any")


def _option(group: Group, key: str, default: object) -> object:
    return default if isinstance(group, str) else group.get(key, default)


class _Read(NamedTuple):
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


def _read(group: Group) -> _Read:
    """ValueError names the group that cannot be read."""
    problems = _shape_problems(group)
    if problems:
        raise ValueError(f"keyword group {group!r}: {'; '.join(problems)}")
    match, rejects = _option(group, "match", "word"), _option(group, "negation", "ignore") == "reject"
    return _Read([_finder(keyword, match) for keyword in _keywords(group)], rejects, match == "regex")


def hits(text: str | Text, group: Group, prompt: str | None = None) -> bool:
    """Does the text name the group? True when one of its keywords is found by the rules of its match mode.

    With `prompt`, what the text merely repeats from it is taken away first. An empty keyword never hits. To try many
    groups on one text, `prepare(text, prompt)` once and give the result as text. ValueError for a group that cannot be
    read.
    """
    if isinstance(text, Text):
        if prompt is not None:
            raise ValueError(f"a prepared text has its prompt taken away already, got prompt {prompt!r}")
        return _read(group).is_in(text)
    return _read(group).is_in(prepare(text, prompt))


# ---- The score of a response -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeywordScore:
    """What one response gets on the keyword groups of its prompt.

    `hits` of `groups` count; a stuffed response has hits 0, while `matched` keeps what was found, group by group. The
    novel groups are those that the prompt does not hit itself; both novel fields are None when no prompt was given.
    `density` is the share of tokens that belong to a matched keyword, None for a response without tokens. `flags` names
    what applies: empty (no text at all), echo (something repeated from the prompt was taken away), degenerate (see
    text_health), stuffed (degenerate, or density above 0.30 with at least two groups hit), forbidden (a forbidden group
    hit).
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
        """Hits among the groups that the prompt does not hit; None when it hits all of them or is not known."""
        return self.novel_hits / self.novel_groups if self.novel_groups else None

    @property
    def all_hit(self) -> bool:
        return self.hits == self.groups

    @property
    def stuffed(self) -> bool:
        return "stuffed" in self.flags


def score(
    text: str,
    groups: Sequence[Group],
    forbidden: Sequence[Group] = (),
    prompt: str | None = None,
) -> KeywordScore:
    """The KeywordScore of a response. ValueError without a group: a prompt that asks for nothing scores nothing."""
    return Scorer(groups, forbidden, prompt).score(text)


class Scorer:
    """The groups of one prompt, read once to score any number of responses."""

    def __init__(self, groups: Sequence[Group], forbidden: Sequence[Group] = (), prompt: str | None = None):
        _check_groups(groups, forbidden)
        self._groups, self._forbidden, self._prompt = [*map(_read, groups)], [*map(_read, forbidden)], prompt
        self._weights = [float(_option(group, "weight", 1)) for group in groups]
        self._novel = None if prompt is None else [not group.is_in(prepare(prompt)) for group in self._groups]

    def score(self, text: str, found: Sequence[frozenset[int] | None] | None = None) -> KeywordScore:
        """The KeywordScore of a response; `found` spares the search when an Index has done it: the tokens of each group."""
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

    def marks(self, text: str, matched: Sequence[bool]) -> list[Mark]:
        """What `marks` gives, when it is known already which groups the text names."""
        answer = prepare(text, self._prompt)
        return _marks(text, answer, itertools.compress(enumerate(self._groups), matched))

    def hits_within(self, text: Text, words: int, matched: Sequence[bool]) -> int:
        """How many groups the first `words` words of a prepared text name; none when they are stuffed with keywords.

        `matched` tells which groups the whole text names; no other can be in its beginning.
        """
        end = text.word_ends[min(words, len(text.word_ends)) - 1] if words and text.word_ends else 0
        found = [group.tokens(text, end) if hit else None for group, hit in zip(self._groups, matched, strict=True)]
        stuffed = is_stuffed(found, bisect.bisect_left(text.starts, end))
        return 0 if stuffed else sum(tokens is not None for tokens in found)


def _check_groups(groups: Sequence[Group], forbidden: Sequence[Group]) -> None:
    for name, value in (("groups", groups), ("forbidden", forbidden)):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list of keyword groups, got {value!r}")
    if not groups:
        raise ValueError(f"groups must hold at least one keyword group, got {groups!r}")


def is_stuffed(found: Iterable[frozenset[int] | None], tokens: int) -> bool:
    """Is a text of so many tokens a heap of keywords: two groups or more hit, and above 30 % of its tokens theirs?

    `found` holds for each group the tokens that belong to its matches, None where it is not hit.
    """
    hit = [each for each in found if each is not None]
    return len(hit) >= STUFFED_GROUPS and (_density(hit, tokens) or 0) > STUFFED_DENSITY


def _density(found: Iterable[frozenset[int] | None], tokens: int) -> float | None:
    """Tokens within a match of one of the groups / all tokens."""
    return len(frozenset().union(*filter(None, found))) / tokens if tokens else None


# ---- Many groups at once ---------------------------------------------------------------------------------------------


class Index:
    """Which of very many groups a text hits, without trying all: a keyword is tried when the words that it needs are there."""

    def __init__(self, groups: Sequence[Group]):
        self.groups = list(groups)
        self._entries: list[tuple[int, _Read]] = []
        self._always: set[int] = set()
        self._by_run: dict[str, list[tuple[int, frozenset[str]]]] = {}
        self._by_base: dict[str, list[tuple[int, list[frozenset[str]]]]] = {}
        self._inflected: dict[int, list[frozenset[str]]] = {}
        self._targets: list[tuple[float, int]] = []
        literals: list[tuple[str, partial]] = []
        for number, group in enumerate(self.groups):
            read = _read(group)
            for keyword, finder in zip(_keywords(group), read.finders, strict=True):
                if finder is not _nowhere:
                    literals.append((keyword, finder))
                    self._entries.append((number, read._replace(finders=[finder])))
                    if finder.func is _inflected_spans and not read.rejects:
                        self._inflected[len(self._entries) - 1] = finder.args[0]
        inflected = [finder.args[0] for _, finder in literals if finder.func is _inflected_spans]
        self._uses = Counter(base for words in inflected for bases in words for base in bases)
        for entry, (keyword, finder) in enumerate(literals):
            self._enter(entry, keyword, finder)
        self._targets.sort()

    def _enter(self, entry: int, keyword: str, finder: partial) -> None:
        """Under one word that a text must hold for this keyword: one that few others have, or its longest, mostly its rarest."""
        runs = _RUN.findall(normalise(keyword))
        if finder.func is _number_spans:
            self._targets.append((finder.args[0], entry))
        elif finder.func is _inflected_spans:
            rarest, *others = sorted(finder.args[0], key=lambda bases: sum(map(self._uses.get, bases)))
            for base in rarest:
                self._by_base.setdefault(base, []).append((entry, others))
        elif finder.func is _word_spans and runs and not _UNSPACED_LETTER.search(normalise(keyword)):
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
        there = frozenset(text.places) if self._by_base else frozenset()  # a set, which is quicker than the keys of a dict
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
    """What `_Read.tokens` gives for a keyword of inflected words, without the way through characters."""
    if len(words) == 1:
        return text.sharing(words[0]) or None
    runs = _inflected_runs(words, text)
    return frozenset(first + offset for first in runs for offset in range(len(words))) if runs else None


# ---- Where a text names its groups -----------------------------------------------------------------------------------

MOST_ALIGNED = 3000


def marks(text: str, groups: Sequence[Group], prompt: str | None = None) -> list[Mark]:
    """(start, end, number of the group) of every stretch of a text that names a group, in order, none overlapping another.

    For people to look at. Groups are found in the plain form, as `score` finds them, and brought back to the text as it was
    written, word by word; where its markup hides the way back, or the text is very long, a mark may be missing.
    """
    return _marks(text, prepare(text, prompt), enumerate(map(_read, groups)))


def _marks(text: str, answer: Text, groups: Iterable[tuple[int, _Read]]) -> list[Mark]:
    spans = {(*span, number) for number, group in groups for span in group.spans(answer)}
    if not spans:
        return []
    origins = _origins(text, answer.plain)
    found, last = [], 0
    for start, end, number in sorted(spans, key=lambda span: (span[0], -span[1], span[2])):
        places = [place for place in origins[start:end] if place is not None]
        if places and places[0] >= last:
            last = places[-1] + 1
            found.append((places[0], last, number))
    return found


def _origins(text: str, plain: str) -> list[int | None]:
    """For every character of the plain form its place in the text; None where it has none."""
    if text.isascii() and " ".join(text.casefold().split()) == plain:
        places = [place for word in _SPACED.finditer(text) for place in (*range(*word.span()), None)]
        return places[: len(plain)]
    origins: list[int | None] = [None] * len(plain)
    written, folded = list(_TOKEN.finditer(text)), list(_TOKEN.finditer(plain))
    if max(len(written), len(folded)) > MOST_ALIGNED:
        return origins
    words = [normalise(each[0]) for each in written]
    matcher = difflib.SequenceMatcher(None, words, [each[0] for each in folded], autojunk=False)
    for first, other, length in matcher.get_matching_blocks():
        for before, after in zip(written[first : first + length], folded[other : other + length], strict=True):
            origins[after.start()] = before.start()
            origins[after.end() - 1] = before.end() - 1
    return origins
