"""Turns each physical line of a file into a JSON object, or explains why it is not one."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn
from unicodedata import category

from aligner.run.errors import InputError
from aligner.run.terminal import printable, shown

MAX_LINE_BYTES = 16 * 2**20
MAX_INTEGER_DIGITS = 640  # the lowest limit that Python lets one set, so the same rows pass under every setting
MAX_DEPTH = 64  # levels of nested brackets, including the row's own
UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault of a row or a file: `kind` is a short snake_case name, `reason` one printable line that says how to fix it."""

    kind: str
    reason: str


class BadRow(Exception):
    """Rejects a row; the readers of rows (reader.read_line, and votes) catch it and report its problem."""

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.problem = Problem(kind, reason)


class UnreadableFile(InputError):
    """The whole file cannot be read: it is missing, a folder, protected, or on a failing disk."""

    def __init__(self, path: str, problem: Problem):
        super().__init__(f"{printable(path)}: {problem.kind}: {problem.reason}")
        self.problem = problem


# ---- From a file to lines -------------------------------------------------------------------------------------------


def physical_lines(path: str) -> Iterator[bytes | None]:
    """Yields the lines of a file as bytes, without a byte order mark at its start; None for an oversized line."""
    try:
        require_end(path)
        with open(path, "rb") as file:
            first = next_line(file)
            if first is not None and first.startswith(UTF8_BOM):
                yield first[len(UTF8_BOM) :]
            elif first != b"":
                yield first
            yield from iter(lambda: next_line(file), b"")
    except OSError as fault:
        raise UnreadableFile(path, file_problem(path, fault)) from fault


def require_end(path: str) -> None:
    """Raises UnreadableFile for what may never end: a device, or a named pipe, which waits for a writer.

    The pipes that a shell makes (`<(zcat rows.gz)`, /dev/stdin) have no name and are read like any file.
    """
    mode, place = os.stat(path).st_mode, os.path.realpath(path)
    if place == os.devnull or place.startswith("/dev/fd/") or not os.path.lexists(place):
        return
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        what = "a named pipe" if stat.S_ISFIFO(mode) else "a device"
        raise UnreadableFile(path, Problem("no_regular_file", f"this is {what}, which may never end; name a file"))


def next_line(file: BinaryIO) -> bytes | None:
    """The next line with its line end, b"" at the end of the file, or None for an oversized line, which is skipped."""
    raw = file.readline(MAX_LINE_BYTES + 1)
    if len(raw) <= MAX_LINE_BYTES:
        return raw
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(2**20)
    return None


# ---- From bytes to a JSON object ------------------------------------------------------------------------------------


def decode_line(raw: bytes | None) -> str:
    """The text of a line, strictly UTF-8."""
    if raw is None:
        raise BadRow("oversized_line", f"longer than {MAX_LINE_BYTES // 2**20} MiB; shorten or split the row")
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        raise encoding_fault(raw, fault) from None


def parse_object(text: str) -> dict:
    """The JSON object of a line; raises BadRow unless keys are unique, numbers finite, and all text valid in UTF-8."""
    try:
        row = DECODER.decode(text)
    except json.JSONDecodeError as fault:
        raise json_fault(text, fault) from None
    except RecursionError:
        raise too_deep() from None
    if type(row) is not dict:
        raise BadRow("not_an_object", f"a row must be a JSON object {{...}}, not {json_type(row)}; one object per line")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        check_depth(row)
    if "\\u" in text and UNSAFE_ESCAPE.search(text):
        check_characters(row)
    return row


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """The object of these pairs; raises BadRow for a repeated key, since json would silently keep only its last value."""
    row = dict(pairs)
    if len(row) != len(pairs):
        raise repeated_key(pairs)
    return row


def repeated_key(pairs: list[tuple[str, object]]) -> BadRow:
    earlier: set[str] = set()
    for key, _ in pairs:
        if key in earlier:
            break
        earlier.add(key)
    return BadRow("duplicate_keys", f"the key {shown(key)} occurs twice in one object; keep one of the two")


