"""Lines of data files for the tests of aligner.data, and what a row that is read from them must be."""

from __future__ import annotations

import io
import json
from pathlib import Path

from aligner.data.reader import check

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "rows"
EXPECTED = json.loads((FIXTURES / "bad_rows.expected.json").read_text(encoding="utf-8"))
GOOD = {"prompt": "p", "response": "r"}
USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))
EVAL = {"id": "e1", "prompt": "What is a chain?", "topic": "markov", "keywords": ["state", {"any": ["next", "step"]}]}
CONCEPT = {"concept": "Bayes' rule", "keywords": ["prior", {"any": ["posterior"]}], "text": "It turns a prior into a posterior."}


def as_bytes(line):
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)).encode()


def value_of(row):
    assert row.status == "accepted", row
    return row.value


def problem_of(row, status="rejected"):
    assert row.status == status, row
    assert len(row.problems) == 1 and row.problems[0].reason.isprintable()
    return row.problems[0]


def checked(*paths):
    out = io.StringIO()
    code = check(paths, out)
    return code, out.getvalue().splitlines()
