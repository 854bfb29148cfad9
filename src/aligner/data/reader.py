"""Reads a data file, one JSON object per line, and accounts for every physical line of it.

    for row in read_rows("data/raw/sft_examples.jsonl"):
        row.status, row.problems, row.value

Every line ends in exactly one class: accepted, warned (kept, with a warning), rejected or skipped (blank). A fault of a line is
data, never an exception. Memory is bounded: one line (16 MiB at most) and, in files whose rows carry ids, 16 bytes per id.

A line passes through these steps: bytes, text, JSON object, format, record, warnings. Only a line that fails is diagnosed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from io import TextIOBase

from aligner.data.examples import Record
from aligner.data.formats import Format, recognise, unrecognised
from aligner.data.lines import BadRow, Problem, UnreadableFile, decode_line, parse_object, physical_lines
from aligner.data.row_warnings import key_warnings, text_warnings
from aligner.run.terminal import printable, shown, write_line

KINDS = ("sft", "pairs", "eval", "concepts")


@dataclass(frozen=True, slots=True)
class Row:
    """One physical line (1-based); `value` is None unless the status is accepted or warned."""

    file: str
    line: int
    status: str
    problems: tuple[Problem, ...] = ()
    value: Record | None = None


# ---- The reader -----------------------------------------------------------------------------------------------------


def read_rows(path: str | os.PathLike, kind: str | None = None) -> Iterator[Row]:
    """One `Row` per physical line of `path`, in order. `kind` is one of KINDS; None recognises it by the keys.

    Raises ValueError for another `kind`, and on iteration UnreadableFile (an InputError) where a file cannot be read.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)} or None, got {kind!r}")
    name, settled = str(path), FileRules(kind)
    return (read_line(name, line, raw, settled) for line, raw in enumerate(physical_lines(name), start=1))


def read_line(name: str, line: int, raw: bytes | None, settled: FileRules) -> Row:
    """The row that one physical line makes, whatever its bytes."""
    try:
        text = decode_line(raw)
        if not text or text.isspace():
            return Row(name, line, "skipped")
        value, warnings = settled.record(parse_object(text), line)
    except BadRow as bad:
        return Row(name, line, "rejected", (bad.problem,))
    return Row(name, line, "warned" if warnings else "accepted", warnings, value)


class FileRules:
    """What the lines so far have settled for the rest of their file: its one format, and the ids that are taken."""

    def __init__(self, kind: str | None):
        self.kind = kind
        self.format: Format | None = None
        self.format_line = 0
        self.ids: set[bytes] = set()
        self.has_unnamed_rows = False

    def record(self, row: dict, line: int) -> tuple[Record, tuple[Problem, ...]]:
        """The normalised record of an object and its warnings; raises BadRow."""
        form = self.format_of(row, line)
        value = form.build(row, form.name_of(row, line))
        self.claim(value.id, given=form.kind == "concepts" or "id" in row)
        return value, key_warnings(row, form.keys) + text_warnings("\n".join(value.texts()))

    def format_of(self, row: dict, line: int) -> Format:
        """The file's format, which the first recognised row settles; raises BadRow for a row of another one."""
        if self.format is not None and self.format.suits(row):
            return self.format
        found = recognise(row, self.kind)
        if self.format is None:
            if found is None:
                raise unrecognised(row, self.kind)
            self.format, self.format_line = found, line
        elif (other := found or recognise(row, None)) not in (None, self.format):
            raise BadRow(
                "other_format",
                f"a row of {other.name} in a file of {self.format.name} (as of line "
                f"{self.format_line}); one file holds one format: split it",
            )
        return self.format

    def claim(self, id: str, given: bool) -> None:
        """Takes an id for this row; raises BadRow where another row has it, or may have been given it."""
        digest = blake2b(id.encode(), digest_size=16).digest()
        if digest in self.ids:
            raise BadRow("duplicate_id", f"the id {shown(id)} stands on an earlier line too; every row needs its own")
        if not given:
            self.has_unnamed_rows = True
        elif self.has_unnamed_rows and id.startswith("line-"):
            raise BadRow("reserved_id", f"{shown(id)} may name an earlier row without an id; choose another id")
        else:
            self.ids.add(digest)


# ---- The ledger and the check ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ledger:
    """Counts physical lines, each in exactly one of four classes; accepted and warned rows are kept."""

    accepted: int = 0
    warned: int = 0
    rejected: int = 0
    skipped: int = 0

    def add(self, row: Row) -> None:
        setattr(self, row.status, getattr(self, row.status) + 1)

    @property
    def lines(self) -> int:
        return self.accepted + self.warned + self.rejected + self.skipped

    def line(self) -> str:
        return f"accepted={self.accepted} warned={self.warned} rejected={self.rejected} skipped={self.skipped}"


def check(paths: Iterable[str | os.PathLike], out: TextIOBase) -> int:
    """Writes every bad or warned row of these files and one line of counts to `out`; the exit code, 0 or 1.

    0 needs all files readable, with at least one row that is not blank, and no rejected row.
    """
    ledger, faulty_files = Ledger(), 0
    for path in map(str, paths):
        if problem := check_file(path, ledger, out):
            faulty_files += 1
            write_line(out, f"{printable(path)}: {problem.kind}: {problem.reason}")
    write_line(out, ledger.line())
    return 1 if faulty_files or ledger.rejected else 0


def check_file(path: str, ledger: Ledger, out: TextIOBase) -> Problem | None:
    """Streams one file into the ledger and its bad rows to `out`; the problem of the file as a whole, if it has one."""
    not_blank = ledger.lines - ledger.skipped
    try:
        for row in read_rows(path):
            ledger.add(row)
            for line in report_lines(row):
                write_line(out, line)
    except UnreadableFile as fault:
        return fault.problem
    if ledger.lines - ledger.skipped == not_blank:
        return Problem("empty_file", "the file holds no rows; fill it or leave it out")
    return None


def report_lines(row: Row) -> list[str]:
    """`FILE:LINE: kind: reason` for each problem of a row, marked as a warning where the row is kept."""
    if not row.problems:
        return []
    prefix = f"{printable(row.file)}:{row.line}: " + ("warning: " if row.status == "warned" else "")
    return [f"{prefix}{problem.kind}: {problem.reason}" for problem in row.problems]
