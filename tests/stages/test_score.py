"""The score stage: hit rates, outcomes, tables and reports of answers small enough to count by hand."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.scored import (
    ANSWERS,
    CONCEPTS,
    FILES,
    REFERENCES,
    TAIL,
    answer_row,
    copy_other_stages,
    nulls,
    run,
    write_inputs,
    write_params,
)

import score
from aligner import markdown
from aligner.files import read_json, write_jsonl
from aligner.run.errors import InputError
from aligner.scoring.pairs import Outcome, compare, prompt_outcomes

ROOT = Path(__file__).resolve().parents[2]
OUR_TAGS = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with params.yaml and the inputs of the stage, written by `write_inputs`."""
    monkeypatch.chdir(tmp_path)
    copy_other_stages()
    write_params(0)
    write_inputs()
    return tmp_path


def table_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---- Counting ---------------------------------------------------------------------------------------------------------


def test_hit_rates_of_the_small_files(folder):
    """base (1/2 + 0/2 + 2/4) / 3, sft (2/2 + 1/2 + 1/4) / 3, dpo (1/2 + 2/2 + 4/4) / 3."""
    run()
    report, metrics = read_json(score.REPORT), read_json(score.METRICS)
    assert [report["models"][name]["hit_rate"]["estimate"] for name in score.MODELS] == [0.333333, 0.583333, 0.833333]
    assert [metrics[name]["hit_rate"] for name in ("sft", "dpo")] == [0.5833, 0.8333]
    assert [report["models"][name]["all_hit_rate"]["estimate"] for name in score.MODELS] == [0, 0.333333, 0.666667]
    assert report["prompts"] == 3


def test_wins_ties_and_losses_of_the_small_files(folder):
    """Hits a, b, c of base 1/2 0/2 2/4, sft 2/2 1/2 1/4, dpo 1/2 2/2 4/4.

    sft over base: won, won, lost = 2/3. dpo over sft: lost, won, won = 2/3. dpo over base: tied, won, won = 2.5/3.
    """
    run()
    pairs = read_json(score.REPORT)["pairs"]
    rates = {"sft_vs_base": 0.666667, "dpo_vs_sft": 0.666667, "dpo_vs_base": 0.833333}
    assert {name: pair["win_rate"]["estimate"] for name, pair in pairs.items()} == rates
    assert [(row["comparison"], row["outcome"], int(row["prompts"])) for row in table_of(score.OUTCOMES)] == [
        ("sft vs base", "wins", 2),
        ("sft vs base", "ties", 0),
        ("sft vs base", "losses", 1),
        ("dpo vs sft", "wins", 2),
        ("dpo vs sft", "ties", 0),
        ("dpo vs sft", "losses", 1),
        ("dpo vs base", "wins", 2),
        ("dpo vs base", "ties", 1),
        ("dpo vs base", "losses", 0),
    ]


@pytest.mark.parametrize(("threshold", "outcome"), [(0, (2, 0, 1)), (0.25, (2, 1, 0)), (0.4, (2, 1, 0)), (0.5, (0, 3, 0))])
def test_tie_threshold_decides_ties(folder, threshold, outcome):
    """sft minus base is +0.5, +0.5 and -0.25; a difference equal to the threshold is a tie."""
    write_params(threshold)
    run()
    assert tuple(int(row["prompts"]) for row in table_of(score.OUTCOMES)[:3]) == outcome


@pytest.mark.parametrize("groups", [3, 5, 6, 7, 10])
def test_compare_ties_at_exactly_the_threshold(groups):
    """In binary, 0.8 - 0.6 is slightly more than 0.2; it still ties at a threshold of one group of five."""
    rates = [index / groups for index in range(groups + 1)]
    first, second = rates[1:], rates[:-1]
    assert compare(first, second, 1 / groups) == Outcome(0, groups, 0)
    assert compare(second, first, 1 / groups) == Outcome(0, groups, 0)
    assert compare(first, second, 0.99 / groups) == Outcome(groups, 0, 0)
    assert prompt_outcomes(second, first, 0.99 / groups) == [-1] * groups


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30),
    st.sampled_from([0, 0.05, 0.1, 0.2, 1]),
)
@settings(deadline=None)
def test_compare_is_mirrored_by_swapping_the_models(pairs, threshold):
    first, second = ([pair[side] / 20 for pair in pairs] for side in (0, 1))
    one, other = compare(first, second, threshold), compare(second, first, threshold)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.win_rate + other.win_rate == pytest.approx(1, abs=1e-12)
    assert sum(one) == len(pairs)


