"""prepare at scale: rows per second and peak memory from 10,000 to 1,000,000 SFT rows, and its tokenising beside stock TRL's.

Growth. Rows are composed by a seeded generator from the sentences of the concept bank: a question about one concept, and an
answer of three to eight sentences, some of other concepts. Each number of rows is written to a scratch folder beside the
repository's own pairs and eval prompts, and `src/prepare.py` runs on it as a process of its own. Its peak memory and CPU time are
what the system reports of that process; rows/s are rows per second of CPU time, which other load on the machine changes least.
Eval prompts that composed rows happen to contain do not end the run (`prepare.max_leakage` is 1 there).

Tokenising. The same messages through `datasets.map` as TRL's SFTTrainer sends them (its own `_prepare_dataset`, prompt and
completion as message lists, one process) and through prepare, in turn, in one process; the ids and labels must be the same.
Seconds of CPU time of the whole process, so that threads count in full.

command PYTHONPATH=src python benchmarks/prepare_rows.py [N ...]          10,000 and 100,000 by default; 1,000,000 take long
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from legs import BYTES_PER_UNIT, ROOT

WEIGHTS = ROOT / "models/base/weights"
LONGEST = 256  # tokens; the base's own
SEED = 17
TOGETHER = 250  # rows, about as many as in a chunk of prepare
QUESTIONS = (
    "What {be} {name}?",
    "Tell me about {name}.",
    "Can you explain {name} in a few sentences?",
    "A student asks about {name}. What do you answer?",
    "What should I know about {name}, and what about {other}?",
    "How {be} {name} related to {other}?",
    "My notes of lecture {number} mention {name}. What is that about?",
)


def main(sizes: list[int]) -> None:
    print(f"{'rows':>10s}{'seconds':>10s}{'CPU s':>10s}{'rows/s':>10s}{'peak memory, MB':>18s}{'near duplicates':>18s}")
    line = "{rows:10,d}{seconds:10.1f}{cpu_seconds:10.1f}{rows_per_second:10.0f}{peak_mb:18.0f}{near_duplicates:18,d}"
    growth = []
    for size in sizes:
        growth.append(measure(size))
        print(line.format(**growth[-1]), flush=True)
    tokenising = speedup()
    print(f"\n{'tokenising, us of CPU a row':>30s}{'stock TRL':>12s}{'prepare':>10s}{'speed-up (smallest to largest)':>34s}")
    ratio = "{speedup:.1f} ({smallest:.1f} to {largest:.1f})".format(**tokenising)
    runs = "median of {runs:.0f} runs, {rows:,.0f} rows".format(**tokenising)
    print(f"{runs:>30s}{tokenising['stock_us']:12.0f}", end="")
    print(f"{tokenising['prepare_us']:10.0f}{ratio:>34s}")
    print(json.dumps({"growth": growth, "tokenising": tokenising}))


def measure(size: int) -> dict[str, Any]:
    """Runs prepare on `size` rows in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(folder, size)
        start = time.monotonic()
        usage = run([sys.executable, str(ROOT / "src" / "prepare.py")], folder)
        seconds, cpu = time.monotonic() - start, usage.ru_utime + usage.ru_stime
        counts = json.loads((folder / "reports/prepare.json").read_text(encoding="utf-8"))["sft_data"]
    return {
        "rows": counts["rows"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "rows_per_second": round(counts["rows"] / cpu),
        "peak_mb": round(usage.ru_maxrss * BYTES_PER_UNIT / 1e6),
        "near_duplicates": counts["near_duplicate"],
    }


def speedup(size: int = 2000, runs: int = 5) -> dict[str, Any]:
    """CPU time of tokenising `size` rows by stock TRL and by prepare in turn, and the median of the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        written = list(rows(size))
        stock, ours = stock_tokeniser(written, Path(folder)), our_tokeniser(written, Path(folder))
        expected, found = stock(), ours()  # also what either does once
        if [(row["input_ids"], row["labels"]) for row in expected] != [(row["input_ids"], row["labels"]) for row in found]:
            raise SystemExit("prepare and stock TRL give different ids or labels")
        pairs = [(cpu_seconds(stock), cpu_seconds(ours)) for _ in range(runs)]
    ratios = [theirs / own for theirs, own in pairs]
    theirs, own = (statistics.median(column) / size * 1e6 for column in zip(*pairs, strict=True))
    return {
        "rows": size,
        "runs": runs,
        "stock_us": round(theirs),
        "prepare_us": round(own),
        "speedup": round(statistics.median(ratios), 2),
        "smallest": round(min(ratios), 2),
        "largest": round(max(ratios), 2),
    }


def cpu_seconds(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def our_tokeniser(written: list[dict[str, str]], folder: Path) -> Callable[[], list[dict[str, Any]]]:
    """What prepare does between a row as read and its ids and labels. Each call loads a tokenizer without cached words."""
    from aligner.data.reader import read_rows
    from aligner.data.tokenise import sft_row, tokenised
    from aligner.model.chat import Chat

    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    values = [row.value for row in read_rows(path, "sft")]
    batches = [values[start : start + TOGETHER] for start in range(0, len(values), TOGETHER)]

    def tokenise() -> list[dict[str, Any]]:
        chat = Chat.load(WEIGHTS)
        rows = (row for batch in batches for _, row in tokenised(batch, sft_row, chat, LONGEST))
        return [row for row in rows if isinstance(row, dict)]

    return tokenise


def stock_tokeniser(written: list[dict[str, str]], folder: Path) -> Callable[[], Any]:
    """SFTTrainer's own preparation of a dataset, which its constructor calls."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    messages = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["response"]}],
        }
        for row in written
    ]
    dataset, tokenizer = datasets.Dataset.from_list(messages), AutoTokenizer.from_pretrained(WEIGHTS)
    args = SFTConfig(output_dir=str(folder), max_length=LONGEST, use_cpu=True, bf16=False, report_to="none")
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    trainer = SFTTrainer(model=model, args=args, train_dataset=dataset.select(range(1)), processing_class=tokenizer)
    return lambda: trainer._prepare_dataset(dataset, tokenizer, args, packing=False, formatting_func=None, dataset_name="train")


