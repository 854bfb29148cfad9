"""Recognises data files that are not JSON lines in a strict format, and names the command that converts them.

`prepare` and its `--check` ask before they read a file, so that such a file gets one message and not one for every line.
"""

from __future__ import annotations

import gzip
import re
import shlex
import zlib
from pathlib import Path

from aligner.data.formats import recognise
from aligner.data.layouts import Layout, recognise_layout, without_nulls
from aligner.data.lines import BadRow, Problem, decode_line, next_line, parse_object

SIGNATURES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PAR1": "Parquet", b"ARROW1": "Arrow"}
NAMES = {"JSON array": "one JSON array", "folder saved by datasets": "a folder saved by datasets"}
COMPRESSED = ("gzip", "bzip2", "xz")
ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:\{|\Z)")
LAYOUT_FAULTS = ("unknown_format", "missing_key", "unknown_role", "content_parts_list", "mixed_str_and_list", "wrong_type")
HEAD = 2**16
CONVERTED = ("sft", "pairs", "unpaired", "eval")
MARKS = {
    "pairs": (b"rejected", b"response_0", b"human_ref_B", b"winner"),
    "unpaired": (b"kto_tag", b'"label"'),
    "eval": (b'"turns"',),
}


def file_type(path: Path) -> str:
    """What a path holds: a folder, gzip, bzip2, xz, Parquet, Arrow, CSV, a JSON array, or lines."""
    if path.is_dir():
        saved = any((path / name).exists() for name in ("state.json", "dataset_dict.json"))
        return "folder saved by datasets" if saved else "folder"
    head = head_of(path)
    if found := next((kind for start, kind in SIGNATURES.items() if head.startswith(start)), None):
        return "CSV" if found in COMPRESSED and {".csv", ".tsv"} & set(path.suffixes) else found
    if path.suffix in (".csv", ".tsv") and not head.lstrip().startswith((b"{", b"[")):
        return "CSV"
    return "JSON array" if ARRAY.match(head) else "lines"


def head_of(path: Path) -> bytes:
    """The first bytes of a regular file; of a pipe or a device nothing is read."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)


def other_file(path: str, kind: str | None) -> Problem | None:
    """The problem of a file that must be converted as a whole, with the command; None for any other file."""
    place = Path(path)
    try:
        found = file_type(place)
        if found == "folder":
            return None
        if found == "lines":
            layout = other_layout(place, kind)
            if layout is None:
                return None
            return _problem(place, f"a file of another layout ({layout.name})", kind or layout.kind)
    except OSError:
        return None  # the reader says why
    return _problem(place, NAMES.get(found, f"a {found} file"), kind or _guess(place))


def other_layout(path: Path, kind: str | None) -> Layout | None:
    """The layout of a file whose first row the strict reader would refuse, although its layout is known."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        line = next((line for line in iter(lambda: next_line(file), b"") if line is None or line.strip()), None)
    try:
        row = parse_object(decode_line(line).removeprefix("\ufeff"))
    except BadRow:
        return None
    return None if _is_strict(row, kind) else _convertible(without_nulls(row), kind)


def _is_strict(row: dict, kind: str | None) -> bool:
    """Whether a row is in a strict format, be it with a fault in its texts, or is of another kind: the reader then says so."""
    try:
        form = recognise(row, kind)
        if form is None:
            return recognise(row, None) is not None or "keywords" in row
        form.record(row, "line-1")
    except BadRow as bad:
        return bad.problem.kind not in LAYOUT_FAULTS
    return True


def _convertible(row: dict, kind: str | None) -> Layout | None:
    """The layout of a row if its conversion is a row of the strict reader."""
    layout = recognise_layout(row)
    if layout is None or kind not in (None, *CONVERTED):
        return None
    if layout.kind == "prompt" or kind == "eval":
        return layout if kind == "eval" else None
    try:
        written = layout.read(row)
        form = recognise({key: value for key, value in written.items() if key != "notes"}, layout.kind)
        return layout if form and form.record(written, "line-1") else None
    except BadRow:
        return None


def _guess(path: Path) -> str:
    """What the rows of a file seem to be, by the names of keys in its first or last bytes."""
    part = b""
    if path.is_file():
        part = head_of(path)
        if part.startswith(b"\x1f\x8b"):
            part = _unpacked(part)
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - HEAD))
            part += file.read()
    return next((kind for kind, marks in MARKS.items() if any(mark in part for mark in marks)), "sft")


def _unpacked(part: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(part)
    except (zlib.error, gzip.BadGzipFile):
        return b""


def _problem(path: Path, what: str, kind: str) -> Problem | None:
    if kind not in CONVERTED:
        return None
    return Problem("convert_first", f"this is {what}, and prepare reads JSON lines. Run: {command(path, kind)}")


def command(path: Path, kind: str) -> str:
    stem = path.name.split(".")[0] or "rows"
    return shlex.join(["python", "src/convert.py", str(path), "--to", kind, "--out", f"data/raw/{stem}_{kind}.jsonl"])
