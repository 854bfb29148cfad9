"""The league's report: all pairs, one family of tests, KL divergences, and a part of it for the page."""

import pytest
from support.scored import ANSWERS, CONCEPTS, REFERENCES, answer_row

from aligner import statistics
from aligner.run.params import Score
from aligner.scoring.answers import Control
from aligner.scoring.concepts import Catalogue
from aligner.scoring.league import all_pairs, at_equal_length, kl_from_reference, league_report, part_of, signed
from aligner.scoring.pairs import pair_name
from aligner.scoring.report import scoring_report
from aligner.scoring.unscored import score_answers

RULES = Score(tie_threshold=0, alpha=0.05, equivalence_margin=0.05)
MODELS = ("base", "sft", "dpo", "kto")
KL = {"kl_per_answer_sampled": 3.5, "kl_per_answer_sampled_low": 3.0, "kl_per_answer_sampled_high": 4.0}


@pytest.fixture(scope="module")
def answers():
    texts = {**ANSWERS, "kto": {**ANSWERS["dpo"], "a": "A step in a state, and a state in a step, once more"}}
    rows = {name: [answer_row(id, text) for id, text in given.items()] for name, given in texts.items()}
    return score_answers(rows, REFERENCES, Control(REFERENCES), Catalogue(CONCEPTS))


@pytest.fixture(scope="module")
def report(answers):
    return league_report(answers, REFERENCES, {"kto": KL, "dpo": {"kl_per_answer_sampled": None}}, RULES)


def test_every_pair_is_compared_once():
    pairs = all_pairs(MODELS)
    assert len(pairs) == 6 and len({frozenset(pair) for pair in pairs}) == 6
    assert pairs[:3] == [("sft", "base"), ("dpo", "base"), ("kto", "base")]


def test_p_values_are_adjusted_over_all_pairs_whole_and_at_equal_length(report):
    claims = [*report["pairs"].values(), *(pair["equal_length"] for pair in report["pairs"].values())]
    assert len(claims) == 12
    assert [claim["p_holm"] for claim in claims] == pytest.approx(statistics.holm([claim["p"] for claim in claims]))


def test_three_models_have_the_figures_of_score(answers):
    """The league is no second way of scoring."""
    three = {name: answers[name] for name in MODELS[:3]}
    league, scored = (
        league_report(three, REFERENCES, {}, RULES),
        scoring_report(three, REFERENCES, all_pairs(MODELS[:3]), RULES),
    )
    assert league["pairs"] == scored["pairs"]
    assert {name: {key: model[key] for key in scored["models"][name]} for name, model in league["models"].items()} == scored[
        "models"
    ]


def test_kl_comes_from_the_model_s_own_report(report):
    models = report["models"]
    assert models["kto"]["kl"] == {"estimate": 3.5, "low": 3.0, "high": 4.0, "method": "reports/kto.json"}
    assert models["sft"]["kl"]["estimate"] == 0.0
    assert models["base"]["kl"] == {"estimate": None, "reason": "no stage measured it"}
    assert models["dpo"]["kl"]["estimate"] is None and "no KL" in models["dpo"]["kl"]["reason"]
    assert kl_from_reference("best_of_n", {"best_of_n": {"kl_per_answer_sampled": 1.8}})["low"] is None


def test_the_difference_at_equal_length_is_from_sft_whichever_comes_first(report):
    models, pairs = report["models"], report["pairs"]
    assert models["kto"]["at_equal_length"]["estimate"] == pairs["kto_vs_sft"]["equal_length"]["mean_difference"]["estimate"]
    base = pairs["sft_vs_base"]["equal_length"]["mean_difference"]
    assert models["base"]["at_equal_length"]["estimate"] == -base["estimate"]
    assert (models["base"]["at_equal_length"]["low"], models["base"]["at_equal_length"]["high"]) == (-base["high"], -base["low"])
    assert models["sft"]["at_equal_length"]["estimate"] is None and at_equal_length("kto", {})["estimate"] is None
    assert signed({"estimate": 1.0, "low": None, "high": 2.0}, -1) == {"estimate": -1.0, "low": -2.0, "high": None}


def test_a_part_keeps_the_adjusted_p_values(report):
    part = part_of(report, ["sft", "kto"])
    assert list(part["models"]) == ["sft", "kto"] and list(part["pairs"]) == ["kto_vs_sft"]
    assert part["pairs"]["kto_vs_sft"] is report["pairs"]["kto_vs_sft"]
    topics = part["exploratory"]["topics"]
    assert topics and all(list(topic["models"]) == ["sft", "kto"] for topic in topics.values())
    assert all(list(topic["pairs"]) == [pair_name(("kto", "sft"))] for topic in topics.values())
