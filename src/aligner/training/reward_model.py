"""A reward model: the SFT policy's body with a scalar head, its scores of sequences, and its measures on held-out pairs."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner import intervals
from aligner.model.batches import batches, padded
from aligner.model.loading import check_provenance, load_adapter, load_base
from aligner.model.runtime import Runtime
from aligner.run.errors import InputError
from aligner.run.params import ModelEntry
from aligner.training.checkpoints import sha256

SFT_ADAPTER = Path("models/sft")
REWARD_ADAPTER = Path("models/reward")
SCORED_AT_ONCE = 32
EQUAL_LENGTH = 0.1  # two answers are of equal length if the longer has at most this proportion of tokens more
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # edges of the confidences in the reliability plot
RELIABILITY_COLUMNS = ["group", "confidence", "accuracy", "low", "high", "pairs"]


# ---- The model ------------------------------------------------------------------------------------------------------


def provenance_of(provenance: dict[str, str]) -> dict[str, str]:
    """What a reward model belongs to: base and chat template, and the SFT adapter that its body starts from."""
    return {**provenance, "sft": sha256(SFT_ADAPTER / "adapter_model.safetensors")}


def build(entry: ModelEntry, runtime: Runtime, pad_id: int, seed: int):
    """The SFT policy's body, adapter merged, with a new scalar head as transformers' sequence classification model.

    The head's initial values follow from `seed` alone. InputError if transformers has no such class for the architecture.
    """
    from transformers import AutoModelForSequenceClassification, set_seed

    policy = load_adapter(load_base(entry, runtime), SFT_ADAPTER).merge_and_unload()
    config = policy.config
    config.num_labels, config.pad_token_id = 1, pad_id
    set_seed(seed)
    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=runtime.dtype)
    except ValueError:
        raise InputError(
            f"{entry.path}: transformers has no sequence classification model for the architecture {config.model_type}, "
            "so it cannot be a reward model; choose another model in params.yaml"
        ) from None
    model.base_model.load_state_dict(policy.base_model.state_dict())
    return model.to(runtime.device)


def load(entry: ModelEntry, runtime: Runtime, pad_id: int, seed: int, provenance: dict[str, str]):
    """The trained reward model in models/reward, ready to score; InputError if it belongs to another base or SFT adapter."""
    model = build(entry, runtime, pad_id, seed)
    if not (REWARD_ADAPTER / "provenance.json").is_file():
        raise InputError(f"{REWARD_ADAPTER} is missing; the reward stage writes it. Run: dvc repro pipelines/dvc.yaml:reward")
    check_provenance(REWARD_ADAPTER, provenance_of(provenance))
    model = load_adapter(model, REWARD_ADAPTER)
    unpad(model, entry)
    return model.eval()


def unpad(model, entry: ModelEntry) -> bool:
    """Gives a PEFT reward model a forward without padding and with the prompt of a pair once; False if it does not fit.

    Only calls with `pairs=True` share prompts: the second half of the batch holds the rejected sequences.
    """
    from aligner.training import padding_free

    inner = model.get_base_model()
    if not entry.padding_free or not padding_free.can_unpad_body(inner, entry.gradient_checkpointing):
        return False
    stock = inner.forward

    @functools.wraps(type(inner).forward)
    def forward(self, input_ids=None, attention_mask=None, pairs=False, **kwargs):
        from transformers.modeling_outputs import SequenceClassifierOutputWithPast

        if input_ids is None or attention_mask is None:
            return stock(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        labels = differing(input_ids) if pairs else input_ids
        layout = padding_free.arrange(input_ids, attention_mask, labels, pairs)
        last = layout.slots.gather(1, attention_mask.sum(1, keepdim=True) - 1).squeeze(1)
        return SequenceClassifierOutputWithPast(logits=self.score(padding_free.hidden_states(self, layout, last)))

    inner.forward = types.MethodType(forward, inner)
    padding_free.merge_lora_forward(model)
    return True


def differing(ids):
    """Labels in which -100 marks what the two sequences of a pair share: ids (2 pairs, length), chosen first; same shape."""
    import torch

    half = len(ids) // 2
    shared = (ids[:half] == ids[half:]).int().cumprod(1).bool()
    shared[:, -1] = False  # equal sequences differ nowhere, but each needs a token of its own
    return ids.masked_fill(torch.cat([shared, shared]), -100)


def scores(model, sequences: Sequence[list[int]], pad_id: int) -> list[float]:
    """The reward of each sequence of token ids (prompt, answer, end token), whatever the batches."""
    import torch

    rewards = [0.0] * len(sequences)
    was_training = model.training
    model.eval()
    for indices in batches(list(sequences), SCORED_AT_ONCE, len):
        ids, mask = padded([sequences[index] for index in indices], pad_id, model.device)
        with torch.no_grad():
            values = model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        for index, value in zip(indices, values, strict=True):
            rewards[index] = value
    model.train(was_training)
    return rewards


def pair_scores(model, pairs: Sequence[dict[str, Any]], pad_id: int) -> list[tuple[float, float]]:
    """(reward of the chosen answer, of the rejected answer) of each pair."""
    chosen, rejected = ([row["prompt_ids"] + row[f"{side}_ids"] for row in pairs] for side in ("chosen", "rejected"))
    values = scores(model, chosen + rejected, pad_id)
    return list(zip(values[: len(pairs)], values[len(pairs) :], strict=True))


# ---- Measures on held-out pairs --------------------------------------------------------------------------------------


def reward_metrics(rewards: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Measures for the curves. With m = r(chosen) - r(rejected): loss = -log sigmoid(m), Brier score (1 - sigmoid(m))^2.

    accuracy counts a margin of exactly 0 as one half.
    """
    margins = [chosen - rejected for chosen, rejected in rewards]
    return {
        "validation_loss": _mean([softplus(-margin) for margin in margins]),
        "validation_brier": _mean([(1 - sigmoid(margin)) ** 2 for margin in margins]),
        "validation_accuracy": _mean([_order(margin) for margin in margins]),
        "validation_margin": _mean(margins),
        "validation_chosen": _mean([chosen for chosen, _ in rewards]),
        "validation_rejected": _mean([rejected for _, rejected in rewards]),
    }


