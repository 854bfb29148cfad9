"""Asks the SFT model about its training concepts, and writes the answers that fail: real rejected answers.

reads   data/bank/*.yaml, models/sft, the base model (of the last dvc repro)
writes  data/written/model_failures.jsonl: id, concept, fault, prompt, rejected
command PYTHONPATH=src python models/base/failures.py
        then python models/base/compose.py, which adds a good answer of the same length to each
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import compose

import generate
from aligner.keywords.groups import hits
from aligner.keywords.text import prepare
from aligner.model import runtime
from aligner.model.loading import load_chat
from aligner.run import params as parameters
from corpus import Concept, read_bank

ROOT = Path(__file__).resolve().parents[2]

QUESTIONS = (
    "Write a short paragraph about {name}.",
    "What does a student need to understand about {name}?",
    "Let me hear what you know about {name}.",
    "Give me the essentials of {name}.",
    "What is worth knowing about {name}?",
    "I am curious about {name}. Where does one start?",
)


def main() -> None:
    concepts = read_bank(ROOT / "data" / "bank")
    trained = [concept for concept in concepts if concept.role == "train"]
    asked = [(concept, compose.ask(question, concept)) for concept in trained for question in QUESTIONS]
    answers = answer([prompt for _, prompt in asked])
    owners = owners_of_sentences(concepts)
    rows = []
    for number, ((concept, prompt), text) in enumerate(zip(asked, answers, strict=True)):
        fault = fault_of(text, concept, owners)
        if fault:
            id = f"{concept.id}-model-{number % len(QUESTIONS) + 1}"
            rows.append({"id": id, "concept": concept.id, "fault": fault, "prompt": prompt, "rejected": text})
    path = ROOT / "data" / "written" / "model_failures.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    print(f"{len(rows)} of {len(asked)} answers fail: {dict(Counter(row['fault'] for row in rows))}")


def answer(prompts: list[str]) -> list[str]:
    """Greedy answers of the SFT model, by the generate stage's code."""
    params = parameters.load(generate.PARAMS)
    started = runtime.start(params.model_entry, params.seed)
    chat = load_chat(params.model_entry)
    model = generate.load_model(params.model_entry, started, chat, Path("models/sft"))
    rows = [{"id": str(place), "prompt_ids": chat.prompt((("user", prompt),))} for place, prompt in enumerate(prompts)]
    found = dict(generate.answer_all(model, rows, chat, params, "sft"))
    return [found[str(place)]["answer"] for place in range(len(prompts))]


def owners_of_sentences(concepts: list[Concept]) -> dict[str, set[str]]:
    """The concepts to which each sentence of the bank belongs."""
    owners: dict[str, set[str]] = {}
    for concept in concepts:
        forms = [form for _, wordings in concept.facts for form in wordings]
        for sentence in [*concept.definition, *forms, *concept.why, *concept.mistake]:
            owners.setdefault(sentence, set()).add(concept.id)
    return owners


def fault_of(text: str, concept: Concept, owners: dict[str, set[str]]) -> str | None:
    """loop: a repeated sentence; wrong_concept: a sentence of another concept; half: fewer than two of the five ideas."""
    sentences = re.split(r"(?<=[.?!]) ", text)
    if len(set(sentences)) < len(sentences):
        return "loop"
    if any(concept.id not in owners.get(sentence, {concept.id}) for sentence in sentences):
        return "wrong_concept"
    found = prepare(text)
    named = sum(hits(found, {"any": list(keywords), "match": "inflect"}) for keywords, _ in concept.facts)
    return "half" if named < 2 else None


if __name__ == "__main__":
    main()
