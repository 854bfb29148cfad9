"""The plain form in which texts and keywords are compared: no markup, no LaTeX, one spelling; and base forms of words."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property, lru_cache

SHORTEST_ECHO = 20


# ---- One plain form for text and keyword -----------------------------------------------------------------------------

# Scripts written without spaces between words: Thai, Han, Kana, Hangul. A word boundary cannot be asked of them.
UNSPACED = (
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

TOKEN = re.compile(rf"\d+(?:[.:]\d+)+|[^\W_{UNSPACED}]+(?:'[^\W_{UNSPACED}]+)*|[{UNSPACED}]|[^\w\s-]|_")
NUMBER = re.compile(
    rf"(?:(?<![\w)\]])[-+])?(?<![^\W{UNSPACED}])(?<!\d\.)(?:\d+(?:\.\d+)?|\.\d+)"
    r"(?:e[-+]?\d+|\s?\*\s?10\^[-+]?\d+)?(?:\s?/\s?\d+(?:\.\d+)?)*(?!\.?\d)"
)
LETTER_RUN = re.compile(rf"[^\W_{UNSPACED}]+")
SPACED = re.compile(r"\S+")
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
        return [(each[0], *each.span()) for each in TOKEN.finditer(self.plain)]

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
        return frozenset(LETTER_RUN.findall(self.plain))

    @cached_property
    def word_ends(self) -> list[int]:
        """Where each word ends, a word being what stands between two spaces."""
        return [each.end() for each in SPACED.finditer(self.plain)]

    @cached_property
    def numbers(self) -> list[tuple[float, int, int]]:
        """(value, start, end) of every number written in digits."""
        return [(value, *each.span()) for each in NUMBER.finditer(self.plain) for value in values_of(each[0])]


def values_of(number: str) -> list[float]:
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
