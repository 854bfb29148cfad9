"""Searches for a file that breaks the row loader, guided by coverage (atheris: libFuzzer for Python).

Each input is a whole data file and the kind to read it as. It must satisfy all rules of tests/support/loader_rules.py: no
exception, counts that add up, printable reasons, and accepted rows that are accepted again and can be scored. Half of the
mutations are libFuzzer's, on bytes; the other half change the JSON of one line, since most changed bytes only make it invalid.
The search starts from the fixtures' lines and one good row of every format. It ends with the number of executions, or with the
first file that breaks a rule (`crash-…` in the corpus folder); add a test for it to tests/data/test_reader.py.

requirements.txt does not pin atheris: only this program needs it, and it has no wheel for macOS or Windows.

command pip install atheris
        PYTHONPATH=src:tests python tools/fuzz_rows.py [--seconds 600] [--corpus FOLDER] [FILE …]    FILE: inputs to try again
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    raise SystemExit("atheris is missing; only this program needs it. Run: pip install atheris (Linux)") from None

with atheris.instrument_imports(include=["aligner"]):
    from support.loader_rules import require_sound

    from aligner.data import reader
    from aligner.data.formats import FORMATS
    from aligner.keywords.groups import GROUP_KEYS

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "rows"
KINDS = (None, *reader.KINDS)  # the first byte of an input, modulo their number, chooses one
LONGEST = 1024  # bytes: short files are quick; tests/data/test_lines.py tests long lines
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
GOOD = [
    {"messages": [{"role": "system", "content": "s"}, USER, ASSISTANT]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "q", "input": "1", "output": "a"},
    {"prompt": "q", "completion": "a"},
    {"id": "p1", "prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "b"}]},
    {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "b"}]},
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": [USER], "completion": [ASSISTANT], "label": False},
    {"id": "e1", "prompt": "q", "topic": "t", "keywords": ["a", {"any": ["b", "c"], "match": "inflect"}], "forbidden": ["x"]},
    {"id": "e2", "prompt": "q", "topic": "t", "keywords": [{"any": ["a+"], "match": "regex", "negation": "reject"}]},
    {"concept": "chain", "keywords": [{"any": ["1/2"], "match": "number", "weight": 2}], "text": "t"},
]
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 0.5, 1e308, 10**400, "", " ", "a", "\0", "\u200b", "\u202e", "\x1b[31m", "\ud800", "\ufeff", "</s>",
    "(a+)+$", "1e999", "../x", "line-1", "user", "assistant", "system", "tool", "regex", "number", "word", "inflect", "reject",
    [], {}, [[]], ["a", "a"], {"any": ["a"]}, {"any": []}, USER, ASSISTANT, [USER], [ASSISTANT], [USER, ASSISTANT],
]  # fmt: skip
WORDS = sorted(frozenset().union(*(form.keys for form in FORMATS), ("role", "content", "from", "value", *GROUP_KEYS)))
ODD_BYTES = [b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\\ud800", b"\\u0000", b"NaN", b"}{"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="how long to search")
    parser.add_argument("--corpus", type=Path, help="folder for inputs that reach new code, to continue from (default: none)")
    parser.add_argument("files", nargs="*", type=Path, help="inputs to try once more")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = arguments.corpus or Path(scratch) / "corpus"
        seed(corpus)
        dictionary = write_dictionary(Path(scratch) / "words")
        options = [f"-max_total_time={arguments.seconds}", f"-artifact_prefix={corpus}/", f"-max_len={LONGEST}"]
        options += ["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1", f"-dict={dictionary}"]
        target = Path(scratch) / "rows.jsonl"
        atheris.Setup(
            [sys.argv[0], *options, *map(str, arguments.files or [corpus])],
            lambda data: try_file(target, data),
            custom_mutator=mutate,
        )
        atheris.Fuzz()


def try_file(path: Path, data: bytes) -> None:
    """Runs one input: the first byte chooses the kind, the rest is the file."""
    require_sound(path, data[1:], KINDS[data[0] % len(KINDS)] if data else None)


def seed(corpus: Path) -> None:
    """Writes the first inputs: every fixture line, a good row of every format, and two such rows together, as each kind."""
    corpus.mkdir(parents=True, exist_ok=True)
    files = [line for path in sorted(FIXTURES.glob("*.jsonl")) for line in path.read_bytes().split(b"\n")]
    good = [json.dumps(row).encode() + b"\n" for row in GOOD]
    files += good + [one + other for one, other in zip(good, [*good[1:], good[0]], strict=True)]
    for number, file in enumerate(files):
        for kind in range(len(KINDS)):
            (corpus / f"seed-{number:03d}-{kind}").write_bytes(bytes([kind]) + file)


def write_dictionary(path: Path) -> Path:
    """The keys of the formats, for libFuzzer to insert."""
    entries = [b'"' + word.encode() + b'":' for word in WORDS] + ODD_BYTES
    path.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in entry) + '"\n' for entry in entries), encoding="ascii")
    return path


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    """A mutation: libFuzzer's change of bytes, or a change of the JSON of one line."""
    chance = random.Random(seed)
    lines = data[1:].split(b"\n")
    number = chance.randrange(len(lines))
    try:
        row = json.loads(lines[number])
    except (ValueError, RecursionError):
        return atheris.Mutate(data, largest)
    if chance.random() < 0.5:
        return atheris.Mutate(data, largest)
    lines[number] = json.dumps(changed(row, chance), ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return (data[:1] + b"\n".join(lines))[:largest]


def changed(value: object, chance: random.Random) -> object:
    """A JSON value with one item replaced, removed, doubled, renamed or wrapped."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        alike = [odd for odd in ODD_VALUES if isinstance(odd, type(value))]
        return chance.choice(alike if alike and chance.random() < 0.7 else [*ODD_VALUES, [value], {"any": [value]}, f"{value} a"])
    if isinstance(value, list):
        index = chance.randrange(len(value))
        new = [[], [value[index]] * 2, [chance.choice(value)], [changed(value[index], chance)]][chance.randrange(4)]
        return [*value[:index], *new, *value[index + 1 :]]
    key = chance.choice(list(value))
    if chance.random() < 0.6:
        return value | {key: changed(value[key], chance)}
    rest = {name: item for name, item in value.items() if name != key}
    return chance.choice([rest, rest | {chance.choice([*WORDS, key.upper(), key + "\u200b"]): value[key]}])


if __name__ == "__main__":
    main()
