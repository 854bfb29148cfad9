"""aligner.files: the same bytes on every machine, numbers that every reader accepts, and the error for a missing file."""

import io
import itertools

import pytest

from aligner.files import read_json, read_jsonl, write_csv, write_json, write_jsonl, write_text
from aligner.run.errors import InputError

# Line ends of Unicode, of old systems, and one that JSON writes as it is.
ODD_TEXT = "a\r\nb\rc\nd\u2028e\u0085f\u000cg\té 中 \U0001f600"
CELLS = [
    (0.1234567, "0.123457"),
    (1 / 3, "0.333333"),
    (0.1 + 0.2, "0.3"),
    (1234567.0, "1234570.0"),
    (0.00002, "2e-05"),
    (1.0, "1.0"),
    (1234567, "1234567"),
    (None, ""),
    ("a,b", '"a,b"'),
    ('say "a"', '"say ""a"""'),
]


@pytest.fixture
def windows(monkeypatch):
    """Files opened without `newline` behave as on Windows: every `\\n` becomes `\\r\\n`."""
    real = io.open

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest):
        translated = "\r\n" if newline is None and "w" in mode and "b" not in mode else newline
        return real(file, mode, buffering, encoding, errors, translated, *rest)

    monkeypatch.setattr(io, "open", opened)


def test_the_stand_in_for_windows_is_one(windows, tmp_path):
    (tmp_path / "plain").write_text("a\n", encoding="utf-8")
    assert (tmp_path / "plain").read_bytes() == b"a\r\n"


def test_lines_end_in_a_line_feed_everywhere(windows, tmp_path):
    write_text(tmp_path / "text", "a\nb\n")
    write_json(tmp_path / "json", {"a": 1})
    write_jsonl(tmp_path / "jsonl", [{"a": 1}, {"b": 2}])
    write_csv(tmp_path / "csv", ["a", "b"], [[1, 2]])
    assert (tmp_path / "text").read_bytes() == b"a\nb\n"
    assert (tmp_path / "json").read_bytes() == b'{\n  "a": 1\n}\n'
    assert (tmp_path / "jsonl").read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    assert (tmp_path / "csv").read_bytes() == b"a,b\n1,2\n"


def test_text_with_any_line_end_comes_back_as_it_was(tmp_path):
    rows = [{"answer": ODD_TEXT}, {"answer": ""}, {"answer": ODD_TEXT[::-1]}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_json(tmp_path / "value.json", rows)
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == rows
    assert read_json(tmp_path / "value.json") == rows
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 3


def test_text_is_written_as_utf_8_and_keys_in_the_order_given(tmp_path):
    write_json(tmp_path / "value.json", {"z": "é", "a": "中"})
    assert (tmp_path / "value.json").read_text(encoding="utf-8") == '{\n  "z": "é",\n  "a": "中"\n}\n'


def test_files_refuse_what_is_no_number(tmp_path, subtests):
    for value in (float("nan"), float("inf"), float("-inf")):
        with subtests.test("JSON", value=value), pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "metrics.json", {"sft": {"loss": value}})
        with subtests.test("JSON lines", value=value), pytest.raises(ValueError, match="not JSON compliant"):
            write_jsonl(tmp_path / "rows.jsonl", [{"rate": value}])
        with subtests.test("CSV", value=value), pytest.raises(ValueError, match=f"a plot cannot show {value}"):
            write_csv(tmp_path / "plot.csv", ["rate"], [[value]])


def test_a_refused_value_leaves_the_old_metrics_alone(tmp_path):
    write_json(tmp_path / "metrics.json", {"loss": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert read_json(tmp_path / "metrics.json") == {"loss": 1}


def test_files_cell_of_a_table(tmp_path, subtests):
    for value, cell in CELLS:
        write_csv(tmp_path / "plot.csv", ["first", "x"], [["-", value]])
        with subtests.test(value=value):
            assert (tmp_path / "plot.csv").read_bytes().decode() == f"first,x\n-,{cell}\n"


def test_folders_are_made(tmp_path):
    for index, write in enumerate([write_json, write_jsonl, lambda path, rows: write_csv(path, ["a"], rows)]):
        write(tmp_path / str(index) / "deep" / "file", [])
        assert (tmp_path / str(index) / "deep" / "file").is_file()


def test_files_missing_file_names_the_next_command(tmp_path, subtests):
    readers = {"JSON": read_json, "JSON lines": lambda path: list(read_jsonl(path))}
    for (kind, read), path in itertools.product(readers.items(), [tmp_path / "none.json", tmp_path]):
        expected = f"{path} is missing; an earlier stage writes it. Run: dvc repro (or, if it was shared: dvc pull)"
        with subtests.test(kind, path=path):
            with pytest.raises(InputError) as caught:
                read(path)
            assert str(caught.value) == expected


def test_rows_are_read_one_by_one(tmp_path):
    """The first row is read although the second is broken."""
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\nbroken\n', encoding="utf-8")
    assert next(read_jsonl(tmp_path / "rows.jsonl")) == {"a": 1}
