"""prepare: which rows it keeps, their side, their trained tokens, and the same output on every run."""

import contextlib
import copy
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.workspace import RAW, Workspace, pair_rows, sft_rows

import prepare
from aligner.data import chunks, part, raw_file, row_store
from aligner.data.examples import PreferencePair, SftExample
from aligner.data.leakage import EvalPrompts
from aligner.data.part import Part
from aligner.data.raw_file import RawFile
from aligner.data.split import in_validation
from aligner.data.tokenise import pair_row, sft_row, tokenised, unpaired_row
from aligner.model.chat import Chat
from aligner.model.loading import check_chat
from aligner.run.errors import InputError
from aligner.run.params import Prepare

ROOT = Path(__file__).resolve().parents[2]
PREPARED = [
    "data/prepared/chat.json",
    "data/prepared/concepts.jsonl",
    "data/prepared/dpo_train.jsonl",
    "data/prepared/dpo_validation.jsonl",
    "data/prepared/prompts.jsonl",
    "data/prepared/references.jsonl",
    "data/prepared/sft_train.jsonl",
    "data/prepared/sft_validation.jsonl",
    "metrics/prepare.json",
    "reports/data.json",
    "reports/data.md",
    "reports/prepare.json",
]
PROMPTS = st.text(alphabet="abcxyzÄß, ?é", min_size=1, max_size=12).map(lambda text: f"q {text} q")
SHARES = st.floats(0.05, 0.95)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return Workspace(tmp_path, monkeypatch)


@pytest.fixture
def chat(workspace):
    return Chat.load(Path(workspace.params["models.mini.path"]))


def both_sides(workspace, name):
    return workspace.rows(f"data/prepared/{name}_train.jsonl") + workspace.rows(f"data/prepared/{name}_validation.jsonl")


class WordsChat:
    """A stand-in for Chat. Its ids are the words of a text, so two texts never match by chance."""

    def encode_ahead(self, conversations):
        list(conversations)

    def conversation(self, messages):
        ids = [word for role, content in messages for word in [role, *content.split(" ")]]
        return SimpleNamespace(ids=ids, trained=[True] * len(ids))

    def prompt(self, messages):
        return self.conversation(messages).ids

    def completion(self, messages, answer):
        return answer.split(" ")


def rules_of(**changes):
    """The section `prepare` of params.yaml."""
    values = {"sft": RAW["sft"], "pairs": RAW["pairs"], "eval": RAW["eval"], "concepts": RAW["concepts"]}
    return Prepare(**{**values, "validation_share": 0.3, "on_bad_row": "error", "max_bad_share": 0, "max_leakage": 0, **changes})


