"""Nine acceptance tests of the evaluation, each through the score stage or its whole report.

1  every case of every golden file        test_statistics, test_text_health, test_keywords, test_dpo; here: none is missing
2  order and sides                        permuted prompts, rows and models change nothing; A and B swapped mirror the comparison
3  every prompt twice                     the same estimate, and the same clustered standard error
4  identical models                       win rate one half, p = 1, never "better"
5  canaries                               answers that know nothing get no reward, on every run
6  A/A                                    two halves of one model's samples differ significantly at the rate alpha
7  too little, too even, not a number     a defined output, or an error that names what is wrong
8  the same bytes                         whatever the hash seed and the number of threads, in processes of their own
9  finite numbers or null                 in metrics and report, every null with its reason, and every figure that a claim needs
"""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import golden
from support.scored import FILES, PAIRS, TAIL, copy_other_stages, nulls, run, write_params

import score
from aligner import intervals
from aligner.files import read_json, write_jsonl
from aligner.run.errors import InputError
from aligner.scoring import inputs
from aligner.scoring.pairs import comparison

ROOT = Path(__file__).resolve().parents[2]
WORDS = "mean variance event outcome".split()
NAMES = list(score.MODELS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_other_stages()
    write_params(0)
    return tmp_path


def prompts(n):
    """Rows of references.jsonl: one concept for every two prompts, two topics, four key ideas."""
    return [
        {"id": f"p{i}", "prompt": f"Question {i}?", "topic": f"topic {i % 2}", "concept": f"c{i // 2}", "keywords": WORDS}
        for i in range(n)
    ]


def say(id, hits, extra=0):
    """An answer that names this many of the four ideas, in a sentence long enough that it is not stuffed."""
    text = f"{' and '.join(['It', *WORDS[:hits]])}, {TAIL} {'So it goes on. ' * extra}"
    return {"id": id, "answer": text.strip(), "stop": "end", "prompt_tokens": 3, "answer_tokens": len(text.split())}


def random_rows(references, seed=0):
    """The answers of three models to these prompts, with hits and lengths drawn at random."""
    source = random.Random(seed)
    return {name: [say(row["id"], source.randrange(5), source.randrange(3)) for row in references] for name in NAMES}


def rows_of(hits):
    """Answers with these hits, per model and prompt."""
    return {name: [say(f"p{i}", each) for i, each in enumerate(given)] for name, given in hits.items()}


def lay_out(references, rows):
    write_jsonl(inputs.REFERENCES, references)
    write_jsonl(score.CONCEPTS, [])
    for name, path in score.MODELS.items():
        write_jsonl(path, rows[name])


def scored(references, rows):
    """The report of the stage on these prompts and answers."""
    lay_out(references, rows)
    run()
    return read_json(score.REPORT)


# ---- 1: golden files --------------------------------------------------------------------------------------------------


def test_1_every_golden_case_is_tested():
    """The modules' tests run over all of support/golden.py; test_statistics.py names the textbook cases that it omits."""
    files = {path.name: json.loads(path.read_bytes()) for path in (ROOT / "tests" / "golden").glob("*.json")}
    assert set(files) == {"textbook.json", "paired_phi2.json", "text_metrics.json", "keyword_cases.json", "trajectories.json"}
    textbook = files["textbook.json"]
    assert [golden.TEXTBOOK[case["id"]] for case in textbook["cases"]] == textbook["cases"] == list(golden.TEXTBOOK.values())
    assert golden.DPO_REWARDS == textbook["dpo_reward_cases"]
    assert golden.PHI2 == files["paired_phi2.json"]
    assert golden.TEXTS == files["text_metrics.json"]
    assert golden.KEYWORDS == files["keyword_cases.json"]["cases"]


# ---- 2: order and sides -----------------------------------------------------------------------------------------------


def test_2_permuted_prompts_and_rows_change_no_figure(folder):
    """The report is sorted and the tables go by group and length, so no byte changes."""
    references = prompts(40)
    rows = random_rows(references)
    lay_out(references, rows)
    before = run()
    order = random.Random(1).sample(range(40), 40)
    lay_out([references[i] for i in order], {name: given[::-1] for name, given in rows.items()})
    after = run()
    for path in (score.METRICS, score.REPORT, score.HIT_RATE, score.TOPICS, score.OUTCOMES, score.LENGTHS):
        assert after[path] == before[path], path


def test_2_order_of_models_changes_no_figure(folder, monkeypatch):
    references = prompts(30)
    lay_out(references, random_rows(references))
    run()
    before = read_json(score.REPORT)
    monkeypatch.setattr(score, "MODELS", dict(reversed(score.MODELS.items())))
    run()
    after = read_json(score.REPORT)
    assert after == before


def test_2_swapping_two_models_mirrors_the_comparison(folder):
    """With the answers of sft and dpo swapped, wins become losses, the win rate its complement, and p stays."""
    references = prompts(40)
    rows = random_rows(references)
    one = scored(references, rows)["pairs"]["dpo_vs_sft"]
    other = scored(references, rows | {"sft": rows["dpo"], "dpo": rows["sft"]})["pairs"]["dpo_vs_sft"]
    assert (one["wins"], one["ties"], one["losses"]) == (other["losses"], other["ties"], other["wins"])
    assert one["wins"] != one["losses"]
    assert one["win_rate"]["estimate"] == pytest.approx(1 - other["win_rate"]["estimate"], abs=1e-6)
    assert one["win_rate"]["low"] == pytest.approx(1 - other["win_rate"]["high"], abs=1e-6)
    assert one["mean_difference"]["estimate"] == -other["mean_difference"]["estimate"]
    assert one["p"] == other["p"] and one["sign_test"] == other["sign_test"]
    levels = [each["length"]["length_controlled"]["estimate"] for each in (one, other)]
    assert levels[0] == pytest.approx(1 - levels[1], abs=1e-6)


# ---- 3 and 4: copies --------------------------------------------------------------------------------------------------


def test_3_duplicated_prompts_keep_estimate_and_clustered_error(folder):
    """With each prompt twice in its concept, the naive error shrinks by sqrt 2 and the clustered error stays."""
    references = [row | {"concept": row["id"]} for row in prompts(30)]
    rows = random_rows(references)
    copies = [row | {"id": f"{row['id']}-copy"} for row in references]
    once = scored(references, rows)
    twice = scored(
        references + copies,
        {name: given + [row | {"id": f"{row['id']}-copy"} for row in given] for name, given in rows.items()},
    )
    for before, after in zip(estimates_of(once), estimates_of(twice), strict=True):
        assert after["estimate"] == pytest.approx(before["estimate"], abs=1e-6)
        assert after["clustered"]["standard_error"] == pytest.approx(before["clustered"]["standard_error"], rel=1e-5)
        assert before["clustered"]["standard_error"] == pytest.approx(before["standard_error"], rel=1e-5)
        assert after["standard_error"] < 0.75 * before["standard_error"]


def estimates_of(report):
    rates = [report["models"][name]["hit_rate"] for name in NAMES]
    return rates + [pair["mean_difference"] for pair in report["pairs"].values()]


@pytest.mark.parametrize(("n", "word"), [(20, "inconclusive"), (300, "equivalent")])
def test_4_identical_models_are_never_better(folder, n, word):
    references = prompts(n)
    rows = random_rows(references)
    report = scored(references, {name: rows["base"] for name in NAMES})
    for pair in report["pairs"].values():
        assert pair["win_rate"]["estimate"] == 0.5 and pair["p"] == pair["p_holm"] == 1
        assert pair["decision"]["verdict"].startswith(word)
        assert pair["cannot_be_significant"].startswith("cannot be significant: 0 prompts differ")


# ---- 5: canaries ------------------------------------------------------------------------------------------------------


def test_5_models_that_know_nothing_are_not_rewarded(folder):
    """base says nothing, sft repeats the prompt, dpo joins all keywords: no hit, although dpo names every idea."""
    references = prompts(12)
    texts = {"base": lambda row: "", "sft": lambda row: row["prompt"], "dpo": lambda row: " ".join(WORDS)}
    rows = {name: [say(row["id"], 0) | {"answer": text(row)} for row in references] for name, text in texts.items()}
    report = scored(references, rows)
    assert [report["models"][name]["hit_rate"]["estimate"] for name in NAMES] == [0, 0, 0]
    health = {name: report["models"][name]["health"] for name in NAMES}
    assert [health[name][sign]["estimate"] for name, sign in zip(NAMES, ("empty", "echo", "stuffed"), strict=True)] == [1, 1, 1]
    assert report["canaries"]["constant"]["hit_rate"] > 0
    assert {report["canaries"][name]["hit_rate"] for name in ("empty", "prompt echo", "all keywords")} == {0}


def test_5_one_text_for_all_prompts_has_no_lift(folder):
    """Prompts ask for four words in turn; the constant answer names one of them: its hit rate is 1/4 on own and other prompts."""
    references = [row | {"keywords": [WORDS[i % 4]]} for i, row in enumerate(prompts(12))]
    rows = random_rows(references) | {"dpo": [say(row["id"], 1) for row in references]}
    report = scored(references, rows)["models"]["dpo"]
    assert report["hit_rate"]["estimate"] == 0.25
    assert report["shuffled_hit_rate"]["estimate"] == report["hit_rate"]["estimate"] and report["lift"]["estimate"] == 0
    assert report["health"]["duplicate"]["count"] == 11 and report["health"]["shared"]["estimate"] == 1


# ---- 6: A/A -----------------------------------------------------------------------------------------------------------


def test_6_false_positive_rate_is_alpha():
    """1000 random splits of one model's eight samples a prompt: p < .05 in 3.5 to 6.5 % of them, by the report's comparison."""
    source = random.Random(3)
    samples = [[source.choice([0, 1, 1, 2, 3, 4]) / 4 for _ in range(8)] for _ in range(50)]
    found = 0
    for _ in range(1000):
        split = [source.sample(each, 8) for each in samples]
        halves = ([sum(each[half]) / 4 for each in split] for half in (slice(4), slice(4, 8)))
        found += comparison(*halves, 0)["p"] < 0.05
    assert 35 <= found <= 65


# ---- 7: too little, too even, not a number ----------------------------------------------------------------------------

EDGES = {
    "one prompt": {"base": [1], "sft": [2], "dpo": [4]},
    "two prompts": {"base": [1, 2], "sft": [2, 2], "dpo": [0, 4]},
    "all ties": {name: [2] * 12 for name in NAMES},
    "all wins": {"base": [0] * 12, "sft": [2] * 12, "dpo": [4] * 12},
    "nothing hit": {name: [0] * 12 for name in NAMES},
}


@pytest.mark.parametrize("hits", EDGES.values(), ids=EDGES)
def test_7_small_and_even_data_give_numbers_or_reasons(folder, hits):
    report = scored(prompts(len(hits["base"])), rows_of(hits))
    assert list(nulls(report)) == []
    verdicts = {name: pair["decision"]["verdict"] for name, pair in report["pairs"].items()}
    assert set(verdicts.values()) <= {"better"} if hits is EDGES["all wins"] else "better" not in verdicts.values()


def test_7_no_prompt_and_a_missing_answer_are_named(folder):
    with pytest.raises(InputError, match=r"references\.jsonl holds no prompt"):
        scored([], dict.fromkeys(NAMES, []))
    references = prompts(3)
    rows = random_rows(references)
    with pytest.raises(InputError, match=r"sft\.jsonl does not answer the prompts .*\(1 missing\)"):
        scored(references, rows | {"sft": rows["sft"][:2]})


def test_7_score_that_is_nan_is_named():
    with pytest.raises(ValueError, match=r"\[1\] must be a finite number, got nan"):
        comparison([0.5, math.nan, 0.5], [0.5, 0.5, 0.5], 0)


@pytest.mark.parametrize("concepts", [1, 3, 9])
def test_7_few_clusters_get_a_warning_and_a_bootstrap(folder, concepts):
    """One concept gives no clustered error; two to nine give a warning and the bootstrap of whole clusters."""
    references = [row | {"concept": f"c{i % concepts}"} for i, row in enumerate(prompts(27))]
    report = scored(references, random_rows(references))
    for found in (report["models"]["sft"]["hit_rate"], report["pairs"]["sft_vs_base"]["mean_difference"]):
        by_cluster = found["clustered"]
        if concepts == 1:
            assert by_cluster == {"estimate": None, "clusters": 1, "reason": "fewer than two clusters"}
            continue
        assert by_cluster["warning"] == f"only {concepts} clusters: the standard error is itself uncertain"
        assert by_cluster["bootstrap"]["low"] <= by_cluster["estimate"] <= by_cluster["bootstrap"]["high"]
    assert list(nulls(report)) == []


# ---- 8: the same bytes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_8_the_same_bytes_in_any_process(folder, tmp_path):
    """Three processes with different hash seeds and threads write the same bytes."""
    references = [row | {"concept": f"c{i % 5}"} for i, row in enumerate(prompts(40))]
    lay_out(references, random_rows(references))
    outputs = []
    for seed, threads in (("0", "1"), ("1", "2"), ("random", "1")):
        copy = tmp_path.parent / f"copy-{seed}"
        shutil.copytree(folder, copy)
        environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": seed}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        command = [sys.executable, str(ROOT / "src" / "score.py")]
        subprocess.run(command, cwd=copy, env=environment, timeout=120, check=True)
        outputs.append({path: (copy / path).read_bytes() for path in FILES})
    assert outputs[0] == outputs[1] == outputs[2]
    assert json.loads(outputs[0][score.REPORT])["settings"]["bootstrap_seed"] == intervals.RESAMPLING_SEED


# ---- 9: finite numbers or null ----------------------------------------------------------------------------------------


def numbers(value):
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, float | int):
        yield value


def test_9_metrics_and_report_hold_finite_numbers_or_null_with_a_reason(folder):
    references = prompts(30)
    report = scored(references, random_rows(references))
    texts = [path.read_text(encoding="utf-8") for path in (score.METRICS, score.REPORT)]
    assert not any(re.search(r"\b(NaN|Infinity)\b", text) for text in texts)
    found = [list(numbers(json.loads(text))) for text in texts]
    assert all(math.isfinite(each) for values in found for each in values) and len(found[0]) < 30 < len(found[1])
    assert list(nulls(report)) == []
    for pair in (report["pairs"][f"{first}_vs_{second}"] for first, second in PAIRS):
        difference = pair["mean_difference"]
        claim = [difference[key] for key in ("estimate", "n", "standard_error", "low", "high")]
        claim += [pair["p"], pair["p_holm"], pair["detectable"]["estimate"]]
        assert all(isinstance(each, float | int) for each in claim) and isinstance(difference["method"], str)
