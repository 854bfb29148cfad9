"""KL divergence of a policy from its reference, on held-out answers and on its own samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from aligner import intervals
from aligner.model.batches import batches, padded, token_log_probabilities
from aligner.model.chat import Chat
from aligner.model.generation import complete, end_ids, end_index

REFERENCE_ADAPTER = "reference"
MOST_SAMPLED = 256  # the most prompts that the policy answers; it limits the cost for many held-out pairs
SAMPLED_AT_ONCE = 32


def kl_from_reference(model, reference: Path, rows: list[dict[str, Any]], chat: Chat, seed: int) -> dict[str, float | None]:
    """KL(policy || reference) in nats, on two kinds of answers to held-out prompts.

    teacher_forced: on the chosen answers; it misses a drift that shows only in the policy's own answers. sampled: on one answer
    per prompt that the policy samples; by the chain rule the mean of its sums estimates the divergence between the distributions
    over whole answers. Samples end at the length of the longest held-out answer, or at the model's last position; samples_cut is
    the proportion of cut ones. The estimate is then for truncated answers, whose divergence is never larger than that of whole
    answers. The sampled values are None if the prompts leave no position for an answer.
    """
    longest = max(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids"))
    prompts = [row["prompt_ids"] for row in rows[:: math.ceil(len(rows) / MOST_SAMPLED)]]
    longest = min(longest, model.config.max_position_embeddings - max(map(len, prompts)))
    ends = end_ids(chat)
    forced = distance(model, reference, [(row["prompt_ids"], row["chosen_ids"]) for row in rows], chat.pad_id)
    answers = sample(model, prompts, chat.pad_id, ends, longest, seed) if longest > 0 else []
    names = ("kl_per_token_sampled", "kl_per_answer_sampled", "kl_per_answer_sampled_low", "kl_per_answer_sampled_high")
    return {
        "kl_per_token_teacher_forced": forced[0],
        **dict(zip(names, distance(model, reference, answers, chat.pad_id) if answers else [None] * 4, strict=True)),
        "samples_cut": sum(ids[-1] not in ends for _, ids in answers) / len(answers) if answers else None,
    }


def sample(
    model, prompts: list[list[int]], pad_id: int, ends: list[int], longest: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) for each prompt: an answer that the policy samples, with its end token, of at most `longest` tokens.

    It samples from the full distribution (temperature 1, no top-p, no top-k). The random state comes from `seed`, since the
    state after training may differ in a resumed run.
    """
    import torch
    from transformers import GenerationConfig

    base, was_training = model.get_base_model(), model.training
    base.generation_config = GenerationConfig()  # else transformers takes unset values from the model's own
    whole = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    settings = GenerationConfig(max_new_tokens=longest, eos_token_id=ends, pad_token_id=pad_id, **whole)
    answers: dict[int, list[int]] = {}
    model.eval()
    torch.manual_seed(seed)
    for indices in batches(prompts, SAMPLED_AT_ONCE, len):
        drawn = complete(base, [prompts[index] for index in indices], pad_id, settings)
        for index, ids in zip(indices, drawn, strict=True):
            end = end_index(ids, ends)
            answers[index] = ids if end is None else ids[: end + 1]
    model.train(was_training)
    return [(prompt, answers[index]) for index, prompt in enumerate(prompts)]


def distance(model, reference: Path, answers: list[tuple[list[int], list[int]]], pad_id: int) -> list[float | None]:
    """[mean KL per token, mean KL per answer, low, high] over (prompt, answer) pairs.

    low and high bound the 95 % percentile-bootstrap interval, over answers, of the mean per answer; None for a single answer.
    """
    sums = divergences(model, reference, answers, pad_id)
    per_token = sum(sums) / sum(len(ids) for _, ids in answers)
    return [per_token, sum(sums) / len(sums), *(intervals.exact_bootstrap_interval(sums) or (None, None))]


def divergences(
    model, reference: Path, answers: list[tuple[list[int], list[int]]], pad_id: int, batch_size: int = 16
) -> list[float]:
    """For each (prompt, answer), KL(policy || reference) in nats, summed over the vocabulary and over the answer's tokens.

    reference: the folder of the reference's adapter, which is loaded beside the policy's and removed afterwards.
    """
    import torch

    was_training = model.training
    model.load_adapter(reference, REFERENCE_ADAPTER, use_safetensors=True)
    model.eval()
    results = [0.0] * len(answers)
    for indices in batches(answers, batch_size, lambda row: len(row[0]) + len(row[1])):
        batch = [answers[index] for index in indices]
        ids, mask = padded([prompt + answer for prompt, answer in batch], pad_id, model.device)
        p, q = (log_distributions(model, name, ids, mask) for name in ("default", REFERENCE_ADAPTER))
        positions = torch.arange(1, ids.shape[1], device=ids.device)
        prompts = torch.tensor([len(prompt) for prompt, _ in batch], device=ids.device)
        answer = (positions >= prompts[:, None]) & mask[:, 1:].bool()
        sums = ((p.exp() * (p - q)).sum(-1) * answer).double().sum(-1).tolist()
        for index, value in zip(indices, sums, strict=True):
            results[index] = max(0.0, value)  # it is negative only through rounding
    model.set_adapter("default")
    model.delete_adapter(REFERENCE_ADAPTER)
    model.train(was_training)
    return results


def log_distributions(model, adapter: str, ids, mask):
    """log p(. | ids[:, :t]) for t >= 1 under one of the model's adapters, in float32: shape (n, length - 1, vocabulary)."""
    import torch

    model.set_adapter(adapter)
    with torch.no_grad():
        return torch.log_softmax(token_log_probabilities(model, ids, mask)[1], dim=-1)
