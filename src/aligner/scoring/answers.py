"""What one answer gets: its hits, its health, its hits when cut to another's length, and its hits on other prompts' keywords.

Also the canaries: four answers that know nothing, scored like any other on every run. A score that rewards one of them measures
something else than knowledge. (One constant text wins 86.5 % on AlpacaEval's length-controlled judge: Zheng et al. 2024,
arXiv 2410.07137.)
"""

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
ROUNDING = 1e-9


class Answer(NamedTuple):
    """One model's answer to one prompt. `rate`, hits / groups in [0, 1], is what models are compared by.

    `cut` holds the rate that is left when the answer is cut to the length of each other model's answer, where that is shorter;
    `shuffled` the mean rate on the keywords of all other prompts, None when there are none; `ideas` what it names of its own
    concept and of others, None when the prompt names no concept of the catalogue.
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

    @property
    def rate(self) -> float:
        return self.keyword.rate


# ---- Answers to one prompt -------------------------------------------------------------------------------------------


class Control:
    """The shuffled control: what answers get on the keywords of prompts that they do not answer.

    H_shuf = 1/(n(n-1)) sum over i != j of hits(answer_i, keywords_j) / groups_j: what is due to common words and not to the
    question. Exact, by the rules of `keywords.score` (a degenerate or stuffed answer gets nothing); the prompt whose echo is
    taken away is the answer's own. Each answer is searched once for all different groups, not once for every prompt.
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
        """What one hit is worth there, in parts of the common denominator."""
        return self.common // len(self.prompts[prompt])

    def rate(self, own: int, text: Text, degenerate: bool) -> float | None:
        """The mean rate of the answer to prompt `own` over all other prompts; None when there are none."""
        others = len(self.prompts) - 1
        if others < 1:
            return None
        found = {} if degenerate else self._found(text)
        total = sum(self.worth[number] for number in found) - self._prompt_total(own, found)
        for prompt in self._stuffed_prompts(found, len(text.tokens)) - {own}:
            total -= self._prompt_total(prompt, found)
        return total / (self.common * others)

    def own(self, place: int, text: Text) -> list[frozenset[int] | None]:
        """What the answer to prompt `place` hits of its own groups: the tokens of each, None where it is not hit."""
        return list(map(self._found(text).get, self.prompts[place]))

    def _found(self, text: Text) -> dict[int, frozenset[int]]:
        """The groups that a text hits; the last result is kept, since the same text often comes again."""
        if text.plain != self.last[0]:
            self.last = text.plain, self.index.found(text)
        return self.last[1]

    def _prompt_total(self, prompt: int, found: dict[int, frozenset[int]]) -> int:
        return self._unit(prompt) * sum(number in found for number in self.prompts[prompt])

    def _stuffed_prompts(self, found: dict[int, frozenset[int]], tokens: int) -> set[int]:
        """The prompts whose own keywords make a heap of the text; none when all that was found together makes none.

        The empty set stands for a group that a prompt asks for twice, which counts twice there.
        """
        if not is_stuffed([*found.values(), frozenset()], tokens):
            return set()
        most: Counter[int] = Counter()  # of the tokens that a prompt's groups have together, no more than the sum of each
        for number, where in found.items():
            for prompt in self.asking[number]:
                most[prompt] += len(where)
        asked = [prompt for prompt, count in most.items() if count > STUFFED_DENSITY * tokens]
        return {prompt for prompt in asked if is_stuffed(map(found.get, self.prompts[prompt]), tokens)}


def examine(
    place: int, reference: dict[str, Any], rows: dict[str, dict[str, Any]], control: Control, catalogue: Catalogue
) -> dict[str, Answer]:
    """The answers of all models to prompt number `place`, from the rows of their files, each by what it gets."""
    texts = {name: prepare(row["answer"], reference["prompt"]) for name, row in rows.items()}
    concept = reference.get("concept")
    ideas = {name: catalogue.ideas(concept, text) if concept in catalogue else None for name, text in texts.items()}
    return {name: _examined(name, row, place, texts, control)._replace(ideas=ideas[name]) for name, row in rows.items()}


def _examined(name: str, row: dict[str, Any], place: int, texts: dict[str, Text], control: Control) -> Answer:
    text = row["answer"]
    scorer = control.scorers[place]
    keyword = scorer.score(text, control.own(place, texts[name]))
    return Answer(
        text=text,
        stop=row["stop"],
        words=len(text.split()),
        tokens=row["answer_tokens"],
        keyword=keyword,
        loop=text_health.loop(text) is not None,
        compression=text_health.compression_ratio(text),
        repetition=text_health.repetition(text, REPETITION_ORDER),
        shuffled=control.rate(place, texts[name], "degenerate" in keyword.flags),
        cut={other: _cut_rate(keyword, scorer, texts[name], texts[other]) for other in texts if other != name},
        refusal=text_health.refusal(text),
    )


def _cut_rate(full: KeywordScore, scorer: Scorer, text: Text, other: Text) -> float:
    """The rate of as many words from the beginning as the other answer has; a degenerate answer still gets nothing."""
    words = len(other.word_ends)
    if words >= len(text.word_ends) or "degenerate" in full.flags:
        return full.rate
    return scorer.hits_within(text, words, full.matched) / full.groups
