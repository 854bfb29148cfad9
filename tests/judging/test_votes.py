"""votes: the format of a file of votes, their results worked out by hand, and preference pairs made of votes."""

import argparse
import io
import json
from pathlib import Path
from shutil import copyfile

import pytest
from support.workspace import Workspace

import votes
from aligner.data.reader import check
from aligner.files import write_jsonl
from aligner.judging import agreement
from aligner.judging import votes as judging
from aligner.report import blind
from aligner.run.errors import InputError
from aligner.scoring.pairs import Outcome

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = {"p1": "What is a mean?", "p2": "What is a median?", "p3": "What is a mode?", "p4": "What is a range?"}
ANSWERS = {name: {id: f"{name} says: {prompt}" for id, prompt in PROMPTS.items()} for name in ("base", "sft", "dpo")}
REFERENCES = [{"id": id, "prompt": prompt, "topic": "t", "keywords": ["k"]} for id, prompt in PROMPTS.items()]
RUN = blind.answers_fingerprint(REFERENCES, {name: list(given.values()) for name, given in ANSWERS.items()})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the answers that the votes are about."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(judging.REFERENCES, REFERENCES)
    copyfile(ROOT / "params.yaml", "params.yaml")
    for name, given in ANSWERS.items():
        write_jsonl(judging.GENERATED / f"{name}.jsonl", [{"id": id, "answer": answer} for id, answer in given.items()])
    return tmp_path


def row(id, winner, rater="ann", pair=("sft", "dpo"), seed=7, **changes):
    """A vote as the page exports it: `winner` is a model, tie or both bad."""
    left, right = blind.sides(seed, RUN, pair, id)
    made = {
        "version": 1, "run": RUN, "rater": rater, "seed": seed, "id": id, "prompt": PROMPTS[id],
        "left_answer": ANSWERS[left][id], "right_answer": ANSWERS[right][id], "left_model": left, "right_model": right,
        "verdict": {left: "A", right: "B"}.get(winner, winner),
    }  # fmt: skip
    return made | changes


def run(*files, pairs=None, run=None):
    """The exit code and the output; each file is a list of rows."""
    paths = [f"votes{number}.jsonl" for number in range(len(files))]
    for path, rows in zip(paths, files, strict=True):
        write_jsonl(votes.Path(path), rows)
    out = io.StringIO()
    return votes.main(
        argparse.Namespace(files=paths, pairs=pairs and votes.Path(pairs), run=run, models=None), out
    ), out.getvalue()


def of(*rows):
    return [judging.read_vote(each, f"v:{line}") for line, each in enumerate(rows, start=1)]


# ---- Sides --------------------------------------------------------------------------------------------------------------


def test_sides_follow_from_the_seed_and_not_from_the_order_of_the_models():
    assert all(blind.sides(7, RUN, ("sft", "dpo"), f"p{n}") == blind.sides(7, RUN, ("dpo", "sft"), f"p{n}") for n in range(50))


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1])
def test_each_model_stands_on_the_left_about_half_the_time(seed):
    """1000 fair coins give 500 +- 5 standard deviations (79)."""
    left = sum(blind.sides(seed, RUN, ("sft", "dpo"), f"prompt-{n}")[0] == "sft" for n in range(1000))
    assert 421 < left < 579


def test_the_draw_is_that_of_the_page():
    """Two values that page.js gives too: FNV-1a over UTF-8 bytes, mixed as in MurmurHash3."""
    assert blind.draw(1, ["b", "a"], "x") == blind.draw(1, ["a", "b"], "x") == 0xFBBF7B79
    assert blind.draw(7, ["a", "b"], "café") == 0xA539E082


def test_the_fingerprint_is_that_of_the_answers():
    texts = {name: list(given.values()) for name, given in ANSWERS.items()}
    assert blind.answers_fingerprint(REFERENCES, dict(reversed(texts.items()))) == RUN
    assert blind.answers_fingerprint(REFERENCES, texts | {"dpo": ["other", *texts["dpo"][1:]]}) != RUN
    assert len({blind.alias(RUN, name) for name in ANSWERS}) == 3


