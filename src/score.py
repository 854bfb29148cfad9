"""score: compare base, SFT and DPO on the same prompts by the key ideas that their answers name.

reads   data/generated/{base,sft,dpo}.jsonl, data/prepared/references.jsonl
writes  metrics/score.json, plots/{hit_rate,topics,outcomes}.csv, reports/side_by_side.md
params  score
command python src/score.py
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from aligner import keywords, statistics
from aligner import params as parameters
from aligner.errors import InputError
from aligner.files import read_jsonl, write_csv, write_json, write_text
from aligner.records import Run, run_stage

PARAMS = ["score"]
REFERENCES = Path("data/prepared/references.jsonl")
MODELS = {
    "base": Path("data/generated/base.jsonl"),
    "sft": Path("data/generated/sft.jsonl"),
    "dpo": Path("data/generated/dpo.jsonl"),
}
PAIRS = [("sft", "base"), ("dpo", "sft"), ("dpo", "base")]
METRICS = Path("metrics/score.json")
HIT_RATE = Path("plots/hit_rate.csv")
TOPICS = Path("plots/topics.csv")
OUTCOMES = Path("plots/outcomes.csv")
SIDE_BY_SIDE = Path("reports/side_by_side.md")

# 4/5 - 3/5 is a little more than 0.2 in binary; hit rates that differ at all differ by far more than this.
ROUNDING = 1e-9


class Answer(NamedTuple):
    """One model's answer to one prompt, with what it got: `keyword` holds the hits, `rate` is hits / groups in [0, 1]."""

    text: str
    stop: str
    tokens: int
    keyword: keywords.KeywordScore

    @property
    def rate(self) -> float:
        return self.keyword.rate


class Outcome(NamedTuple):
    """How often the first model of a pair beat the second, prompt by prompt."""

    wins: int
    ties: int
    losses: int

    @property
    def win_rate(self) -> float:
        """(W + T/2) / n: the share of prompts won, ties counted as half."""
        return (self.wins + self.ties / 2) / sum(self)


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    run.note(params=params)
    references = list(read_jsonl(REFERENCES))
    answers = {name: read_answers(path, references) for name, path in MODELS.items()}
    outcomes = {pair: compare(answers[pair[0]], answers[pair[1]], params.score.tie_threshold) for pair in PAIRS}
    metrics = headline(answers, outcomes)
    write_json(METRICS, metrics)
    write_csv(HIT_RATE, ["group", "model", "hit_rate", "low", "high", "prompts"], rates_by(answers, references, kinds_of))
    write_csv(
        TOPICS,
        ["group", "model", "hit_rate", "low", "high", "prompts"],
        rates_by(answers, references, lambda row: [row["topic"]]),
    )
    write_csv(OUTCOMES, ["comparison", "outcome", "prompts", "share"], outcome_rows(outcomes))
    write_text(SIDE_BY_SIDE, side_by_side(references, answers, outcomes, params.score))
    run.note(metrics=metrics)


def read_answers(path: Path, references: list[dict[str, Any]]) -> list[Answer]:
    """A model's answers in the order of the references, each with its keyword score; every prompt must have one."""
    rows = {row["id"]: row for row in read_jsonl(path)}
    missing = [reference["id"] for reference in references if reference["id"] not in rows]
    if missing or len(rows) != len(references):
        raise InputError(
            f"{path} does not answer the prompts of {REFERENCES} ({len(missing)} missing). Run: dvc repro --force generate"
        )
    return [scored(rows[reference["id"]], reference) for reference in references]


def scored(row: dict[str, Any], reference: dict[str, Any]) -> Answer:
    found = keywords.score(row["answer"], reference["keywords"], reference.get("forbidden", ()), reference["prompt"])
    return Answer(row["answer"], row["stop"], row["answer_tokens"], found)


def compare(first: list[Answer], second: list[Answer], tie_threshold: float) -> Outcome:
    """Wins, ties and losses of `first` over `second`: a tie where the hit rates differ by no more than `tie_threshold`."""
    differences = [one.rate - other.rate for one, other in zip(first, second, strict=True)]
    wins = sum(difference > tie_threshold + ROUNDING for difference in differences)
    losses = sum(difference < -tie_threshold - ROUNDING for difference in differences)
    return Outcome(wins, len(differences) - wins - losses, losses)


def headline(answers: dict[str, list[Answer]], outcomes: dict[tuple[str, str], Outcome]) -> dict[str, Any]:
    """The few numbers that `dvc metrics diff` compares."""
    models = {
        name: {
            "hit_rate": round(mean(answer.rate for answer in given), 4),
            "all_hit_rate": round(mean(answer.keyword.all_hit for answer in given), 4),
            "ended_rate": round(mean(answer.stop == "end" for answer in given), 4),
            "tokens_mean": round(mean(answer.tokens for answer in given), 1),
        }
        for name, given in answers.items()
    }
    pairs = {f"{first}_vs_{second}": {"win_rate": round(outcome.win_rate, 4)} for (first, second), outcome in outcomes.items()}
    return models | pairs | {"eval": {"prompts": len(answers["base"])}}


