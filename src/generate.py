"""generate: one model's answers to the eval prompts, in batches; greedy unless params.yaml says otherwise.

reads   data/prepared/prompts.jsonl, chat.json, the base model and, for any other name, the adapter models/<model>
writes  data/generated/<model>.jsonl: id, answer, stop (end | length), prompt_tokens, answer_tokens
params  generate, seed, model, the entry's loading keys and its generate section
command python src/generate.py base      (or sft, dpo, kto, …)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aligner.files import read_json, read_jsonl, write_jsonl
from aligner.model import runtime, vllm_backend
from aligner.model.batches import batches
from aligner.model.chat import Chat
from aligner.model.generation import complete, end_ids, end_index
from aligner.model.loading import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PREPARED_CHAT,
    base_fingerprint,
    base_folder,
    check_chat,
    check_provenance,
    load_adapter,
    load_base,
    load_chat,
)
from aligner.model.runtime import Runtime
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.params import Generate, ModelEntry, StageParams
from aligner.run.record import Run
from aligner.run.stage import METHODS, run_stage
from aligner.run.terminal import bar

PARAMS = [*parameters.LOADING, "generate", "models.${model}.generate", "seed"]
PROMPTS = Path("data/prepared/prompts.jsonl")
ADAPTERS = Path("models")
OF_FIVE_STAGES = ("base", "sft", "dpo")
REWARD_MODEL = "reward"  # scores answers and gives none
GENERATED = Path("data/generated")


def main(run: Run, name: str) -> None:
    params = parameters.load(PARAMS)
    run.note(params=params, seed=params.seed)
    started = runtime.start(params.model_entry, params.seed)
    chat = load_chat(params.model_entry)
    check_chat(chat, read_json(PREPARED_CHAT))
    prompts = list(read_jsonl(PROMPTS))
    run.note(device=started.device, dtype=str(started.dtype), threads=started.threads)
    adapter = adapter_of(name)
    if params.model_entry.generate.backend == "vllm":
        answers, seconds = answers_of_vllm(run, params, started, chat, adapter, prompts)
    else:
        model = load_model(params.model_entry, started, chat, adapter)
        check_room(model.config.max_position_embeddings, prompts, params.generate.max_new_tokens)
        run.phase("load")
        answers = dict(answer_all(model, prompts, chat, params, name))
        seconds = run.phase("generate")
    write_jsonl(GENERATED / f"{name}.jsonl", (answers[row["id"]] for row in prompts))
    tokens = sum(answer["answer_tokens"] for answer in answers.values())
    run.note(answers=len(answers), tokens_per_second=round(tokens / seconds))


def adapter_of(name: str) -> Path | None:
    """The folder of a model's adapter; the base has none. InputError for a name that is no folder of models/."""
    if Path(name).name != name:
        raise InputError(f"{name!r} is no model: give base, or the name of a folder in {ADAPTERS}/")
    return None if name == "base" else ADAPTERS / name


def trained() -> list[str]:
    """base, sft and dpo, and every other folder of models/ with an adapter, as far as they are there."""
    folders = [path.parent.name for path in sorted(ADAPTERS.glob(f"*/{ADAPTER_WEIGHTS}"))]
    return [name for name in OF_FIVE_STAGES if name in ("base", *folders)] + [
        name for name in folders if name not in OF_FIVE_STAGES
    ]


def load_model(entry: ModelEntry, runtime: Runtime, chat: Chat, adapter: Path | None):
    """The base, or the base with an adapter merged into it, which saves one matrix product per layer and token."""
    from transformers import GenerationConfig

    base = load_base(entry, runtime)
    base.generation_config = GenerationConfig()  # else transformers takes unset values from the model's own
    if adapter is None:
        return base.eval()
    check_adapter(adapter, entry, chat)
    return load_adapter(base, adapter).merge_and_unload().eval()


def check_adapter(adapter: Path, entry: ModelEntry, chat: Chat) -> None:
    check_provenance(adapter, {"base": base_fingerprint(entry), "chat": chat.fingerprint})


def check_room(positions: int, prompts: list[dict[str, Any]], max_new_tokens: int) -> None:
    """InputError if the longest prompt and an answer exceed the model's positions; what lies beyond them would be noise."""
    longest = max(len(row["prompt_ids"]) for row in prompts)
    if longest + max_new_tokens > positions:
        raise InputError(
            f"params.yaml: generate.max_new_tokens is {max_new_tokens}, but the longest prompt has {longest} tokens and the "
            f"model {positions} positions; set it to {positions - longest} or less"
        )


