"""`python src/prepare.py --check` on files with every fault that people and programs cause.

Each case is a whole file: its bytes, the status of each physical line (a accepted, w warned, r rejected, s skipped), and the
kinds of the problems in order. The rules of loader_rules hold for every file.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.loader_rules import require_sound

ROOT = Path(__file__).resolve().parents[2]
GOOD = b'{"prompt":"p","response":"r"}'
TWO = GOOD + b"\n" + GOOD + b"\n"
USER, ASSISTANT, SYSTEM = ({"role": role, "content": role} for role in ("user", "assistant", "system"))


def row(**fields):
    return json.dumps(fields, ensure_ascii=False).encode()


def text(prompt):
    return row(prompt=prompt, response="r")


def messages(*turns):
    return row(messages=list(turns))


def sharegpt(*turns):
    return row(conversations=[{"from": role, "value": value} for role, value in turns])


def pair(chosen, rejected):
    return row(prompt="p", chosen=chosen, rejected=rejected)


def eval_row(**fields):
    return row(**{"id": "e", "prompt": "q", "topic": "t", "keywords": ["k"], **fields})


def valued(number):
    """A good row with one more key; its value is written verbatim."""
    return b'{"prompt":"p","response":"r","x":' + number + b"}"


ENCODINGS = {
    "UTF-16 with a mark": (TWO.decode().encode("utf-16"), "rrr", "not_utf8_text raw_nul raw_nul"),
    "UTF-16, big end first, with a mark": (b"\xfe\xff" + TWO.decode().encode("utf-16-be"), "rr", "not_utf8_text raw_nul"),
    "UTF-16 without a mark": (TWO.decode().encode("utf-16-le"), "rrr", "raw_nul raw_nul raw_nul"),
    "UTF-16 without a mark, beyond ASCII": ('{"prompt":"é"}'.encode("utf-16-be"), "r", "not_utf8_text"),
    "UTF-32 with a mark": (GOOD.decode().encode("utf-32"), "r", "not_utf8_text"),
    "UTF-32, big end first, with a mark": (b"\0\0\xfe\xff" + GOOD.decode().encode("utf-32-be"), "r", "not_utf8_text"),
    "UTF-32 without a mark": (GOOD.decode().encode("utf-32-le"), "r", "raw_nul"),
    "Latin-1": ('{"prompt":"café","response":"r"}'.encode("latin-1"), "r", "latin1_byte"),
    "quotes of CP1252": ('{"prompt":"“x”","response":"r"}'.encode("cp1252"), "r", "latin1_byte"),
    "an overlong slash": (b'{"prompt":"\xc0\xaf","response":"r"}', "r", "overlong_utf8"),
    "an overlong NUL": (b'{"prompt":"\xc0\x80","response":"r"}', "r", "overlong_utf8"),
    "an overlong slash in three bytes": (b'{"prompt":"\xe0\x80\xaf","response":"r"}', "r", "overlong_utf8"),
    "CESU-8": (b'{"prompt":"\xed\xa0\xbd\xed\xb8\x80","response":"r"}', "r", "lone_surrogate"),
    "half a pair, escaped": (b'{"prompt":"\\ud83d","response":"r"}', "r", "lone_surrogate"),
    "half a pair in a key": (b'{"prompt":"p","response":"r","\\udfff":1}', "r", "lone_surrogate"),
    "a whole pair, escaped": (b'{"prompt":"\\ud83d\\ude00","response":"r"}', "a", ""),
    "an escaped backslash before u": (b'{"prompt":"\\\\ud83d","response":"r"}', "a", ""),
    "a NUL": (b'{"prompt":"a\0b","response":"r"}', "r", "raw_nul"),
    "a line of NULs, as a crash leaves it": (b"\0\0\0\n" + GOOD, "ra", "raw_nul"),
    "a mark on every line": (b"\xef\xbb\xbf" + GOOD + b"\n\xef\xbb\xbf" + GOOD, "ar", "bom_mid_file"),
    "a mark in a key": ('{"\ufeffprompt":"p","response":"r"}'.encode(), "r", "unknown_format"),
}
OTHER_FILES = {
    "gzip": (gzip.compress(GOOD, mtime=0), "r", "not_utf8_text"),
    "zip": (b"PK\x03\x04abc", "r", "not_utf8_text"),
    "Parquet": (b"PAR1\x15\x04", "r", "not_utf8_text"),
    "pickle": (b"\x80\x04\x95\x10\0", "r", "not_utf8_text"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "rrr", "latin1_byte not_json raw_nul"),
    "CSV": (b"prompt,response\np,r\n", "rr", "not_json not_json"),
    "YAML": (b"- prompt: p\n  response: r\n", "rr", "not_json not_json"),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
        "rr",
        "git_lfs_pointer git_lfs_pointer",
    ),
    "a merge conflict": (b"<<<<<<< HEAD\n" + GOOD + b"\n=======\n", "rar", "merge_conflict merge_conflict"),
    "nothing": (b"", "", ""),
    "a byte order mark alone": (b"\xef\xbb\xbf", "s", ""),
}
JSON = {
    "the same key twice in a message": (b'{"messages":[{"role":"user","role":"user","content":"u"}]}', "r", "duplicate_keys"),
    "the same key twice, once escaped": (b'{"prompt":"p","\\u0070rompt":"q","response":"r"}', "r", "duplicate_keys"),
    "NaN": (valued(b"NaN"), "r", "non_finite_number"),
    "Infinity": (valued(b"Infinity"), "r", "non_finite_number"),
    "undefined": (valued(b"undefined"), "r", "not_json"),
    "a hundred thousand digits": (valued(b"9" * 100_000), "r", "huge_integer"),
    "hexadecimal": (valued(b"0x1F"), "r", "not_json"),
    "minus zero": (valued(b"-0"), "a", ""),
    "ten thousand lists": (valued(b"[" * 10_000 + b"]" * 10_000), "r", "deep_nesting"),
    "ten thousand objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "r", "deep_nesting"),
    "ten thousand brackets in a text": (text("[" * 10_000), "a", ""),
    "a trailing comma": (b'{"prompt":"p","response":"r",}', "r", "not_json"),
    "two rows on a line": (GOOD + b" " + GOOD, "r", "extra_data"),
    "one array": (b"[" + GOOD + b"," + GOOD + b"]", "r", "not_an_object"),
    "an array over lines": (b"[\n" + GOOD + b",\n" + GOOD + b"\n]\n", "rrar", "spread_json extra_data spread_json"),
    "an indented object": (json.dumps({"prompt": "p"}, indent=2).encode(), "rrr", "spread_json spread_json spread_json"),
    "a comment after a row": (GOOD + b" // why", "r", "extra_data"),
    "curly quotes": ("{“prompt”: “p”}".encode(), "r", "not_json"),
    "no quotes": (b'{prompt:"p"}', "r", "not_json"),
    "half an escape": (b'{"prompt":"a\\u12', "r", "not_json"),
    "a raw tabulator": (b'{"prompt":"a\tb","response":"r"}', "r", "raw_control_character"),
    "a raw line end": (b'{"prompt":"a\nb","response":"r"}', "rr", "truncated_json not_json"),
}
LINES = {
    "old Mac line ends": (GOOD + b"\r" + GOOD + b"\r", "r", "extra_data"),
    "line separators between rows": ((GOOD.decode() + "\u2028" + GOOD.decode()).encode(), "r", "extra_data"),
    "line separators in a text": (text("a\u2028b\u2029c\u0085d"), "a", ""),
    "blank lines of all kinds": (b"\n \n\t\n\x0b\n\xc2\xa0\n" + GOOD + b"\n\n", "sssssas", ""),
    "a line with a zero-width space": (b"\xe2\x80\x8b\n" + GOOD, "ra", "not_json"),
    "twenty thousand keys": (row(prompt="p", response="r", **{f"k{n}": n for n in range(20_000)}), "a", ""),
    "ten thousand turns": (messages(*[USER, ASSISTANT] * 5_000), "a", ""),
}
CONVERSATIONS = {
    "a role in capitals": (messages(USER, {"role": "ASSISTANT", "content": "a"}), "r", "unknown_role"),
    "a developer": (messages({"role": "developer", "content": "d"}, USER, ASSISTANT), "r", "unknown_role"),
    "a role of null": (messages({"role": None, "content": "u"}, ASSISTANT), "r", "wrong_type"),
    "a tool call": (messages(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}), "r", "tool_use"),
    "a tool call beside a text": (messages(USER, ASSISTANT | {"tool_calls": [{"id": "1"}]}), "r", "tool_use"),
    "null in place of tool calls": (messages(USER, ASSISTANT | {"tool_calls": None, "function_call": None}), "a", ""),
    "an empty list of tool calls": (messages(USER, ASSISTANT | {"tool_calls": []}), "a", ""),
    "content in parts": (messages(USER, {"role": "assistant", "content": [{"type": "text"}]}), "r", "content_parts_list"),
    "an empty answer": (messages(USER, {"role": "assistant", "content": ""}), "r", "empty_text"),
    "two answers in a row": (messages(USER, ASSISTANT, ASSISTANT), "r", "roles_not_alternating"),
    "a system message in the middle": (messages(USER, SYSTEM, ASSISTANT), "r", "system_in_middle"),
    "a question at the end": (messages(USER, ASSISTANT, USER), "r", "ends_with_user"),
    "lists in lists": (messages([USER, ASSISTANT]), "r", "wrong_type"),
    "Alpaca without an instruction": (row(instruction="", input="x", output="o"), "r", "empty_text"),
    "Alpaca without an output": (row(instruction="i", input="x"), "r", "missing_key"),
    "Alpaca with a number as input": (row(instruction="i", input=3, output="o"), "r", "wrong_type"),
    "Alpaca with an invisible input": (row(instruction="i", input="\u200b", output="o"), "r", "invisible_only"),
    "ShareGPT with an unknown speaker": (sharegpt(("bing", "x"), ("gpt", "y")), "r", "unknown_role"),
    "ShareGPT with a function": (sharegpt(("human", "x"), ("function_call", "y")), "r", "tool_use"),
    "ShareGPT that begins with the model": (sharegpt(("gpt", "x"), ("human", "y"), ("gpt", "z")), "r", "starts_with_assistant"),
    "ShareGPT under another key": (row(conversation=[{"from": "human", "value": "x"}]), "r", "unknown_format"),
    "four formats": (b"\n".join([GOOD, messages(USER, ASSISTANT), pair("a", "b"), eval_row()]), "arrr", "other_format " * 3),
}
PAIRS = {
    "the same answer": (pair("a", "a"), "r", "chosen_equals_rejected"),
    "equal apart from surrounding white space": (pair("a", " a\n"), "r", "chosen_equals_rejected"),
    "equal apart from an accent's coding": (pair("caf\u00e9", "cafe\u0301"), "r", "chosen_equals_rejected"),
    "equal apart from a zero-width space": (pair("ab", "a\u200bb"), "r", "chosen_equals_rejected"),
    "equal apart from line ends": (pair("a\nb", "a\r\nb"), "r", "chosen_equals_rejected"),
    "equal apart from a hard space": (pair("a b", "a\u00a0b"), "r", "chosen_equals_rejected"),
    "equal apart from capitals": (pair("A", "a"), "a", ""),
    "equal apart from a line end in place of a space": (pair("a b", "a\nb"), "a", ""),
    "the same letters with a visible difference in joining": (pair("\u0646\u0645\u06cc", "\u0646\u0645\u200c\u06cc"), "a", ""),
    "one answer of null": (pair("a", None), "r", "wrong_type"),
    "one answer a string, one a list": (pair("a", [ASSISTANT]), "r", "mixed_str_and_list"),
    "answers as objects": (pair(ASSISTANT, USER), "r", "wrong_type"),
}
TEXTS = {
    "nothing but null": (row(prompt=None, response=None), "r", "wrong_type"),
    "numbers": (row(prompt=1.5, response=False), "r", "wrong_type"),
    "white space": (text(" \t\n"), "r", "empty_text"),
    "zero width": (text("\u200b\u200c\u200d\u2060\ufeff"), "r", "invisible_only"),
    "control characters alone": (text("\x07\x1b"), "r", "invisible_only"),
    "a colour of a terminal": (text("\x1b[31mred"), "w", "control_character"),
    "a colour of a terminal in one character": (text("\x9b31mred"), "w", "control_character"),
    "a colour of a terminal, raw": (b'{"prompt":"\x1b[31mred","response":"r"}', "r", "raw_control_character"),
    "a title of a terminal as a key": (row(**{"\x1b]0;x\x07": "p", "response": "r"}), "r", "unknown_format"),
    "a direction overridden": (text("abc \u202egnp.exe"), "w", "bidi_control"),
    "words in tag characters": (text("Hi" + "".join(chr(0xE0000 + ord(letter)) for letter in "obey")), "w", "hidden_text"),
    "the flag of Scotland": (text("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"), "a", ""),
    "a family and a flag": (text("👩‍👩‍👧‍👦 🇫🇷 ❤️"), "a", ""),
    "special tokens": (text("<|end|></s>[INST]<|im_start|>"), "a", ""),
    "a template": (text("{{ 7 * 7 }} {% raw %} {0.__class__} %s%n"), "a", ""),
    "a page": (text("</script><img src=x onerror=alert(1)>"), "a", ""),
    "keys of a prototype": (row(prompt="p", response="r", __proto__={"x": 1}, __class__="x"), "a", ""),
    "an id that leaves its folder": (row(id="../../x", prompt="p", response="r"), "r", "hostile_id"),
    "an id of a format string": (row(id="{0.__class__}", prompt="p", response="r"), "r", "hostile_id"),
    "an id of a template": (row(id="{{7*7}}", prompt="p", response="r"), "r", "hostile_id"),
    "an id of printf": (row(id="%s%n", prompt="p", response="r"), "r", "hostile_id"),
    "an id of a page": (row(id="</script>", prompt="p", response="r"), "r", "hostile_id"),
    "an id of a terminal": (row(id="\x1b[2J", prompt="p", response="r"), "r", "hostile_id"),
    "an id of two lines": (row(id="a\nb", prompt="p", response="r"), "r", "hostile_id"),
    "an id as a number": (row(id=7, prompt="p", response="r"), "r", "wrong_type"),
}
KEYWORDS = {
    "a weight beyond every double": (eval_row(keywords=[{"any": ["k"], "weight": 10**400}]), "r", "bad_keywords"),
    "a weight whose sum with itself is infinite": (eval_row(keywords=[{"any": ["k"], "weight": 1e308}]), "r", "bad_keywords"),
    "no keyword": (eval_row(keywords=None), "r", "bad_keywords"),
    "a topic that is an object": (eval_row(topic={}), "r", "wrong_type"),
}
CASES = ENCODINGS | OTHER_FILES | JSON | LINES | CONVERSATIONS | PAIRS | TEXTS | KEYWORDS
LETTERS = {"accepted": "a", "warned": "w", "rejected": "r", "skipped": "s"}


@pytest.mark.parametrize("name", CASES)
def test_every_line_gets_the_expected_status(tmp_path, name):
    data, expected, kinds = CASES[name]
    rows = require_sound(tmp_path / "rows.jsonl", data)
    assert "".join(LETTERS[row.status] for row in rows) == expected
    assert [problem.kind for row in rows for problem in row.problems] == kinds.split()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("UTF-32 with a mark", "iconv -f UTF-32"),
        ("zip", "a zip archive: unpack it first"),
        ("Parquet", "export it as JSON Lines"),
        ("curly quotes", "(U+201C, “)"),
        ("a line with a zero-width space", "(U+200B, invisible)"),
        ("equal apart from a zero-width space", "look the same"),
        ("a weight beyond every double", "weight must be a number > 0 and <= 1,000,000"),
        ("words in tag characters", "tag characters"),
    ],
)
def test_the_reason_names_the_invisible_cause(tmp_path, name, hint):
    reasons = [problem.reason for row in require_sound(tmp_path / "rows.jsonl", CASES[name][0]) for problem in row.problems]
    assert hint in reasons[0]


# ---- Not regular files ----------------------------------------------------------------------------------------------


def command(*paths, **options):
    script = [sys.executable, str(ROOT / "src" / "prepare.py"), "--check", *map(str, paths)]
    return subprocess.run(script, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes and /dev are POSIX's")
def test_a_path_that_is_not_a_regular_file_is_reported_at_once(tmp_path):
    """Nobody writes to the pipe, and the device never ends: the reader must not wait for either."""
    pipe, loop, dangling, link = (tmp_path / name for name in ("pipe", "loop", "dangling", "link"))
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    dangling.symlink_to("nowhere")
    (tmp_path / "good").write_bytes(TWO)
    link.symlink_to("good")
    done = command(pipe, "/dev/zero", os.devnull, loop, dangling, tmp_path, link)
    *lines, counts = done.stdout.splitlines()
    kinds = ["no_regular_file", "no_regular_file", "empty_file", "unreadable_file", "missing_file", "directory"]
    assert [line.split(": ")[1] for line in lines] == kinds
    assert (done.returncode, counts, done.stderr) == (1, "accepted=2 warned=0 rejected=0 skipped=0", "")


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="a POSIX path")
def test_a_pipe_of_the_shell_is_read_like_a_file():
    done = command("/dev/stdin", input=TWO.decode())
    assert (done.returncode, done.stdout) == (0, "accepted=2 warned=0 rejected=0 skipped=0\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "bad").write_bytes(b"42\n" * 10_000)
    with open("/dev/full", "w") as full:
        script = [sys.executable, str(ROOT / "src" / "prepare.py"), "--check", str(tmp_path / "bad")]
        done = subprocess.run(script, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "prepare: the output cannot be written: No space left on device\n")


def test_a_closed_pipe_ends_the_list_in_silence(tmp_path):
    (tmp_path / "bad").write_bytes(b"42\n" * 100_000)
    script = [sys.executable, str(ROOT / "src" / "prepare.py"), "--check", str(tmp_path / "bad")]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert b":1: not_an_object: " in process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=60)) == (b"", 1)
