"""convert: what it says, what it leaves out and why, samples, order, limits, and files that it never overwrites."""

import io
import json
import re
from types import SimpleNamespace

import pytest
from support.layouts import save_dataset

import convert
from aligner.convert import sources
from aligner.convert.samples import sample
from aligner.convert.sources import Source, rows_of
from aligner.data.lines import BadRow
from aligner.model.chat import Chat
from aligner.run.errors import InputError

ROW = {"instruction": "q", "output": "a"}


@pytest.fixture
def chat():
    from pathlib import Path

    return Chat.load(Path(__file__).resolve().parents[2] / "models/base/weights")


def written(path, rows):
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments):
    out = io.StringIO()
    convert.main(convert.parser().parse_args(list(map(str, arguments))), out)
    return out.getvalue()


def output(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_row_is_converted_or_in_the_ledger_with_its_place(tmp_path):
    rows = [
        ROW,
        {"instruction": "q", "output": " "},
        {"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "4"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "a"}]},
        {"what": "is this"},
        {"text": "raw"},
        {"segments": []},
        ROW | {"label": False},
        ROW | {"output": "\ud800"},
        ROW | {"output": "a\0"},
        ROW | {"score": 3},
    ]
    source = written(tmp_path / "rows.jsonl", rows)
    said = run(source, "--to", "sft", "--out", tmp_path / "out.jsonl")
    assert "rows in: 11; left out: 9; rows out: 2 (sft)" in said
    assert "not used: `score` in 1 rows" in said
    kinds = dict(re.findall(r"^\| (\w+) \| (\d+) \| ", said, re.M))
    assert kinds == {
        "empty_text": "1", "tool_use": "1", "no_text_part": "1", "unknown_layout": "1", "raw_text": "1", "template_free": "1",
        "undesirable": "1", "lone_surrogate": "1", "escaped_nul": "1",
    }  # fmt: skip
    assert f"{source}, row 2" in said and len(output(tmp_path / "out.jsonl")) == 2


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_broken_rows_are_left_out_and_the_rest_is_read(tmp_path, suffix, monkeypatch):
    """A small chunk makes the elements of an array cross its borders."""
    monkeypatch.setattr(sources, "CHUNK", 7)
    rows = [ROW | {"output": "ä" * number + "\n"} for number in range(1, 40)]
    source = written(tmp_path / f"rows{suffix}", [*rows, 7, [ROW]])
    found = list(rows_of(Source(str(source), str(source), None, {})))
    assert [row for _, row in found[:39]] == rows
    assert [row.problem.kind for _, row in found[39:] if isinstance(row, BadRow)] == ["not_an_object"] * 2
    assert [number for number, _ in found] == list(range(1, 42))


@pytest.mark.parametrize("text", ['[{"a": 1}', '[{"a": 1} {"b"', '[{"a": 1}, {"a": }]', "[" * 5000])
def test_an_array_that_is_damaged_is_one_error_that_names_the_row(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a.json: .*row \d|too many nested"):
        list(rows_of(Source("a.json", str(tmp_path / "a.json"), None, {})))


@pytest.mark.parametrize(
    ("name", "content"), [("a.parquet", b"PAR1 is all there is"), ("a.jsonl.gz", b"\x1f\x8b\x08cut"), ("a.csv", b"a,b\n\xff,1")]
)
def test_a_damaged_file_is_one_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} .*cannot be read|{name} cannot be read"):
        list(rows_of(Source(name, str(tmp_path / name), None, {})))


def test_a_shuffle_draws_a_random_sample_and_the_same_one_for_a_seed(tmp_path):
    source = written(tmp_path / "rows.jsonl", [ROW | {"id": f"r{number}"} for number in range(200)])

    def ids(name, *options):
        run(source, "--to", "sft", "--out", tmp_path / name, *options)
        return [row["id"] for row in output(tmp_path / name)]

    first, again, other = (ids(f"{seed}{n}", "--shuffle-seed", seed, "--limit", 50) for n, seed in enumerate((1, 1, 2)))
    assert first == again != other and len(set(first)) == 50 and max(int(id[1:]) for id in first) > 100
    assert ids("plain", "--limit", 3) == ["r0", "r1", "r2"]
    assert sorted(ids("all", "--shuffle-seed", 5)) == sorted(f"r{number}" for number in range(200))


def test_ids_are_kept_if_prepare_takes_them_and_replaced_otherwise(tmp_path):
    given = ["good", "good", 7, "../x", "line-1", None, "rows-7"]
    source = written(tmp_path / "rows.jsonl", [ROW | {"id": id} for id in given])
    run(source, "--to", "sft", "--out", tmp_path / "out.jsonl")
    assert [row["id"] for row in output(tmp_path / "out.jsonl")] == [
        "good",
        "rows-2",
        "7",
        "rows-4",
        "rows-5",
        "rows-6",
        "rows-7",
    ]


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path):
    source, out = written(tmp_path / "rows.jsonl", [ROW]), tmp_path / "out.jsonl"
    run(source, "--to", "sft", "--out", out)
    with pytest.raises(InputError, match="exists; choose another --out"):
        run(source, "--to", "sft", "--out", out)
    with pytest.raises(InputError, match="is a source"):
        run(source, "--to", "sft", "--out", source, "--overwrite")
    with pytest.raises(InputError, match="no row could be converted"):
        run(source, "--to", "pairs", "--out", out, "--overwrite")
    assert output(out)[0]["messages"][1]["content"] == "a"
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out.jsonl"}


def test_a_split_that_is_not_there_and_a_missing_file_are_one_error(tmp_path):
    save_dataset([ROW], tmp_path / "splits", splits=True)
    with pytest.raises(InputError, match="has the splits train, test; choose one"):
        run(tmp_path / "splits", "--to", "sft", "--split", "dev", "--out", tmp_path / "out.jsonl")
    for path in (tmp_path / "none.jsonl", "none.parquet"):
        with pytest.raises(InputError, match="there is no file or folder"):
            run(path, "--to", "sft", "--out", tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="write KEY=COLUMN"):
        run(written(tmp_path / "rows.jsonl", [ROW]), "--to", "sft", "--map", "x", "--out", tmp_path / "out.jsonl")


def test_samples_show_the_trained_part_by_colour_or_by_marks(chat):
    """The trained part is each answer with its end token, except answers of weight 0."""
    turns = [("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2")]
    messages = [{"role": role, "content": text} for role, text in turns]
    messages[1]["weight"] = 0
    plain = sample({"id": "x", "messages": messages}, "sft", chat, colour=False)
    assert re.findall(r"\[trained>(.*?)<\]", plain, re.S) == [f"2{chat.end_token}"]
    assert plain.index("1") < plain.index("[trained>") and "one" in plain
    coloured = sample({"id": "x", "messages": messages}, "sft", chat, colour=True)
    assert re.findall("\033\\[32m(.*?)\033\\[0m", coloured, re.S) == [f"2{chat.end_token}"]
    hostile = sample(
        {"id": "x", "messages": [*messages[:3], {"role": "assistant", "content": "\033]0;x\007"}]}, "sft", chat, False
    )
    assert "\033" not in hostile and "\007" not in hostile
    pair = {
        "id": "x",
        "prompt": messages[:1],
        "chosen": [{"role": "assistant", "content": "y"}],
        "rejected": [{"role": "assistant", "content": "n"}],
    }
    assert re.findall(r"\[(\w+)>(.)", sample(pair, "pairs", chat, colour=False)) == [("chosen", "y"), ("rejected", "n")]


def test_three_rows_are_shown_as_they_will_be_trained_on(tmp_path):
    source = written(tmp_path / "rows.jsonl", [ROW] * 5)
    said = run(source, "--to", "sft", "--out", tmp_path / "out.jsonl")
    assert said.count("---- sample ") == said.count("[trained>a") == 3
    assert f"python src/prepare.py --check {tmp_path / 'out.jsonl'}" in said


def test_colour_is_for_terminals_only(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(convert, "sample", lambda row, target, chat, colour: asked.append(colour) or "")
    conversion = SimpleNamespace(samples=[ROW | {"id": "x"}])
    for terminal in (True, False):
        list(convert.samples(conversion, "sft", SimpleNamespace(isatty=lambda terminal=terminal: terminal)))
    assert asked == [True, False]
