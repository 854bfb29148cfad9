"""prepare: read and validate the raw files, split them, and turn every message into token ids, once.

reads   the four files that prepare names in params.yaml (sft, pairs, eval, concepts) and the tokenizer of the chosen model
writes  data/prepared/ (ids for sft, dpo and generate; references and concepts for score), reports/{prepare,data}.json,
        reports/data.md, metrics/prepare.json
params  prepare, model, the entry's path, revision, chat_template and max_length
command python src/prepare.py            the stage, as dvc repro runs it
        python src/prepare.py --check data/raw/sft_examples.jsonl …    only look at files of yours
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner.data import report as data_report
from aligner.data.audit import Audit, Listed
from aligner.data.examples import ConceptEntry, EvalPrompt, PreferencePair, SftExample
from aligner.data.leakage import EvalPrompts, require_clean
from aligner.data.reader import Ledger, Row, check, read_rows
from aligner.data.spool import Scratch
from aligner.data.tokenise import RowOf, pair_row, sft_row, tokenised
from aligner.files import write_figures, write_json, write_jsonl, write_text
from aligner.model.chat import Chat
from aligner.model.hub import TOKENIZER_FILES, model_folder
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.params import Prepare, StageParams
from aligner.run.record import Run
from aligner.run.stage import run_stage
from aligner.run.terminal import bar

PARAMS = [
    "model",
    "models.${model}.path",
    "models.${model}.revision",
    "models.${model}.chat_template",
    "models.${model}.max_length",
    "prepare",
]
PREPARED = Path("data/prepared")
METRICS = Path("metrics/prepare.json")
COUNTS = Path("reports/prepare.json")
REPORT = Path("reports/data.json")
PAGE = Path("reports/data.md")

HEADLINE = {
    "sft_data": ("train", "near_duplicate"),
    "dpo_data": ("train", "longer_chosen"),
    "eval_data": ("prompts",),
    "leakage": ("ngram_13", "validation_prompts"),
}
SHOWN_PROBLEMS = 1000


class Part:
    """One raw file, read and tokenised: the prepared rows of each side (on disk), and what happened to the rest."""

    def __init__(self, name: str, scratch: Scratch, prompts: EvalPrompts) -> None:
        self.train, self.validation = scratch.spool(f"{name}_train"), scratch.spool(f"{name}_validation")
        self.ledger = Ledger()
        self.dropped: Counter = Counter()
        self.audit = Audit(name, scratch, prompts)


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    run.note(params=params)
    entry = params.model_entry
    chat = Chat.load(model_folder(entry.path, entry.revision, TOKENIZER_FILES), entry.chat_template)
    with Scratch() as scratch:
        prompts, references, eval_ledger, eval_warnings = prepare_eval(params.prepare, chat, entry.max_length)
        seen = EvalPrompts(references)
        sft, dpo = Part("sft", scratch, seen), Part("dpo", scratch, seen)
        prepare_file(params.prepare.sft, "sft", sft_row, chat, params, sft)
        prepare_file(params.prepare.pairs, "pairs", pair_row, chat, params, dpo)
        require_rows("sft", sft)
        require_rows("dpo", dpo)
        concepts, concept_ledger = prepare_concepts(params.prepare)
        require_clean(seen, params.prepare.max_leakage, params.prepare.eval)
        run.phase("read")
        report = data_report.whole_report({"sft": sft.audit, "dpo": dpo.audit}, seen, eval_warnings)
        run.phase("report")
        for name, part in {"sft": sft, "dpo": dpo}.items():
            part.train.move_to(PREPARED / f"{name}_train.jsonl")
            part.validation.move_to(PREPARED / f"{name}_validation.jsonl")
    write_jsonl(PREPARED / "prompts.jsonl", prompts)
    write_jsonl(PREPARED / "references.jsonl", flagged(references, seen))
    write_jsonl(PREPARED / "concepts.jsonl", concepts)
    write_json(PREPARED / "chat.json", {"fingerprint": chat.fingerprint, "end_id": chat.end_id, "pad_id": chat.pad_id})
    found = data_report.metrics(report)
    figures = {
        "sft_data": summary(sft) | found["sft_data"],
        "dpo_data": summary(dpo) | found["dpo_data"],
        "eval_data": {"prompts": len(prompts)},
        "leakage": found["leakage"],
    }
    write_figures(figures, COUNTS, METRICS, HEADLINE)
    write_json(REPORT, report)
    write_text(PAGE, data_report.page(report, figures))
    ledgers = {"sft": sft.ledger, "dpo": dpo.ledger, "eval": eval_ledger, "concepts": concept_ledger}
    run.note(metrics=figures, ledger={name: ledger.line() for name, ledger in ledgers.items()})


def prepare_file(path: str, kind: str, row_of: RowOf, chat: Chat, params: StageParams, part: Part) -> None:
    """Reads a training file into `part`: tokenises its rows, leaves out long rows and copies, and splits the rest."""
    values = accepted(path, kind, params.prepare, part.ledger, part.audit.warnings)
    for value, row in tokenised(path, values, row_of, chat, params.model_entry.max_length):
        if row is None:
            part.dropped["too_long"] += 1
            part.audit.too_long.add(value.id)
        elif part.audit.is_copy(value.id, [ids for key, ids in row.items() if key != "id"]):
            part.dropped["duplicate"] += 1
        else:
            held_out = in_validation(prompt_of(value), params.prepare.validation_share)
            (part.validation if held_out else part.train).append(row)
            part.audit.add(value, row, held_out)


def accepted(path: str, kind: str, prepare: Prepare, ledger: Ledger, warnings: defaultdict[str, Listed]) -> Iterator[Any]:
    """The good rows of a file; bad ones end in one error that lists them all, or are dropped and counted, as params say.

    `warnings` takes the ids of those that are kept, with something to look at, by the kind of the warning.
    """
    problems: list[str] = []
    for row in counted(read_rows(path, kind), f"prepare {kind}"):
        ledger.add(row)
        if row.value is not None:
            for problem in row.problems:
                warnings[problem.kind].add(row.value.id)
            yield row.value
        elif row.status == "rejected" and len(problems) < SHOWN_PROBLEMS:
            problems += [f"{row.file}:{row.line}: {problem.kind}: {problem.reason}" for problem in row.problems]
    bad_share = ledger.rejected / max(1, ledger.rejected + ledger.accepted + ledger.warned)
    if ledger.rejected and (prepare.on_bad_row == "error" or bad_share > prepare.max_bad_share):
        more = f"\n… and {ledger.rejected - len(problems)} more" if ledger.rejected > len(problems) else ""
        way = f"See them all: python src/prepare.py --check {path}"
        raise InputError(f"{path}: {ledger.rejected} bad rows ({bad_share:.1%}).\n" + "\n".join(problems) + more + f"\n{way}")


def counted(rows: Iterator[Row], title: str) -> Iterator[Row]:
    """The same rows, under a progress bar."""
    with bar(title, None, "row") as progress:
        for row in rows:
            yield row
            progress.update()


def in_validation(prompt: str, share: float) -> bool:
    """Whether a prompt belongs to the validation side: decided by its own text, so that new rows move no old ones.

    Letter case and spacing do not count: two spellings of one question never stand on both sides.
    """
    return int.from_bytes(fingerprint(prompt)[:8], "big") < share * 2**64


def fingerprint(prompt: str) -> bytes:
    """SHA-256 of a prompt, letter case and spacing aside."""
    return hashlib.sha256(" ".join(prompt.casefold().split()).encode()).digest()


def prompt_of(value: SftExample | PreferencePair) -> str:
    """What is asked: the user's turns of a conversation, joined."""
    return "\n".join(user_turns(value))


