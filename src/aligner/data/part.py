"""One training file as it becomes rows of token ids: read, tokenised, audited, and split into training and validation.

with Scratch() as scratch:
    part = Part("unpaired", RawFile(path, "unpaired", rules), scratch, eval_prompts)
    part.fill(unpaired_row, chat, max_length)
    part.require_both_sides()
    part.move_to(folder)                    # unpaired_train.jsonl, unpaired_validation.jsonl
"""

from __future__ import annotations

import time
from pathlib import Path

from aligner.data.audit import Audit
from aligner.data.chunks import RowMaker, chunks
from aligner.data.leakage import EvalPrompts
from aligner.data.measured import Measured
from aligner.data.raw_file import RawFile
from aligner.data.reader import Ids, Row
from aligner.data.row_store import Scratch
from aligner.data.tokenise import RowOf
from aligner.model.chat import Chat
from aligner.run.errors import InputError
from aligner.run.pool import in_order
from aligner.run.terminal import bar

# A process takes a second to start, as long as some thousand rows take.
LARGE_BYTES = 16 * 2**20


def is_large(path: str) -> bool:
    """Whether several processes pay for a file; a pipe has no size and counts as small."""
    return Path(path).is_file() and Path(path).stat().st_size >= LARGE_BYTES


class Part:
    """One training file: the prepared rows of each side, on disk, with the audit and the counts of all its rows."""

    def __init__(self, name: str, file: RawFile, scratch: Scratch, prompts: EvalPrompts) -> None:
        self.name, self.file, self.prompts = name, file, prompts
        self.train, self.validation = scratch.store(f"{name}_train"), scratch.store(f"{name}_validation")
        self.audit = Audit(name, scratch, prompts, file.warnings)
        self._ids = Ids()

    def fill(self, row_of: RowOf, chat: Chat, max_length: int, processes: int = 1) -> None:
        """Reads and tokenises the file, leaves out long rows and copies, and splits the rest.

        The rows of a large file are made by so many processes; their number changes no byte.
        """
        file = self.file
        file.require_lines()
        make = RowMaker(self.name, file.path, file.kind, row_of, chat, max_length, file.rules.validation_share, self.prompts)
        started = time.monotonic()
        with bar(f"prepare {file.kind}", None, "row") as progress:
            for outcomes in in_order(make, chunks(file.path, file.kind), processes if is_large(file.path) else 1):
                for outcome in outcomes:
                    self._take(*outcome)
                progress.set_postfix_str(f"{file.counts.lines / (time.monotonic() - started):,.0f} rows/s", refresh=False)
                progress.update(len(outcomes))
        file.require_few_bad_rows()

    def _take(self, row: Row, id: str | None, kept: Measured | InputError | None) -> None:
        """One line in the order of the file: what depends on the lines before it."""
        if id is not None and (problem := self._ids.claim(id, row.written_id)):
            row, id = Row(row.file, row.line, "rejected", (problem,)), None
        self.file.note(row, id)
        if id is None or self.file.ends_the_run:
            return
        if isinstance(kept, InputError):
            raise InputError(f"{self.file.path}: row {id}: {kept}")
        if kept is None:
            self.audit.too_long.add(id)
        elif not self.audit.is_copy(id, kept.key):
            (self.validation if kept.held_out else self.train).append_line(kept.line)
            self.audit.add(id, kept)

    def require_both_sides(self) -> None:
        """Raises InputError for a side without rows, before a model loads: training and evaluation need both."""
        for side, rows in {"train": self.train, "validation": self.validation}.items():
            if not len(rows):
                counts, ways = self.file.counts, "Add rows or change prepare.validation_share."
                raise InputError(f"{self.name}: no rows on the {side} side ({counts}). {ways}")

    def move_to(self, folder: Path) -> None:
        """Moves the rows to NAME_train.jsonl and NAME_validation.jsonl in this folder."""
        self.train.move_to(folder / f"{self.name}_train.jsonl")
        self.validation.move_to(folder / f"{self.name}_validation.jsonl")

    def figures(self) -> dict[str, int]:
        """Counts that add up (rows = train + validation + rejected + duplicate + too_long) and lengths in tokens."""
        counts, lengths = self.file.counts, sorted(self.audit.lengths)
        return {
            "rows": counts.rows,
            "train": len(self.train),
            "validation": len(self.validation),
            "rejected": counts.rejected,
            "warned": counts.warned,
            "duplicate": self.audit.copies,
            "too_long": self.audit.too_long.count,
            "tokens_median": lengths[len(lengths) // 2],
            "tokens_max": lengths[-1],
        }
