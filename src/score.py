"""score: compare base, SFT and DPO on the same prompts by the key ideas that their answers name.

reads   data/generated/{base,sft,dpo}.jsonl, data/prepared/{references,concepts}.jsonl; for the page also
        reports/{prepare,sft,dpo}.json, plots/{sft,dpo_loss,dpo_rewards,dpo_accuracy,dpo_logps,dpo_ranking}.csv, requirements.txt
writes  metrics/score.json, plots/{hit_rate,topics,outcomes,lengths}.csv, reports/{score.json,side_by_side.md,index.html}
params  score; the page shows all other parameters of the run, which affect no figure
command python src/score.py

Four answers that know nothing (canaries) are scored first; the stage fails when one of them is rewarded.
"""

from __future__ import annotations

import argparse
import csv
import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner.files import read_json, read_jsonl, write_csv, write_json, write_text
from aligner.report import page
from aligner.report.side_by_side import side_by_side
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import run_stage
from aligner.scoring.answers import Answer, Control
from aligner.scoring.canaries import check_canaries
from aligner.scoring.concepts import Catalogue
from aligner.scoring.inputs import CONCEPTS, MODELS, PAIRS, read_answers, read_references
from aligner.scoring.pairs import pair_name
from aligner.scoring.report import rounded, scoring_report
from aligner.scoring.unscored import score_answers, with_keywords

# The page shows these parameters; no figure depends on them.
SHOWN = [*parameters.TRAINING, *parameters.OF_FIVE_STAGES, "dpo", "generate", "lora", "prepare", "seed", "sft"]
PARAMS = [*SHOWN, "score"]
METRICS = Path("metrics/score.json")
HIT_RATE = Path("plots/hit_rate.csv")
TOPICS = Path("plots/topics.csv")
OUTCOMES = Path("plots/outcomes.csv")
LENGTHS = Path("plots/lengths.csv")
REPORT = Path("reports/score.json")
SIDE_BY_SIDE = Path("reports/side_by_side.md")
PAGE = Path("reports/index.html")
STAGE_REPORTS = {
    "prepare": Path("reports/prepare.json"),
    "sft": Path("reports/sft.json"),
    "dpo": Path("reports/dpo.json"),
}
CURVES = {
    "sft": Path("plots/sft.csv"),
    "dpo_loss": Path("plots/dpo_loss.csv"),
    "dpo_rewards": Path("plots/dpo_rewards.csv"),
    "dpo_accuracy": Path("plots/dpo_accuracy.csv"),
    "dpo_logps": Path("plots/dpo_logps.csv"),
}
RANKING = Path("plots/dpo_ranking.csv")
REQUIREMENTS = Path("requirements.txt")
RATE_COLUMNS = ["group", "model", "hit_rate", "low", "high", "prompts"]


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    run.note(params=params)
    references = read_references()
    rows = {name: read_answers(path, references) for name, path in MODELS.items()}
    keyed = [references[number] for number in with_keywords(references)]
    control = Control(keyed)
    silenced = check_canaries(keyed, control) if keyed else {}
    answers = score_answers(rows, references, control, Catalogue(list(read_jsonl(CONCEPTS))))
    run.phase("score")

    report = scoring_report(answers, references, PAIRS, params.score) | {"canaries": silenced}
    metrics = headline(report)
    run.phase("compare")

    write_json(METRICS, metrics)
    write_json(REPORT, rounded(report))
    whole = {"all prompts": {"models": {name: model["hit_rate"] for name, model in report["models"].items()}}}
    write_csv(HIT_RATE, RATE_COLUMNS, rate_rows(whole | report["exploratory"]["kinds"]))
    write_csv(TOPICS, RATE_COLUMNS, rate_rows(report["exploratory"]["topics"]))
    write_csv(OUTCOMES, ["comparison", "outcome", "prompts", "share"], outcome_rows(report))
    write_csv(LENGTHS, ["model", "words", "hit_rate", "answers"], length_rows(answers))
    write_text(SIDE_BY_SIDE, side_by_side(references, answers, report))
    write_text(PAGE, page.render(page_sources(params, report, references, answers)))
    run.note(metrics=metrics)
    run.phase("write")


def headline(report: dict[str, Any]) -> dict[str, Any]:
    """The six figures and two verdicts that `dvc metrics diff` compares; all others are in the report."""
    models, comparison = report["models"], report["pairs"]["dpo_vs_sft"]
    figures: dict[str, Any] = {name: {"hit_rate": four(models[name]["hit_rate"]["estimate"])} for name in ("sft", "dpo")}
    figures["dpo"] |= {
        "precision": four(models["dpo"]["precision"]["estimate"]),
        "repeats": four(models["dpo"]["health"]["repeats"]["estimate"]),
        "hits_per_100_words": four(models["dpo"]["hits_per_100_words"]["estimate"]),
    }
    at_equal_length = comparison["equal_length"]
    figures["dpo_vs_sft"] = {
        "equal_length": four(at_equal_length["mean_difference"]["estimate"]),
        "equal_length_verdict": at_equal_length["decision"]["verdict"],
        "verdict": comparison["decision"]["verdict"],
    }
    return figures


def page_sources(
    params: StageParams, report: dict[str, Any], references: list[dict[str, Any]], answers: dict[str, list[Answer]]
) -> page.Sources:
    """Everything that the page shows: this stage's results, and the files of earlier stages."""
    return page.Sources(
        params=params,
        pins=page.pins_of(existing(REQUIREMENTS).read_text(encoding="utf-8")),
        figures={name: read_json(path) for name, path in STAGE_REPORTS.items()},
        curves={name: read_csv(path) for name, path in CURVES.items()},
        ranking=read_csv(RANKING),
        report=rounded(report),
        references=references,
        answers=answers,
        pairs=PAIRS,
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with existing(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} is missing. Run: git checkout -- {path}; or, if a stage writes it: dvc repro")
    return path


def four(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def rate_rows(groups: dict[str, Any]) -> Iterator[list[Any]]:
    """(group, model, mean hit rate, its 95 % interval, n) for each group of prompts and each model."""
    for group, result in groups.items():
        for name, rate in result["models"].items():
            yield [group, name, rate["estimate"], rate["low"], rate["high"], rate["n"]]


def outcome_rows(report: dict[str, Any]) -> Iterator[list[Any]]:
    """(comparison, outcome, prompts, proportion of prompts) for each pair of models."""
    for first, second in PAIRS:
        result = report["pairs"][pair_name((first, second))]
        for outcome in ("wins", "ties", "losses"):
            yield [f"{first} vs {second}", outcome, result[outcome], result[outcome] / max(1, result["n"])]


def length_rows(answers: dict[str, list[Answer]]) -> Iterator[list[Any]]:
    """(model, words, hit rate, number of answers with exactly these), sorted within each model."""
    for name, given in answers.items():
        scored = Counter((answer.words, answer.rate) for answer in given if answer.keyword.groups)
        for (words, rate), count in sorted(scored.items()):
            yield [name, words, rate, count]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    gc.disable()  # nothing here creates reference cycles, and the collector would walk through all answers again and again
    run_stage("score", main)
