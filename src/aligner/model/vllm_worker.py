"""Answers by vLLM: token ids in, token ids out. It runs with the Python of vLLM's own environment, which has pins of its own.

    VLLM_PYTHON src/aligner/model/vllm_worker.py REQUEST.json REPLY.json        (vllm_backend.py writes one and reads the other)

REQUEST: model and adapter (folders; adapter may be null), rank, dtype, compiled, positions, batch_size, prompts (ids), ends,
max_new_tokens, sampling (temperature and top_p, or null for greedy), seed, repetition_penalty, no_repeat_ngram_size.
REPLY: new_ids of each prompt, with the end token where there is one; seconds of generation; vllm's version.
It imports nothing of this project, and vLLM only when it runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the largest ranks of adapters that vLLM allocates for
# Offline, silent, and the engine in this process, where a logits processor may be a class of this file. On a CPU: gigabytes of
# key-value cache, and threads that are not bound to cores, which others may use.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class Penalties:
    """transformers' repetition_penalty on the answer's tokens, and its no_repeat_ngram_size on prompt and answer, for one answer.

    vLLM has no such n-gram rule, and its own repetition_penalty counts the prompt's tokens too.
    """

    def __init__(self, repetition_penalty: float, no_repeat_ngram_size: int) -> None:
        self.penalty, self.size = repetition_penalty, no_repeat_ngram_size
        self._followers: dict[tuple[int, ...], set[int]] = {}  # n - 1 tokens -> the tokens that came after them
        self._read = 0

    def __call__(self, prompt: list[int], answer: list[int], logits):
        """The changed logits of the next token, shape (vocabulary,), given the ids of the prompt and of the answer so far."""
        import torch

        if self.penalty != 1 and answer:
            ids = torch.tensor(sorted(set(answer)), device=logits.device)
            found = logits[ids]
            logits[ids] = torch.where(found < 0, found * self.penalty, found / self.penalty)
        if self.size:
            banned = self._banned([*prompt, *answer])
            logits[list(banned)] = -float("inf")
        return logits

    def _banned(self, ids: list[int]) -> set[int]:
        """The tokens that would complete a run of n tokens a second time; each call reads only the new tokens."""
        before = self.size - 1
        for end in range(max(before, self._read), len(ids)):
            self._followers.setdefault(tuple(ids[end - before : end]), set()).add(ids[end])
        self._read = len(ids)
        return self._followers.get(tuple(ids[len(ids) - before :]), set()) if len(ids) >= before else set()


def main(request_file: str, reply_file: str) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with open(request_file, encoding="utf-8") as file:
        asked = json.load(file)
    import vllm

    engine = vllm.LLM(**engine_settings(asked))
    started = time.monotonic()
    replies = engine.generate(
        [{"prompt_token_ids": ids} for ids in asked["prompts"]],
        [vllm.SamplingParams(**sampling(asked, number)) for number in range(len(asked["prompts"]))],
        lora_request=adapter_request(asked["adapter"]),
        use_tqdm=sys.stderr.isatty(),
    )
    seconds = time.monotonic() - started
    new_ids = [list(reply.outputs[0].token_ids) for reply in replies]
    with open(reply_file, "w", encoding="utf-8") as file:
        json.dump({"new_ids": new_ids, "seconds": seconds, "vllm": vllm.__version__}, file)


def engine_settings(asked: dict[str, Any]) -> dict[str, Any]:
    """Arguments of vllm.LLM: one model, nothing of the model's own generation settings, and no code of the model's."""
    settings = {
        "model": asked["model"],
        "dtype": asked["dtype"],
        "enforce_eager": not asked["compiled"],
        "max_model_len": asked["positions"],
        "max_num_seqs": asked["batch_size"],
        "seed": asked["seed"],
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "trust_remote_code": False,
        "enable_prefix_caching": False,
        "async_scheduling": False,  # the penalties need the last token before they choose the next one
    }
    if asked["adapter"]:
        rank = next(size for size in RANKS if size >= asked["rank"])
        settings |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
    if asked["repetition_penalty"] != 1 or asked["no_repeat_ngram_size"]:
        settings["logits_processors"] = [penalising(asked["repetition_penalty"], asked["no_repeat_ngram_size"])]
    return settings


def sampling(asked: dict[str, Any], number: int) -> dict[str, Any]:
    """Arguments of vllm.SamplingParams for prompt `number`; each prompt draws from a seed of its own."""
    chosen = {**asked["sampling"], "seed": asked["seed"] + number} if asked["sampling"] else {"temperature": 0.0}
    length = {"max_tokens": asked["max_new_tokens"], "stop_token_ids": asked["ends"], "ignore_eos": True}
    return {**length, **chosen, "detokenize": False}


def adapter_request(folder: str | None):
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, folder) if folder else None


def penalising(repetition_penalty: float, no_repeat_ngram_size: int) -> type:
    """A logits processor class for vLLM that applies Penalties to each request."""
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

    class Penalising(AdapterLogitsProcessor):
        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params):
            return Penalties(repetition_penalty, no_repeat_ngram_size)

    return Penalising


if __name__ == "__main__":
    main(*sys.argv[1:])
