"""One raw file under the rules of params.yaml: its good rows, its counts, and one error that lists every bad row."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from aligner.data.audit import Listed
from aligner.data.lines import UnreadableFile
from aligner.data.other_files import other_file
from aligner.data.reader import Row, RowCounts, read_rows, report_lines
from aligner.run.errors import InputError
from aligner.run.params import Prepare
from aligner.run.terminal import bar

SHOWN_PROBLEMS = 1000


class RawFile:
    """Reads a file once, row by row. Afterwards `counts`, `warnings` and `require_few_bad_rows` account for every line.

    `kind` is one of reader.KINDS; `warnings` maps the kind of a warning to the ids of the rows that have it.
    """

    def __init__(self, path: str, kind: str, rules: Prepare) -> None:
        self.path, self.kind, self.rules = path, kind, rules
        self.counts = RowCounts()
        self.warnings: defaultdict[str, Listed] = defaultdict(Listed)
        self.problems: list[str] = []
        self.of_other_kinds: Counter[str] = Counter()  # rows that another file's reader would take, by the reason

    def values(self) -> Iterator[Any]:
        """Yields the records of the good rows, under a progress bar. UnreadableFile for a file that must be converted first.

        After a bad row that must end the run, it yields nothing more and only checks the rest of the file.
        """
        self.require_lines()
        with bar(f"prepare {self.kind}", None, "row") as progress:
            for row in read_rows(self.path, self.kind):
                progress.update()
                self.note(row, None if row.value is None else row.value.id)
                if row.value is not None and not self.ends_the_run:
                    yield row.value

    def require_lines(self) -> None:
        """UnreadableFile for a file that is no JSON lines, which must be converted first."""
        if problem := other_file(self.path, self.kind):
            raise UnreadableFile(self.path, problem)

    @property
    def ends_the_run(self) -> bool:
        """Whether a bad row so far ends the run, once the rest of the file is checked."""
        return self.counts.rejected > 0 and self.rules.on_bad_row == "error"

    def all_values(self) -> list[Any]:
        """The records of the good rows; raises InputError as `require_few_bad_rows` does."""
        values = list(self.values())
        self.require_few_bad_rows()
        return values

    def require_few_bad_rows(self) -> None:
        """Raises InputError with all bad rows, unless they are few and params.yaml lets prepare drop them."""
        rejected = self.counts.rejected
        share = rejected / max(1, self.counts.rows)
        if not rejected or (self.rules.on_bad_row == "drop" and share <= self.rules.max_bad_share):
            return
        reason, rows = next(iter(self.of_other_kinds.most_common(1)), ("", 0))
        if rows == self.counts.rows:
            raise InputError(f"{self.path} holds the wrong kind of rows; each is {reason}")
        more = [f"… and {rejected - len(self.problems)} more"] if rejected > len(self.problems) else []
        command = f"See them all: python src/prepare.py --check {self.path}"
        raise InputError("\n".join([f"{self.path}: {rejected} bad rows ({share:.1%}).", *self.problems, *more, command]))

    def note(self, row: Row, id: str | None) -> None:
        """Counts a row, and keeps its problems; `id` is None for a row that is not good."""
        self.counts.add(row)
        if id is not None:
            for problem in row.problems:
                self.warnings[problem.kind].add(id)
            return
        self.of_other_kinds.update(problem.reason for problem in row.problems if problem.kind == "wrong_kind")
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems += report_lines(row)
