"""Every layout that convert reads, on a small sample in that layout."""

import io
import json
import shlex

import pytest
from support.layouts import CASES, write_source

import convert
import layouts_page
from aligner.data.layouts import LAYOUTS
from aligner.data.other_files import other_file
from aligner.data.reader import read_rows


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(convert, "bar", lambda *_: FakeBar())
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


class FakeBar:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def update(self, _):
        pass


def run(*arguments):
    out = io.StringIO()
    convert.main(convert.parser().parse_args(list(map(str, arguments))), out)
    return out.getvalue()


def converted(case, folder):
    path, out = write_source(case, folder), folder / "out" / "rows.jsonl"
    options = [part for option in case.options for part in shlex.split(option)]
    said = run(path, "--to", case.to, *options, "--out", out)
    return said, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], out


@pytest.mark.parametrize("case", CASES, ids=[f"{case.name}-{case.to}" for case in CASES])
def test_a_layout_is_recognised_and_its_rows_are_accepted_by_prepare(case, tmp_path):
    said, rows, out = converted(case, tmp_path)
    assert {key: value for key, value in rows[0].items() if key != "id"} == case.expected
    assert len(rows) == case.out
    assert f"rows out: {case.out} ({case.to})" in said
    read = list(read_rows(out, case.to))
    assert [row.status for row in read] == ["accepted"] * case.out
    assert [row.value.id for row in read] == [row["id"] for row in rows]


def test_at_least_thirty_layouts_are_tested_and_none_is_forgotten():
    assert len(CASES) >= 30
    taken = {
        next(layout.name for layout in LAYOUTS if layout.suits(row))
        for case in CASES
        if not case.options
        for row in case.rows[:1]
    }
    assert {layout.name for layout in LAYOUTS} - taken == {"raw text", "Axolotl segments"}


NAMED = [case for case in CASES if case.file.endswith((".json", ".gz", ".parquet", ".csv", "saved")) and not case.options]


@pytest.mark.parametrize("case", NAMED, ids=[f"{case.name}-{case.to}" for case in NAMED])
def test_prepare_names_the_command_that_converts_the_file(case, tmp_path):
    path = write_source(case, tmp_path)
    problem = other_file(str(path), case.to)
    assert problem.kind == "convert_first"
    command = shlex.split(problem.reason.split("Run: ")[1])
    assert command[:5] == ["python", "src/convert.py", str(path), "--to", case.to]
    run(*command[2:-1], tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").stat().st_size


def test_the_page_of_layouts_is_up_to_date():
    assert layouts_page.PAGE.read_text(encoding="utf-8") == layouts_page.page()
