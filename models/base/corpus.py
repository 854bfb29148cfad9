"""The pretraining text of the embedded base: every fact of the concept bank, in many forms, orders and company.

A model of a few million parameters can only use a fact that it has met in many shapes, so no document is written twice the
same way: paragraphs draw their sentences from the bank at random, start with one that names the concept, and stop cleanly.
Between chat markers someone mentions a concept in passing and hears of it, mostly one statement: a name anywhere in a sentence
leads to its facts. The corpus holds statements only. Answering questions, and in full, is what post-training adds.
"""

from __future__ import annotations

import random
import re
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
# Remarks that mention a concept, at the beginning, in the middle or at the end; no question is among them.
_REMARKS = (
    "I came across {name} in a paper this morning.",
    "My supervisor mentioned {name} in our last meeting.",
    "Today's lecture was about {name}.",
    "I have been reading about {name} since breakfast.",
    "The next chapter of my book treats {name}.",
    "Only {name} stood on the blackboard, and nobody said anything.",
    "{Name} came up in the seminar yesterday.",
    "{Name} stood on last year's list for the oral examination.",
    "{Name} took up three pages of that report.",
    "In my notes I have underlined {name} twice.",
    "In our group everybody talks about {name} these days.",
    "On the train I tried to remember what I once learned about {name}.",
    "For tomorrow I have to prepare a few minutes on {name}.",
    "After the break we go on with {name}.",
    "Before the meeting I want to refresh my memory of {name}.",
    "A friend who studies economics wrote an essay about {name}.",
    "A reviewer asked us to say more on {name} in the second section.",
    "A colleague from another department has never heard of {name}.",
    "An engineer at our company has to deal with {name} this week.",
    "The newspaper mentioned {name} without a word of explanation.",
    "The slides mention {name} on one page and move on.",
    "The exercise sheet assumes that we have met {name} before.",
    "The lecturer promised to treat {name} next week.",
    "The software manual refers to {name} in a footnote.",
    "We are writing a glossary and have arrived at {name}.",
    "We need an entry on {name} for the course wiki.",
    "My students find {name} hard, and I have one minute left.",
    "My sister is learning statistics and has arrived at {name}.",
    "Our textbook puts {name} before everything else.",
    "Somebody at work brought up {name} over lunch, and I only nodded.",
    "There is a poster about {name} in the corridor.",
    "There was one problem on {name} in last year's test.",
    "I would like to talk about {name} today.",
    "So far I have only heard of {name}, nothing more.",
    "I still owe you a word about {name}, as promised last week.",
    "Our project has more to do with {name} than we thought.",
    "Let us turn to {name}, since we left that out last time.",
    "Someone wrote {name} in the margin of my draft.",
    "With this data set one cannot avoid {name} for long.",
    "When I explain {name} to others, I notice the gaps in my own understanding.",
)
# Remarks that quote a bare name or another name of the concept.
_QUOTES = (
    'Someone wrote "{label}" on the blackboard.',
    'I looked up "{label}" in the index of the book.',
    'The next entry of the glossary is "{label}".',
    'Today\'s keyword is "{label}".',
    'The title of the talk was "{label}".',
    'The heading says "{label}", and the page is empty.',
    'She said "{label}" and waited for us to react.',
    'My notes end with the words "{label}" and three dots.',
    'In the margin I found "{label}" in my own handwriting.',
    'The card that I drew says "{label}".',
)
_CONNECTIVES = ("Also, ", "In addition, ", "Moreover, ", "Note that ", "Recall that ", "Furthermore, ")


@dataclass(frozen=True)
class Concept:
    """One entry of the bank; `facts` is a tuple of (keywords, forms), each form a full sentence that states the fact."""

    id: str
    name: str
    aliases: tuple[str, ...]
    domain: str
    role: str
    definition: tuple[str, ...]
    facts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    why: tuple[str, ...]
    mistake: tuple[str, ...]
    example: str


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
        aliases=tuple(entry["aliases"]),
        domain=domain,
        role=entry["role"],
        definition=tuple(entry["definition"]),
        facts=facts,
        why=tuple(entry["why"]),
        mistake=tuple(entry["mistake"]),
        example=entry["example"]["text"],
    )


def documents(concepts: list[Concept], seed: int) -> Iterator[str]:
    """An endless stream of documents; every concept is met equally often, in an order reshuffled on each round."""
    rng = random.Random(seed)
    while True:
        for concept in rng.sample(concepts, len(concepts)):
            yield paragraph(concept, rng) if rng.random() < 0.6 else dialogue(concept, rng)


def paragraph(concept: Concept, rng: random.Random) -> str:
    """A paragraph that names the concept first, walks through two to five of its facts, mostly in order, and ends."""
    order = rng.sample(range(len(concept.facts)), rng.randint(2, len(concept.facts)))
    if rng.random() < 0.6:
        order.sort(reverse=True)
    if rng.random() < 0.5:
        sentences = [rng.choice(concept.definition)]
    else:
        sentences = [rng.choice(concept.facts[order.pop()][1][:2])]
    sentences += [_follow(rng.choice(concept.facts[i][1]), rng) for i in reversed(order)]
    if rng.random() < 0.5:
        sentences.append(rng.choice([*concept.why, *concept.mistake, concept.example]))
    return " ".join(sentences)


def dialogue(concept: Concept, rng: random.Random) -> str:
    """Someone mentions a concept and hears of it: mostly one statement, now and then two in turn or a paragraph."""
    naming = [*concept.definition, *concept.why, *(form for _, forms in concept.facts for form in forms[:2])]
    kind = rng.random()
    replies = [paragraph(concept, rng)] if kind < 0.2 else rng.sample(naming, 1 if kind < 0.8 else 2)
    return END.join(f"{USER}{remark(concept, rng)}{END}{ASSISTANT}{reply}" for reply in replies)


def remark(concept: Concept, rng: random.Random) -> str:
    """A sentence that mentions the concept, by its name or by what else it is called, and says nothing about it."""
    if rng.random() < 0.7:
        return rng.choice(_REMARKS).format(name=concept.name, Name=concept.name[0].upper() + concept.name[1:])
    bare = re.sub(r"^(the|an?) ", "", concept.name)
    return rng.choice(_QUOTES).format(label=rng.choice((bare, *concept.aliases)))


def _follow(sentence: str, rng: random.Random) -> str:
    """The sentence as a follower: now and then behind a connective, in lower case where that is safe."""
    first = sentence.split(" ", 1)[0]
    if first not in _LOWERABLE or rng.random() > 0.15:
        return sentence
    return rng.choice(_CONNECTIVES) + sentence[0].lower() + sentence[1:]