def test_win_rate_counts_a_tie_as_half():
    """(3 + 2/2) / 10 = 0.4; all ties give one half."""
    assert Outcome(wins=3, ties=2, losses=5).win_rate == 0.4
    assert Outcome(0, 7, 0).win_rate == 0.5


def test_truncated_rate_and_mean_tokens(folder):
    """One of three answers was cut; (10 + 20 + 60) / 3 = 30 tokens."""
    rows = [
        {"id": id, "answer": "Yes", "stop": stop, "prompt_tokens": 1, "answer_tokens": tokens}
        for id, stop, tokens in (("a", "end", 10), ("b", "length", 60), ("c", "end", 20))
    ]
    write_jsonl(score.MODELS["dpo"], rows)
    run()
    assert read_json(score.METRICS)["dpo"] == {"hit_rate": 0, "precision": None, "repeats": 0, "hits_per_100_words": 0}
    dpo = read_json(score.REPORT)["models"]["dpo"]
    found = [dpo[name]["estimate"] for name in ("hit_rate", "lift", "precision")]
    assert found == [0, 0, None]
    assert (dpo["health"]["degenerate"]["estimate"], dpo["health"]["truncated"]["estimate"]) == (0, 0.333333)
    assert dpo["lengths"]["tokens"]["mean"] == 30


def test_metrics_have_six_numbers_and_two_verdicts(folder):
    run()
    metrics = read_json(score.METRICS)
    assert {section: list(figures) for section, figures in metrics.items()} == {
        "sft": ["hit_rate"],
        "dpo": ["hit_rate", "precision", "repeats", "hits_per_100_words"],
        "dpo_vs_sft": ["equal_length", "equal_length_verdict", "verdict"],
    }
    assert sum(map(len, metrics.values())) <= 8


def test_metrics_equal_the_report(folder):
    run()
    metrics, report = read_json(score.METRICS), read_json(score.REPORT)
    for name in ("sft", "dpo"):
        estimates = report["models"][name] | {"repeats": report["models"][name]["health"]["repeats"]}
        for key, value in metrics[name].items():
            assert value == pytest.approx(estimates[key]["estimate"], abs=5e-5)
    whole = report["pairs"]["dpo_vs_sft"]
    level = whole["equal_length"]
    difference = pytest.approx(level["mean_difference"]["estimate"], abs=5e-5)
    assert list(metrics["dpo_vs_sft"].values()) == [difference, level["decision"]["verdict"], whole["decision"]["verdict"]]


def test_an_answer_that_says_a_sentence_twice_counts(folder):
    """One of dpo's three answers: 1/3. Hits per 100 words are 100 times all hits over all words."""
    twice = "A state is left. A step is made. A state is left. Then"
    write_inputs(answers=ANSWERS | {"dpo": ANSWERS["dpo"] | {"a": twice}})
    run()
    dpo = read_json(score.REPORT)["models"]["dpo"]
    assert (dpo["health"]["repeats"]["count"], dpo["health"]["repeats"]["n"]) == (1, 3)
    hits, words = dpo["micro_hit_rate"]["estimate"] * 8, 3 * dpo["lengths"]["words"]["mean"]
    assert dpo["hits_per_100_words"]["estimate"] == pytest.approx(100 * hits / words, rel=1e-4)
    assert read_json(score.METRICS)["dpo"]["repeats"] == 0.3333


def test_alpha_and_the_margin_of_params_decide_verdicts(folder):
    """Three prompts cannot be significant at .05; a margin that no difference exceeds makes any two models equivalent.

    Then dpo over base is +1/2, +1, +1/2: p = 2/8, times 6 is above 1; sd .2887, and the MDE at alpha .4 is
    (.8416 + .8416) * .2887 / sqrt(3) = 28.1 pp.
    """
    run()
    assert pair_of("dpo_vs_base")["decision"]["verdict"].startswith("inconclusive (MDE ")
    assert read_json(score.METRICS)["dpo_vs_sft"]["verdict"].startswith("inconclusive (MDE ")
    write_params(0, equivalence_margin=1)
    run()
    assert read_json(score.METRICS)["dpo_vs_sft"]["verdict"] == "equivalent"
    write_params(0, alpha=0.4)
    write_inputs(answers=ANSWERS | {"dpo": ANSWERS["dpo"] | {"a": "A state in a step"}})
    run()
    pair = pair_of("dpo_vs_base")
    assert (pair["win_rate"]["estimate"], pair["p"], pair["p_holm"]) == (1, 0.25, 1)
    assert pair["decision"]["verdict"] == "inconclusive (MDE 28.1 pp at n = 3)"