@contextlib.contextmanager
def part_of(rows, kind, share, max_length=100, row_of=None):
    """The rows of a raw file as a Part splits them, with a stand-in for the tokenizer."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_store, "FOLDER", folder)
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with row_store.Scratch() as scratch:
            file = RawFile(str(path), kind, rules_of(validation_share=share))
            part = Part("sft" if kind == "sft" else "dpo", file, scratch, EvalPrompts([]))
            part.fill(row_of or (sft_row if kind == "sft" else pair_row), WordsChat(), max_length)
            yield part


def sides_of(rows, kind, share):
    """id -> side of every kept row. All answers differ, so no row is left out as a copy."""
    answers = {"sft": ("response",), "pairs": ("chosen", "rejected")}[kind]
    rows = [tagged(row, answers, f" {number}") for number, row in enumerate(rows)]
    with part_of(rows, kind, share) as part:
        return {row["id"]: side for side in ("train", "validation") for row in getattr(part, side)}


def tagged(row, answers, tag):
    """The row with `tag` appended to its last answer of each kind."""
    row = copy.deepcopy(row)
    if "messages" in row:
        row["messages"][-1]["content"] += tag
    for key in answers if "messages" not in row else ():
        if isinstance(row[key], list):
            row[key][-1]["content"] += tag
        else:
            row[key] += tag
    return row


def sft_rows_of(prompts):
    return [{"id": f"r-{prompt_hash(prompt)}", "prompt": prompt, "response": "Yes."} for prompt in prompts]


def pair_rows_of(prompts):
    return [
        {"id": f"r-{prompt_hash(prompt)}", "prompt": [{"role": "user", "content": prompt}]}
        | {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        for prompt in prompts
    ]


def prompt_hash(prompt):
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


# ---- The split --------------------------------------------------------------------------------------------------------


@given(st.lists(PROMPTS, unique=True, max_size=20), st.lists(PROMPTS, unique=True, max_size=20), SHARES, st.randoms())
@settings(deadline=None, max_examples=50)
def test_added_rows_move_no_old_one(old, new, share, order):
    together = [*old, *(prompt for prompt in new if prompt not in old)]
    order.shuffle(together)
    before, after = sides_of(sft_rows_of(old), "sft", share), sides_of(sft_rows_of(together), "sft", share)
    assert len(after) == len(together)
    assert before == {id: after[id] for id in before}


@given(st.lists(PROMPTS, unique=True, min_size=1, max_size=20), SHARES)
@settings(deadline=None, max_examples=50)
def test_a_prompt_is_on_the_same_side_of_sft_and_dpo(prompts, share):
    assert sides_of(sft_rows_of(prompts), "sft", share) == sides_of(pair_rows_of(prompts), "pairs", share)


@given(st.lists(st.tuples(PROMPTS, st.booleans(), st.booleans()), min_size=1, max_size=30), SHARES)
@settings(deadline=None, max_examples=50)
def test_no_prompt_is_on_both_sides(rows, share):
    """All rows of a prompt are on one side, in sft and in pairs, whatever its letter case."""
    sides = defaultdict(set)
    for kind, rows_of in (("sft", sft_rows_of), ("pairs", pair_rows_of)):
        asked = [prompt.upper() if loud else prompt for prompt, loud, paired in rows if paired == (kind == "pairs")]
        found = sides_of([row | {"id": f"n{number}"} for number, row in enumerate(rows_of(asked))], kind, share)
        for number, prompt in enumerate(asked):
            sides[" ".join(prompt.casefold().split())].add(found[f"n{number}"])
    assert all(len(side) == 1 for side in sides.values())


@given(PROMPTS, SHARES, SHARES)
def test_a_larger_share_only_adds_to_the_validation_side(prompt, one, other):
    smaller, larger = sorted([one, other])
    assert in_validation(prompt, smaller) <= in_validation(prompt, larger)


@given(PROMPTS, SHARES)
def test_spelling_in_capitals_and_spaces_does_not_change_the_side(prompt, share):
    other = "  " + prompt.upper().replace(" ", "\n ") + "\t"
    assert in_validation(prompt, share) == in_validation(other, share)


def test_prepare_side_is_the_first_64_bits_of_the_sha256_as_a_fraction(subtests):
    """The fraction h = first 16 hex digits / 2^64 of the casefolded text: validation where h < share. A change moves all rows."""
    for prompt in ("What is a chain?", "Ünïcode: 是什么?", "two\nlines"):
        plain = " ".join(prompt.casefold().split())
        fraction = int(hashlib.sha256(plain.encode()).hexdigest()[:16], 16) / 2**64
        with subtests.test(prompt=prompt):
            assert in_validation(prompt, math.nextafter(fraction, 1))
            assert not in_validation(prompt, math.nextafter(fraction, 0))


def test_prepare_validation_side_is_close_to_its_share(subtests):
    """Of n = 10,000 prompts the share is within four standard deviations, 4 sqrt(share (1 - share) / n)."""
    n = 10_000
    for share in (0.02, 0.1, 0.25, 0.5):
        held_out = sum(in_validation(f"What is concept number {index}?", share) for index in range(n))
        with subtests.test(share=share):
            assert abs(held_out / n - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_only_the_users_turns_decide_the_side():
    """A new system message or answer does not move a conversation; a new second question may."""
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    second = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
    plain, framed = (
        {"id": "a", "messages": [*turns, *second]},
        {"id": "b", "messages": [{"role": "system", "content": "Be kind."}, *turns[:1], second[1], *second]},
    )
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        sides = sides_of([plain, framed], "sft", share)
        assert sides["a"] == sides["b"] == ("validation" if in_validation("Why?\nAnd?", share) else "train")


def test_two_answers_to_one_question_are_on_one_side(workspace):
    rows = [{"prompt": row["prompt"], "response": f"{row['response']} {n}"} for row in sft_rows() for n in range(3)]
    workspace.write_rows("sft", rows)
    workspace.run("prepare")
    sizes = [len(workspace.rows(f"data/prepared/sft_{side}.jsonl")) for side in ("train", "validation")]
    assert sum(sizes) == 36
    assert all(size % 3 == 0 for size in sizes)


# ---- Every row is accounted for -----------------------------------------------------------------------------------------


def mixed_rows():
    """12 good rows, the first with a warning; 2 duplicates, 1 too long, 3 bad, and a blank line."""
    good = sft_rows()
    good[0]["system"] = "Be kind."
    repeated = [{**row, "id": f"again-{row['id']}"} for row in good[:2]]
    long = {"id": "long", "prompt": "Why?", "response": "word " * 400}
    bad = [
        {"id": "b1", "prompt": "Why?"},
        {"id": "b2", "prompt": "", "response": "x"},
        {"id": "b3", "prompt": 3, "response": "x"},
    ]
    return [*good, *repeated, long, *bad]


@pytest.fixture
def mixed(workspace):
    """Drops the six bad lines of the 18 mixed ones; returns the counts of reports/prepare.json."""
    workspace.params.update({"prepare.on_bad_row": "drop", "prepare.max_bad_share": 0.5})
    workspace.write_rows("sft", mixed_rows())
    with open(RAW["sft"], "a", encoding="utf-8") as file:
        file.write("  \n")
    run = workspace.run("prepare")
    return SimpleNamespace(run=run, counts=workspace.json("reports/prepare.json")["sft_data"])


def test_the_counts_of_a_mixed_file(mixed):
    counts = dict(mixed.counts)
    assert counts.pop("train") + counts.pop("validation") == 12
    assert counts.pop("tokens_max") >= counts.pop("tokens_median") > 0
    kept = {"rejected": 3, "warned": 2, "duplicate": 2, "too_long": 1}
    assert {name: counts[name] for name in ("rows", *kept)} == {"rows": 18, **kept}


def test_the_counts_add_up(mixed):
    """rows = train + validation + rejected + duplicate + too_long; warned rows count as kept, and blank lines do not count."""
    parts = ("train", "validation", "rejected", "duplicate", "too_long")
    assert mixed.counts["rows"] == sum(mixed.counts[part] for part in parts)
    ledger = dict(entry.split("=") for entry in mixed.run.fields["ledger"]["sft"].split())
    assert sum(int(ledger[name]) for name in ("accepted", "warned", "rejected")) == mixed.counts["rows"]
    assert ledger["skipped"] == "1"


def test_the_counts_are_those_of_the_files(mixed, workspace):
    for side in ("train", "validation"):
        assert len(workspace.rows(f"data/prepared/sft_{side}.jsonl")) == mixed.counts[side]
    lengths = sorted(len(row["input_ids"]) for row in both_sides(workspace, "sft"))
    assert (mixed.counts["tokens_median"], mixed.counts["tokens_max"]) == (lengths[6], lengths[-1])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.booleans()), min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_the_ledger_adds_up_for_any_rows(rows):
    """Rows of three prompts and two answers, some too long: each is kept once, and every other row is counted."""
    lines = [{"prompt": prompt, "response": answer + " long" * 9 * long} for prompt, answer, long in rows]
    with part_of(lines, "sft", 0.5, max_length=8) as part:
        kept = {(prompt, answer) for prompt, answer, long in rows if not long}
        assert len(part.train) + len(part.validation) == len(kept)
        assert part.audit.too_long.count == sum(long for _, _, long in rows)
        assert len(kept) + part.audit.too_long.count + part.audit.copies == part.file.counts.accepted == len(rows)


def test_a_repeated_pair_is_a_duplicate_and_its_mirror_is_not(workspace):
    rows = pair_rows()
    mirrored = {**rows[0], "id": "mirror", "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    workspace.write_rows("pairs", [*rows, {**rows[1], "id": "again"}, mirrored])
    workspace.run("prepare")
    counts = workspace.json("reports/prepare.json")["dpo_data"]
    assert (counts["rows"], counts["duplicate"]) == (14, 1)
    assert "mirror" in {row["id"] for row in both_sides(workspace, "dpo")}


# ---- Bad rows -----------------------------------------------------------------------------------------------------------


def write_lines(kind, lines):
    Path(RAW[kind]).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("kind", RAW)
def test_all_bad_rows_are_listed_in_one_error_and_nothing_is_written(workspace, kind):
    good = [json.dumps(row) for row in workspace.rows(RAW[kind])]
    write_lines(kind, [*good[:2], "{oops", *good[2:4], '{"id": "x"}', "[]", *good[4:]])
    with pytest.raises(InputError) as caught:
        workspace.run("prepare")
    first, *listed, way = str(caught.value).splitlines()
    assert first.startswith(f"{RAW[kind]}: 3 bad rows (20.0%).")
    assert [line.split(": ")[0] for line in listed] == [f"{RAW[kind]}:{line}" for line in (3, 6, 7)]
    assert all(re.fullmatch(r"\S+:\d+: [a-z_]+: \S.*", line) for line in listed)
    assert way.endswith(f"python src/prepare.py --check {RAW[kind]}")
    assert not Path("metrics/prepare.json").exists()


@pytest.mark.parametrize(("on_bad_row", "read"), [("error", 1), ("drop", 11)])
def test_after_a_bad_row_that_ends_the_run_rows_are_checked_but_not_tokenised(workspace, on_bad_row, read):
    lines = [json.dumps(row) for row in sft_rows()]
    write_lines("sft", [lines[0], "{oops", *lines[2:]])
    file = RawFile(RAW["sft"], "sft", rules_of(on_bad_row=on_bad_row, max_bad_share=0.5))
    assert len(list(file.values())) == read
    assert str(file.counts) == "accepted=11 warned=0 rejected=1 skipped=0"


def test_an_error_shows_the_first_bad_rows_and_counts_the_rest(workspace, monkeypatch):
    monkeypatch.setattr(raw_file, "SHOWN_PROBLEMS", 100)
    write_lines("sft", [f'{{"id": "n{n}"}}' for n in range(130)])
    with pytest.raises(InputError) as caught:
        workspace.run("prepare")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 100 + 2
    assert lines[-2] == "… and 30 more"


@pytest.mark.parametrize(("largest", "ends"), [(0.24, True), (0.25, False), (1, False)])
def test_dropped_rows_end_the_run_above_their_largest_share(workspace, largest, ends):
    """Four bad rows of sixteen are a quarter; a blank line is no row."""
    workspace.params.update({"prepare.on_bad_row": "drop", "prepare.max_bad_share": largest})
    write_lines("sft", ["{", "", *(json.dumps(row) for row in sft_rows()), "1", '"x"', "{}"])
    if ends:
        with pytest.raises(InputError, match=r"4 bad rows \(25\.0%\)"):
            workspace.run("prepare")
    else:
        workspace.run("prepare")
        assert workspace.json("reports/prepare.json")["sft_data"]["rejected"] == 4


def test_a_missing_file_is_an_input_error_that_names_it(workspace):
    Path(RAW["pairs"]).unlink()
    with pytest.raises(InputError, match=RAW["pairs"]):
        workspace.run("prepare")


# ---- Rows that are too long -----------------------------------------------------------------------------------------------


def kept(value, row_of, chat, limit):
    """Whether a record gets a row under this limit of tokens."""
    [(_, row)] = tokenised([value], row_of, chat, limit)
    return row is not None


def test_a_row_of_just_the_largest_length_is_kept(workspace, chat):
    messages = (("user", "Why?"), ("assistant", "Because of the mean."))
    example = SftExample("a", messages)
    length = len(chat.conversation(messages).ids)
    assert [kept(example, sft_row, chat, limit) for limit in (length, length - 1)] == [True, False]


def test_prepare_pair_is_as_long_as_its_longer_answer(chat, subtests):
    for chosen, rejected in [("The mean of all of the values.", "No."), ("No.", "The mean of all the values.")]:
        pair = PreferencePair("a", (("user", "Why?"),), chosen, rejected)
        longest = len(chat.prompt(pair.prompt)) + max(len(chat.completion(pair.prompt, text)) for text in (chosen, rejected))
        with subtests.test(chosen=chosen, rejected=rejected):
            assert [kept(pair, pair_row, chat, limit) for limit in (longest, longest - 1)] == [True, False]


def test_a_row_of_very_many_characters_is_too_long_and_never_encoded(workspace, chat):
    """Four tokens of at most 128 characters are 512: longer records, by the longer answer of a pair too, are not encoded."""

    def row_of(value, chat):
        assert value.id != "huge"
        return {"id": value.id, "input_ids": []}

    for values in (
        [SftExample(id, (("user", "x"), ("assistant", "y" * size))) for id, size in [("fits", 511), ("huge", 512)]],
        [PreferencePair(id, (("user", "x"),), "z", "y" * size) for id, size in [("fits", 511), ("huge", 512)]],
    ):
        found = [(value.id, row) for value, row in tokenised(values, row_of, chat, 4)]
        assert found == [("fits", {"id": "fits", "input_ids": []}), ("huge", None)]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(0, 30))
def test_chunks_hold_all_lines_in_order_and_say_which_format_earlier_lines_decided(sizes, first):
    """Lines before the first row of a known format are in chunks without one, since their faults are explained without one."""
    lines = [b"x" * size + b"\n" for size in sizes]
    lines[first:first] = [b'{"prompt": "a", "response": "b"}\n']
    place = lines.index(b'{"prompt": "a", "response": "b"}\n') + 1
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", 50)
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(b"".join(lines))
        found = list(chunks.chunks(str(path), "sft"))
    assert [line for chunk in found for line in chunk.lines] == lines
    assert all(sum(map(len, chunk.lines[:-1])) < 50 for chunk in found)
    for chunk in found:
        assert chunk.lines[0] == lines[chunk.first - 1]
        assert chunk.form == (("`prompt` + `completion` (or `response`)", place) if chunk.first > place else None)


def test_a_row_that_the_template_refuses_is_named(workspace, chat):
    """The template refuses the second of three rows, and the error names it."""

    def row_of(value, chat):
        if value.id == "b":
            raise InputError("no system role")
        return {"id": value.id, "input_ids": []}

    with (
        pytest.raises(InputError, match="rows.jsonl: row b: no system role"),
        part_of([{"id": id, "prompt": "x", "response": "y"} for id in "abc"], "sft", 0.5, row_of=row_of),
    ):
        pass


def faulty_rows():
    """Rows of every fate, many enough for some chunks: copies, repeated ids, rows without an id, long and damaged ones."""
    for number in range(300):
        row = {"id": f"r{number}", "prompt": f"What is the mean of {number % 250}?", "response": f"It is {number % 250}."}
        yield json.dumps(row | ({"id": "r1"} if number == 200 else {}))
        if number % 50 == 7:
            yield from (json.dumps({"prompt": f"And {number}?", "response": "caf\u00c3\u00a9"}), "no JSON", "")
    yield json.dumps({"id": "long", "prompt": "x", "response": "y " * 400})


def test_any_number_of_processes_writes_the_same_bytes(workspace, monkeypatch):
    """The faulty file, with bad rows dropped, in chunks of a few rows, on one process and on two."""
    Path(RAW["sft"]).write_text("\n".join(faulty_rows()) + "\n", encoding="utf-8")
    workspace.params.update({"prepare.on_bad_row": "drop", "prepare.max_bad_share": 0.5})
    monkeypatch.setattr(part, "LARGE_BYTES", 1)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2000)
    outputs = []
    for processes in (1, 2):
        workspace.params["models.mini.prepare.processes"] = processes
        workspace.run("prepare")
        outputs.append({path: Path(path).read_bytes() for path in PREPARED})
    assert outputs[0] == outputs[1]
    counts = workspace.json("reports/prepare.json")["sft_data"]
    assert (counts["rejected"], counts["duplicate"], counts["too_long"]) == (7, 50, 1) and counts["warned"] == 6


def test_pairs_are_kept_whole_or_dropped(workspace, chat):
    rows = pair_rows()
    rows[3]["rejected"] = rows[3]["rejected"] + " very" * 300
    rows[5]["chosen"] = rows[5]["chosen"] + " very" * 300
    workspace.write_rows("pairs", rows)
    workspace.run("prepare")
    kept = {row["id"]: row for row in both_sides(workspace, "dpo")}
    assert set(kept) == {row["id"] for row in rows} - {"p4", "p6"}
    assert workspace.json("reports/prepare.json")["dpo_data"]["too_long"] == 2
    for row in rows:
        if row["id"] in kept:
            prompt = (("user", row["prompt"]),)
            answers = [chat.completion(prompt, row[side]) for side in ("chosen", "rejected")]
            assert [kept[row["id"]][f"{side}_ids"] for side in ("prompt", "chosen", "rejected")] == [
                chat.prompt(prompt),
                *answers,
            ]


def test_eval_prompts_that_are_too_long_are_refused_by_name(workspace):
    rows = workspace.rows(RAW["eval"])
    rows[2]["prompt"] = rows[7]["prompt"] = "word " * 400
    workspace.write_rows("eval", [row | {"prompt": f"{row['prompt']} {row['id']}"} for row in rows])
    with pytest.raises(InputError, match=r"longer than max_length \(320 tokens\): e3, e8$"):
        workspace.run("prepare")


def test_an_eval_prompt_must_leave_room_for_an_answer(workspace, chat):
    """A prompt of max_length tokens is refused; a prompt one token shorter is not."""
    longest = max(len(chat.prompt((("user", row["prompt"]),))) for row in workspace.rows(RAW["eval"]))
    workspace.params["models.mini.max_length"] = longest + 40
    workspace.run("prepare")
    references = prepare.eval_references(RawFile(RAW["eval"], "eval", rules_of()))
    assert len(prepare.eval_prompts(RAW["eval"], references, chat, longest + 1)) == 12
    with pytest.raises(InputError, match="longer than max_length"):
        prepare.eval_prompts(RAW["eval"], references, chat, longest)


def test_a_turn_of_weight_0_is_not_trained(chat):
    """The ids stay, and only the labels of that answer and of its end token become -100."""
    messages = (("user", "One?"), ("assistant", "First."), ("user", "Two?"), ("assistant", "Second."))
    whole, masked = (sft_row(SftExample("x", messages, untrained), chat) for untrained in (frozenset(), frozenset({1})))
    answers = [[*chat.tokenizer.encode(text, add_special_tokens=False).ids, chat.end_id] for text in ("First.", "Second.")]
    assert masked["input_ids"] == whole["input_ids"]
    assert [id for id in whole["labels"] if id != -100] == answers[0] + answers[1]
    assert [id for id in masked["labels"] if id != -100] == answers[1]


def test_unpaired_answers_become_ids_with_their_label(chat, tmp_path, monkeypatch):
    """The ids of prompt and answer together are those of the whole conversation; both labels of one answer are kept."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": f"u{number}", "prompt": f"Question {number}?", "completion": "Yes.", "label": number % 2 == 0}
        for number in range(20)
    ]
    rows += [
        rows[0] | {"id": "copy"},
        rows[0] | {"id": "other-label", "label": False},
        rows[0] | {"id": "long", "completion": "y " * 999},
    ]
    path = tmp_path / "unpaired.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with row_store.Scratch() as scratch:
        part = Part("unpaired", RawFile(str(path), "unpaired", rules_of()), scratch, EvalPrompts([]))
        part.fill(unpaired_row, chat, 100)
        part.require_both_sides()
        figures, report = part.figures(), part.audit.report()
        part.move_to(tmp_path)
    kept = [json.loads(line) for side in ("train", "validation") for line in (tmp_path / f"unpaired_{side}.jsonl").open()]
    assert {row["id"]: row["label"] for row in kept} == {
        row["id"]: row["label"] for row in rows if row["id"] not in ("copy", "long")
    }
    for row in kept:
        prompt = next(given["prompt"] for given in rows if given["id"] == row["id"])
        assert row["prompt_ids"] + row["completion_ids"] == chat.conversation((("user", prompt), ("assistant", "Yes."))).ids
    assert figures["rows"] == 23 and (figures["duplicate"], figures["too_long"]) == (1, 1)
    assert figures["train"] + figures["validation"] == 21 and report["labels"] == {"desirable": 10, "undesirable": 11}


