"""All models' answers and the prompts that they answer, as score, judge and votes read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.files import read_jsonl
from aligner.run.errors import InputError

REFERENCES = Path("data/prepared/references.jsonl")
CONCEPTS = Path("data/prepared/concepts.jsonl")
GENERATED = Path("data/generated")
MODELS = {name: GENERATED / f"{name}.jsonl" for name in ("base", "sft", "dpo")}
PAIRS = [("sft", "base"), ("dpo", "sft"), ("dpo", "base")]


def read_references() -> list[dict[str, Any]]:
    references = list(read_jsonl(REFERENCES))
    if not references:
        raise InputError(
            f"{REFERENCES} holds no prompt. Add some to the file that prepare.eval names in params.yaml, then run: dvc repro"
        )
    return references


def read_answers(path: Path, references: list[dict[str, Any]], stage: str = "generate") -> list[dict[str, Any]]:
    """A model's answers in the order of the references. Raises InputError unless each prompt has one and no other has.

    stage: the one that writes them, for the message.
    """
    rows = {row["id"]: row for row in read_jsonl(path)}
    missing = [reference["id"] for reference in references if reference["id"] not in rows]
    if missing or len(rows) != len(references):
        raise InputError(
            f"{path} does not answer the prompts of {REFERENCES} ({len(missing)} missing). Run: dvc repro --force {stage}"
        )
    return [rows[reference["id"]] for reference in references]
