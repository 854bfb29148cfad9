"""pipelines/dvc.yaml under DVC, with stand-ins for the stages: experiments, the root left alone; and the table over seeds."""

import json

import pytest
from support.clones import stand_in, started
from support.pipeline_files import METHODS

import methods


def of_methods(*stages):
    return {f"{METHODS}:{stage}" for stage in stages}


@pytest.mark.slow
def test_experiments_run_a_method_and_what_follows(tmp_path):
    clone = stand_in(tmp_path / "clone")
    said = clone("dvc", "exp", "run", "-S", "kto.beta=0.2", METHODS)
    assert set(started(said)) == of_methods("kto", "generate@kto", "league")
    assert "beta: 0.2" in (clone.folder / "params.yaml").read_text(encoding="utf-8").split("\nkto:")[1]
    assert "kto.value" in clone("dvc", "metrics", "diff") and "league.value" in clone("dvc", "metrics", "diff")


@pytest.mark.slow
def test_the_root_never_runs_a_method_and_a_method_runs_what_it_needs(tmp_path):
    clone = stand_in(tmp_path / "clone")
    params = clone.folder / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("\nseed: 17", "\nseed: 18"), encoding="utf-8")
    assert not any(stage.startswith(METHODS) for stage in started(clone("dvc", "repro")))
    ran = set(started(clone("dvc", "repro", METHODS)))
    trained, answers = ("kto", "orpo", "reward", "best_of_n", "grpo"), ("generate@kto", "generate@orpo", "generate@grpo")
    assert ran == of_methods(*trained, *answers, "league")  # the root's stages are up to date


# ---- The table over seeds -------------------------------------------------------------------------------------------


PAGE = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in ("league", "pairs", "reward", "best_of_n"))


def report(hit_rate, verdict):
    estimate = {"estimate": hit_rate, "low": hit_rate - 0.1, "high": hit_rate + 0.1}
    rest = {"precision": {"estimate": 0.9}, "health": {"repeats": {"estimate": 0.5}}, "lengths": {"words": {"mean": 50.0}}}
    sft = {"hit_rate": {**estimate, "estimate": 0.5}, "at_equal_length": {"estimate": None}, "kl": {"estimate": 0.0}, **rest}
    kto = {"hit_rate": estimate, "at_equal_length": {"estimate": 0.04, "p_holm": 0.01}, "kl": {"estimate": 12.3}, **rest}
    pair = {"mean_difference": {"estimate": hit_rate - 0.5}, "p_holm": 0.01, "decision": {"verdict": verdict}}
    return {"models": {"sft": sft, "kto": kto}, "pairs": {"kto_vs_sft": {**pair, "equal_length": pair}}}


def rate(name, value):
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}


REWARD = {**rate("accuracy", 0.8), **rate("equal_length_accuracy", 0.7), "validation_pairs": 20, "equal_length_pairs": 9}
REWARD |= {"longer_is_chosen": 0.5, "brier": 0.1, "calibration_error": 0.04}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with the reports of a reward model and of best-of-n, and a page without tables."""
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    for name, file in (("TABLE", "methods.csv"), ("PAIRS", "methods_pairs.csv"), ("PAGE", "methods.md")):
        monkeypatch.setattr(methods, name, tmp_path / file)
    (tmp_path / "methods.md").write_text(PAGE, encoding="utf-8")
    (tmp_path / "reports").mkdir()
    point = {name: {"estimate": 0.5} for name in ("reward", "hit_rate", "oracle_hit_rate", "words")} | {"n": 2, "kl": 0.19}
    curve = [{**point, "precision": {"estimate": None}}]
    for name, figures in (("reward", REWARD), ("best_of_n", {"curve": curve})):
        (tmp_path / f"reports/{name}.json").write_text(json.dumps({name: figures}), encoding="utf-8")
    return tmp_path


def run(root, seed, hit_rate, verdict="better"):
    (root / "params.yaml").write_text(f"seed: {seed}\n", encoding="utf-8")
    (root / methods.REPORT).write_text(json.dumps(report(hit_rate, verdict)), encoding="utf-8")
    methods.main()


def test_each_run_adds_its_seed_to_the_table(root):
    """Two seeds, the first of which is run again: its rows are replaced."""
    for seed, hit_rate in ((17, 0.7), (18, 0.5), (17, 0.6)):
        run(root, seed, hit_rate)
    found = [(row["seed"], row["model"], row["hit_rate"]) for row in methods.rows_in(methods.TABLE)]
    assert sorted(found) == [(17, "kto", 0.6), (17, "sft", 0.5), (18, "kto", 0.5), (18, "sft", 0.5)]


def test_the_page_has_means_over_seeds_and_counts_verdicts(root):
    (root / "experiments").mkdir()
    for name, seconds in (("kto-20260101T000000.000000Z", 50.0), ("kto-20260102T000000.000000Z", 60.0)):
        record = {"stage": "kto", "state": "completed", "seconds": {"total": seconds}, "peak_memory_mb": {"ram": 900}}
        (root / "experiments" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    run(root, 17, 0.6)
    run(root, 18, 0.5, "equivalent")
    shown = (root / "methods.md").read_text(encoding="utf-8")
    kto = "| kto | 2 | 0.550 (0.500 to 0.600) | 1 of 2 | +0.040 | 1 of 2 | 0.900 | 0.50 | 50 | 12.3 | 60 | 900 |"
    assert kto in shown and "| sft | 2 | 0.500 (0.500 to 0.500) |  |  |  | 0.900 | 0.50 | 50 | 0.0 |  |  |" in shown
    assert "| kto over sft | +0.050 | better on 1 of 2 | +0.050 | better on 1 of 2 |" in shown
    assert "accuracy 0.800 (0.700 to 0.900) on 20 held-out pairs" in shown
    assert "| 2 | 0.500 | 0.500 | 0.500 |  | 0 | 0.19 |" in shown
