"""reports/side_by_side.md: every prompt with all models' answers next to each other."""

from __future__ import annotations

from typing import Any

from aligner.keywords.groups import idea
from aligner.markdown import figure, markdown, outcome_table, table, two_cells
from aligner.scoring.answers import Answer
from aligner.scoring.concepts import Ideas


def side_by_side(references: list[dict], answers: dict[str, list[Answer]], report: dict[str, Any]) -> str:
    """The whole report as Markdown: the rules, the tables of models and pairs, then a section for each prompt."""
    precise = "Precision is the share of key ideas named that belong to the concept asked about, as far as a prompt names one."
    threshold = report["settings"]["tie_threshold"]
    rule = f"Two answers tie when their hit rates {f'differ by no more than {threshold:g}' if threshold else 'are equal'}."
    parts = [
        "# Answers side by side",
        f"{len(references)} prompts. A hit is a key idea that the answer names, in any of its wordings. {precise} {rule}",
        model_table(report["models"]),
        outcome_table(report["pairs"]),
    ]
    for index, reference in enumerate(references):
        parts += prompt_section(reference, {name: of_model[index] for name, of_model in answers.items()})
    return "\n\n".join(parts) + "\n"


def model_table(models: dict[str, Any]) -> str:
    rows = []
    for name, model in models.items():
        rate, ended = model["hit_rate"], 1 - model["health"]["truncated"]["estimate"]
        others = [
            figure(model["lift"]["estimate"]),
            *two_cells(model["precision"]),
            figure(model["health"]["repeats"]["estimate"]),
        ]
        rows.append([name, *two_cells(rate), *others, figure(model["hits_per_100_words"]["estimate"]), figure(ended)])
    columns = ["model", "hit rate", "95% interval", "lift", "precision", "95% interval"]
    columns += ["says a sentence twice", "ideas per 100 words", "ended by itself"]
    return table(columns, rows)


def prompt_section(reference: dict[str, Any], answers: dict[str, Answer]) -> list[str]:
    """A heading and a table with one column per model: its hits, its answer, and the ideas that it named, own and foreign."""
    about = ", ".join(filter(None, [reference["topic"], reference.get("kind", "").replace("_", " ")]))
    titles = [f"{name}: {answer.keyword.hits} of {answer.keyword.groups}" for name, answer in answers.items()]
    texts = [markdown(answer.text) or "(empty)" for answer in answers.values()]
    named = [markdown(", ".join(named_ideas(answer, reference["keywords"]))) or "none" for answer in answers.values()]
    foreign = [markdown(foreign_ideas(answer.ideas)) for answer in answers.values() if answer.ideas is not None]
    rows = [row for row in (texts, named, foreign) if row]
    return [f"## {markdown(reference['prompt'])}", f"`{reference['id']}`, {markdown(about)}", table(titles, rows)]


def named_ideas(answer: Answer, groups: list[str | dict]) -> list[str]:
    return [idea(group) for group, hit in zip(groups, answer.keyword.matched, strict=True) if hit]


def foreign_ideas(ideas: Ideas) -> str:
    """The ideas of other concepts in an answer, each with a concept that it belongs to."""
    named = (f"{idea(group)} ({concept})" for concept, group in ideas.foreign)
    return f"foreign: {', '.join(named) or 'none'}"