# ---- Reading ------------------------------------------------------------------------------------------------------------

BAD = {
    "missing_key": {"seed": ...},
    "unknown_key": {"model": "dpo"},
    "other_version": {"version": 2},
    "bad_seed": {"seed": -1},
    "wrong_type": {"rater": " "},
    "bad_run": {"run": "fb23"},
    "other_run": {"run": "0" * 64, "left_model": "x", "right_model": "y"},
    "unknown_verdict": {"verdict": "left"},
    "same_model": {"left_model": "dpo", "right_model": "dpo"},
    "same_answer": {"left_answer": "x", "right_answer": "x"},
    "wrong_sides": {"seed": 8},
    "unknown_prompt": {"id": "p9"},
    "other_prompt": {"prompt": "What?"},
    "unknown_model": {"left_model": "gpt", "right_model": "sft"},
    "other_answer": {"left_answer": "I never said that"},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_vote_is_told_with_file_line_and_kind(folder, kind, monkeypatch):
    changed = {key: value for key, value in {**row("p1", "dpo"), **BAD[kind]}.items() if value is not ...}
    if kind in ("other_run", "unknown_prompt", "unknown_model", "wrong_sides"):
        drawn = ("other", "sides") if kind == "wrong_sides" else (changed["left_model"], changed["right_model"])
        monkeypatch.setattr(blind, "sides", lambda *_: drawn)
    code, output = run([changed])
    assert code == 1
    assert output.splitlines()[0].startswith(f"votes0.jsonl:1: {kind}: ")


def test_what_is_no_json_is_told_and_the_rest_is_read(folder):
    lines = [json.dumps(row("p1", "dpo")), "", "{'python': 1}", "[]", json.dumps(row("p2", "dpo"))]
    (folder / "broken.jsonl").write_text("\n".join(lines), encoding="utf-8")
    read, problems = judging.read_votes(["broken.jsonl"], RUN, judging.read_run())
    assert [vote.place for vote in read] == ["broken.jsonl:1", "broken.jsonl:5"]
    assert [problem.split(": ")[:2] for problem in problems] == [
        ["broken.jsonl:3", "python_repr"],
        ["broken.jsonl:4", "not_an_object"],
    ]


def test_a_rater_votes_once_on_a_prompt_in_all_files_together(folder):
    code, output = run([row("p1", "dpo")], [row("p2", "dpo"), row("p1", "tie")])
    assert code == 1 and "votes1.jsonl:2: duplicate_vote: 'ann' voted on 'p1' before, at votes0.jsonl:1" in output
    assert run([row("p1", "dpo"), row("p1", "dpo", "bob"), row("p1", "base", pair=("base", "dpo"))])[0] == 0


def test_a_rater_has_one_seed_for_two_models(folder):
    assert ":2: other_seed: seed 8, but 7 at votes0.jsonl:1" in run([row("p1", "dpo"), row("p2", "dpo", seed=8)])[1]


def test_no_vote_at_all_is_no_success(folder):
    assert run([]) == (1, "0 problems, 0 good votes; nothing was counted\n")


def test_a_missing_file_is_named(folder):
    with pytest.raises(InputError, match="gone.jsonl: missing_file"):
        judging.read_votes(["gone.jsonl"], RUN, None)


def test_votes_on_an_earlier_run_are_accepted_by_its_name(folder):
    (folder / judging.GENERATED / "dpo.jsonl").unlink()
    code, output = run([row("p1", "dpo")])
    assert code == 1 and f"--run {RUN}" in output
    assert run([row("p1", "dpo")], run=RUN)[0] == 0


def test_a_hostile_name_does_not_reach_the_terminal(folder):
    code, output = run([row("p1", "dpo", "\x1b[31mann"), row("p1", "sft", "bob\u202e")])
    assert code == 0 and output.replace("\n", "").isprintable()


# ---- What the votes show ------------------------------------------------------------------------------------------------


def test_wins_count_a_prompt_once_by_the_majority_of_its_raters():
    """p1: dpo twice; p2: one each, a tie; p3: both bad; p4: sft against a tie."""
    cast = [("p1", "dpo", "ann"), ("p1", "dpo", "bob"), ("p2", "dpo", "ann"), ("p2", "sft", "bob"), ("p3", "both bad", "ann")]
    cast += [("p4", "sft", "ann"), ("p4", "tie", "bob")]
    assert agreement.majority_outcome(("dpo", "sft"), of(*(row(*each) for each in cast))) == Outcome(wins=1, ties=2, losses=1)


def test_position_bias_counts_the_votes_for_one_answer():
    """A, A, B of five: 2/3, with Wilson's interval of 2 in 3."""
    made = [row(id, "tie") for id in PROMPTS] + [row("p1", "tie", "bob")]
    for each, verdict in zip(made, ("A", "A", "B", "tie", "both bad"), strict=True):
        each["verdict"] = verdict
    found = agreement.left_side(of(*made))
    assert (found["estimate"], found["n"]) == (2 / 3, 3)
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.2077, 0.9385)
    assert agreement.left_side(of(row("p1", "tie")))["reason"]


