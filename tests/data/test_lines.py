"""From the bytes of a file to JSON objects: line ends, bounded memory, and the reason why a line is not an object."""

import json
import tracemalloc

import pytest
from support.data_lines import GOOD, as_bytes, problem_of, value_of

from aligner.data import lines
from aligner.data.reader import read_rows


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"prompt":"p","response":"\xed\xa0\x80"}', "lone_surrogate"),
        (b"\x1f\x8b\x08\x00binary\xff", "not_utf8_text"),
        ('{"prompt":"p","response":"r"}'.encode("utf-16"), "not_utf8_text"),
        ('{"prompt":"p","response":"r"}'.encode("utf-16-le"), "raw_nul"),
        (b'{"prompt":"p","response":"a\x01b"}', "raw_control_character"),
        (b'{"prompt":"p","response":"r"', "truncated_json"),
        (b'{"prompt":"p","respo', "truncated_json"),
        (b'{"prompt":"p","response":"r"}{"prompt":"p","response":"r"}', "extra_data"),
        (b'{"prompt":"p","response":"r"}\r{"prompt":"p","response":"r"}', "extra_data"),
        (b'{"prompt":"p","response":"r"},', "extra_data"),
        (b'{"prompt":"p","response":None}', "python_repr"),
        (b'{"prompt":"p" "response":"r"}', "not_json"),
        (b"<<<<<<< HEAD", "merge_conflict"),
        (b"version https://git-lfs.github.com/spec/v1", "git_lfs_pointer"),
        (b"{", "spread_json"),
        (b'  "prompt": "p",', "spread_json"),
        (b"[", "spread_json"),
        (b'["p"]', "not_an_object"),
        (b"null", "not_an_object"),
        (b'"p"', "not_an_object"),
        (b'{"prompt":"p","response":"r","x":NaN}', "non_finite_number"),
        (b'{"prompt":"p","response":"r","x":-Infinity}', "non_finite_number"),
        (b'{"prompt":"p","response":"r","x":[-1e999]}', "float_overflow"),
        (b'{"prompt":"p","response":"r","x":' + b"9" * 5000 + b"}", "huge_integer"),
        (b'{"prompt":"p","response":"r","x":' + b"[" * 70 + b"]" * 70 + b"}", "deep_nesting"),
        (b'{"a":' * 100_000, "deep_nesting"),
        (b"[" * 100_000, "deep_nesting"),
        (b'{"prompt":"p","response":"r","x":{"y":1,"y":2}}', "duplicate_keys"),
        (b'{"prompt":"p","response":"r","x":["\\ud83d"]}', "lone_surrogate"),
        (b'{"prompt":"p","response":"r","\\u0000":1}', "escaped_nul"),
    ],
)
def test_a_bad_sft_line_is_rejected_by_name(rows_of, line, kind):
    assert problem_of(rows_of(GOOD, line)[1]).kind == kind


# ---- Bytes, lines and memory ----------------------------------------------------------------------------------------


def test_only_line_feeds_end_lines(rows_of):
    """U+2028, U+0085 and form feeds end lines for str.splitlines, but not in a data file."""
    texts = ["a\u2028b", "a\u0085b", "a\u000cb"]
    rows = rows_of(*(json.dumps({"prompt": text, "response": "r"}, ensure_ascii=text == "a\u000cb") for text in texts))
    assert [(row.line, value_of(row).messages[0][1]) for row in rows] == list(enumerate(texts, start=1))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends_and_a_last_line_without_one(rows_of, end):
    assert [row.status for row in rows_of(GOOD, "", " \t", GOOD, end=end)] == [
        "accepted",
        "skipped",
        "skipped",
        "accepted",
    ]
    assert [row.status for row in rows_of(as_bytes(GOOD) + end + as_bytes(GOOD), end=b"")] == ["accepted", "accepted"]


def test_only_one_byte_order_mark_is_skipped(rows_of):
    bom = b"\xef\xbb\xbf"
    assert [row.status for row in rows_of(bom + as_bytes(GOOD), GOOD)] == ["accepted", "accepted"]
    assert problem_of(rows_of(bom + bom + as_bytes(GOOD))[0]).kind == "bom_mid_file"
    assert [row.status for row in rows_of(bom, end=b"")] == ["skipped"]
    assert rows_of(end=b"") == []


def test_a_line_of_five_megabytes_is_an_ordinary_line(rows_of):
    text = "word " * 1_000_000
    good, warned = rows_of({"prompt": "p", "response": text}, {"prompt": "p@q.org", "response": text})
    assert value_of(good).messages[1][1] == text.strip() and warned.status == "warned"


def test_an_oversized_line_is_rejected_without_being_held(rows_of, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2**16)
    limit_row = as_bytes(GOOD) + b" " * (2**16 - len(as_bytes(GOOD)) - 1)
    rows = rows_of(GOOD, limit_row, limit_row + b" ", b"x" * 2**24, GOOD)
    assert [row.status for row in rows] == ["accepted", "accepted", "rejected", "rejected", "accepted"]
    assert problem_of(rows[3]).kind == "oversized_line" and rows[4].line == 5


def test_memory_does_not_grow_with_an_endless_line(tmp_path, monkeypatch):
    """One line of 64 MiB under a limit of 1 MiB takes a few MiB at the peak (readline's 1 MiB buffer and its copy)."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "endless.jsonl"
    path.write_bytes(b'{"prompt":"' + b"x" * 2**26)
    tracemalloc.start()
    statuses = [row.status for row in read_rows(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert statuses == ["rejected"] and peak < 8 * 2**20


def test_the_reader_streams(tmp_path):
    """The first row arrives before the second line is read, so the file may still grow."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_bytes(GOOD) + b"\n")
    rows = read_rows(path)
    assert next(rows).line == 1
    with open(path, "ab") as file:
        file.write(as_bytes(GOOD) + b"\n")
    assert [row.line for row in rows] == [2]
