"""Reads a data file, one JSON object per line, and accounts for every physical line.

    for row in read_rows("data/raw/sft_examples.jsonl"):
        row.status, row.problems, row.value

Every line gets exactly one status: accepted, warned (kept, with a warning), rejected or skipped (blank). A faulty line is
reported as a row and never raises. Memory is bounded: one line (at most 16 MiB) and 16 bytes for each id in the file.

A line becomes text, a JSON object, a row of a known format, and a record, which is then checked for warnings. The search for
the cause of a fault runs only on lines that fail.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TextIO

from aligner.data.examples import Record
from aligner.data.formats import FORMATS, Format, recognise, unrecognised
from aligner.data.lines import BadRow, Problem, UnreadableFile, decode_line, parse_object, physical_lines
from aligner.data.other_files import other_file
from aligner.data.row_warnings import key_warnings, text_warnings
from aligner.run.terminal import printable, shown, write_line

KINDS = ("sft", "pairs", "unpaired", "eval", "concepts")


@dataclass(frozen=True, slots=True)
class Row:
    """One physical line (1-based); `value` is None unless the status is accepted or warned."""

    file: str
    line: int
    status: str
    problems: tuple[Problem, ...] = ()
    value: Record | None = None
    written_id: bool = False  # whether the row itself holds its id

    def plain(self) -> Row:
        """The row without its record, to send to another process."""
        return Row(self.file, self.line, self.status, self.problems, None, self.written_id)


# ---- The reader -----------------------------------------------------------------------------------------------------


def read_rows(path: str | os.PathLike, kind: str | None = None) -> Iterator[Row]:
    """Yields one `Row` per physical line of `path`, in order. `kind` is one of KINDS, or None to recognise it by the keys.

    Raises ValueError for another `kind`. Iteration raises UnreadableFile (an InputError) if the file cannot be read.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)} or None, got {kind!r}")
    name, form, ids = str(path), FileFormat(kind), Ids()
    return (ids.checked(read_line(name, line, raw, form)) for line, raw in enumerate(physical_lines(name), start=1))


def read_line(name: str, line: int, raw: bytes | None, form: FileFormat) -> Row:
    """The row of one physical line, whose id another line may have; any bytes are allowed."""
    try:
        text = decode_line(raw)
        if not text or text.isspace():
            return Row(name, line, "skipped")
        value, warnings, written = form.record(parse_object(text), line)
    except BadRow as bad:
        return Row(name, line, "rejected", (bad.problem,))
    return Row(name, line, "warned" if warnings else "accepted", warnings, value, written)


class FileFormat:
    """The format of a file, which its first recognised row decides for the lines that follow."""

    def __init__(self, kind: str | None, known: tuple[str, int] | None = None):
        self.kind = kind
        name, self.line = known or (None, 0)
        self.format: Format | None = next((form for form in FORMATS if form.name == name), None)

    @property
    def known(self) -> tuple[str, int] | None:
        """The name of the format and the line that decided it, once there is one."""
        return None if self.format is None else (self.format.name, self.line)

    def record(self, row: dict, line: int) -> tuple[Record, tuple[Problem, ...], bool]:
        """The record of a JSON object, its warnings, and whether its id is written in it; raises BadRow."""
        form = self.of(row, line)
        value = form.record(row, form.name_of(row, line))
        warnings = key_warnings(row, form.keys) + text_warnings("\n".join(value.texts()))
        return value, warnings, form.kind == "concepts" or "id" in row

    def of(self, row: dict, line: int) -> Format:
        """The file's format, which is that of its first recognised row; raises BadRow for a row of another format."""
        if self.format is not None and self.format.suits(row):
            return self.format
        found = recognise(row, self.kind)
        if self.format is None:
            if found is None:
                raise unrecognised(row, self.kind)
            self.format, self.line = found, line
        elif (other := found or recognise(row, None)) not in (None, self.format):
            raise BadRow(
                "other_format",
                f"a row of {other.name} in a file of {self.format.name} (as of line {self.line}); one file holds one format: "
                "split it",
            )
        return self.format


class Ids:
    """The ids in use so far in a file, 16 bytes each."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._has_unnamed_rows = False

    def checked(self, row: Row) -> Row:
        """The row, or a rejected one if an earlier row has its id."""
        if row.value is None:
            return row
        problem = self.claim(row.value.id, row.written_id)
        return row if problem is None else Row(row.file, row.line, "rejected", (problem,))

    def claim(self, id: str, written: bool) -> Problem | None:
        """Records an id as used; a problem if an earlier row has it, or may have received it as `line-N`."""
        digest = blake2b(id.encode(), digest_size=16).digest()
        if digest in self._digests:
            return Problem("duplicate_id", f"the id {shown(id)} is also on an earlier line; every row needs its own")
        if not written:
            self._has_unnamed_rows = True
        elif self._has_unnamed_rows and id.startswith("line-"):
            return Problem("reserved_id", f"{shown(id)} may name an earlier row without an id; choose another id")
        else:
            self._digests.add(digest)
        return None


# ---- Counts, and the check of files -----------------------------------------------------------------------------------


@dataclass(slots=True)
class RowCounts:
    """How many physical lines have each status; accepted and warned rows are kept."""

    accepted: int = 0
    warned: int = 0
    rejected: int = 0
    skipped: int = 0

    def add(self, row: Row) -> None:
        setattr(self, row.status, getattr(self, row.status) + 1)

    @property
    def rows(self) -> int:
        """Lines that are not blank."""
        return self.accepted + self.warned + self.rejected

    @property
    def lines(self) -> int:
        return self.rows + self.skipped

    def __str__(self) -> str:
        return f"accepted={self.accepted} warned={self.warned} rejected={self.rejected} skipped={self.skipped}"


def check(paths: Iterable[str | os.PathLike], out: TextIO) -> int:
    """Writes every rejected or warned row of these files to `out`, then one line of counts; returns the exit code, 0 or 1.

    0 means that all files are readable, each holds at least one row that is not blank, and no row is rejected.
    """
    counts, faulty_files = RowCounts(), 0
    for path in map(str, paths):
        if problem := check_file(path, counts, out):
            faulty_files += 1
            write_line(out, f"{printable(path)}: {problem.kind}: {problem.reason}")
    write_line(out, str(counts))
    return 1 if faulty_files or counts.rejected else 0


def check_file(path: str, counts: RowCounts, out: TextIO) -> Problem | None:
    """Counts the rows of a file and writes the rejected and warned ones to `out`; returns the problem of the file as a whole."""
    rows_before = counts.rows
    if problem := other_file(path, None):
        return problem
    try:
        for row in read_rows(path):
            counts.add(row)
            for line in report_lines(row):
                write_line(out, line)
    except UnreadableFile as fault:
        return fault.problem
    if counts.rows == rows_before:
        return Problem("empty_file", "the file holds no rows; fill it or leave it out")
    return None


def report_lines(row: Row) -> list[str]:
    """`FILE:LINE: kind: reason` for each problem of a row, marked as a warning if the row is kept."""
    if not row.problems:
        return []
    prefix = f"{printable(row.file)}:{row.line}: " + ("warning: " if row.status == "warned" else "")
    return [f"{prefix}{problem.kind}: {problem.reason}" for problem in row.problems]


def check_and_print(paths: list[str]) -> int:
    """`check` on standard output; the exit code is also 1 if the output cannot be written or is cut short (`| head`)."""
    try:
        code = check(paths, sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        if not isinstance(error, BrokenPipeError):
            print(f"prepare: the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return code