def pair_of(name):
    return read_json(score.REPORT)["pairs"][name]


def test_echo_of_the_prompt_earns_no_hit(folder):
    """The prompt names a state; the answer repeats it and then adds the step: 1 of 2."""
    prompt = "Please explain how a state of the chain is left"
    write_inputs([{**REFERENCES[0], "prompt": prompt}, *REFERENCES[1:]])
    rows = [answer_row("a", f"{prompt}? Each step is"), *(answer_row(id, ANSWERS["dpo"][id]) for id in "bc")]
    write_jsonl(score.MODELS["dpo"], rows)
    run()
    assert table_of(score.HIT_RATE)[-1]["hit_rate"] == "0.5"
    assert "dpo: 1 of 2 |" in score.SIDE_BY_SIDE.read_text(encoding="utf-8")


# ---- Precision --------------------------------------------------------------------------------------------------------


def foreign_answers():
    """dpo on a: state (own), mean (foreign), union (in the chain's own text). On b: event (foreign). c names no concept."""
    return ANSWERS | {"dpo": {"a": "A state with the mean of a union", "b": "An event", "c": "A mean"}}


def test_precision_of_the_small_files(folder):
    """base names "state", sft "state", "step" and "mean", all correct; dpo names one own idea and two foreign ones."""
    write_inputs(answers=foreign_answers())
    run()
    metrics, report = read_json(score.METRICS), read_json(score.REPORT)
    assert metrics["dpo"]["precision"] == 0.3333
    assert [report["models"][name]["precision"]["estimate"] for name in ("base", "sft")] == [1, 1]
    found = [report["models"][name]["precision"] for name in score.MODELS]
    counts = ("n", "own", "foreign", "silent", "without_concept")
    assert [[each[name] for name in counts] for each in found] == [[1, 1, 0, 1, 1], [2, 3, 0, 0, 1], [2, 1, 2, 0, 1]]
    assert (found[2]["low"], found[2]["high"]) == (0, 1)


def test_side_by_side_names_foreign_ideas(folder):
    write_inputs(answers=foreign_answers())
    report = run()[score.SIDE_BY_SIDE].decode()
    assert [line for line in report.splitlines() if "foreign" in line] == [
        "| foreign: none | foreign: none | foreign: mean \\(moments\\) |",
        "| foreign: none | foreign: none | foreign: event \\(events\\) |",
    ]


@pytest.mark.parametrize("concepts", [[], CONCEPTS[2:]], ids=["an empty file", "other concepts"])
def test_precision_without_concepts_is_undefined_and_changes_nothing_else(folder, concepts):
    before = run()
    write_inputs(concepts=concepts)
    after = run()
    assert read_json(score.METRICS)["dpo"]["precision"] is None
    precisions = [model["precision"] for model in read_json(score.REPORT)["models"].values()]
    assert [each["estimate"] for each in precisions] == [None] * 3
    reasons = {each["reason"] for each in precisions}
    assert reasons == {"no prompt names a concept of the catalogue"}
    assert all(after[path] == before[path] for path in (score.HIT_RATE, score.TOPICS, score.OUTCOMES, score.LENGTHS))
    assert "| undefined | undefined |" in after[score.SIDE_BY_SIDE].decode()
    assert "foreign" not in after[score.SIDE_BY_SIDE].decode()


def test_order_of_concepts_changes_no_file(folder):
    write_inputs(answers=foreign_answers())
    before = run()
    for concepts in (CONCEPTS[::-1], CONCEPTS[1:] + CONCEPTS[:1]):
        write_inputs(answers=foreign_answers(), concepts=concepts)
        assert run() == before


# ---- Tables -----------------------------------------------------------------------------------------------------------


def test_columns_of_the_tables(folder):
    files = run()
    rates = b"group,model,hit_rate,low,high,prompts"
    headers = {path: files[path].splitlines()[0] for path in (score.HIT_RATE, score.TOPICS, score.OUTCOMES, score.LENGTHS)}
    assert headers == {
        score.HIT_RATE: rates,
        score.TOPICS: rates,
        score.OUTCOMES: b"comparison,outcome,prompts,share",
        score.LENGTHS: b"model,words,hit_rate,answers",
    }


