"""TinyLlama-1.1B's shape on one GPU: SFT, DPO and generation, ours beside stock trl in the same run.

The weights are random and made here, since speed does not depend on them; rows are random ids of one length. Both ways run in
bfloat16 with SDPA attention, without checkpointing, with LoRA of the rank in params.yaml, and compute the reference
log-probabilities of DPO once. Ours is what src/ does with these settings. Model FLOPs utilisation is by benchmarks/flops.py,
against matrix products measured between the steps.

command python benchmarks/gpu.py          needs CUDA; without, it exits with 2
It prints a table, and one JSON document as its last line. docs/performance.md keeps the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import flops
from legs import Leg, lora_rank, random_llama, random_rows, take_turns, write_params

WARM_UP = 2


class Scale(NamedTuple):
    """The size of a benchmark: a model, lengths in tokens, and the numbers of rows and prompts in a batch."""

    shape: dict[str, Any]
    dtype: str
    sft_row: tuple[int, int]
    dpo_row: tuple[int, int]
    batch: int
    accumulation: int
    prompts: int
    prompt: int
    new_tokens: int
    steps: int


TINYLLAMA = Scale(
    shape={**flops.TINYLLAMA, "max_position_embeddings": 2048},
    dtype="bfloat16",
    sft_row=(512, 512),
    dpo_row=(200, 200),
    batch=16,
    accumulation=2,
    prompts=256,
    prompt=384,
    new_tokens=128,
    steps=12,
)
TINY = Scale(
    shape={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    dtype="float32",
    sft_row=(6, 6),
    dpo_row=(5, 5),
    batch=2,
    accumulation=1,
    prompts=3,
    prompt=6,
    new_tokens=4,
    steps=4,
)
STOCK_PROMPTS = 3  # one at a time is slow


def main(options: argparse.Namespace) -> None:
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu: torch sees no CUDA device here, so nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    scale = TINY if options.tiny else TINYLLAMA
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    found: dict[str, Any] = {"device": device, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d", time.gmtime())}
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        folder = Path(name)
        entry, generate = settings(scale, options.device, random_llama(folder / "model", scale.dtype, **scale.shape))
        params = write_params(folder / "params.yaml", entry, generate=generate)
        config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
        for kind in ("sft", "dpo"):
            found[kind] = training(kind, scale, config, params, folder)
        found["generate"] = generation(scale, config["vocab_size"], params, folder)
    show(found)
    print(json.dumps(found))


def settings(scale: Scale, device: str, model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's entry in params.yaml, and the section generate."""
    batch = {"learning_rate": 1e-4, "per_device_train_batch_size": scale.batch, "gradient_accumulation_steps": scale.accumulation}
    entry = {
        "path": str(model),
        "device": device,
        "dtype": scale.dtype,
        "attn_implementation": "sdpa",
        "gradient_checkpointing": False,
        "max_length": max(sum(scale.sft_row), scale.dpo_row[0] + scale.dpo_row[1], 16),
        "sft": batch,
        "dpo": batch,
        "generate": {"backend": "transformers", "batch_size": scale.prompts},
    }
    return entry, {"max_new_tokens": scale.new_tokens, "do_sample": False}


def training(kind: str, scale: Scale, config: dict[str, Any], params: Path, folder: Path) -> dict[str, Any]:
    """Steps of ours, of stock and matrix products in turn; both must give equal losses within the precision."""
    prompt, answer = scale.sft_row if kind == "sft" else scale.dpo_row
    count = scale.steps * scale.batch * scale.accumulation
    rows = random_rows(folder / f"{kind}.jsonl", kind, count, prompt, answer, config["vocab_size"])
    with contextlib.ExitStack() as running:
        legs = [running.enter_context(Leg(way, 0, kind=kind, way=way, rows=rows, params=params)) for way in ("ours", "stock")]
        legs.append(running.enter_context(Leg("matmul", 0, kind="matmul", params=params)))
        starts = {leg.name: leg.go() for leg in legs}
        answers = {name: each[WARM_UP:] for name, each in take_turns(legs, scale.steps, f"gpu: {kind}").items()}
    per_step = scale.batch * scale.accumulation
    shape = flops.llama(config, lora_rank(params))
    lengths = [(prompt, answer) if kind == "sft" else (prompt, answer, answer)] * per_step
    rate = median(each["flops"] / each["wall"] for each in answers["matmul"])
    found: dict[str, Any] = {"matmul_tflops": rate / 1e12}
    for way in ("ours", "stock"):
        seconds = median(step["wall"] for step in answers[way])
        found[way] = {
            "tokens_per_s": flops.tokens(lengths) / seconds,
            "rows_per_s": per_step / seconds,
            "mfu": flops.training(shape, lengths, prompt_once=True) / seconds / rate,
            "peak_mb": max(step["peak_mb"] for step in answers[way]),
            "reference": starts[way]["reference"],
        }
    pairs = zip(answers["stock"], answers["ours"], strict=True)
    found["speedup"] = median(stock["wall"] / ours["wall"] for stock, ours in pairs)
    losses = zip(answers["stock"], answers["ours"], strict=True)
    found["max_loss_difference"] = max(abs(stock["loss"] - ours["loss"]) for stock, ours in losses)
    return found


def generation(scale: Scale, vocabulary: int, params: Path, folder: Path) -> dict[str, Any]:
    """Tokens per second: all prompts in one batch, and STOCK_PROMPTS of them one at a time."""
    counts = {"ours": scale.prompts, "stock": min(STOCK_PROMPTS, scale.prompts)}
    with contextlib.ExitStack() as running:
        legs = []
        for way, count in counts.items():
            rows = random_rows(folder / f"generate-{way}.jsonl", "generate", count, scale.prompt, 0, vocabulary)
            legs.append(running.enter_context(Leg(way, 0, kind="generate", way=way, rows=rows, params=params)))
        for leg in legs:
            leg.go()
        answers = take_turns(legs, 5, "gpu: generate")
    found = {
        way: {"tokens_per_s": median(map(speed, each)), "peak_mb": max(reply["peak_mb"] for reply in each)}
        for way, each in answers.items()
    }
    return {**found, "speedup": found["ours"]["tokens_per_s"] / found["stock"]["tokens_per_s"]}


def speed(reply: dict[str, Any]) -> float:
    return sum(answer["answer_tokens"] for answer in reply["answers"].values()) / reply["wall"]


def show(found: dict[str, Any]) -> None:
    """The table, as docs/performance.md holds it."""
    print(f"{found['date']}, {found['device']}, torch {found['torch']}\n")
    print("| | tokens/s | rows or pairs/s | MFU | peak memory, GB | speedup |\n|---|---|---|---|---|---|")
    for kind in ("sft", "dpo"):
        for way in ("ours", "stock"):
            each = found[kind][way]
            faster = f"{found[kind]['speedup']:.2f}" if way == "ours" else ""
            speeds = f"{each['tokens_per_s']:,.0f} | {each['rows_per_s']:.1f} | {each['mfu']:.1%}"
            print(f"| {kind}, {way} | {speeds} | {each['peak_mb'] / 1000:.1f} | {faster} |")
    for way in ("ours", "stock"):
        each = found["generate"][way]
        faster = f"{found['generate']['speedup']:.1f}" if way == "ours" else ""
        print(f"| generate, {way} | {each['tokens_per_s']:,.0f} | | | {each['peak_mb'] / 1000:.1f} | {faster} |")
    print(f"\nmatrix products: {found['sft']['matmul_tflops']:.1f} TFLOP/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # a test runs a tiny model on the CPU
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    main(parser.parse_args())
