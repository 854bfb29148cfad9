"""league: any number of models on the same prompts: hit rates, at equal length, precision, repetition, length and KL divergence.

reads   data/generated/<model>.jsonl of each model in league.models, reports/<model>.json where it exists (its KL divergence),
        data/prepared/{references,concepts}.jsonl; for the page also requirements.txt
writes  metrics/league.json, plots/league_{length,kl}.csv, reports/league.{json,md,html}
params  league, score; the page shows others too, which affect no figure
command python src/league.py                       (dvc repro pipelines/dvc.yaml:league)
        python src/league.py --page sft kto orpo   another page from the last report: writes reports/league.html alone

All pairs of models are tested, and p-values are adjusted over all of them (Holm). The page shows the first three models after
the base, or those of --page, side by side; its blind votes are about these.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aligner.files import read_json, read_jsonl, write_csv, write_json, write_text
from aligner.report import page
from aligner.report.league import league_page
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import METHODS, run_stage
from aligner.scoring.answers import Answer, Control
from aligner.scoring.canaries import check_canaries
from aligner.scoring.concepts import Catalogue
from aligner.scoring.inputs import CONCEPTS, GENERATED, MODELS, read_answers, read_references
from aligner.scoring.league import all_pairs, league_report, part_of
from aligner.scoring.report import rounded
from aligner.scoring.unscored import score_answers, with_keywords

SHOWN = [*parameters.LOADING, "generate", "seed"]
PARAMS = [*SHOWN, "league", "score"]
REPORTS = Path("reports")
METRICS = Path("metrics/league.json")
LENGTH = Path("plots/league_length.csv")
KL = Path("plots/league_kl.csv")
REPORT = Path("reports/league.json")
TABLE = Path("reports/league.md")
PAGE = Path("reports/league.html")
REQUIREMENTS = Path("requirements.txt")
PAGE_MODELS = 3
HEADLINE_MODELS = 4  # times two figures; `dvc metrics diff` shows at most eight


def main(run: Run, shown: Sequence[str] | None = None) -> None:
    params = parameters.load(PARAMS)
    run.note(params=params)
    models = params.league.models
    on_page = shown or [name for name in models if name != "base"][:PAGE_MODELS]
    check_models(models, on_page)
    references = read_references()
    check_keywords(references)
    rows = {name: read_answers(GENERATED / f"{name}.jsonl", references, generated_by(name)) for name in models}
    control = Control(references)
    canaries = check_canaries(references, control)
    answers = score_answers(rows, references, control, Catalogue(list(read_jsonl(CONCEPTS))))
    run.phase("score")

    report = rounded(league_report(answers, references, read_reports(models), params.score) | {"canaries": canaries})
    run.phase("compare")

    write_text(PAGE, page.render(page_sources(params, report, references, answers, on_page)))
    if shown is None:
        metrics = headline(report, models)
        write_json(METRICS, metrics)
        write_json(REPORT, report)
        write_text(TABLE, league_page(report))
        write_csv(LENGTH, ["model", "words", "hit_rate", "low", "high", "prompts"], length_rows(report, models))
        write_csv(KL, ["model", "kl", "kl_low", "kl_high", "hit_rate", "low", "high", "prompts"], kl_rows(report, models))
        run.note(metrics=metrics)
    run.phase("write")


def check_keywords(references: Sequence[dict[str, Any]]) -> None:
    """InputError if a prompt has no keywords: the league compares hit rates."""
    silent = len(references) - len(with_keywords(references))
    if silent:
        raise InputError(
            f"{silent} of {len(references)} eval prompts have no keywords, and the league compares hit rates; see prepare.eval"
        )


def generated_by(name: str) -> str:
    """The stage that writes a model's answers, as `dvc repro` names it."""
    return f"generate@{name}" if name in MODELS else f"{METHODS}:generate@{name}"


def check_models(models: Sequence[str], shown: Sequence[str]) -> None:
    """InputError unless every model is named once, has answers, and the page shows two or three of them."""
    if repeated := sorted({name for name in models if models.count(name) > 1}):
        raise InputError(f"params.yaml: league.models names {repeated[0]} more than once")
    for name in models:
        if not (GENERATED / f"{name}.jsonl").is_file():
            known = ", ".join(sorted(path.stem for path in GENERATED.glob("*.jsonl"))) or "none"
            raise InputError(
                f"params.yaml: league.models names {name}, but {GENERATED}/{name}.jsonl is missing (there are: {known}). "
                f"Run: python src/generate.py {name}, or dvc repro {METHODS}"
            )
    if strange := [name for name in shown if name not in models]:
        raise InputError(f"the page cannot show {strange[0]}, which is not in league.models ({', '.join(models)})")
    if not 2 <= len(set(shown)) == len(shown) <= 3:
        raise InputError(f"the page shows two or three different models, not {', '.join(shown)}")


def read_reports(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The figures of reports/<model>.json, for each model whose stage wrote such a file."""
    paths = {name: REPORTS / f"{name}.json" for name in models}
    return {name: read_json(path).get(name, {}) for name, path in paths.items() if path.is_file()}


def headline(report: dict[str, Any], models: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Hit rate, and difference from sft at equal length, of the first four models that score does not compare."""
    figures: dict[str, float | None] = {}
    for name in [name for name in models if name not in MODELS][:HEADLINE_MODELS] or models[:HEADLINE_MODELS]:
        level = report["models"][name]["at_equal_length"]["estimate"]
        figures[f"{name}_hit_rate"] = round(report["models"][name]["hit_rate"]["estimate"], 4)
        figures[f"{name}_at_equal_length"] = None if level is None else round(level, 4)
    return {"league": figures}


def page_sources(
    params: StageParams,
    report: dict[str, Any],
    references: list[dict[str, Any]],
    answers: dict[str, list[Answer]],
    shown: Sequence[str],
) -> page.Sources:
    return page.Sources(
        params=params,
        pins=page.pins_of(REQUIREMENTS.read_text(encoding="utf-8")),
        figures={},
        curves={},
        ranking=[],
        report=part_of(report, shown),
        references=references,
        answers={name: answers[name] for name in shown},
        pairs=all_pairs(shown),
        family=f"the league's {2 * len(report['pairs'])}",
        program="src/league.py",
    )


def length_rows(report: dict[str, Any], models: Sequence[str]) -> Iterator[list[Any]]:
    """(model, mean number of words, hit rate, its 95 % interval, n)"""
    for name in models:
        rate = report["models"][name]["hit_rate"]
        yield [name, report["models"][name]["lengths"]["words"]["mean"], *(rate[key] for key in ("estimate", "low", "high", "n"))]


def kl_rows(report: dict[str, Any], models: Sequence[str]) -> Iterator[list[Any]]:
    """(model, KL divergence from sft with its 95 % interval, hit rate, its 95 % interval, n) for models with a divergence."""
    for name in models:
        rate, kl = report["models"][name]["hit_rate"], report["models"][name]["kl"]
        if kl["estimate"] is not None:
            ends = (kl[end] if kl[end] is not None else kl["estimate"] for end in ("low", "high"))
            yield [name, kl["estimate"], *ends, *(rate[key] for key in ("estimate", "low", "high", "n"))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", nargs="+", metavar="MODEL", help="show these two or three models on reports/league.html")
    shown = parser.parse_args().page
    gc.disable()  # nothing here creates reference cycles, and the collector would walk through all answers again and again
    run_stage("league", lambda run: main(run, shown), METHODS)