def test_lengths_count_every_answer_once(folder):
    run()
    rows = table_of(score.LENGTHS)
    assert [sum(int(row["answers"]) for row in rows if row["model"] == name) for name in score.MODELS] == [3, 3, 3]
    words = [(len(f"{ANSWERS['sft'][id]}, {TAIL}".split()), rate) for id, rate in (("a", 1), ("b", 0.5), ("c", 0.25))]
    assert [(int(row["words"]), float(row["hit_rate"])) for row in rows if row["model"] == "sft"] == sorted(words)


def test_rates_cover_every_group_and_model(folder):
    """c has no kind, so it counts only among all prompts."""
    run()
    kinds = [(row["group"], int(row["prompts"])) for row in table_of(score.HIT_RATE)[::3]]
    assert kinds == [("all prompts", 3), ("new concept", 1), ("new wording", 1)]
    topics = table_of(score.TOPICS)
    assert [(row["group"], int(row["prompts"])) for row in topics[::3]] == [("markov", 2), ("probability", 1)]
    assert [row["model"] for row in topics] == ["base", "sft", "dpo"] * 2


def test_rate_of_a_topic_with_its_interval(folder):
    """base on markov has the rates 1/2 and 0: a resample of two has mean 0, 1/4 or 1/2 with chance 1/4, 1/2, 1/4."""
    run()
    markov = table_of(score.TOPICS)[0]
    assert [float(markov[column]) for column in ("hit_rate", "low", "high")] == [0.25, 0, 0.5]


def test_rate_of_one_prompt_has_no_interval(folder):
    run()
    alone = [row for row in table_of(score.TOPICS) + table_of(score.HIT_RATE) if row["prompts"] == "1"]
    assert len(alone) == 9
    assert {(row["low"], row["high"]) for row in alone} == {("", "")}


def test_outcome_shares_add_up_to_one(folder):
    run()
    rows = table_of(score.OUTCOMES)
    for start in (0, 3, 6):
        assert math.fsum(float(row["share"]) for row in rows[start : start + 3]) == pytest.approx(1, abs=1e-5)


def test_metrics_are_finite_numbers_with_four_decimals(folder):
    run()
    metrics = read_json(score.METRICS)
    assert list(metrics) == ["sft", "dpo", "dpo_vs_sft"]
    for section in metrics.values():
        for name, value in section.items():
            word = name.endswith("verdict")
            assert type(value) in ((str,) if word else (int, float))
            assert word or (math.isfinite(value) and round(value, 4) == value)


def test_report_is_sorted_and_every_null_has_its_reason(folder):
    text = run()[score.REPORT].decode()
    report = json.loads(text)
    assert text == json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    assert list(nulls(report)) == []
    assert set(report) == {"canaries", "clean", "exploratory", "models", "pairs", "prompts", "settings"}


# ---- Clean prompts ------------------------------------------------------------------------------------------------------


def report_with_overlap(*ids):
    """The report when the prompts with these ids overlap with the training data."""
    write_inputs([row | {"overlap": "ngram_8"} if row["id"] in ids else row for row in REFERENCES])
    return json.loads(run()[score.REPORT])


def test_clean_prompts_are_also_scored_alone(folder):
    """Without a: base (0/2 + 2/4) / 2, sft (1/2 + 1/4) / 2, dpo (2/2 + 4/4) / 2; dpo beats sft on both."""
    report = report_with_overlap("a")
    clean = report["clean"]
    assert (clean["prompts"], clean["of"], report["prompts"]) == (2, 3, 3)
    assert {name: clean["models"][name]["estimate"] for name in score.MODELS} == {"base": 0.25, "sft": 0.375, "dpo": 1}
    assert all(clean["models"][name]["n"] == 2 and clean["models"][name]["low"] is not None for name in score.MODELS)
    pair = clean["pairs"]["dpo_vs_sft"]
    assert (pair["wins"], pair["ties"], pair["losses"], pair["n"]) == (2, 0, 0, 2)
    assert report["models"]["dpo"]["hit_rate"]["n"] == 3
    assert list(nulls(report)) == []


def test_overlap_changes_no_figure_of_all_prompts(folder):
    before = json.loads(run()[score.REPORT])
    after = report_with_overlap("a")
    assert {key: value for key, value in after.items() if key != "clean"} == {
        key: value for key, value in before.items() if key != "clean"
    }


