"""prepare: reads and validates the raw files, splits them, and turns every message into token ids once.

reads   the four files that prepare names in params.yaml (sft, pairs, eval, concepts) and the tokenizer of the chosen model
writes  data/prepared/ (ids for sft, dpo and generate; references and concepts for score), reports/{prepare,data}.json,
        reports/data.md, metrics/prepare.json
params  prepare, model, the entry's path, revision, chat_template, max_length and prepare
command python src/prepare.py            the stage, as dvc repro runs it
        python src/prepare.py --check data/raw/sft_examples.jsonl …    only checks your own data files
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aligner.data.examples import ConceptEntry, EvalPrompt
from aligner.data.leakage import EvalPrompts, require_clean
from aligner.data.part import Part
from aligner.data.raw_file import RawFile
from aligner.data.reader import check_and_print
from aligner.data.report import data_page, data_report, report_figures
from aligner.data.row_store import Scratch
from aligner.data.tokenise import pair_row, sft_row
from aligner.files import write_figures, write_json, write_jsonl, write_text
from aligner.model.chat import Chat
from aligner.model.hub import TOKENIZER_FILES, model_folder
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.pool import cores
from aligner.run.record import Run
from aligner.run.stage import run_stage

PARAMS = [
    "model",
    "models.${model}.path",
    "models.${model}.revision",
    "models.${model}.chat_template",
    "models.${model}.max_length",
    "prepare",
]
# It changes the time alone and no output, so dvc.yaml does not list it, and another value makes nothing stale.
UNLISTED = ["models.${model}.prepare"]
PREPARED = Path("data/prepared")
METRICS = Path("metrics/prepare.json")
FIGURES = Path("reports/prepare.json")
REPORT = Path("reports/data.json")
PAGE = Path("reports/data.md")
HEADLINE = {
    "sft_data": ("train", "near_duplicate"),
    "dpo_data": ("train", "longer_chosen"),
    "eval_data": ("prompts",),
    "leakage": ("ngram_13", "validation_prompts"),
}


def main(run: Run) -> None:
    params = parameters.load([*PARAMS, *UNLISTED])
    entry, rules = params.model_entry, params.prepare
    processes = cores(entry.prepare.processes)
    run.note(params=params, processes=processes)
    chat = Chat.load(model_folder(entry.path, entry.revision, TOKENIZER_FILES), entry.chat_template)
    eval_file, concept_file = RawFile(rules.eval, "eval", rules), RawFile(rules.concepts, "concepts", rules)
    with Scratch() as scratch:
        references = eval_references(eval_file)
        prompts = eval_prompts(rules.eval, references, chat, entry.max_length)
        seen = EvalPrompts(references)
        sft = Part("sft", RawFile(rules.sft, "sft", rules), scratch, seen)
        dpo = Part("dpo", RawFile(rules.pairs, "pairs", rules), scratch, seen)
        sft.fill(sft_row, chat, entry.max_length, processes)
        dpo.fill(pair_row, chat, entry.max_length, processes)
        sft.require_both_sides()
        dpo.require_both_sides()
        concepts = [concept_row(value) for value in concept_file.all_values()]
        require_clean(seen, rules.max_leakage, rules.eval)
        run.phase("read")
        report = data_report({"sft": sft.audit, "dpo": dpo.audit}, seen, eval_file.warnings)
        run.phase("report")
        for part in (sft, dpo):
            part.move_to(PREPARED)
    write_jsonl(PREPARED / "prompts.jsonl", prompts)
    write_jsonl(PREPARED / "references.jsonl", with_overlaps(references, seen))
    write_jsonl(PREPARED / "concepts.jsonl", concepts)
    write_json(PREPARED / "chat.json", {"fingerprint": chat.fingerprint, "end_id": chat.end_id, "pad_id": chat.pad_id})
    figures = figures_of(report, sft, dpo, len(prompts))
    write_figures(figures, FIGURES, METRICS, HEADLINE)
    write_json(REPORT, report)
    write_text(PAGE, data_page(report, figures))
    files = {"sft": sft.file, "dpo": dpo.file, "eval": eval_file, "concepts": concept_file}
    run.note(metrics=figures, ledger={name: str(file.counts) for name, file in files.items()})


def eval_references(file: RawFile) -> list[dict[str, Any]]:
    """The references for score: a row of texts and keyword groups for each prompt."""
    values = file.all_values()
    if not values:
        raise InputError(f"{file.path} holds no usable prompt. See: python src/prepare.py --check {file.path}")
    return [reference(value) for value in values]


def reference(value: EvalPrompt) -> dict[str, Any]:
    optional = {"concept": value.concept, "kind": value.kind, "forbidden": list(value.forbidden)}
    required = {"id": value.id, "prompt": value.prompt, "topic": value.topic, "keywords": list(value.keywords)}
    return required | {key: entry for key, entry in optional.items() if entry}


def eval_prompts(path: str, references: list[dict[str, Any]], chat: Chat, max_length: int) -> list[dict[str, Any]]:
    """The prompts for generate, as ids. They are separate from the keywords, so new keywords rerun only score."""
    prompts = [{"id": row["id"], "prompt_ids": chat.prompt((("user", row["prompt"]),))} for row in references]
    long = [row["id"] for row in prompts if len(row["prompt_ids"]) >= max_length]
    if long:
        raise InputError(f"{path}: prompts longer than max_length ({max_length} tokens): {', '.join(long[:10])}")
    return prompts


def with_overlaps(references: list[dict[str, Any]], seen: EvalPrompts) -> list[dict[str, Any]]:
    """The references; a prompt that overlaps with training text gets its level, and score can exclude it."""
    levels = seen.levels()
    return [row | {"overlap": levels[row["id"]]} if row["id"] in levels else row for row in references]


def concept_row(value: ConceptEntry) -> dict[str, Any]:
    return {"concept": value.id, "keywords": list(value.keywords), "text": value.text}


def figures_of(report: dict[str, Any], sft: Part, dpo: Part, prompts: int) -> dict[str, dict[str, Any]]:
    """The figures of reports/prepare.json, by part."""
    figures = report_figures(report)
    return {
        "sft_data": sft.figures() | figures["sft_data"],
        "dpo_data": dpo.figures() | figures["dpo_data"],
        "eval_data": {"prompts": prompts},
        "leakage": figures["leakage"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="+", metavar="FILE", help="check data files, print every bad row, write nothing")
    arguments = parser.parse_args()
    if arguments.check:
        raise SystemExit(check_and_print(arguments.check))
    run_stage("prepare", main)
