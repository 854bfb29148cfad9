"""Rules that hold when the loader reads any bytes, for the property tests, the regression tests and the fuzzer."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from aligner.data.examples import ConceptEntry, EvalPrompt, PreferencePair, Record, SftExample, UnpairedAnswer
from aligner.data.reader import Row, RowCounts, check, read_rows
from aligner.keywords.scorer import Scorer

REPORT_LINE = re.compile(r"(?P<file>.*?)(?P<line>:\d+)?: (warning: )?[a-z][a-z0-9_]*: \S.*")


def require_sound(path: Path, data: bytes, kind: str | None = None) -> list[Row]:
    """Writes `data` to `path`, reads it as a file of `kind`, and asserts all that every file must bear; the rows.

    Statuses add up to the physical lines; a row has a value exactly when it is kept, and a printable reason exactly when it
    is not merely accepted; ids are unique; reading again gives the same; and what `--check` prints is one line a problem.
    """
    path.write_bytes(data)
    rows, counts = list(read_rows(path, kind)), RowCounts()
    for row in rows:
        counts.add(row)
        assert row.line == counts.lines
        assert (row.value is not None) == (row.status in ("accepted", "warned"))
        assert bool(row.problems) == (row.status in ("warned", "rejected"))
        assert all(problem.kind.isidentifier() and problem.reason.isprintable() for problem in row.problems)
    assert counts.lines == len(data.split(b"\n")) - (data == b"" or data.endswith(b"\n"))
    kept = [row.value for row in rows if row.value is not None]
    assert len({value.id for value in kept}) == len(kept)
    for value in kept:
        assert all(text and text == text.strip() and text.encode() for text in value.texts())
        if isinstance(value, EvalPrompt | ConceptEntry):
            require_scorable(value)
    assert list(read_rows(path, kind)) == rows
    require_kept_again(path, kept)
    path.write_bytes(data)
    require_readable_report(path)
    return rows


def require_scorable(value: EvalPrompt | ConceptEntry) -> None:
    """Groups that the loader lets through can score any answer: the stage `score` need not check them again."""
    asked = value.prompt if isinstance(value, EvalPrompt) else value.text
    forbidden = value.forbidden if isinstance(value, EvalPrompt) else ()
    result = Scorer(value.keywords, forbidden, asked).score(asked[:60] + " It is not so: 1/2.")
    assert 0 <= result.rate <= 1 and 0 <= result.weighted_rate <= 1


def require_kept_again(path: Path, kept: list[Record]) -> None:
    """A kept record, written the plainest way, is read as the same record."""
    path.write_bytes(b"".join(json.dumps(plain_row(value)).encode() + b"\n" for value in kept))
    assert [row.value for row in read_rows(path)] == kept


def plain_row(value: Record) -> dict:
    """The row that says just this record."""
    if isinstance(value, SftExample):
        messages = as_messages(value.messages)
        masked = [turn | {"weight": 0} if index in value.untrained else turn for index, turn in enumerate(messages)]
        return {"id": value.id, "messages": masked}
    if isinstance(value, PreferencePair):
        sides = {side: as_messages((("assistant", getattr(value, side)),)) for side in ("chosen", "rejected")}
        return {"id": value.id, "prompt": as_messages(value.prompt), **sides}
    if isinstance(value, UnpairedAnswer):
        answer = as_messages((("assistant", value.completion),))
        return {"id": value.id, "prompt": as_messages(value.prompt), "completion": answer, "label": value.label}
    if isinstance(value, ConceptEntry):
        return {"concept": value.id, "keywords": list(value.keywords), "text": value.text}
    row = {name: getattr(value, name) for name in ("id", "prompt", "topic", "concept", "kind")}
    return row | {"keywords": list(value.keywords), "forbidden": list(value.forbidden)}


def as_messages(turns: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def require_readable_report(path: Path) -> None:
    """`--check` prints `FILE:LINE: kind: reason` for each problem and the counts last, and its exit code says the same."""
    out = io.StringIO()
    code = check([path], out)
    *listed, counts = out.getvalue().removesuffix("\n").split("\n")
    rows = list(read_rows(path))
    assert counts == str(counted(rows))
    assert code == (1 if not any(row.status != "skipped" for row in rows) or counted(rows).rejected else 0)
    assert all(line.isprintable() and REPORT_LINE.fullmatch(line)["file"] == str(path) for line in listed)
    places = [f":{row.line}" for row in rows for _ in row.problems]
    assert [REPORT_LINE.fullmatch(line)["line"] for line in listed if REPORT_LINE.fullmatch(line)["line"]] == places


def counted(rows: list[Row]) -> RowCounts:
    counts = RowCounts()
    for row in rows:
        counts.add(row)
    return counts