@pytest.mark.parametrize(("ids", "prompts", "note"), [("", 3, "no prompt overlaps"), ("abc", 0, "every prompt overlaps")])
def test_clean_part_is_a_note_where_all_or_no_prompts_are_clean(folder, ids, prompts, note):
    clean = report_with_overlap(*ids)["clean"]
    assert (clean["prompts"], clean["of"]) == (prompts, 3) and clean["note"].startswith(note)
    assert set(clean) == {"prompts", "of", "note"}


# ---- What the files must hold -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["a", "c"])
def test_missing_answer_is_refused_with_the_next_command(folder, missing):
    rows = [answer_row(id, text) for id, text in ANSWERS["sft"].items() if id != missing]
    write_jsonl(score.MODELS["sft"], rows)
    with pytest.raises(InputError, match=r"sft\.jsonl does not answer .*\(1 missing\)\. Run: dvc repro --force generate"):
        run()


def test_no_prompt_is_refused(folder):
    write_inputs(references=[], answers={name: {} for name in score.MODELS})
    with pytest.raises(InputError, match=r"references\.jsonl holds no prompt"):
        run()


def test_answer_to_an_unknown_prompt_is_refused(folder):
    write_jsonl(score.MODELS["base"], [answer_row(id, text) for id, text in (ANSWERS["base"] | {"d": "More"}).items()])
    with pytest.raises(InputError, match=r"base\.jsonl does not answer"):
        run()


def test_missing_file_is_refused_by_name(folder):
    score.MODELS["dpo"].unlink()
    with pytest.raises(InputError, match=r"dpo\.jsonl is missing.*dvc repro"):
        run()


def test_order_of_answers_changes_no_file(folder):
    before = run()
    for order in (lambda rows: rows[::-1], lambda rows: rows[1:] + rows[:1]):
        write_inputs(order=order)
        assert run() == before


def test_forbidden_word_costs_no_hit(folder):
    """Forbidden words are flagged but do not change the hit rate."""
    before = run()[score.METRICS]
    write_inputs(answers=ANSWERS | {"dpo": ANSWERS["dpo"] | {"c": ANSWERS["dpo"]["c"] + " of a wizard"}})
    after = run()[score.METRICS]
    hit_rates = [json.loads(metrics)["dpo"]["hit_rate"] for metrics in (before, after)]
    assert hit_rates[0] == hit_rates[1] == 0.8333


# ---- The report -------------------------------------------------------------------------------------------------------


def test_side_by_side_shows_every_prompt_with_all_answers(folder):
    report = run()[score.SIDE_BY_SIDE].decode()
    assert [line for line in report.splitlines() if line.startswith("## ")] == [
        "## Define it",
        "## Sum it up",
        "## List the words",
    ]
    assert "| base: 1 of 2 | sft: 2 of 2 | dpo: 1 of 2 |" in report
    assert "| state | state, step | state |" in report
    assert "| none | mean | mean, variance |" in report
    assert re.search(
        r"\| base \| 0\.333 \| 0\.000 to 0\.500 \| 0\.\d{3} \| 1\.000 \| undefined \| 0\.000 \| \d\.\d{3} \| 1\.000 \|", report
    )
    assert "are equal." in report
    for texts in ANSWERS.values():
        assert all(f"{text}, {TAIL}" in report for text in texts.values())


def test_side_by_side_gives_each_win_rate_with_an_interval(folder):
    report = run()[score.SIDE_BY_SIDE].decode()
    row = re.search(r"\| sft over base \| 2 \| 0 \| 1 \| 0\.667 \| (\S+) to (\S+) \|", report)
    low, high = map(float, row.groups())
    assert 0 <= low < 0.667 < high <= 1


