"""Three prompts and the answers of three models, small enough to count by hand, and runs of the score stage on them."""

import math
from pathlib import Path
from unittest.mock import Mock

from ruamel.yaml import YAML

import score
from aligner.files import write_jsonl
from aligner.scoring import inputs

ROOT = Path(__file__).parents[2]
PAIRS = [("sft", "base"), ("dpo", "sft"), ("dpo", "base")]
TAIL = "and then the talk goes on for a while, about the weather, the garden, a train to the sea."
REFERENCES = [
    {
        "id": "a",
        "prompt": "Define it",
        "topic": "markov",
        "concept": "chain",
        "kind": "new_wording",
        "keywords": ["state", "step"],
    },
    {
        "id": "b",
        "prompt": "Sum it up",
        "topic": "markov",
        "concept": "moments",
        "kind": "new_concept",
        "keywords": ["mean", "variance"],
    },
    {
        "id": "c",
        "prompt": "List the words",
        "topic": "probability",
        "keywords": [{"any": ["event", "events"]}, "outcome", "union", "space"],
        "forbidden": ["wizard"],
    },
]
ANSWERS = {
    "base": {"a": "A state", "b": "Nothing", "c": "One event is an outcome"},
    "sft": {"a": "A state in a step", "b": "The mean", "c": "Two events"},
    "dpo": {"a": "The state", "b": "Its mean with its variance", "c": "A space has the union event, or an outcome"},
}
CONCEPTS = [
    {"concept": "chain", "keywords": ["state", "step"], "text": "A state, a step, and then a union."},
    {"concept": "moments", "keywords": ["mean", {"any": ["variance", "spread"]}], "text": "A mean with its variance."},
    {"concept": "events", "keywords": ["event", "union"], "text": "An event is in a union."},
]
FILES = [
    *(score.METRICS, score.HIT_RATE, score.TOPICS, score.OUTCOMES, score.LENGTHS),
    *(score.REPORT, score.SIDE_BY_SIDE, score.PAGE),
]
FIXTURES = ROOT / "tests/fixtures"


def copy_other_stages():
    """Copies the other stages' outputs: curves and pins of this repository, and, since Git has no reports, those of fixtures."""
    sources = {path: ROOT / path for path in [*score.CURVES.values(), score.RANKING, score.REQUIREMENTS]}
    sources |= {path: FIXTURES / path for path in score.STAGE_REPORTS.values()}
    for path, source in sources.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source.read_bytes())


def write_params(tie_threshold, **others):
    yaml = YAML()
    values = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["score"].update(others, tie_threshold=tie_threshold)
    with open("params.yaml", "w", encoding="utf-8") as file:
        yaml.dump(values, file)


def write_inputs(references=REFERENCES, answers=ANSWERS, order=lambda rows: rows, concepts=CONCEPTS):
    write_jsonl(inputs.REFERENCES, references)
    write_jsonl(score.CONCEPTS, concepts)
    for name, path in score.MODELS.items():
        write_jsonl(path, order([answer_row(id, text) for id, text in answers[name].items()]))


def answer_row(id, text, stop="end"):
    """A row of answers, padded with enough words that no keyword is stuffing."""
    text = f"{text}, {TAIL}"
    return {"id": id, "answer": text, "stop": stop, "prompt_tokens": 3, "answer_tokens": len(text.split())}


def run():
    score.main(Mock())
    return {path: path.read_bytes() for path in FILES}


def nulls(value, path="report"):
    """The paths of all nulls without a reason beside them, and of all numbers that are not finite."""
    if isinstance(value, dict):
        if None in value.values() and not value.get("reason"):
            yield path
        for key, inner in value.items():
            yield from nulls(inner, f"{path}.{key}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path