@pytest.mark.parametrize(("share", "side"), [(1e-9, "validation"), (1 - 1e-9, "train")])
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_side_without_rows_is_refused(workspace, share, side, name):
    both = {"name": name, "train": [{}], "validation": [{}], "file": RawFile("rows.jsonl", "sft", rules_of())}
    Part.require_both_sides(SimpleNamespace(**both))
    with pytest.raises(InputError, match=f"{name}: no rows on the {side} side .*prepare.validation_share"):
        Part.require_both_sides(SimpleNamespace(**both | {side: []}))
    workspace.params["prepare.validation_share"] = share
    with pytest.raises(InputError, match=f"sft: no rows on the {side} side"):
        workspace.run("prepare")


@pytest.mark.parametrize("kind", ["sft", "pairs", "eval"])
def test_an_empty_file_is_refused(workspace, kind):
    workspace.write_rows(kind, [])
    with pytest.raises(InputError, match="no usable prompt" if kind == "eval" else "no rows on the train side"):
        workspace.run("prepare")


@pytest.mark.parametrize(("kind", "name"), [("sft", "sft"), ("pairs", "dpo")])
def test_an_eval_prompt_that_is_trained_on_is_refused_by_name(workspace, kind, name):
    """Its spelling, its side and its answer make no difference."""
    taken = [(row["id"], row["prompt"]) for row in workspace.rows(RAW[kind])]
    rows = workspace.rows(RAW["eval"])
    rows[1]["prompt"], rows[4]["prompt"] = f"  {taken[0][1].upper()}!", taken[5][1].replace(" ", "  ")
    workspace.write_rows("eval", rows)
    with pytest.raises(InputError) as caught:
        workspace.run("prepare")
    first, *listed, way = str(caught.value).splitlines()
    assert first.startswith("2 of 12 eval prompts (16.7%) overlap with the training texts; prepare.max_leakage allows 0.0%")
    found = [re.match(r"(\w+): equal to the (\w+) prompt of row (\w+): ", line).groups() for line in listed]
    assert found == [("e2", name, taken[0][0]), ("e5", name, taken[5][0])]
    assert RAW["eval"] in way and way.endswith("Then run: dvc repro")
    assert {path for path in workspace.files() if path.startswith(("data/prepared", "metrics", "reports", ".cache"))} == set()


