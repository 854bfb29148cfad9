"""The scores of one answer: its hits, in full and cut to other lengths, its hits on other prompts' keywords, and its health."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from aligner import text_health
from aligner.keywords.scorer import STUFFED_DENSITY, Index, KeywordScore, Scorer, is_stuffed
from aligner.keywords.text import Text, prepare
from aligner.scoring.concepts import Catalogue, Ideas

REPETITION_ORDER = 4


class Answer(NamedTuple):
    """One model's answer to one prompt. Models are compared by `rate`, hits / groups in [0, 1].

    cut: the rate after cutting the answer to the length of each other model's answer, where that one is shorter.
    shuffled: the mean rate on the keywords of all other prompts; None when there is no other prompt.
    ideas: the key ideas named, of its own concept and of others; None when the prompt names no concept of the catalogue.
    repeats: the answer says a sentence twice.
    """

    text: str
    stop: str
    words: int
    tokens: int
    keyword: KeywordScore
    loop: bool
    compression: float | None
    repetition: float
    shuffled: float | None
    cut: dict[str, float]
    ideas: Ideas | None = None
    refusal: bool = False
    repeats: bool = False

    @property
    def rate(self) -> float:
        return self.keyword.rate


# ---- Answers to one prompt -------------------------------------------------------------------------------------------


class Control:
    """The shuffled control: the hit rate of answers on the keywords of prompts that they do not answer.

    H_shuf = 1/(n(n-1)) sum over i != j of hits(answer_i, keywords_j) / groups_j: the part of a hit rate that common words earn.
    It is exact and follows the rules of `keywords.score` (a degenerate or stuffed answer hits nothing); an echo of the answer's
    own prompt does not count. Each answer is searched once for all distinct groups, not once per prompt.
    """

    def __init__(self, references: Sequence[dict[str, Any]]):
        numbers: dict[str, int] = {}
        names = [[json.dumps(group, sort_keys=True) for group in reference["keywords"]] for reference in references]
        self.scorers = [Scorer(row["keywords"], row.get("forbidden", ()), row["prompt"]) for row in references]
        self.prompts = [[numbers.setdefault(name, len(numbers)) for name in named] for named in names]
        self.index = Index([json.loads(name) for name in numbers])
        self.common = math.lcm(*map(len, self.prompts)) if self.prompts else 1
        self.asking: list[Counter[int]] = [Counter() for _ in numbers]
        for prompt, groups in enumerate(self.prompts):
            for number in groups:
                self.asking[number][prompt] += 1
        self.last: tuple[str, dict[int, frozenset[int]]] = ("", {})
        self.worth = [sum(times * self._unit(prompt) for prompt, times in asked.items()) for asked in self.asking]

    def _unit(self, prompt: int) -> int:
        """The value of one hit on this prompt, as a multiple of 1 / `common`."""
        return self.common // len(self.prompts[prompt])

    def rate(self, own: int, text: Text, degenerate: bool) -> float | None:
        """The mean rate of the answer to prompt `own` on all other prompts; None when there is no other."""
        others = len(self.prompts) - 1
        if others < 1:
            return None
        hits = {} if degenerate else self._hits(text)
        total = sum(self.worth[number] for number in hits) - self._prompt_total(own, hits)
        for prompt in self._stuffed_prompts(hits, len(text.tokens)) - {own}:
            total -= self._prompt_total(prompt, hits)
        return total / (self.common * others)

    def own(self, prompt: int, text: Text) -> list[frozenset[int] | None]:
        """For each group of the answer's own prompt, the tokens that match it; None where it is not hit."""
        return list(map(self._hits(text).get, self.prompts[prompt]))

    def _hits(self, text: Text) -> dict[int, frozenset[int]]:
        """The groups that a text hits. The last result is kept, since callers ask for the same text twice in a row."""
        if text.plain != self.last[0]:
            self.last = text.plain, self.index.found(text)
        return self.last[1]

    def _prompt_total(self, prompt: int, hits: dict[int, frozenset[int]]) -> int:
        return self._unit(prompt) * sum(number in hits for number in self.prompts[prompt])

    def _stuffed_prompts(self, hits: dict[int, frozenset[int]], tokens: int) -> set[int]:
        """The prompts whose keywords stuff the text. When all matches together are not stuffing, no prompt's are.

        The empty set represents a group that a prompt lists twice, which counts twice there.
        """
        if not is_stuffed([*hits.values(), frozenset()], tokens):
            return set()
        most: Counter[int] = Counter()  # an upper bound on the tokens that a prompt's groups match together
        for number, tokens_of_group in hits.items():
            for prompt in self.asking[number]:
                most[prompt] += len(tokens_of_group)
        asked = [prompt for prompt, count in most.items() if count > STUFFED_DENSITY * tokens]
        return {prompt for prompt in asked if is_stuffed(map(hits.get, self.prompts[prompt]), tokens)}


def examine(
    prompt: int, reference: dict[str, Any], rows: dict[str, dict[str, Any]], control: Control, catalogue: Catalogue
) -> dict[str, Answer]:
    """Scores all models' answers to prompt number `prompt`; `rows` holds each model's row of its file of answers."""
    texts = {name: prepare(row["answer"], reference["prompt"]) for name, row in rows.items()}
    answers = {name: _examined(name, row, prompt, texts, control) for name, row in rows.items()}
    concept = reference.get("concept")
    if concept is None or concept not in catalogue:
        return answers
    return {name: answer._replace(ideas=catalogue.ideas(concept, texts[name])) for name, answer in answers.items()}


def score_answers(
    rows: dict[str, list[dict[str, Any]]], references: Sequence[dict[str, Any]], control: Control, catalogue: Catalogue
) -> dict[str, list[Answer]]:
    """Scores every model's answers, prompt by prompt."""
    examined = [
        examine(number, reference, {name: given[number] for name, given in rows.items()}, control, catalogue)
        for number, reference in enumerate(references)
    ]
    return {name: [answers[name] for answers in examined] for name in rows}


def _examined(name: str, row: dict[str, Any], prompt: int, texts: dict[str, Text], control: Control) -> Answer:
    text = row["answer"]
    scorer = control.scorers[prompt]
    keyword = scorer.score(text, control.own(prompt, texts[name]))
    return Answer(
        text=text,
        stop=row["stop"],
        words=len(text.split()),
        tokens=row["answer_tokens"],
        keyword=keyword,
        loop=text_health.loop(text) is not None,
        compression=text_health.compression_ratio(text),
        repetition=text_health.repetition(text, REPETITION_ORDER),
        shuffled=control.rate(prompt, texts[name], "degenerate" in keyword.flags),
        cut={other: _cut_rate(keyword, scorer, texts[name], texts[other]) for other in texts if other != name},
        refusal=text_health.refusal(text),
        repeats=text_health.repeats(text),
    )


def _cut_rate(full: KeywordScore, scorer: Scorer, text: Text, other: Text) -> float:
    """The rate of the answer cut to the other's number of words; a degenerate answer still gets 0."""
    words = len(other.word_ends)
    if words >= len(text.word_ends) or "degenerate" in full.flags:
        return full.rate
    return scorer.hits_within(text, words, full.matched) / full.groups