def test_cohen_kappa_of_the_textbook():
    """50 items: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no. p_o = .7, p_e = .5 * .6 + .5 * .4 = .5, kappa = .4."""
    ratings = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert agreement.cohen_kappa(ratings)["estimate"] == pytest.approx(0.4)
    assert agreement.agreement(ratings)["estimate"] == 0.7


def test_fleiss_kappa_of_the_textbook():
    """Ten items, fourteen raters, five categories (Fleiss 1971, as in every account of it): kappa = .210."""
    table = """0 0 0 0 14; 0 2 6 4 2; 0 0 3 5 6; 0 3 9 2 0; 2 2 8 1 1; 7 7 0 0 0; 3 2 6 3 0; 2 5 3 2 2; 6 5 2 1 0; 0 2 2 3 7"""
    counts = [map(int, line.split()) for line in table.split(";")]
    ratings = [tuple("".join(name * count for name, count in zip("abcde", line, strict=True))) for line in counts]
    assert agreement.fleiss_kappa(ratings)["estimate"] == pytest.approx(0.210, abs=0.0005)


@pytest.mark.parametrize("kappa", [agreement.cohen_kappa, agreement.fleiss_kappa])
def test_an_undefined_kappa_says_why(kappa):
    assert "always chose the same" in kappa([("dpo", "dpo")] * 5)["reason"]
    assert "no prompt was judged" in kappa([])["reason"]


def test_the_report_of_two_raters(folder):
    """Both judged p1 to p3: they agree on p1 and p3, by models and not by sides."""
    ann = [row("p1", "dpo"), row("p2", "dpo"), row("p3", "tie")]
    bob = [row("p1", "dpo", "bob", seed=3), row("p2", "sft", "bob", seed=3), row("p3", "tie", "bob", seed=3)]
    code, output = run(ann, bob)
    assert code == 0
    assert "6 votes by 2 raters on 3 prompts" in output
    assert "dpo over sft: win rate 0.667 (" in output and "1 won, 2 tied, 0 lost" in output
    assert "ann and bob agree: 0.667 (0.208 to 0.939), n = 3; Cohen's kappa 0.500, n = 3" in output
    assert "verdicts: A " in output


def test_three_raters_have_fleiss_kappa(folder):
    rows = [row(id, "dpo", rater) for id in PROMPTS for rater in ("ann", "bob", "cem")]
    output = run(rows)[1]
    assert "all 3 raters agree: 1.000" in output and "Fleiss's kappa undefined (all always chose the same" in output