def test_side_by_side_shows_an_empty_answer(folder):
    row = {"id": "a", "answer": "", "stop": "end", "prompt_tokens": 1, "answer_tokens": 0}
    write_jsonl(score.MODELS["base"], [row, *(answer_row(id, "No") for id in "bc")])
    assert "| (empty) | A state in a step" in run()[score.SIDE_BY_SIDE].decode()


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b || c \\| d",
    "[click](javascript:alert(1)) and [ref][1] and ![image](https://evil.example/x.png)",
    "<https://evil.example> https://evil.example/x www.evil.example",
    "`code` ``` fence ``` ~~~ fence ~~~ ~~struck~~",
    "line one\n\n# heading\n\n- list\n\n1. list\n\n---\n\n> quote\r\n| cell |\n\n    block",
    "**bold** __bold__ *it* _it_ $x^2$",
    "&lt;b&gt; &#60;script&#62; &amp;",
    "[1]: https://evil.example \\",
    "\\<script>\\`\\|",
    "two\u2028lines\u2029and\x0bmore\x0c\x85",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_side_by_side_shows_hostile_text_as_text(folder, text):
    """With hostile answers, prompts, topics, kinds and keywords, the page has only our own tags."""
    hostile = {"prompt": text, "topic": text, "kind": text, "keywords": [{"any": [text, "state"]}, "step"]}
    write_inputs(
        [REFERENCES[0] | hostile, *REFERENCES[1:]],
        {name: texts | {"a": f"State {text}", "b": "A thing"} for name, texts in ANSWERS.items()},
        concepts=[*CONCEPTS, {"concept": text, "keywords": [{"any": [text, "thing"]}], "text": text}],
    )
    report = run()[score.SIDE_BY_SIDE].decode()
    page = rendered(report)
    assert set(re.findall("<[^>]*>", page)) == {f"{opening}{tag}>" for tag in OUR_TAGS for opening in ("<", "</")}
    assert len(re.findall("<h2>", page)) == len(REFERENCES)
    assert len(re.findall("<table>", page)) == 2 + len(REFERENCES)


@pytest.mark.parametrize("text", [*HOSTILE, "100% of $5 at 3 < 4 & 5 > 2", "x_1 * y_2 = z#3 {a} (b) + c!"])
def test_markdown_shows_text_as_it_was_written(text):
    """The rendered page shows the same characters, with white space collapsed."""
    page = MarkdownIt("commonmark").renderInline(markdown.markdown(text))
    shown = page.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    assert shown == " ".join(text.split())


@given(st.text(alphabet=st.sampled_from("<>|[]()!`*_~#&\\:/ \nwax.1-+$"), max_size=40))
@settings(deadline=None, max_examples=300)
def test_markdown_text_stays_in_its_cell(text):
    assert not set("<>\n") & set(markdown.markdown(text))
    page = rendered(markdown.table(["a", "b"], [["x", markdown.markdown(text)]]))
    assert re.sub("<t[hd]>[^<]*</t[hd]>", "", page).split() == [
        *["<table>", "<thead>", "<tr>", "</tr>", "</thead>", "<tbody>"],
        *["<tr>", "</tr>", "</tbody>", "</table>"],
    ]
    assert page.count("<td>") == 2


@pytest.mark.parametrize("address", ["https://evil.example", "http://evil.example", "ftp://evil.example", "www.evil.example"])
def test_markdown_makes_no_link_of_an_address(address):
    """GitHub links source text that starts with a scheme and :// or with www."""
    assert not re.search(r"(https?|ftp)://|www\.", markdown.markdown(f"see {address} there"))


def test_markdown_replaces_control_characters():
    """A terminal that shows the report must not obey the model."""
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", markdown.markdown("\x1b[31mred\x07 \x00 \x9b2J \x7f"))


def rendered(text):
    return MarkdownIt("commonmark").enable("table").render(text)


# ---- The process ------------------------------------------------------------------------------------------------------

PROGRAM = """
import runpy, sys
sys.argv = ["score.py"]
runpy.run_path({script!r}, run_name="__main__")
print(sorted({{"torch", "transformers", "trl", "peft", "tokenizers", "datasets"}} & set(sys.modules)))
"""


def test_command_loads_no_model_library_and_writes_the_same_bytes(folder):
    expected = run()
    for seed, threads in (("0", "1"), ("1", "2")):
        for path in FILES:
            path.unlink()
        assert run_as_command(seed, threads) == "[]"
        assert {path: path.read_bytes() for path in FILES} == expected


def run_as_command(hash_seed, threads):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")}
    environment |= {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    program = PROGRAM.format(script=str(ROOT / "src" / "score.py"))
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_memory_time_and_page_size_of_a_default_run():
    """Runs the benchmark as a process; the limits are 300 MB, 2 MB and, for busy machines, 15 CPU seconds."""
    command = [sys.executable, str(ROOT / "benchmarks" / "score_rows.py"), "152"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    [found] = json.loads(done.stdout.splitlines()[-1])
    assert (found["prompts"], found["answers"]) == (152, 456)
    assert found["peak_mb"] < 300 and found["page_mb"] < 2 and 0 < found["cpu_seconds"] < 15


def test_models_are_in_the_order_of_training():
    assert all(first in score.MODELS and second in score.MODELS for first, second in score.PAIRS)
    order = list(score.MODELS)
    assert all(order.index(earlier) < order.index(later) for earlier, later in pairwise(["base", "sft", "dpo"]))