def lay_out(folder: Path, size: int) -> None:
    """params.yaml, the base model and the data files of the repository, with `size` composed SFT rows."""
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"].update(sft="sft.jsonl", max_leakage=1)
    params["model"], params["models"]["mini"]["path"] = "mini", str(WEIGHTS)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    (folder / "data").mkdir()
    shutil.copytree(ROOT / "data/raw", folder / "data/raw")
    with (folder / "sft.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(size))


def rows(size: int) -> Iterator[dict[str, str]]:
    yaml = YAML(typ="safe", pure=True)
    bank = [concept for path in sorted((ROOT / "data/bank").glob("*.yaml")) for concept in yaml.load(path)]
    sentences = [[*concept["definition"], *(form for fact in concept["facts"] for form in fact["forms"])] for concept in bank]
    rng = random.Random(SEED)
    for number in range(size):
        concept, other = rng.sample(range(len(bank)), 2)
        names = {"name": bank[concept]["name"], "other": bank[other]["name"], "number": number, "be": "is"}
        own = rng.sample(sentences[concept], rng.randint(2, 4))
        far = [rng.choice(rng.choice(sentences)) for _ in range(rng.randint(1, 4))]
        answer = " ".join([*own, *far])
        yield {"id": f"row-{number}", "prompt": rng.choice(QUESTIONS).format(**names), "response": answer}


def run(command: list[str], folder: Path, output: str | None = None) -> resource.struct_rusage:
    """Runs a command in a folder, with its output to a file if one is given; returns the resources that its process used."""
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"}
    with open(output, "w") if output else contextlib.nullcontext() as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{Path(command[1]).name} ended with {process.returncode}")
    return usage


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", metavar="N", type=int, nargs="*", help="numbers of rows")
    main(parser.parse_args().sizes or [10_000, 100_000])
