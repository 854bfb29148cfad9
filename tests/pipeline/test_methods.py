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
    assert not set(started(clone("dvc", "repro"))) & of_methods(
        "unpaired", "kto", "orpo", "generate@kto", "generate@orpo", "league"
    )
    ran = set(started(clone("dvc", "repro", METHODS)))
    assert ran == of_methods("kto", "orpo", "generate@kto", "generate@orpo", "league")  # the root's stages are up to date


# ---- The table over seeds -------------------------------------------------------------------------------------------


def report(hit_rate, verdict):
    estimate = {"estimate": hit_rate, "low": hit_rate - 0.1, "high": hit_rate + 0.1}
    rest = {"precision": {"estimate": 0.9}, "health": {"repeats": {"estimate": 0.5}}, "lengths": {"words": {"mean": 50.0}}}
    sft = {"hit_rate": {**estimate, "estimate": 0.5}, "at_equal_length": {"estimate": None}, "kl": {"estimate": 0.0}, **rest}
    kto = {"hit_rate": estimate, "at_equal_length": {"estimate": 0.04, "p_holm": 0.01}, "kl": {"estimate": 12.3}, **rest}
    decided = {"decision": {"verdict": verdict}}
    return {"models": {"sft": sft, "kto": kto}, "pairs": {"kto_vs_sft": {**decided, "equal_length": decided}}}


def test_each_run_adds_its_seed_to_the_table(tmp_path, monkeypatch):
    """Two seeds, the first of which is run again: its rows are replaced."""
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    monkeypatch.setattr(methods, "TABLE", tmp_path / "methods.csv")
    (tmp_path / "reports").mkdir()
    for seed, hit_rate in ((17, 0.7), (18, 0.5), (17, 0.6)):
        (tmp_path / "params.yaml").write_text(f"seed: {seed}\n", encoding="utf-8")
        (tmp_path / methods.REPORT).write_text(json.dumps(report(hit_rate, "better")), encoding="utf-8")
        methods.main()
    found = [(int(row["seed"]), row["model"], row["hit_rate"]) for row in methods.rows_in(methods.TABLE)]
    assert sorted(found) == [(17, "kto", 0.6), (17, "sft", 0.5), (18, "kto", 0.5), (18, "sft", 0.5)]


def test_seeds_are_averaged_and_verdicts_counted(tmp_path):
    rows = [*methods.rows_of(17, report(0.6, "better")), *methods.rows_of(18, report(0.5, "equivalent"))]
    for name, seconds in (("kto-20260101T000000.000000Z", 50.0), ("kto-20260102T000000.000000Z", 60.0)):
        record = {"stage": "kto", "state": "completed", "seconds": {"total": seconds}, "peak_memory_mb": {"ram": 900}}
        (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    table = methods.markdown_table(rows, methods.costs(tmp_path)).splitlines()
    assert table[2] == "| kto | 2 | 0.550 | 0.040 | 1 | 1 | 0.900 | 0.50 | 50 | 12.3 | 60 | 900 |"
    assert table[3] == "| sft | 2 | 0.500 |  |  |  | 0.900 | 0.50 | 50 | 0.0 |  |  |"
