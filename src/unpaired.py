"""unpaired: rows with one good or bad completion each, as kto reads them: from the prepared pairs, or from a file of your own.

reads   unpaired.rows: data/prepared/dpo_train.jsonl (with data/prepared/dpo_validation.jsonl), or JSON lines with prompt,
        completion and label; for these also data/prepared/references.jsonl and the tokenizer of the base model
writes  data/prepared/unpaired_{train,validation}.jsonl, reports/unpaired.json
params  unpaired, prepare (rules for bad rows, validation and leakage), model and the entry's tokenizer keys
command python src/unpaired.py        (dvc repro pipelines/dvc.yaml:unpaired)

A pair makes two rows: its chosen answer with label true, its rejected answer with label false. A file of your own passes through
the checks of prepare: formats, lengths, duplicates, and no eval prompt among its texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aligner.data.leakage import EvalPrompts, require_clean
from aligner.data.part import Part
from aligner.data.raw_file import RawFile
from aligner.data.row_store import Scratch
from aligner.data.tokenise import unpaired_row
from aligner.files import read_json, read_jsonl, write_json, write_jsonl
from aligner.model.chat import Chat
from aligner.model.hub import TOKENIZER_FILES, model_folder
from aligner.model.loading import PREPARED_CHAT, check_chat
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import METHODS, run_stage

PARAMS = [
    *("model", "prepare", "unpaired"),
    *(f"models.${{model}}.{key}" for key in ("chat_template", "max_length", "path", "revision")),
]
PAIRS = {"train": Path("data/prepared/dpo_train.jsonl"), "validation": Path("data/prepared/dpo_validation.jsonl")}
ROWS = {side: Path(f"data/prepared/unpaired_{side}.jsonl") for side in PAIRS}
REFERENCES = Path("data/prepared/references.jsonl")
REPORT = Path("reports/unpaired.json")


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    run.note(params=params)
    path = Path(params.unpaired.rows)
    if path == PAIRS["train"]:
        for side, pairs in PAIRS.items():
            write_jsonl(ROWS[side], (row for pair in read_jsonl(pairs) for row in rows_of(pair)))
    else:
        prepare_file(path, params)
    figures = {"unpaired_data": {"from": path.as_posix(), **counts()}}
    write_json(REPORT, figures)
    run.note(metrics=figures)


def rows_of(pair: dict[str, Any]) -> list[dict[str, Any]]:
    """The two rows of a preference pair: its chosen answer with label true, its rejected answer with label false."""
    return [
        {"id": f"{pair['id']} {side}", "prompt_ids": pair["prompt_ids"], "completion_ids": pair[f"{side}_ids"], "label": label}
        for side, label in (("chosen", True), ("rejected", False))
    ]


def prepare_file(path: Path, params: StageParams) -> None:
    """Checks, tokenises and splits a file with prompt, completion and label, by the rules of prepare."""
    entry, rules = params.model_entry, params.prepare
    chat = Chat.load(model_folder(entry.path, entry.revision, TOKENIZER_FILES), entry.chat_template)
    check_chat(chat, read_json(PREPARED_CHAT))
    with Scratch() as scratch:
        prompts = EvalPrompts(list(read_jsonl(REFERENCES)))
        part = Part("unpaired", RawFile(path.as_posix(), "unpaired", rules), scratch, prompts)
        part.fill(unpaired_row, chat, entry.max_length)
        part.require_both_sides()
        require_clean(prompts, rules.max_leakage, rules.eval)
        part.move_to(REFERENCES.parent)


def counts() -> dict[str, int]:
    """The numbers of good and bad rows by side; InputError unless the training rows are of both kinds."""
    found: dict[str, int] = {}
    for side, path in ROWS.items():
        labels = [row["label"] for row in read_jsonl(path)]
        found |= {f"{side}_good": sum(labels), f"{side}_bad": len(labels) - sum(labels)}
    for kind, label in (("good", "true"), ("bad", "false")):
        if not found[f"train_{kind}"]:
            raise InputError(f"unpaired.rows has no {kind} completion (label {label}) to train on; KTO learns from both kinds")
    return found


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("unpaired", main, METHODS)
