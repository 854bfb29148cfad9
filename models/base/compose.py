"""Composes data/raw: SFT examples and preference pairs, by hand and from the concept bank, and the bank's concepts.

reads   data/bank/*.yaml, data/written/*.jsonl (written by hand; on_policy_pairs.jsonl by models/base/on_policy.py)
writes  data/raw/{sft_examples,dpo_pairs,concepts,grpo_prompts}.jsonl
command python models/base/compose.py       (a test asserts that data/raw holds what this writes)

Every sentence is hand-written; this program only composes answers of them. Examples and pairs use only concepts with
`role: train`, and question forms that no eval prompt uses. A chosen answer defines the concept, names most of its key ideas, each
once, and ends. A rejected answer has a failure of real small models, at about the same length: length must not be the lesson.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from corpus import Concept, read_bank

DATA = Path(__file__).resolve().parents[2] / "data"

SEED = 17
TOPICS = {"markov_chains": "markov chains", "probability": "probability", "time_series": "time series"}

# Names in the plural; all others are singular.
PLURALS = ("equations", "diagnostics")

# Each concept gets some of these forms. No form belongs to one concept, so only the concept's name identifies it.
SFT_QUESTIONS = (
    "What {be} {name}, and what matters about {it}?",
    "Tell me about {name}.",
    "What should I know about {name}?",
    "Can you explain {name}?",
    "I keep hearing of {name}. What lies behind {it}?",
    "Please help me with {name}.",
    "Could you say something about {name}?",
    "I have to learn about {name} by Friday. What is essential?",
    "How would a teacher present {name}?",
    "For my notes I need a few lines on {name}.",
    "What does one mean by {name}?",
    "Let us talk about {name}. Where do we begin?",
    "I missed the lesson on {name}. What did I miss?",
    "My neighbor, who is a nurse, asked me about {name}. What can I tell her?",
    "In tomorrow's meeting {name} will come up. Please prepare me.",
    "While reading about weather forecasts I met {name}. What do people mean by that?",
    "Before the test I want to hear about {name} once more.",
    "A blog on football statistics relies on {name}. What stands behind it?",
    "We talked about dice and cards, and then about {name}. I got lost there.",
    "For a talk at a bank I need to introduce {name} with care.",
    "An older colleague swears by {name}. What should a beginner know?",
    "Our data come from a hospital, and someone proposed {name}. What is meant?",
    "Suppose I have five minutes and want to learn about {name}. Go ahead.",
    "On a page about traffic counts there is a footnote on {name}. Can you expand on it?",
    "My son has homework on {name}, and I remember nothing. Help us, please.",
)
SFT_ROWS = 7
PAIR_QUESTIONS = (
    "What are the key ideas behind {name}?",
    "Sum up in a few sentences what there is to know about {name}.",
    "My notes mention {name}. What is that about?",
    "I want to get {name} right. What counts?",
    "What would you put on a poster about {name}?",
    "Remind me of the main points about {name}.",
    "Someone asked me about {name}, and I was lost. What should I have said?",
    "Which facts about {name} should stay in my memory?",
    "Take me through {name}, please.",
)
PAIR_ROWS = 5
# Of DRAWS rejected answers, the one with the length nearest to LENGTHENED times that of the chosen answer is taken.
DRAWS = 4
LENGTHENED = 1.1

# Sentences, each with the number of its key idea (None for a definition or a sentence about something else).
Answer = list[tuple[int | None, str]]
VAGUE = (
    "It is an important idea that comes up in many places.",
    "There is a lot to say about it, and many books treat it.",
    "It depends on the situation, so one has to look at the details.",
    "People use it for various purposes, in theory and in practice.",
    "It is related to other ideas of the same kind.",
    "Understanding it well takes some time and practice.",
    "In general it behaves as one would expect.",
    "It has a number of useful properties that are worth knowing.",
    "Whether it applies has to be decided from case to case.",
    "It can be simple in some cases and more difficult in others.",
)


def main() -> None:
    concepts = read_bank(DATA / "bank")
    trained = [concept for concept in concepts if concept.role == "train"]
    write("sft_examples.jsonl", written("sft_examples.jsonl") + lines(row for concept in trained for row in sft_rows(concept)))
    composed = [row for index, concept in enumerate(trained) for row in pair_rows(concept, trained, index)]
    write("dpo_pairs.jsonl", written("dpo_pairs.jsonl") + lines(composed) + written("on_policy_pairs.jsonl"))
    write("concepts.jsonl", lines(map(concept_row, concepts)))
    by_id = {concept.id: concept for concept in trained}
    write("grpo_prompts.jsonl", lines(prompt_row(row, by_id[row["concept"]]) for row in composed))


def written(name: str) -> str:
    return (DATA / "written" / name).read_text(encoding="utf-8")


def lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(name: str, text: str) -> None:
    (DATA / "raw" / name).write_text(text, encoding="utf-8", newline="\n")


def sft_rows(concept: Concept) -> list[dict]:
    """Some question forms, each with a definition and two or three key ideas."""
    rng = random.Random(f"{SEED} sft {concept.id}")
    return [
        {
            "id": f"{concept.id}-composed-{number}",
            "topic": TOPICS[concept.domain],
            "concept": concept.id,
            "prompt": ask(question, concept),
            "response": text_of(complete_answer(concept, rng, facts=2 + number % 2)),
        }
        for number, question in enumerate(rng.sample(SFT_QUESTIONS, SFT_ROWS), start=1)
    ]


def pair_rows(concept: Concept, others: list[Concept], index: int) -> list[dict]:
    """Some question forms, each with a pair: both answers begin alike, then one fails; the failures take turns."""
    rng = random.Random(f"{SEED} pairs {concept.id}")
    rows = []
    for number, question in enumerate(rng.sample(PAIR_QUESTIONS, PAIR_ROWS), start=1):
        fault, fail = list(FAILURES.items())[(index + number) % len(FAILURES)]
        chosen = complete_answer(concept, rng, facts=rng.choice((3, 4, 5)))
        start = [] if fail is other_concept else chosen[: rng.choice((1, 2, 3))]
        rows.append(
            {
                "id": f"{concept.id}-composed-{number}",
                "topic": TOPICS[concept.domain],
                "concept": concept.id,
                "fault": fault,
                "prompt": ask(question, concept),
                "chosen": text_of(chosen),
                "rejected": about_as_long(chosen, [start + fail(concept, start, others, rng) for _ in range(DRAWS)]),
            }
        )
    return rows


def about_as_long(chosen: Answer, drafts: list[Answer]) -> str:
    """The draft nearest to a little more than the chosen answer's length: length must not be the lesson."""
    wanted = LENGTHENED * len(text_of(chosen))
    return min(map(text_of, drafts), key=lambda text: abs(len(text) - wanted))