def answer_all(model, prompts: list[dict], chat: Chat, params: StageParams, name: str) -> Iterator[tuple[str, dict]]:
    """Yields (id, answer row) for every prompt, in batches of prompts of similar length."""
    settings = generation_settings(params.generate, chat)
    tokens, started = 0, time.monotonic()
    with bar(f"generate {name}", len(prompts), "answer") as progress:
        for indices in batches(prompts, params.model_entry.generate.batch_size, lambda row: len(row["prompt_ids"])):
            batch = [prompts[index] for index in indices]
            prompt_ids = [row["prompt_ids"] for row in batch]
            new_ids = complete(model, prompt_ids, chat.pad_id, settings, params.generate.repetition_penalty)
            rows = [answer_row(row, ids, chat, settings.eos_token_id) for row, ids in zip(batch, new_ids, strict=True)]
            yield from ((row["id"], row) for row in rows)
            tokens += sum(row["answer_tokens"] for row in rows)
            progress.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
            progress.update(len(rows))


def answers_of_vllm(
    run: Run, params: StageParams, started: Runtime, chat: Chat, adapter: Path | None, prompts: list[dict]
) -> tuple[dict[str, dict], float]:
    """The answer rows by id, and the seconds that vLLM took for them after it had loaded the model."""
    entry, settings, ends = params.model_entry, params.generate, end_ids(chat)
    folder = base_folder(entry)
    positions = read_json(folder / "config.json")["max_position_embeddings"]
    check_room(positions, prompts, settings.max_new_tokens)
    if adapter is not None:
        check_adapter(adapter, entry, chat)
    request = {
        "model": str(folder),
        "adapter": None if adapter is None else str(adapter),
        "rank": 0 if adapter is None else read_json(adapter / ADAPTER_CONFIG)["r"],
        "compiled": started.device == "cuda",  # on a CPU, compiling takes longer than the answers
        "dtype": str(started.dtype).removeprefix("torch."),
        "positions": positions,
        "batch_size": entry.generate.batch_size,
        "prompts": [row["prompt_ids"] for row in prompts],
        "max_new_tokens": settings.max_new_tokens,
        "ends": ends,
        "sampling": {"temperature": settings.temperature, "top_p": settings.top_p} if settings.do_sample else None,
        "seed": params.seed,
        "repetition_penalty": settings.repetition_penalty,
        "no_repeat_ngram_size": settings.no_repeat_ngram_size,
    }
    reply = vllm_backend.answer(request)
    run.note(vllm=reply.vllm)
    run.phase("generate")
    return {row["id"]: answer_row(row, ids, chat, ends) for row, ids in zip(prompts, reply.new_ids, strict=True)}, reply.seconds


def generation_settings(generate: Generate, chat: Chat):
    """transformers' settings from params.yaml only; the model's own generation_config.json has no effect."""
    from transformers import GenerationConfig

    sampling = {"temperature": generate.temperature, "top_p": generate.top_p, "top_k": 0} if generate.do_sample else {}
    return GenerationConfig(
        max_new_tokens=generate.max_new_tokens,
        do_sample=generate.do_sample,
        eos_token_id=end_ids(chat),
        pad_token_id=chat.pad_id,
        no_repeat_ngram_size=generate.no_repeat_ngram_size,
        **sampling,
    )


def answer_row(prompt: dict[str, Any], new_ids: list[int], chat: Chat, ends: list[int]) -> dict[str, Any]:
    """The answer up to its end token, and why it stopped: `end` (an end token) or `length` (max_new_tokens reached)."""
    stop = end_index(new_ids, ends)
    answer = new_ids if stop is None else new_ids[:stop]
    return {
        "id": prompt["id"],
        "answer": chat.decode(answer).strip(),
        "stop": "length" if stop is None else "end",
        "prompt_tokens": len(prompt["prompt_ids"]),
        "answer_tokens": len(answer),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="whose answers: base, or the name of an adapter in models/")
    name = parser.parse_args().model
    run_stage(f"generate@{name}", lambda run: main(run, name), "" if name in OF_FIVE_STAGES else METHODS)
