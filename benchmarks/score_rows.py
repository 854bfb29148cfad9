"""Time and peak memory of score, from 152 to 10,000 prompts with three answers each.

Prompts are composed by a seeded generator: a numbered question about a concept of data/raw/concepts.jsonl, with three of its key
ideas, and as a fourth two long words in a row of one of its sentences, so that prompts about one concept differ. Answers are
sentences of the same file, a third of them about other concepts: one for base, three for sft, four for dpo (about 17, 50 and 67
words, as in the default run). `src/score.py` runs on each number of prompts as a process of its own. Its peak memory and CPU time
are what the system reports of that process; CPU time is what another load on the machine changes least.

command python benchmarks/score_rows.py [N ...]          152, 1,000 and 10,000 prompts when none is given; a minute
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from prepare_rows import BYTES_PER_UNIT, ROOT, run

SEED = 17
SENTENCES = {"base": 1, "sft": 3, "dpo": 4}
FOREIGN = 1 / 3

Row = dict[str, Any]


def main(sizes: list[int]) -> None:
    print(f"{'prompts':>10s}{'answers':>10s}{'seconds':>10s}{'CPU s':>10s}{'peak memory, MB':>18s}{'page, MB':>10s}")
    line = "{prompts:10,d}{answers:10,d}{seconds:10.2f}{cpu_seconds:10.2f}{peak_mb:18.0f}{page_mb:10.2f}"
    found = []
    for size in sizes:
        found.append(measured(size))
        print(line.format(**found[-1]), flush=True)
    print(json.dumps(found))


def measured(prompts: int) -> dict[str, float]:
    """Runs score on so many prompts in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(folder, prompts)
        start = time.monotonic()
        usage = run([sys.executable, str(ROOT / "src" / "score.py")], folder)
        seconds = time.monotonic() - start
        page = (folder / "reports/index.html").stat().st_size
    return {
        "prompts": prompts,
        "answers": prompts * len(SENTENCES),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss * BYTES_PER_UNIT / 1e6),
        "page_mb": round(page / 1e6, 2),
    }


def lay_out(folder: Path, prompts: int) -> None:
    """Writes what score reads: the repository's parameters and curves, a kept run's reports, and composed prompts and answers."""
    shutil.copytree(ROOT / "plots", folder / "plots")
    shutil.copytree(ROOT / "tests/fixtures/reports", folder / "reports")  # Git keeps no reports of the last run
    shutil.copy(ROOT / "requirements.txt", folder)
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["model"] = "mini"
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    (folder / "data/generated").mkdir(parents=True)
    (folder / "data/prepared").mkdir()
    concepts = read(ROOT / "data/raw/concepts.jsonl")
    references, answers = composed(prompts, concepts)
    write(folder / "data/prepared/concepts.jsonl", concepts)
    write(folder / "data/prepared/references.jsonl", references)
    for model, rows in answers.items():
        write(folder / f"data/generated/{model}.jsonl", rows)


def composed(prompts: int, concepts: list[Row]) -> tuple[list[Row], dict[str, list[Row]]]:
    """The rows of references.jsonl, and of every model's answers to them."""
    rng = random.Random(SEED)
    sentences = [concept["text"].splitlines() for concept in concepts]
    references: list[Row] = []
    answers: dict[str, list[Row]] = {model: [] for model in SENTENCES}
    for number in range(prompts):
        about = rng.randrange(len(concepts))
        references.append(reference(number, concepts[about], sentences[about], rng))
        for model, count in SENTENCES.items():
            picked = [rng.choice(rng.choice(sentences) if rng.random() < FOREIGN else sentences[about]) for _ in range(count)]
            answers[model].append(answer(number, " ".join(picked)))
    return references, answers


def reference(number: int, concept: Row, sentences: list[str], rng: random.Random) -> Row:
    words = rng.choice(sentences).rstrip(".").split()
    start = max(range(len(words) - 1), key=lambda place: min(len(words[place]), len(words[place + 1])))
    return {
        "id": f"p{number}",
        "prompt": f"Question {number}: what should one know about {concept['concept'].replace('-', ' ')}?",
        "topic": concept["topic"],
        "concept": concept["concept"],
        "kind": rng.choice(["new_concept", "new_wording"]),
        "keywords": [*rng.sample(concept["keywords"], min(3, len(concept["keywords"]))), " ".join(words[start : start + 2])],
    }


def answer(number: int, text: str) -> Row:
    return {"id": f"p{number}", "answer": text, "stop": "end", "prompt_tokens": 20, "answer_tokens": len(text) // 5}


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", metavar="N", type=int, nargs="*", help="numbers of prompts")
    main(parser.parse_args().sizes or [152, 1_000, 10_000])
