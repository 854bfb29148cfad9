"""The verifiable rewards of grpo: named functions of one answer, each in [0, 1]; params.yaml holds their weights.

A reward is a measure, not a judgement: its weight (grpo.reward_weights) says how good or bad it is. To add one, write a function
here, enter it in REWARDS, and give it a weight in params.yaml and a key in the schema (aligner/run/params.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aligner.keywords.scorer import Scorer
from aligner.keywords.text import prepare
from aligner.model.chat import Chat
from aligner.model.generation import end_ids
from aligner.scoring.concepts import Catalogue

SENTENCE_END = re.compile(r"(?<=[.?!])\s+")


class Prompt(NamedTuple):
    """A training prompt. scorer: the keyword groups of a good answer; concept: None if the row names none."""

    id: str
    text: str
    ids: list[int]
    scorer: Scorer
    concept: str | None


class Sample(NamedTuple):
    """One sampled answer. length: its tokens, end token included, over the most allowed; ended: it has an end token."""

    prompt: Prompt
    text: str
    length: float
    ended: bool
    catalogue: Catalogue


# ---- The rewards -----------------------------------------------------------------------------------------------------


def keyword_hits(sample: Sample) -> float:
    """The hit rate: the share of the prompt's keyword groups that the answer names; 0 for a stuffed or looping answer."""
    return sample.prompt.scorer.score(sample.text).rate


def foreign_ideas(sample: Sample) -> float:
    """The share of ideas of other concepts among all key ideas that the answer names (1 - precision); 0 if it names none."""
    concept = sample.prompt.concept
    if concept is None or concept not in sample.catalogue:
        return 0.0
    ideas = sample.catalogue.ideas(concept, prepare(sample.text, sample.prompt.text))
    named = ideas.own + len(ideas.foreign)
    return len(ideas.foreign) / named if named else 0.0


def repetition(sample: Sample) -> float:
    """The share of sentences that the answer has said before, word for word."""
    said = sentences(sample.text)
    return 1 - len(set(said)) / len(said) if said else 0.0


def length(sample: Sample) -> float:
    """The number of tokens over grpo.max_completion_length."""
    return sample.length


def format(sample: Sample) -> float:
    """1 if the answer ended by itself and with a whole sentence, else 0."""
    return float(sample.ended and sample.text.rstrip("\"')").endswith((".", "?", "!")))


REWARDS: dict[str, Callable[[Sample], float]] = {
    "keyword_hits": keyword_hits,
    "foreign_ideas": foreign_ideas,
    "repetition": repetition,
    "length": length,
    "format": format,
}


def sentences(text: str) -> list[str]:
    return [sentence for sentence in SENTENCE_END.split(text.strip()) if sentence]


# ---- Rewards of many answers -----------------------------------------------------------------------------------------


class Rewards:
    """Computes the rewards of answers to `prompts`, which are named by their index.

    concepts: rows of the concept catalogue; those that no prompt asks about are left out, so that no reward depends on what the
    policy must not be trained on.
    """

    def __init__(self, prompts: Sequence[Prompt], concepts: Iterable[Mapping[str, Any]], chat: Chat, longest: int) -> None:
        asked = {prompt.concept for prompt in prompts}
        self.catalogue = Catalogue([row for row in concepts if row["concept"] in asked])
        self.prompts, self.chat, self.longest, self.ends = prompts, chat, longest, set(end_ids(chat))

    def sample(self, number: int, ids: list[int]) -> Sample:
        """The answer `ids`, with its end token if it has one, to prompt `number`."""
        ended = bool(ids) and ids[-1] in self.ends
        text = self.chat.decode(ids[:-1] if ended else ids).strip()
        return Sample(self.prompts[number], text, len(ids) / self.longest, ended, self.catalogue)

    def of(self, number: int, ids: list[int]) -> dict[str, float]:
        """Every reward of one answer, by name."""
        sample = self.sample(number, ids)
        return {name: reward(sample) for name, reward in REWARDS.items()}

    def functions(self) -> list[Callable[..., list[float]]]:
        """The rewards as TRL's reward functions, in the order of REWARDS; the data set has the prompt's index as `number`."""
        return [self._function(name, reward) for name, reward in REWARDS.items()]

    def _function(self, name: str, reward: Callable[[Sample], float]) -> Callable[..., list[float]]:
        def function(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
            return [reward(self.sample(which, ids)) for which, ids in zip(number, completion_ids, strict=True)]

        function.__name__ = name
        return function


def weighted(rewards: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The reward that is maximised: the weighted sum."""
    return sum(weights[name] * value for name, value in rewards.items())