def reward_figures(rewards: Sequence[tuple[float, float]], pairs: Sequence[dict[str, Any]]) -> dict[str, float | int | None]:
    """The figures of reports/reward.json, on held-out pairs.

    Accuracies have Wilson's 95 % interval. equal_length_accuracy is that of the pairs whose answers differ by at most 10 % in
    tokens, None without such a pair; longer_is_chosen is the accuracy of "the longer answer is chosen"; calibration_error is the
    expected calibration error, the mean of |accuracy - confidence| over the bins of `reliability`, weighted by pairs.
    """
    measured, n = reward_metrics(rewards), len(pairs)
    lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in pairs]
    equal = [
        _order(chosen - rejected)
        for (chosen, rejected), sizes in zip(rewards, lengths, strict=True)
        if max(sizes) <= (1 + EQUAL_LENGTH) * min(sizes)
    ]
    bins = reliability(rewards)
    named: dict[str, float | None] = {
        "validation_loss": measured["validation_loss"],
        "brier": measured["validation_brier"],
        "calibration_error": sum(row[5] * abs(row[2] - row[1]) for row in bins) / n,
        **_rate("accuracy", [_order(chosen - rejected) for chosen, rejected in rewards]),
        **_rate("equal_length_accuracy", equal),
        "longer_is_chosen": _mean([_order(chosen - rejected) for chosen, rejected in lengths]),
        "margin": measured["validation_margin"],
        "chosen_reward": measured["validation_chosen"],
        "rejected_reward": measured["validation_rejected"],
    }
    rounded = {name: None if value is None else round(value, 4) for name, value in named.items()}
    return {**rounded, "validation_pairs": n, "equal_length_pairs": len(equal)}


def reliability(rewards: Sequence[tuple[float, float]]) -> list[list[Any]]:
    """Rows of RELIABILITY_COLUMNS, one per bin with pairs: mean confidence, and the accuracy with its 95 % interval.

    The confidence of a pair is sigmoid(|m|), the probability that the Bradley-Terry model gives to its own order of the pair.
    """
    judged = [(sigmoid(abs(chosen - rejected)), _order(chosen - rejected)) for chosen, rejected in rewards]
    rows: list[list[Any]] = []
    for low, high in zip(BINS[:-1], BINS[1:], strict=True):
        inside = [each for each in judged if low <= each[0] < high or (high == BINS[-1] and each[0] == high)]
        if inside:
            right = [order for _, order in inside]
            interval = _wilson(right)
            rows.append([f"{low:g} to {high:g}", _mean([p for p, _ in inside]), _mean(right), *interval, len(inside)])
    return rows


def sigmoid(x: float) -> float:
    return math.exp(-softplus(-x))


def softplus(x: float) -> float:
    """log(1 + e^x) without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _rate(name: str, values: list[float]) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = _wilson(values)
    return {name: _mean(values), f"{name}_low": low, f"{name}_high": high}


def _wilson(values: list[float]) -> tuple[float, float]:
    interval = intervals.wilson_interval(sum(values), len(values))
    assert interval is not None, "a rate needs at least one pair"
    return interval


def _order(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