def user_turns(value: SftExample | PreferencePair) -> list[str]:
    messages = value.messages if isinstance(value, SftExample) else value.prompt
    return [content for role, content in messages if role == "user"]


def prepare_eval(
    prepare: Prepare, chat: Chat, max_length: int
) -> tuple[list[dict], list[dict], Ledger, defaultdict[str, Listed]]:
    """What generate needs (ids) and what score needs (texts and keywords), kept apart: new keywords rerun score alone."""
    ledger, warnings = Ledger(), defaultdict(Listed)
    rows: list[EvalPrompt] = list(accepted(prepare.eval, "eval", prepare, ledger, warnings))
    if not rows:
        raise InputError(f"{prepare.eval} holds no usable prompt. See: python src/prepare.py --check {prepare.eval}")
    prompts = [{"id": row.id, "prompt_ids": chat.prompt((("user", row.prompt),))} for row in rows]
    long = [row["id"] for row in prompts if len(row["prompt_ids"]) >= max_length]
    if long:
        raise InputError(f"{prepare.eval}: prompts longer than max_length ({max_length} tokens): {', '.join(long[:10])}")
    return prompts, [reference(row) for row in rows], ledger, warnings


def reference(row: EvalPrompt) -> dict[str, Any]:
    """What score compares an answer with."""
    optional = {"concept": row.concept, "kind": row.kind, "forbidden": list(row.forbidden)}
    required = {"id": row.id, "prompt": row.prompt, "topic": row.topic, "keywords": list(row.keywords)}
    return required | {key: value for key, value in optional.items() if value}


def prepare_concepts(prepare: Prepare) -> tuple[list[dict[str, Any]], Ledger]:
    """The catalogue of concepts for score; a file without rows is fine and leaves precision undefined."""
    ledger = Ledger()
    rows: Iterator[ConceptEntry] = accepted(prepare.concepts, "concepts", prepare, ledger, defaultdict(Listed))
    return [{"concept": row.id, "keywords": list(row.keywords), "text": row.text} for row in rows], ledger


def flagged(references: list[dict[str, Any]], seen: EvalPrompts) -> list[dict[str, Any]]:
    """The references, those that overlap with what is trained on marked with the level: score looks at the others alone, too."""
    levels = seen.levels()
    return [row | {"overlap": levels[row["id"]]} if row["id"] in levels else row for row in references]


def check_files(paths: list[str]) -> int:
    """What `--check` does: the exit code; 1 as well when the output cannot be written or is read no further (`| head`)."""
    try:
        code = check(paths, sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try once more when it ends
        if not isinstance(error, BrokenPipeError):
            print(f"prepare: the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return code


def require_rows(name: str, part: Part) -> None:
    """A side without rows cannot be trained on or measured on: said here, before a model loads."""
    for side in ("train", "validation"):
        if not len(getattr(part, side)):
            raise InputError(
                f"{name}: no rows on the {side} side ({part.ledger.line()}). More rows, or another prepare.validation_share?"
            )


def summary(part: Part) -> dict[str, int]:
    """Counts that add up (rows = train + validation + rejected + duplicate + too_long) and lengths in tokens."""
    lengths = sorted(part.audit.lengths)
    return {
        "rows": part.ledger.accepted + part.ledger.warned + part.ledger.rejected,
        "train": len(part.train),
        "validation": len(part.validation),
        "rejected": part.ledger.rejected,
        "warned": part.ledger.warned,
        "duplicate": part.dropped["duplicate"],
        "too_long": part.dropped["too_long"],
        "tokens_median": lengths[len(lengths) // 2],
        "tokens_max": lengths[-1],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="+", metavar="FILE", help="look at data files, print every bad row, write nothing")
    arguments = parser.parse_args()
    if arguments.check:
        raise SystemExit(check_files(arguments.check))
    run_stage("prepare", main)
