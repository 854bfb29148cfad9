"""One training file as it becomes rows of token ids: read, tokenised, audited, and split into training and validation.

with Scratch() as scratch:
    part = Part("unpaired", RawFile(path, "unpaired", rules), scratch, eval_prompts)
    part.fill(unpaired_row, chat, max_length)
    part.require_both_sides()
    part.move_to(folder)                    # unpaired_train.jsonl, unpaired_validation.jsonl
"""

from __future__ import annotations

from pathlib import Path

from aligner.data.audit import Audit
from aligner.data.leakage import EvalPrompts
from aligner.data.raw_file import RawFile
from aligner.data.row_store import Scratch
from aligner.data.split import in_validation, user_text
from aligner.data.tokenise import RowOf, tokenised
from aligner.model.chat import Chat
from aligner.run.errors import InputError


class Part:
    """One training file: the prepared rows of each side, on disk, with the audit and the counts of all its rows."""

    def __init__(self, name: str, file: RawFile, scratch: Scratch, prompts: EvalPrompts) -> None:
        self.name, self.file = name, file
        self.train, self.validation = scratch.store(f"{name}_train"), scratch.store(f"{name}_validation")
        self.audit = Audit(name, scratch, prompts, file.warnings)

    def fill(self, row_of: RowOf, chat: Chat, max_length: int) -> None:
        """Reads and tokenises the file, leaves out long rows and copies, and splits the rest."""
        file, audit = self.file, self.audit
        for value, row in tokenised(file.path, file.values(), row_of, chat, max_length):
            if row is None:
                audit.too_long.add(value.id)
            elif not audit.is_copy(value.id, [ids for key, ids in row.items() if key != "id"]):
                held_out = in_validation(user_text(value), file.rules.validation_share)
                (self.validation if held_out else self.train).append(row)
                audit.add(value, row, held_out)
        file.require_few_bad_rows()

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