def finite_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise BadRow("float_overflow", f"{shown(digits)} is beyond what a double holds; write a finite number")
    return number


def bounded_int(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise BadRow("huge_integer", f"a number of {len(digits)} digits; write it as a string")
    return int(digits)


def refuse_constant(name: str) -> NoReturn:
    raise BadRow("non_finite_number", f"{name} is not JSON; use null or leave the key out")


DECODER = json.JSONDecoder(
    object_pairs_hook=unique_keys, parse_float=finite_float, parse_int=bounded_int, parse_constant=refuse_constant
)
UNSAFE_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")  # may be NUL or half a surrogate pair
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def check_depth(row: dict) -> None:
    """Raises BadRow for more than MAX_DEPTH nested brackets. Python's own limit differs between versions."""
    level = [row]
    for _ in range(MAX_DEPTH):
        inner = (item for value in level for item in (value.values() if type(value) is dict else value))
        level = [item for item in inner if type(item) in (dict, list)]
    if level:
        raise too_deep()


def check_characters(row: dict) -> None:
    """Raises BadRow if any key or text of the row holds NUL or a lone surrogate."""
    for text in strings(row):
        if "\0" in text:
            raise BadRow("escaped_nul", "a text holds \\u0000 (NUL), which cannot be tokenised or stored; remove it")
        if LONE_SURROGATE.search(text):
            raise BadRow(
                "lone_surrogate",
                "a text holds half of a surrogate pair (\\ud800 to \\udfff), which no UTF-8 "
                "file can hold; write the whole character",
            )


def strings(value: object) -> Iterator[str]:
    """Yields every key and every text of a JSON value of any depth, without recursion."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) is str:
            yield value
        elif type(value) is dict:
            yield from value
            waiting.extend(value.values())
        elif type(value) is list:
            waiting.extend(value)


# ---- Visible characters ---------------------------------------------------------------------------------------------

BLANK_LETTERS = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)  # fillers and variation selectors
BLANK_CATEGORIES = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))


def is_visible(character: str) -> bool:
    return character not in BLANK_LETTERS and category(character) not in BLANK_CATEGORIES


# ---- Diagnosis of a faulty line -------------------------------------------------------------------------------------

SIGNATURES = {  # the first bytes of files that are not UTF-8 text
    b"\x1f\x8b": "gzip-compressed: unpack it first (gunzip)",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"BZh": "bzip2-compressed: unpack it first",
    b"\xfd7zXZ": "xz-compressed: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed: unpack it first",
    b"PAR1": "a Parquet file: export it as JSON Lines",
    b"\xff\xfe\0\0": "UTF-32: convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)",
    b"\0\0\xfe\xff": "UTF-32: convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)",
    b"\xff\xfe": "UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
}
# Control bytes other than tab, line ends and escape: no text in an 8-bit encoding has them.
BINARY = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
OVERLONG = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]")
JSON_LOOKALIKES = {  # the beginning of a line that is not JSON (in any case) -> what the line is
    "\ufeff": (
        "bom_mid_file",
        "a byte order mark inside the file: were files concatenated? remove it (only one, at "
        "the very start of a file, is passed over)",
    ),
    r"#|//|/\*": ("comment_line", "a comment is not JSON; remove the line"),
    r"<{7}|={7}|>{7}|\|{7}": ("merge_conflict", "a Git merge conflict was left in the file; resolve it"),
    r"<[!?/a-z]": (
        "html_error_page",
        "HTML or XML, not JSON: a download has perhaps saved an error page; fetch the file again",
    ),
    "version https://git-lfs|oid sha256:": ("git_lfs_pointer", "a Git LFS pointer, not the data: run git lfs pull"),
    r"[\[{(]\s*[bru]?'": (
        "python_repr",
        "single quotes are not JSON: written by Python's str() or repr()? use json.dumps",
    ),
    r'[\[{]$|[\]}],?$|"[^"]{0,100}"\s*:': (
        "spread_json",
        "JSON spread over several lines; write one object per line (jq -c .)",
    ),
}


def file_problem(path: str, fault: OSError) -> Problem:
    if isinstance(fault, FileNotFoundError):
        return Problem("missing_file", "there is no such file; check the path")
    if os.path.isdir(path):
        return Problem("directory", "this is a folder; name the files in it")
    return Problem("unreadable_file", f"it cannot be read: {fault.strerror or type(fault).__name__}")


def encoding_fault(raw: bytes, fault: UnicodeDecodeError) -> BadRow:
    """Why a line is not UTF-8: another kind of file, a cut character, or another encoding."""
    if other := other_file(raw):
        return other
    broken = raw[fault.start : fault.start + 2]
    where = f"byte 0x{broken[0]:02x} at column {fault.start + 1} is not UTF-8"
    if BINARY.search(raw):
        return BadRow("not_utf8_text", f"{where}, and the line has control bytes: the file may be UTF-16, or not text at all")
    if broken[0] == 0xED and broken[1:] >= b"\xa0":
        return BadRow("lone_surrogate", f"{where}: half of a surrogate pair (CESU-8?); write the file anew as UTF-8")
    if OVERLONG.match(raw, fault.start):
        return BadRow("overlong_utf8", f"{where}: an overlong form, more bytes than the character has; write it anew as UTF-8")
    if fault.end - fault.start > 1 or fault.reason == "unexpected end of data":
        return BadRow("truncated_multibyte", f"{where}: an incomplete character; was the text cut by bytes?")
    return BadRow("latin1_byte", f"{where}: the file may be Latin-1/CP1252; convert it (iconv -f CP1252 -t UTF-8)")


def other_file(raw: bytes) -> BadRow | None:
    """The kind of file that begins with these bytes, if it is not UTF-8 text."""
    hints = (hint for signature, hint in SIGNATURES.items() if raw.startswith(signature))
    return next((BadRow("not_utf8_text", f"the file seems to be {hint}") for hint in hints), None)


def json_fault(text: str, fault: json.JSONDecodeError) -> BadRow:
    """Why a line is not JSON: it is something else altogether, or has a mistake where the decoder stopped."""
    begin = text.strip()
    if other := other_file(text.encode()):
        return other
    for start, (kind, reason) in JSON_LOOKALIKES.items():
        if re.match(start, begin, re.I):
            return BadRow(kind, reason)
    where = f"at column {fault.pos + 1}"
    if "\0" in text:
        return BadRow("raw_nul", "a NUL byte: the file may be UTF-16 or damaged; write it anew as UTF-8")
    if fault.msg.startswith("Unterminated string") or fault.pos >= len(text.rstrip()):
        return BadRow(
            "truncated_json",
            "the line ends inside the row: it was cut off, or a text holds a raw line break (write \\n)",
        )
    if fault.msg.startswith("Invalid control character"):
        return BadRow("raw_control_character", f"a raw control character {where}; escape it (\\n, \\t, \\u001b)")
    if text.startswith(("None", "True", "False"), fault.pos):
        return BadRow("python_repr", f"Python's None, True or False {where}; JSON has null, true and false")
    if fault.msg == "Extra data":
        return BadRow("extra_data", f"more text after the row, {where}; one object per line, lines ending in \\n")
    found = text[fault.pos]
    if not found.isascii():
        where += f" (U+{ord(found):04X}, {found if is_visible(found) and found.isprintable() else 'invisible'})"
    return BadRow("not_json", f"not JSON {where}: {fault.msg}; check the quotes, commas and brackets there")


def too_deep() -> BadRow:
    return BadRow("deep_nesting", f"more than {MAX_DEPTH} brackets inside one another; flatten the row")


def json_type(value: object) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list" if value else "an empty list",
        dict: "an object",
    }
    return names[type(value)]