def test_the_eval_prompts_that_overlap_are_marked_for_score(workspace):
    """A run of eight of nine words is marked and passes; so does a share that params.yaml allows."""
    eval_rows, sft = workspace.rows(RAW["eval"]), workspace.rows(RAW["sft"])
    sft[0]["response"] = "One two three four five six seven eight, and so on."
    sft[1]["response"] = eval_rows[6]["prompt"]
    eval_rows[3]["prompt"] = "Zero one two three four five six seven eight nine?"
    workspace.write_rows("sft", sft)
    workspace.write_rows("eval", eval_rows)
    workspace.params["prepare.max_leakage"] = 1 / 12
    workspace.run("prepare")
    marks = {row["id"]: row.get("overlap") for row in workspace.rows("data/prepared/references.jsonl")}
    assert {id: mark for id, mark in marks.items() if mark} == {"e4": "ngram_8", "e7": "exact"}
    counts = workspace.json("reports/prepare.json")["leakage"]
    assert counts == {"exact": 1, "ngram_13": 1, "ngram_8": 2, "longest_run": 8, "validation_prompts": 0}
    workspace.params["prepare.max_leakage"] = 0.08
    with pytest.raises(InputError, match=r"1 of 12 eval prompts .*\ne7: equal to the sft answer of row s2: "):
        workspace.run("prepare")


