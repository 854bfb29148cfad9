"""Answers that get a chosen number of hits, and the reports on them, for the tests of aligner.scoring."""

import random

from aligner.keywords.scorer import KeywordScore
from aligner.run.params import Score
from aligner.scoring.answers import Answer
from aligner.scoring.report import scoring_report
from support.scored import PAIRS

RULES = Score(tie_threshold=0, alpha=0.05, equivalence_margin=0.05)
GROUPS = 4
TAIL = "and then the talk goes on for a while, about the weather, the garden, a train to the sea, and much else."
EDGES = {
    "one prompt": {"base": [1], "sft": [2], "dpo": [2]},
    "two prompts": {"base": [1, 2], "sft": [2, 2], "dpo": [0, 4]},
    "all ties": {"base": [2] * 12, "sft": [2] * 12, "dpo": [2] * 12},
    "all wins": {"base": [0] * 12, "sft": [2] * 12, "dpo": [4] * 12},
    "all hit": {"base": [4] * 12, "sft": [4] * 12, "dpo": [4] * 12},
}


def answer(hits, words=10, stop="end", shuffled=0.1, flags=(), text=None, cut=None, ideas=None):
    """An answer that gets `hits` of four groups."""
    keyword = KeywordScore(hits, GROUPS, (True,) * hits + (False,) * (GROUPS - hits), hits, GROUPS, hits, GROUPS, (), 0.1, flags)
    text = " ".join(["word"] * words) if text is None else text
    rates = dict.fromkeys(("base", "sft", "dpo"), hits / GROUPS) | (cut or {})
    return Answer(text, stop, words, words, keyword, False, 1.5, 0.0, shuffled, rates, ideas)


def models(**hits):
    return {name: [answer(each) for each in values] for name, values in hits.items()}


def references(n, **columns):
    return [
        {"id": f"p{i}", "prompt": f"Question {i}?", "topic": "even odd".split()[i % 2], "keywords": ["a", "b", "c", "d"]}
        | {name: values[i] for name, values in columns.items()}
        for i in range(n)
    ]


def random_hits(n, seed=0, models=("base", "sft", "dpo")):
    source = random.Random(seed)
    return {name: [source.randrange(GROUPS + 1) for _ in range(n)] for name in models}


def report_of(hits, rules=RULES, **columns):
    return scoring_report(models(**hits), references(len(hits["base"]), **columns), PAIRS, rules)


def decision(pair):
    return pair["decision"]["verdict"]
