"""The pretraining text of the embedded base: every fact of the concept bank, in many forms, orders and company.

A model of a few million parameters can only use a fact that it has met in many shapes, so no document is written twice the
same way: paragraphs draw their sentences from the bank at random, start with one that names the concept, and stop cleanly.
The corpus holds statements only. Questions and their answers are what post-training adds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

# Openers that may be lower-cased after a connective; anything else may be a name ("Markov", "Bayes").
_LOWERABLE = {
    "A",
    "An",
    "As",
    "At",
    "Each",
    "For",
    "If",
    "In",
    "It",
    "Its",
    "One",
    "The",
    "They",
    "This",
    "To",
    "What",
    "When",
    "With",
}
_CONNECTIVES = ("Also, ", "In addition, ", "Moreover, ", "Note that ", "Recall that ", "Put differently, ")


@dataclass(frozen=True)
class Concept:
    """One entry of the bank; `facts` is a tuple of (keywords, forms), each form a full sentence that states the fact."""

    id: str
    name: str
    domain: str
    role: str
    definition: tuple[str, ...]
    facts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    why: tuple[str, ...]
    mistake: tuple[str, ...]
    example: str
    related: tuple[str, ...]


def read_bank(folder: Path) -> list[Concept]:
    """All concepts of the bank's files (one per domain), in file order; raises ValueError on a duplicate id."""
    concepts = [_concept(entry, path.stem) for path in sorted(folder.glob("*.yaml")) for entry in YAML(typ="safe").load(path)]
    ids = [concept.id for concept in concepts]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{folder}: concept ids must be unique, repeated: {sorted({i for i in ids if ids.count(i) > 1})}")
    return concepts


def _concept(entry: dict, domain: str) -> Concept:
    facts = tuple((tuple(map(str, fact["keywords"])), tuple(fact["forms"])) for fact in entry["facts"])
    return Concept(
        id=entry["id"],
        name=entry["name"],
        domain=domain,
        role=entry["role"],
        definition=tuple(entry["definition"]),
        facts=facts,
        why=tuple(entry["why"]),
        mistake=tuple(entry["mistake"]),
        example=entry["example"]["text"],
        related=tuple(entry["related"]),
    )


def documents(concepts: list[Concept], seed: int) -> Iterator[str]:
    """An endless stream of documents; every concept is met equally often, in an order reshuffled on each round."""
    rng = random.Random(seed)
    by_id = {concept.id: concept for concept in concepts}
    while True:
        for concept in rng.sample(concepts, len(concepts)):
            kind = rng.random()
            if kind < 0.70:
                yield paragraph(concept, rng)
            elif kind < 0.85:
                yield dialogue(concept, rng)
            else:
                yield paragraph(concept, rng) + " " + paragraph(_neighbour(concept, by_id, rng), rng)


def paragraph(concept: Concept, rng: random.Random) -> str:
    """A paragraph that names the concept first, walks through two to five of its facts in random order, and ends."""
    order = rng.sample(range(len(concept.facts)), rng.randint(2, len(concept.facts)))
    if rng.random() < 0.5:
        sentences = [rng.choice(concept.definition)]
    else:
        sentences = [rng.choice(concept.facts[order.pop()][1][:2])]
    sentences += [_follow(rng.choice(concept.facts[i][1]), rng) for i in order]
    if rng.random() < 0.5:
        sentences.append(rng.choice([*concept.why, *concept.mistake, concept.example]))
    return " ".join(sentences)


def dialogue(concept: Concept, rng: random.Random) -> str:
    """Two people exchange single statements about a concept: the chat markers are met here, and no question is."""
    naming = [form for _, forms in concept.facts for form in forms[:2]]
    lines = rng.sample([*concept.definition, *naming, *concept.why], rng.choice((2, 2, 4)))
    speakers = (USER, ASSISTANT) * (len(lines) // 2)
    return END.join(speaker + line for speaker, line in zip(speakers, lines, strict=True))


def _follow(sentence: str, rng: random.Random) -> str:
    """The sentence as a follower: now and then behind a connective, in lower case where that is safe."""
    first = sentence.split(" ", 1)[0]
    if first not in _LOWERABLE or rng.random() > 0.15:
        return sentence
    return rng.choice(_CONNECTIVES) + sentence[0].lower() + sentence[1:]


def _neighbour(concept: Concept, by_id: dict[str, Concept], rng: random.Random) -> Concept:
    known = [by_id[other] for other in concept.related if other in by_id]
    return rng.choice(known or list(by_id.values()))
