"""How training grows with the number of rows, their length and the model's size; and the speed to expect of larger models.

Three sizes each, SFT and DPO by the code of src/ alone. Rows: one pass over so many of the default rows, from the first import of
the data to the last step. Length: a step of 16 rows of so many tokens, half of them answer (DPO: pairs, each answer so long).
Width: the same at 128 tokens, for a random Llama with four layers of this width and the embedded base's proportions. Matrix
products take turns with the steps.

The second table is computed and not measured: TinyLlama-1.1B by the formulas of benchmarks/flops.py, on this CPU at the share of
the matrix products' rate that the widest model reaches here, on one GPU at two shares of GPU_RATE, and on eight GPUs.

writes  docs/growth.csv, docs/expected.csv (tools/growth_page.py shows them)
command python benchmarks/growth.py [--quick] [--threads N]          about a quarter of an hour
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import flops
from legs import ROOT, Leg, lora_rank, random_llama, random_rows, take_turns, write_params

ROWS = (200, 400, 800)
LENGTHS = (64, 128, 256)
WIDTHS = (128, 256, 512)
LENGTH = 128
BATCH = {"sft": 16, "dpo": 8}  # rows or pairs in a forward pass, as in params.yaml
STEP = 16
STEPS, WARM_UP = 9, 2
GROWTH = ROOT / "docs" / "growth.csv"
EXPECTED = ROOT / "docs" / "expected.csv"

TINYLLAMA_ROW, TINYLLAMA_PAIR = (512, 512), (200, 200, 200)  # prompt and answers, tokens
GPU = "one H200 (788 TFLOP/s in bfloat16 products, by others' measurement)"
GPU_RATE, GPU_SHARES = 788e12, (0.2, 0.45)  # the low share is common for LoRA in plain PyTorch, the high one good
GPUS = 8


class Point(NamedTuple):
    """One measured size. seconds: of a whole pass (rows), or of the median step (length, width); mfu: of the median step."""

    stage: str
    grows: str
    size: int
    parameters: int
    tokens_per_step: int
    seconds: float
    cpu_seconds: float
    peak_mb: int
    mfu: float
    matmul_gflops: float


def main(options: argparse.Namespace) -> None:
    points = []
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        for number, (stage, grows, size) in enumerate(sizes(options.quick)):
            folder = Path(name) / str(number)
            folder.mkdir()
            points.append(measured(stage, grows, size, folder, options.threads, WARM_UP + 3 if options.quick else STEPS))
            print(points[-1], flush=True)
    write(GROWTH if not options.out else options.out / GROWTH.name, [point._asdict() for point in points])
    write(EXPECTED if not options.out else options.out / EXPECTED.name, expectations(points, options.threads))


def sizes(quick: bool) -> list[tuple[str, str, int]]:
    series: dict[str, tuple[int, ...]] = {"rows": ROWS, "length": LENGTHS, "width": WIDTHS}
    if quick:
        series = {"rows": (80, 96), "length": (16, 32), "width": (64, 128)}
    return [(stage, grows, size) for stage in ("sft", "dpo") for grows, each in series.items() for size in each]


def measured(stage: str, grows: str, size: int, folder: Path, threads: int, steps: int) -> Point:
    """One size, in processes of its own."""
    batch = {"per_device_train_batch_size": BATCH[stage], "gradient_accumulation_steps": STEP // BATCH[stage]}
    entry: dict[str, Any] = {stage: batch | {"learning_rate": 1e-3}, "max_length": max(LENGTHS)}
    if grows == "width":
        heads = size // 64
        wide = {"hidden_size": size, "intermediate_size": size * 43 // 16}
        model = random_llama(folder / "model", "float32", **wide, num_attention_heads=heads, num_key_value_heads=heads)
        entry["path"] = str(model)
    params = write_params(folder / "params.yaml", entry)
    rows = folder / "rows.jsonl"
    if grows == "rows":
        steps = size // STEP
        prepared = ROOT / f"data/prepared/{stage}_train.jsonl"
        if not prepared.is_file():
            raise SystemExit(f"growth: {prepared.relative_to(ROOT)} is missing. Run: dvc repro")
        rows.write_text("".join(prepared.open(encoding="utf-8").readlines()[: steps * STEP]), encoding="utf-8")
    else:
        half = (size if grows == "length" else LENGTH) // 2
        random_rows(rows, stage, steps * STEP, half, half, json.loads(config_of(entry))["vocab_size"])
    with contextlib.ExitStack() as running:
        leg = running.enter_context(Leg("ours", threads, kind=stage, way="ours", rows=rows, params=params))
        products = running.enter_context(Leg("matmul", threads, kind="matmul", params=params))
        start, _ = leg.go(), products.go()
        answers = take_turns([leg, products], steps)
    lengths = [row_lengths(json.loads(line)) for line in rows.read_text(encoding="utf-8").splitlines()]
    shape = flops.llama(json.loads(config_of(entry)), lora_rank(params))
    return point(stage, grows, size, shape, lengths, start, answers)


def point(stage: str, grows: str, size: int, shape: flops.Shape, lengths: list, start: dict, answers: dict[str, list]) -> Point:
    """One row of the table, from the answers of a leg and of the matrix products beside it."""
    steps, products = answers["ours"], answers["matmul"]
    rate = median(each["flops"] / each["wall"] for each in products)
    work = flops.training(shape, lengths, prompt_once=True) / len(steps)
    per_step = {clock: median(step[clock] for step in steps[WARM_UP:]) for clock in ("wall", "cpu")}
    whole = {clock: start[clock] + sum(step[clock] for step in steps) for clock in ("wall", "cpu")}
    spent = whole if grows == "rows" else per_step
    return Point(
        stage=stage,
        grows=grows,
        size=size,
        parameters=shape.parameters,
        tokens_per_step=round(flops.tokens(lengths) / len(steps)),
        seconds=round(spent["wall"], 3),
        cpu_seconds=round(spent["cpu"], 3),
        peak_mb=round(steps[-1]["peak_mb"]),
        mfu=round(work / (per_step["wall"] * rate), 3),
        matmul_gflops=round(rate / 1e9, 1),
    )


def row_lengths(row: dict[str, Any]) -> tuple[int, ...]:
    """Prompt and answers of a prepared row, in tokens."""
    if "labels" in row:
        answer = sum(label != -100 for label in row["labels"])
        return len(row["labels"]) - answer, answer
    return len(row["prompt_ids"]), len(row["chosen_ids"]), len(row["rejected_ids"])


def config_of(entry: dict[str, Any]) -> str:
    return (ROOT / entry.get("path", "models/base/weights") / "config.json").read_text(encoding="utf-8")


# ---- Computed, not measured ------------------------------------------------------------------------------------------


def expectations(points: list[Point], threads: int) -> list[dict[str, Any]]:
    """Throughput and memory of TinyLlama by machine: from FLOPs, a rate of matrix products, and the share of it that is reached.

    Eight GPUs: each has its own rows, and only the adapters' gradients travel, some 50 MB a step; taken as eight times one.
    """
    shape = flops.llama(flops.TINYLLAMA, 16)
    row = flops.training(shape, [TINYLLAMA_ROW]) / sum(TINYLLAMA_ROW)
    pair = flops.training(shape, [TINYLLAMA_PAIR], prompt_once=True)
    widest = {point.stage: point for point in points if point.grows == "width"}
    rate = median(point.matmul_gflops for point in widest.values()) * 1e9
    cores = f"this CPU, {threads} threads ({rate / 1e9:.0f} GFLOP/s)"
    machines = [(cores, 4, rate, {stage: point.mfu for stage, point in widest.items()}, 1)]
    machines += [(GPU, 2, GPU_RATE, dict.fromkeys(("sft", "dpo"), share), 1) for share in GPU_SHARES]
    machines += [(f"{GPUS} of them", 2, GPU_RATE, dict.fromkeys(("sft", "dpo"), share), GPUS) for share in GPU_SHARES]
    return [
        {
            "machine": machine,
            "share_of_products": ", ".join(dict.fromkeys(f"{share:.2f}" for share in shares.values())),
            "sft_tokens_per_s": digits(count * speed * shares["sft"] / row),
            "dpo_pairs_per_s": digits(count * speed * shares["dpo"] / pair),
            "weights_gb": f"{shape.parameters * width / 1e9:.1f}",
            "activations_mb_per_token": digits(activations(points) * width / 4, 2),
        }
        for machine, width, speed, shares, count in machines
    ]


def digits(value: float, count: int = 3) -> str:
    """So many significant digits, never as a power of ten."""
    return f"{float(f'{value:.{count}g}'):.10g}"


def activations(points: list[Point]) -> float:
    """MB a token that TinyLlama's forward pass keeps in float32: the embedded base's slope over lengths, by layers and widths."""
    first, *_, last = sorted((p for p in points if (p.stage, p.grows) == ("sft", "length")), key=lambda p: p.size)
    tokens = BATCH["sft"] * (last.size - first.size)
    mini = json.loads((ROOT / "models/base/weights/config.json").read_text(encoding="utf-8"))
    return (last.peak_mb - first.peak_mb) / tokens * breadth(flops.TINYLLAMA) / breadth(mini)


def breadth(config: dict[str, Any]) -> int:
    return config["num_hidden_layers"] * (config["hidden_size"] + config["intermediate_size"])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes each, to see that it runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)")
    parser.add_argument("--out", type=Path, help="a folder for the two tables in place of docs/")
    main(parser.parse_args())