def concept_row(concept: Concept) -> dict:
    """The concept's key ideas as in eval prompts, and every sentence of the bank about it, one per line."""
    forms = (form for _, forms in concept.facts for form in forms)
    return {
        "concept": concept.id,
        "topic": TOPICS[concept.domain],
        "keywords": [{"any": list(keywords), "match": "inflect"} for keywords, _ in concept.facts],
        "text": "\n".join([*concept.definition, *forms, *concept.why, *concept.mistake, concept.example]),
    }


def prompt_row(pair: dict, concept: Concept) -> dict:
    """The prompt of a composed pair, which asks about the concept as a whole, with the concept's key ideas, for grpo."""
    row = {name: pair[name] for name in ("id", "topic", "concept", "prompt")}
    return row | {"keywords": concept_row(concept)["keywords"]}


def ask(question: str, concept: Concept) -> str:
    """The question with the concept's name in it, in the right number."""
    plural = concept.name.endswith(PLURALS)
    return question.format(name=concept.name, be="are" if plural else "is", it="them" if plural else "it")


def complete_answer(concept: Concept, rng: random.Random, facts: int) -> Answer:
    """A definition, then `facts` different key ideas in the order of the bank, each in one sentence."""
    chosen = sorted(rng.sample(range(len(concept.facts)), facts))
    return [(None, rng.choice(concept.definition)), *((fact, following(concept, fact, rng)) for fact in chosen)]


def text_of(answer: Answer) -> str:
    return " ".join(sentence for _, sentence in answer)


def following(concept: Concept, fact: int, rng: random.Random) -> str:
    """A sentence for a fact, mostly one that refers to the concept without its name."""
    forms = concept.facts[fact][1]
    return rng.choice(forms[2:] if rng.random() < 0.75 else forms[:2])


def half(concept: Concept, start: Answer, others: list[Concept], rng: random.Random) -> Answer:
    """Continues with several wordings of one idea."""
    fact = start[-1][0] if start[-1][0] is not None else rng.randrange(len(concept.facts))
    wordings = [form for form in concept.facts[fact][1] if form != start[-1][1]]
    return [(fact, form) for form in rng.sample(wordings, rng.choice((2, 3)))]


def wrong_concept(concept: Concept, start: Answer, others: list[Concept], rng: random.Random) -> Answer:
    """Continues with facts of another concept of the same domain."""
    other = rng.choice([one for one in others if one.domain == concept.domain and one.id != concept.id])
    return [(None, following(other, fact, rng)) for fact in rng.sample(range(len(other.facts)), rng.choice((2, 3, 4)))]


def vague(concept: Concept, start: Answer, others: list[Concept], rng: random.Random) -> Answer:
    """Continues with sentences that fit any concept."""
    return [(None, sentence) for sentence in rng.sample(VAGUE, rng.choice((3, 4, 5, 6)))]


def circular(concept: Concept, start: Answer, others: list[Concept], rng: random.Random) -> Answer:
    """Continues with other wordings of the definition."""
    definitions = [sentence for sentence in concept.definition if sentence != start[0][1]]
    return [(None, sentence) for sentence in rng.sample(definitions, rng.choice((2, 3)))]


def loop(concept: Concept, start: Answer, others: list[Concept], rng: random.Random) -> Answer:
    """Repeats its last sentence word for word, once or more."""
    return [start[-1]] * rng.choice((1, 2, 3, 4))


def other_concept(concept: Concept, start: Answer, others: list[Concept], rng: random.Random) -> Answer:
    """A good answer to another question: about another concept of the same domain, from the first word on."""
    other = rng.choice([one for one in others if one.domain == concept.domain and one.id != concept.id])
    return complete_answer(other, rng, rng.choice((3, 4, 5)))


FAILURES: dict[str, Callable[[Concept, Answer, list[Concept], random.Random], Answer]] = {
    "half": half,
    "wrong_concept": wrong_concept,
    "other_concept": other_concept,
    "vague": vague,
    "circular": circular,
    "loop": loop,
}


if __name__ == "__main__":
    main()
