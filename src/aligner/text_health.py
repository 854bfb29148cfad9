"""Text health: loops, repetition and diversity, which show a model's collapse before its hit rate does.

Pure functions of texts. A *token* is one match of `\\w+|[^\\w\\s]` in the casefolded text: a word or one punctuation mark. A
quantity without a value (a ratio over nothing) is None, never 0.0 or NaN.
"""

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

LONGEST_PERIOD = 64
FEWEST_PERIODS = 4
FEWEST_LOOP_TOKENS = 16
COMPRESSION_LIMIT = 5.0
FEWEST_COMPRESSED_CHARACTERS = 200
REFUSAL_OPENING = 200
FEWEST_SENTENCE_WORDS = 3

_SENTENCE_END = re.compile(r"(?<=[.?!])\s+|\n+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
# Phrases with which assistants decline (after the prefixes of Zou et al. 2023, arXiv 2307.15043) or say that they do not know.
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:\w+ )?(?:sorry|unable|not able|not allowed|not permitted|not sure)|i apologi[sz]e|sorry, (?:but )?i|"
    r"i (?:can't|cannot|can not|won't|will not|must) (?:\w+ )?(?:answer|assist|comply|create|decline|discuss|do (?:that|this)|"
    r"engage|fulfil|generate|give|help|provide|refuse|respond|say|tell|write)\w*|i (?:don't|do not) (?:\w+ )?(?:know|have)|"
    r"as an? (?:ai|artificial intelligence|language model|large language model|assistant)|i(?:'m| am) (?:just |only )?an ai)\b"
)


def tokens(text: str) -> list[str]:
    """The words and punctuation marks of a text, casefolded. ValueError when text is not a string."""
    return list(_tokens(_checked(text)))


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {text!r}")
    return text


@lru_cache(maxsize=64)
def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(text.casefold()))


def loop(text: str) -> dict[str, int] | None:
    """The loop in which a text ends: {"tokens": L, "period": p}, or None when it does not end in one.

    The last L tokens repeat with period p when t[i] = t[i-p] for all but the first p of them. They are a loop when
    p <= 64, L >= 4p, L >= 16 and the period contains a word (a table rule or a row of dots is not a loop). The last repeat
    may be cut short. Of several periods, the one with the longest L is returned; of equals, the shortest. A repetition
    that does not reach the end of the text is not a loop; `repetition` counts it.
    """
    tail = _loop(_checked(text))
    return tail and {"tokens": tail[0], "period": tail[1]}


@lru_cache(maxsize=64)
def _loop(text: str) -> tuple[int, int] | None:
    sequence = _tokens(text)
    best = None
    for period in range(1, min(LONGEST_PERIOD, len(sequence) // FEWEST_PERIODS) + 1):
        if sequence[-1] == sequence[-1 - period]:
            length = _periodic_tail(sequence, period)
            if _is_loop(sequence, length, period) and (best is None or length > best[0]):
                best = length, period
    return best


def _periodic_tail(sequence: Sequence[str], period: int) -> int:
    """The length of the longest suffix that repeats with this period."""
    start = len(sequence) - 1
    while start >= period and sequence[start] == sequence[start - period]:
        start -= 1
    return len(sequence) - 1 - start + period


def _is_loop(sequence: Sequence[str], length: int, period: int) -> bool:
    long_enough = length >= max(FEWEST_PERIODS * period, FEWEST_LOOP_TOKENS)
    return long_enough and any(re.match(r"\w", token) for token in sequence[-period:])


def compression_ratio(text: str) -> float | None:
    """UTF-8 bytes / bytes after zlib at level 9; higher means more repetitive. None for the empty text.

    About 1 for one sentence, 2 for a page of prose, above 5 for a text that hardly says anything new.
    """
    return _compression_ratio(text) if _checked(text) else None


@lru_cache(maxsize=64)
def _compression_ratio(text: str) -> float:
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) / len(zlib.compress(raw, 9))


def degenerate(text: str) -> bool:
    """True when a text ends in a loop, or has at least 200 characters and a compression ratio above 5."""
    if loop(text) is not None:
        return True
    return len(text) >= FEWEST_COMPRESSED_CHARACTERS and _compression_ratio(text) > COMPRESSION_LIMIT


def refusal(text: str) -> bool:
    """True when the first 200 characters contain a phrase with which assistants decline or say that they do not know.

    A lexicon, reported but never scored: it misses refusals in other words or languages, and "I am not sure" may begin an answer.
    """
    return bool(_REFUSAL.search(_checked(text)[:REFUSAL_OPENING].casefold().replace("\u2019", "'")))


def repeats(text: str) -> bool:
    """True when a text says a sentence twice, in the same words.

    A sentence ends at white space after a full stop, a question mark or an exclamation mark, or at a line break. Case and
    punctuation do not count, and a sentence of fewer than three words ("Yes.") may come again.
    """
    sentences = (tuple(re.findall(r"\w+", part)) for part in _SENTENCE_END.split(_checked(text).casefold()))
    counted = [sentence for sentence in sentences if len(sentence) >= FEWEST_SENTENCE_WORDS]
    return len(set(counted)) < len(counted)


def _ngrams(sequence: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(sequence[start:] for start in range(n)), strict=False))


def _check_order(n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be an integer of at least 1, got {n!r}")


def count_ngrams(corpora: Sequence[Sequence[str]], n: int) -> tuple[list[tuple[int, int]], int]:
    """(distinct n-grams, all n-grams) of each corpus, and the number of distinct n-grams over all corpora.

    distinct-n (Li et al. 2016, arXiv 1510.03055) is distinct / all; it falls with length, so compare it only at similar lengths.
    """
    _check_order(n)
    seen: list[set[tuple[str, ...]]] = [set() for _ in corpora]
    totals = [0] * len(seen)
    for number, texts in enumerate(corpora):
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of strings, got the one string {texts!r}")
        for text in texts:
            grams = _ngrams(_tokens(_checked(text)), n)
            seen[number].update(grams)
            totals[number] += len(grams)
    return list(zip(map(len, seen), totals, strict=True)), len(set().union(*seen))


def adjusted_distinct(different: int, total: int, vocabulary: int) -> float | None:
    """Expectation-adjusted distinct (Liu et al. 2022, arXiv 2202.13587): U / (V (1 - ((V-1)/V)^C)). None for C = 0.

    U distinct n-grams among C, over the number expected from C draws of V equally likely ones. Unlike distinct-n, it does not
    fall merely because a text is longer. It depends on V, so compare only figures with the same V. ValueError for V < U.
    """
    if vocabulary < different:
        raise ValueError(f"vocabulary must be at least the {different} different n-grams, got {vocabulary}")
    return different / (vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** total)) if total else None


def repetition(text: str, n: int) -> float:
    """rep-n: 1 - distinct n-grams / all n-grams of one text (Welleck et al. 2020, arXiv 1908.04319).

    In [0, 1). A text of fewer than n tokens repeats nothing: its value is 0.0, not missing.
    """
    _check_order(n)
    grams = _ngrams(tokens(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
