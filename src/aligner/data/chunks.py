"""Raw lines to rows that may be kept, chunk by chunk: the part of `prepare` that needs no other rows, on any process.

make = RowMaker("sft", path, "sft", sft_row, chat, max_length, validation_share, eval_prompts)
for outcomes in in_order(make, chunks(path, "sft"), processes):
    …                                   # what needs the rows before it: ids, copies, counts (part.py)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

from aligner.data.examples import TrainingRecord
from aligner.data.leakage import EvalPrompts
from aligner.data.lines import BadRow, decode_line, parse_object, physical_lines
from aligner.data.measured import Measured, measured
from aligner.data.near_duplicates import Signer
from aligner.data.reader import FileFormat, Row, read_line
from aligner.data.split import in_validation, user_text
from aligner.data.tokenise import RowOf, tokenised
from aligner.model.chat import Chat
from aligner.run.errors import InputError

# Bytes of text to encode together; larger chunks are no faster.
CHUNK_BYTES = 2**17


class Chunk(NamedTuple):
    """Consecutive physical lines of a file, the number of the first one, and the file's format if an earlier line decides it."""

    first: int
    lines: list[bytes | None]
    form: tuple[str, int] | None


class Outcome(NamedTuple):
    """A line: its row without the record; for a good row its id, and what to keep, the template's refusal, or None (too long)."""

    row: Row
    id: str | None = None
    kept: Measured | InputError | None = None


def chunks(path: str, kind: str) -> Iterator[Chunk]:
    """Yields the lines of a file in chunks of at least CHUNK_BYTES bytes; the last one may be shorter."""
    form, before, size = FileFormat(kind), None, 0
    lines: list[bytes | None] = []
    for number, raw in enumerate(physical_lines(path), start=1):
        lines.append(raw)
        size += len(raw or b"")
        if form.format is None:
            with contextlib.suppress(BadRow):
                form.of(parse_object(decode_line(raw)), number)
        if size >= CHUNK_BYTES:
            yield Chunk(number - len(lines) + 1, lines, before)
            lines, size, before = [], 0, form.known
    if lines:
        yield Chunk(number - len(lines) + 1, lines, before)


@dataclasses.dataclass
class RowMaker:
    """Makes the outcomes of a chunk; a copy of it works in each process."""

    name: str
    path: str
    kind: str
    row_of: RowOf
    chat: Chat
    max_length: int
    validation_share: float
    prompts: EvalPrompts

    @cached_property
    def signer(self) -> Signer:
        return Signer()

    def __call__(self, chunk: Chunk) -> list[Outcome]:
        form = FileFormat(self.kind, chunk.form)
        rows = [read_line(self.path, number, raw, form) for number, raw in enumerate(chunk.lines, start=chunk.first)]
        made = tokenised([row.value for row in rows if row.value is not None], self.row_of, self.chat, self.max_length)
        return [Outcome(row) if row.value is None else self.outcome(row, *next(made)) for row in rows]

    def outcome(self, row: Row, value: TrainingRecord, made: dict[str, Any] | InputError | None) -> Outcome:
        if isinstance(made, dict):
            held_out = in_validation(user_text(value), self.validation_share)
            return Outcome(row.plain(), value.id, measured(self.name, value, made, held_out, self.prompts, self.signer))
        return Outcome(row.plain(), value.id, made)

    def __getstate__(self) -> dict[str, Any]:
        """Without what each process builds for itself."""
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return state | {"chat": dataclasses.replace(self.chat)}