# ---- Tokens ---------------------------------------------------------------------------------------------------------------

CONVERSATION = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is the mean?"},
    {"role": "assistant", "content": "The sum over the number."},
    {"role": "user", "content": "And the <|end|> token?"},
    {"role": "assistant", "content": "Text, as <|user|> is."},
]


def test_labels_hide_exactly_the_prompts(workspace, chat):
    """input_ids = prompt, answer, end token; labels are -100 on the prompt and equal the ids elsewhere."""
    workspace.run("prepare")
    texts = {row["id"]: (row["prompt"], row["response"]) for row in sft_rows()}
    for row in both_sides(workspace, "sft"):
        prompt, answer = texts[row["id"]]
        prompt_ids = chat.prompt((("user", prompt),))
        answer_ids = row["input_ids"][len(prompt_ids) :]
        assert row["input_ids"][: len(prompt_ids)] == prompt_ids
        assert row["labels"] == [-100] * len(prompt_ids) + answer_ids
        assert answer_ids[-1] == chat.end_id
        assert chat.decode(answer_ids) == answer


def test_every_answer_of_a_conversation_is_trained_and_nothing_else(workspace, chat):
    workspace.write_rows("sft", [{"messages": CONVERSATION}, *({"messages": CONVERSATION[1:3] * n} for n in range(1, 12))])
    workspace.params["models.mini.max_length"] = 512
    workspace.run("prepare")
    row = next(row for row in both_sides(workspace, "sft") if row["id"] == "line-1")
    assert all(label in (-100, id) for id, label in zip(row["input_ids"], row["labels"], strict=True))
    trained = [label for label in row["labels"] if label != -100]
    cut = trained.index(chat.end_id) + 1
    assert [chat.decode(trained[:cut]), chat.decode(trained[cut:])] == [CONVERSATION[2]["content"], CONVERSATION[4]["content"]]
    assert trained.count(chat.end_id) == 2 and trained[-1] == chat.end_id