def rates_by(answers: dict[str, list[Answer]], references: list[dict], groups_of: Callable[[dict], list[str]]) -> list[list[Any]]:
    """(group, model, mean hit rate, its 95 % interval, n) for every group of prompts; the interval is the exact bootstrap's."""
    groups = sorted({group for reference in references for group in groups_of(reference)})
    rows = []
    for group in groups:
        for name, given in answers.items():
            rates = [answer.rate for answer, reference in zip(given, references, strict=True) if group in groups_of(reference)]
            low, high = statistics.exact_bootstrap_interval(rates) or (None, None)
            rows.append([group, name, mean(rates), low, high, len(rates)])
    return rows


def kinds_of(reference: dict[str, Any]) -> list[str]:
    """A prompt counts among all, and among its kind where it has one."""
    return ["all prompts", *([reference["kind"].replace("_", " ")] if "kind" in reference else [])]


def outcome_rows(outcomes: dict[tuple[str, str], Outcome]) -> Iterable[list[Any]]:
    for (first, second), outcome in outcomes.items():
        for name, count in outcome._asdict().items():
            yield [f"{first} vs {second}", name, count, count / sum(outcome)]


def side_by_side(references: list[dict], answers: dict[str, list[Answer]], outcomes: dict, score: SimpleNamespace) -> str:
    """Every prompt with the answers of all models beside each other, as Markdown."""
    rule = f"Two answers tie when their hit rates differ by no more than {score.tie_threshold:g}."
    parts = [
        "# Answers side by side",
        f"{len(references)} prompts. A hit is a key idea that the answer names, in any of its wordings. {rule}",
        model_table(answers),
        outcome_table(outcomes),
    ]
    for index, reference in enumerate(references):
        parts += prompt_section(reference, {name: given[index] for name, given in answers.items()})
    return "\n\n".join(parts) + "\n"


def model_table(answers: dict[str, list[Answer]]) -> str:
    rows = []
    for name, given in answers.items():
        rates = [answer.rate for answer in given]
        shares = mean(answer.keyword.all_hit for answer in given), mean(answer.stop == "end" for answer in given)
        bounds = interval(statistics.exact_bootstrap_interval(rates))
        rows.append([name, f"{mean(rates):.3f}", bounds, *(f"{share:.3f}" for share in shares)])
    return table(["model", "hit rate", "95% interval", "all ideas named", "ended by itself"], rows)


def outcome_table(outcomes: dict[tuple[str, str], Outcome]) -> str:
    rows = []
    for (first, second), outcome in outcomes.items():
        low, high = statistics.tango_interval(*outcome)
        bounds = interval(((1 + low) / 2, (1 + high) / 2))
        rows.append([f"{first} over {second}", *map(str, outcome), f"{outcome.win_rate:.3f}", bounds])
    return table(["comparison", "won", "tied", "lost", "win rate (ties half)", "95% interval"], rows)


def prompt_section(reference: dict[str, Any], given: dict[str, Answer]) -> list[str]:
    """A heading, and a table with one column a model: its hits, its answer, and the ideas that it named."""
    about = ", ".join(filter(None, [reference["topic"], reference.get("kind", "").replace("_", " ")]))
    titles = [f"{name}: {answer.keyword.hits} of {answer.keyword.groups}" for name, answer in given.items()]
    texts = [markdown(answer.text) or "(empty)" for answer in given.values()]
    named = [markdown(", ".join(named_ideas(answer, reference["keywords"]))) or "none" for answer in given.values()]
    return [f"## {markdown(reference['prompt'])}", f"`{reference['id']}`, {markdown(about)}", table(titles, [texts, named])]


def named_ideas(answer: Answer, groups: list[str | dict]) -> list[str]:
    return [keyword_label(group) for group, hit in zip(groups, answer.keyword.matched, strict=True) if hit]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def keyword_label(group: str | dict) -> str:
    """A group's first keyword stands for the idea."""
    return group if isinstance(group, str) else str(group["any"][0])


def markdown(text: str) -> str:
    """Text as Markdown that shows it and does nothing else: no markup, no link, no end of a table cell, no terminal command."""
    visible = re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$&]|(?<=www)\.)", r"\\\1", visible)
    return escaped.replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;/")


def interval(bounds: tuple[float, float] | None) -> str:
    return "undefined" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("score", main)
