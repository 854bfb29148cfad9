"""What the audit needs of one row, computed from the row alone, on any process."""

from __future__ import annotations

from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

import orjson

from aligner.data.examples import PreferencePair, TrainingRecord, UnpairedAnswer
from aligner.data.leakage import EvalPrompts, Match, digest, words
from aligner.data.near_duplicates import Signer, shingles
from aligner.data.row_store import line_of
from aligner.data.tokenise import length_of

ANSWER_CHARACTERS = 80

# "prompt" with "answer", with "completion", or with "chosen" and "rejected" -> texts, as written or as words joined by spaces
Parts = dict[str, list[str]]


class Measured(NamedTuple):
    """A row that may be kept. Digests are 64-bit numbers of texts as words, so that case and punctuation play no part."""

    held_out: bool
    line: bytes  # the prepared row as JSON
    key: bytes  # of its token ids: copies have the same
    texts: bytes  # its texts as words, as JSON, to be compared exactly
    prompt: int  # digest of the prompt
    digest: int  # digest of id and texts
    signature: bytes  # MinHash
    matches: list[tuple[int, Match, bool]]  # with eval prompts
    length: int  # in tokens
    trained_tokens: int = 0
    desirable: bool = False
    answers: tuple[int, int, int] | None = None  # of a pair: digests of both, and how much longer chosen is


def measured(
    name: str, value: TrainingRecord, row: dict[str, Any], held_out: bool, prompts: EvalPrompts, signer: Signer
) -> Measured:
    """Measures a record of the file `name` and its row of token ids."""
    parts = {place: list(map(words, texts)) for place, texts in texts_by_part(value).items()}
    joined = {place: list(map(" ".join, texts)) for place, texts in parts.items()}
    looked = [prompts.matches(f"{name} {place}", value.id, text) for place, texts in parts.items() for text in texts]
    pair = value if isinstance(value, PreferencePair) else None
    return Measured(
        held_out=held_out,
        line=line_of(row),
        key=blake2b(orjson.dumps([ids for key, ids in row.items() if key != "id"]), digest_size=16).digest(),
        texts=line_of([value.id, joined, *([shortened(pair.chosen)] if pair else [])]),
        prompt=digest(joined["prompt"]),
        digest=digest([value.id, *chain(*joined.values())]),
        signature=signer.sign(shingles(chain(*parts.values()))),
        matches=list(chain(*looked)),
        length=length_of(row),
        trained_tokens=len(row["labels"]) - row["labels"].count(-100) if "labels" in row else 0,
        desirable=isinstance(value, UnpairedAnswer) and value.label,
        answers=answers_of(joined, row) if pair else None,
    )


def texts_by_part(value: TrainingRecord) -> Parts:
    """The texts of a row by their part in training; the earlier answers in a pair's conversation belong to its prompt."""
    if isinstance(value, PreferencePair):
        return {"prompt": [text for _, text in value.prompt], "chosen": [value.chosen], "rejected": [value.rejected]}
    if isinstance(value, UnpairedAnswer):
        return {"prompt": [text for _, text in value.prompt], "completion": [value.completion]}
    answers = [text for role, text in value.messages if role == "assistant"]
    return {"prompt": [text for role, text in value.messages if role != "assistant"], "answer": answers}


def answers_of(joined: Parts, row: dict[str, Any]) -> tuple[int, int, int]:
    chosen, rejected = (digest([*joined["prompt"], *joined[place]]) for place in ("chosen", "rejected"))
    return chosen, rejected, len(row["chosen_ids"]) - len(row["rejected_ids"])


def shortened(text: str) -> str:
    return text if len(text) <= ANSWER_CHARACTERS else text[:ANSWER_CHARACTERS] + "…"