def test_pairs_share_the_prompt_from_which_an_answer_is_generated(workspace, chat):
    workspace.run("prepare")
    texts = {row["id"]: row for row in pair_rows()}
    for row in both_sides(workspace, "dpo"):
        assert row["prompt_ids"] == chat.prompt((("user", texts[row["id"]]["prompt"]),))
        for side in ("chosen", "rejected"):
            assert row[f"{side}_ids"][-1] == chat.end_id
            assert chat.decode(row[f"{side}_ids"]) == texts[row["id"]][side]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SFT_FORMATS = {
    "messages": lambda row: {"messages": [user(row["prompt"]), assistant(row["response"])]},
    "prompt, response": lambda row: {"prompt": row["prompt"], "response": row["response"]},
    "prompt, completion": lambda row: {"prompt": row["prompt"], "completion": row["response"]},
    "alpaca": lambda row: {"instruction": row["prompt"], "input": "", "output": row["response"]},
    "sharegpt": lambda row: {
        "conversations": [{"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row["response"]}]
    },
}
PAIR_FORMATS = {
    "strings": lambda row: {key: row[key] for key in ("prompt", "chosen", "rejected")},
    "message lists": lambda row: {
        "prompt": [user(row["prompt"])],
        "chosen": [assistant(row["chosen"])],
        "rejected": [assistant(row["rejected"])],
    },
    "whole conversations": lambda row: {side: [user(row["prompt"]), assistant(row[side])] for side in ("chosen", "rejected")},
    "prompt beside conversations": lambda row: {
        "prompt": row["prompt"],
        **{side: [user(row["prompt"]), assistant(row[side])] for side in ("chosen", "rejected")},
    },
}


def contents(workspace, name):
    """The prepared files without ids, which are line numbers if a format has no ids."""
    return [
        [
            {key: value for key, value in row.items() if key != "id"}
            for row in workspace.rows(f"data/prepared/{name}_{side}.jsonl")
        ]
        for side in ("train", "validation")
    ]


def test_prepare_makes_the_same_rows_of_every_sft_format(workspace, subtests):
    workspace.run("prepare")
    expected = contents(workspace, "sft")
    for form, written in SFT_FORMATS.items():
        workspace.write_rows("sft", [written(row) for row in sft_rows()])
        with subtests.test(form):
            workspace.run("prepare")
            assert contents(workspace, "sft") == expected


def test_prepare_makes_the_same_rows_of_every_pair_format(workspace, subtests):
    workspace.run("prepare")
    expected = contents(workspace, "dpo")
    for form, written in PAIR_FORMATS.items():
        workspace.write_rows("pairs", [written(row) for row in pair_rows()])
        with subtests.test(form):
            workspace.run("prepare")
            assert contents(workspace, "dpo") == expected


def test_the_files_of_generate_and_score_are_separate_and_in_one_order(workspace, chat):
    rows = workspace.rows(RAW["eval"])
    rows[0] |= {"concept": "mean", "kind": "new_wording", "forbidden": ["never"]}
    workspace.write_rows("eval", rows)
    workspace.run("prepare")
    prompts, references = workspace.rows("data/prepared/prompts.jsonl"), workspace.rows("data/prepared/references.jsonl")
    assert prompts == [{"id": row["id"], "prompt_ids": chat.prompt((("user", row["prompt"]),))} for row in rows]
    assert references == rows
    assert workspace.json("reports/prepare.json")["eval_data"] == {"prompts": 12}


def test_concepts_reach_score_as_written_without_unread_keys(workspace):
    rows = workspace.rows(RAW["concepts"])
    workspace.write_rows("concepts", [{"topic": "means", **row, "text": f" {row['text']}\n"} for row in rows])
    run = workspace.run("prepare")
    assert workspace.rows("data/prepared/concepts.jsonl") == rows
    assert run.fields["ledger"]["concepts"] == "accepted=12 warned=0 rejected=0 skipped=0"


def test_a_catalogue_without_concepts_is_an_empty_file(workspace):
    workspace.write_rows("concepts", [])
    workspace.run("prepare")
    assert Path("data/prepared/concepts.jsonl").read_bytes() == b""


@pytest.mark.parametrize("model", ["mini", "zephyr_llama", "gpt2"])
def test_chat_json_holds_the_values_that_the_next_stage_checks(tmp_path, monkeypatch, model):
    workspace = Workspace(tmp_path, monkeypatch, model=model)
    workspace.run("prepare")
    prepared, chat = workspace.json("data/prepared/chat.json"), Chat.load(tmp_path / "models/base/weights")
    assert prepared == {"fingerprint": chat.fingerprint, "end_id": chat.end_id, "pad_id": chat.pad_id}
    check_chat(chat, prepared)
    changed = Chat(chat.tokenizer_json, chat.template + " ", chat.eos_token, chat.bos_token, chat.pad_token)
    with pytest.raises(InputError, match="another tokenizer or chat template"):
        check_chat(changed, prepared)


# ---- The process ------------------------------------------------------------------------------------------------------------


def command(*arguments, **variables):
    environment = {**os.environ, **variables}
    script = [sys.executable, str(ROOT / "src" / "prepare.py"), *arguments]
    return subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)


def test_a_second_run_writes_the_same_bytes_under_any_hash_seed(workspace):
    workspace.run("prepare")
    first = {path: Path(path).read_bytes() for path in PREPARED}
    written = {path for path in workspace.files() if path.startswith(("data/prepared", "metrics", "reports", ".cache"))}
    assert written == set(PREPARED)
    workspace.run("prepare")
    assert {path: Path(path).read_bytes() for path in PREPARED} == first
    for seed in ("0", "1"):
        for path in PREPARED:
            Path(path).unlink()
        done = command(PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert {path: Path(path).read_bytes() for path in PREPARED} == first


def test_a_bad_file_ends_the_command_with_one_message_and_no_traceback(workspace):
    write_lines("sft", ["{oops"])
    done = command()
    assert done.returncode == 1
    assert f"{RAW['sft']}:1: " in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("prepare: ")


def test_check_accepts_good_files(workspace):
    before = workspace.files()
    done = command("--check", *RAW.values())
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["accepted=48 warned=0 rejected=0 skipped=0"]
    assert workspace.files() == before


def test_check_lists_bad_rows_of_all_files_and_fails(workspace):
    write_lines("sft", [json.dumps(sft_rows()[0]), "{oops", ""])
    write_lines("pairs", ['{"prompt": "a", "chosen": "b", "rejected": "b"}'])
    done = command("--check", RAW["sft"], RAW["pairs"], "nowhere.jsonl")
    assert done.returncode == 1
    *listed, ledger = done.stdout.splitlines()
    assert ledger == "accepted=1 warned=0 rejected=2 skipped=1"
    assert [line.split(": ")[0] for line in listed] == [f"{RAW['sft']}:2", f"{RAW['pairs']}:1", "nowhere.jsonl"]
    assert "chosen_equals_rejected" in listed[1]
    assert "Traceback" not in done.stderr