# ---- Pairs --------------------------------------------------------------------------------------------------------------


def test_pairs_take_the_majority_and_leave_the_rest_out():
    cast = [("p1", "dpo", "ann"), ("p1", "dpo", "bob"), ("p1", "sft", "cem"), ("p2", "dpo", "ann"), ("p2", "sft", "bob")]
    cast += [("p3", "tie", "ann"), ("p4", "both bad", "ann")]
    pairs, left_out = judging.preference_pairs(of(*(row(*each) for each in cast)))
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        (PROMPTS["p1"], ANSWERS["dpo"]["p1"], ANSWERS["sft"]["p1"])
    ]
    assert left_out == {"contradicting": 1, "tied or both bad": 2}


def test_an_empty_answer_makes_no_pair():
    vote = row("p1", "dpo")
    vote["left_answer"] = " "
    assert judging.preference_pairs(of(vote)) == ([], {"without two different texts": 1})


def test_no_preference_at_all_writes_no_file(folder):
    with pytest.raises(InputError, match="no vote prefers an answer"):
        run([row("p1", "tie")], pairs="pairs.jsonl")
    assert not (folder / "pairs.jsonl").exists()


@pytest.fixture
def voted(tmp_path, monkeypatch):
    """A prepared workspace, and pairs that people's votes on its eval prompts made."""
    workspace = Workspace(tmp_path, monkeypatch)
    workspace.run("prepare")
    references = workspace.rows("data/prepared/references.jsonl")
    answers = {name: {row["id"]: f"{name} on {row['id']}" for row in references} for name in ("base", "sft")}
    for name, given in answers.items():
        write_jsonl(judging.GENERATED / f"{name}.jsonl", [{"id": id, "answer": answer} for id, answer in given.items()])
    judged = judging.read_run()
    rows = []
    for reference in references:
        left, right = blind.sides(5, judged.run, ("base", "sft"), reference["id"])
        texts = {"left_answer": answers[left][reference["id"]], "right_answer": answers[right][reference["id"]]}
        sides = {"left_model": left, "right_model": right, "verdict": "A"}
        known = {"version": 1, "run": judged.run, "rater": "ann", "seed": 5}
        rows.append(known | {"id": reference["id"], "prompt": reference["prompt"]} | texts | sides)
    assert run(rows, pairs="data/raw/voted.jsonl")[0] == 0
    return workspace


def test_prepare_accepts_the_pairs_once_their_prompts_are_not_evaluated(voted):
    out = io.StringIO()
    assert check(["data/raw/voted.jsonl"], out) == 0
    assert out.getvalue() == "accepted=12 warned=0 rejected=0 skipped=0\n"
    held_back = [{"id": "other", "prompt": "Please explain a sample.", "topic": "t", "keywords": ["sample"]}]
    write_jsonl(votes.Path("data/raw/other_prompts.jsonl"), held_back)
    voted.params["prepare.pairs"] = "data/raw/voted.jsonl"
    voted.params["prepare.eval"] = "data/raw/other_prompts.jsonl"
    voted.run("prepare")
    assert voted.json("reports/prepare.json")["dpo_data"]["rows"] == 12
    assert {row["id"][:5] for row in voted.rows("data/prepared/dpo_train.jsonl")} == {"vote-"}


def test_prepare_refuses_pairs_on_prompts_that_are_evaluated(voted):
    voted.params["prepare.pairs"] = "data/raw/voted.jsonl"
    with pytest.raises(InputError, match=r"(?s)12 of 12 eval prompts .*evaluate on other prompts \(prepare\.eval\)"):
        voted.run("prepare")


def test_the_help_tells_the_whole_loop():
    for step in ("-S prepare.eval=data/raw/eval_prompts_dev.jsonl", "--pairs", "--check", "-S prepare.pairs="):
        assert step in votes.__doc__
