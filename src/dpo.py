"""dpo: direct preference optimisation with TRL's DPOTrainer; it continues the SFT adapter, and the SFT policy is the reference.

reads   data/prepared/dpo_{train,validation}.jsonl, sft_validation.jsonl, chat.json, models/sft, the base model
writes  models/dpo/ (adapter, provenance), metrics/dpo.json, plots/dpo_{loss,rewards,accuracy,logps,ranking}.csv
params  dpo, seed, model, the entry's loading keys and its dpo section
command python src/dpo.py

Before the first step the policy is the reference, so every implicit reward must be 0 and the sigmoid loss ln 2: asserted on the
trainer's own loss (Rafailov et al. 2023, arXiv 2305.18290, eq. 7). With sft_weight the chosen answers' own loss is added (RPO:
Pang et al. 2024, arXiv 2404.19733, eq. 1); held-out losses are the preference loss alone.

At the end are measured, once: how base, SFT and DPO rank held-out pairs without a reference, DPO's likelihood of the held-out SFT
answers, and how far it is from its reference in what it writes itself.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aligner import checkpoints, decoding, likelihood, modeling, statistics, training
from aligner import params as parameters
from aligner.chat import Chat
from aligner.files import read_json, read_jsonl, write_csv, write_json
from aligner.records import Run, run_stage

PARAMS = [
    "dpo",
    "model",
    "models.${model}.attn_implementation",
    "models.${model}.chat_template",
    "models.${model}.device",
    "models.${model}.dpo",
    "models.${model}.dtype",
    "models.${model}.fast_path",
    "models.${model}.gradient_checkpointing",
    "models.${model}.path",
    "models.${model}.revision",
    "models.${model}.threads",
    "models.${model}.torch_compile",
    "seed",
]
TRAIN = Path("data/prepared/dpo_train.jsonl")
VALIDATION = Path("data/prepared/dpo_validation.jsonl")
SFT_VALIDATION = Path("data/prepared/sft_validation.jsonl")
CHAT = Path("data/prepared/chat.json")
SFT_ADAPTER = Path("models/sft")
ADAPTER = Path("models/dpo")
METRICS = Path("metrics/dpo.json")
RANKING = Path("plots/dpo_ranking.csv")
RANKING_COLUMNS = ["group", "model", "ranking_accuracy", "low", "high", "prompts", "better", "worse", "p"]
CURVES = {
    Path("plots/dpo_loss.csv"): {"loss": "training objective", "validation_loss": "held out"},
    Path("plots/dpo_rewards.csv"): {
        "validation_reward_chosen": "chosen, held out",
        "validation_reward_rejected": "rejected, held out",
        "validation_margin": "margin, held out",
        "rewards/margins": "margin, training",
    },
    Path("plots/dpo_accuracy.csv"): {"rewards/accuracies": "training", "validation_accuracy": "held out"},
    Path("plots/dpo_logps.csv"): {"validation_logp_chosen": "chosen", "validation_logp_rejected": "rejected"},
}
STARTING_PAIRS = 16
REFERENCE_ADAPTER = "reference"
BEFORE = {"base": None, "sft": "base", "dpo": "sft"}  # the model that each one came from
MOST_SAMPLED = 256  # prompts that the policy answers, so that many held-out pairs cost no more than this
SAMPLED_AT_ONCE = 32
REWARD_TOLERANCE = {"torch.float32": 1e-3, "torch.bfloat16": 0.5}


def main(run: Run) -> None:
    from aligner import fast_path

    params = parameters.load(PARAMS)
    run.note(params=params, seed=params.seed)
    modeling.quiet()
    training.compact_head()
    where = modeling.runtime(params.models, params.seed)
    if params.models.fast_path:
        fast_path.keep_memory()
    chat = modeling.load_chat(params.models)
    modeling.check_chat(chat, read_json(CHAT))
    provenance = {"base": modeling.base_fingerprint(params.models), "chat": chat.fingerprint}
    modeling.check_provenance(SFT_ADAPTER, provenance)
    train, validation = list(read_jsonl(TRAIN)), list(read_jsonl(VALIDATION))
    inputs = {"params": params, "where": where, "provenance": provenance}
    with checkpoints.keep("dpo", checkpoints.fingerprint("dpo", [CHAT, TRAIN, VALIDATION, SFT_ADAPTER], **inputs)) as kept:
        policy = modeling.load_adapter(modeling.load_base(params.models, where), SFT_ADAPTER, trainable=True)
        fast = fast_path.fits(policy, params.models)
        run.note(device=where.device, dtype=str(where.dtype), threads=where.threads)
        run.phase("load")

        reference = log_probabilities(policy, train, chat.pad_id, fast=fast)
        held_out = {"sft": log_probabilities(policy, validation, chat.pad_id, fast=fast)}
        run.phase("reference")

        trainer = build_trainer(params, where, chat, policy, train, reference)
        assert_starts_at_reference(trainer, params.dpo, REWARD_TOLERANCE[str(where.dtype)])
        tokens = int(params.dpo.num_train_epochs * sum(map(pair_tokens, train)))

        def measure() -> dict[str, float]:
            held_out["dpo"] = log_probabilities(trainer.model, validation, chat.pad_id, fast=fast)
            return preference_metrics(held_out["dpo"], held_out["sft"], params.dpo.beta)

        final = training.train(trainer, kept, run, "dpo", tokens, params.dpo.eval_steps, measure)
        modeling.save_adapter(trainer.model, ADAPTER, params.models.path, provenance)
        with trainer.model.disable_adapter():
            held_out["base"] = log_probabilities(trainer.model, validation, chat.pad_id, fast=fast)
        ranks = rankings(held_out, validation)
        kl = divergence(trainer.model, validation, chat, params.seed)
        metrics = {"dpo": summary(final, ranks, kl, sft_likelihood(trainer.model, chat, fast), validation)}
        for path, series in CURVES.items():
            write_csv(path, ["step", "series", "value"], training.curve(trainer.state.log_history, series))
        write_csv(RANKING, RANKING_COLUMNS, ranking_rows(ranks))
        write_json(METRICS, metrics)
    run.note(metrics=metrics)
    run.phase("measure")


def build_trainer(
    params: SimpleNamespace,
    where: SimpleNamespace,
    chat: Chat,
    policy,
    rows: list[dict],
    reference: list[tuple[float, float]],
):
    """TRL's DPOTrainer over ids that prepare made and reference log-probabilities computed once.

    TRL would tokenise again, and would keep a copy of the adapter to ask it for the reference at every step.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from aligner import fast_path

    class PreparedDPOTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _precompute_ref_logps(self, dataset, *args, **kwargs):
            return dataset

    losses = {params.dpo.loss_type: 1.0} | ({"sft": params.dpo.sft_weight} if params.dpo.sft_weight else {})
    config = DPOConfig(
        output_dir=tempfile.gettempdir(),
        beta=params.dpo.beta,
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        label_smoothing=params.dpo.label_smoothing,
        precompute_ref_log_probs=True,
        **training.training_arguments(params.dpo, params.models.dpo, params.models, params.seed, where),
    )
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    dataset = Dataset.from_list(
        [
            {**{column: row[column] for column in columns}, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
            for row, (chosen, rejected) in zip(rows, reference, strict=True)
        ]
    )
    trainer = PreparedDPOTrainer(
        model=policy, args=config, train_dataset=dataset, processing_class=training.trainer_tokenizer(chat)
    )
    trainer.model.delete_adapter("ref")
    if params.models.fast_path:
        fast_path.merge_products(trainer.model)
        fast_path.unpad(trainer, pairs=True)
    if params.models.torch_compile:
        training.compile_layers(trainer)
    return trainer


def assert_starts_at_reference(trainer, dpo: SimpleNamespace, tolerance: float) -> None:
    """Policy and reference are the same function: pair by pair the rewards are 0, and the sigmoid loss is ln 2.

    One pair at a time, since in the mean over a batch the rewards of rows that were mixed up would cancel. The chosen answers'
    own loss (sft_weight) is left out, since it says nothing about the reference.
    """
    import torch

    rows = trainer.train_dataset.select(range(min(STARTING_PAIRS, len(trainer.train_dataset))))
    trainer.model.train()
    weights, trainer.loss_weights = trainer.loss_weights, [1.0, *(0.0 for _ in trainer.loss_weights[1:])]
    with torch.no_grad():
        batches = (trainer._prepare_inputs(trainer.data_collator([row])) for row in rows)
        losses = [trainer.compute_loss(trainer.model, batch).item() for batch in batches]
    trainer.loss_weights = weights
    collected = trainer._metrics["train"]
    rewards = [abs(value) for side in ("chosen", "rejected") for value in collected[f"rewards/{side}"]]
    collected.clear()
    trainer._total_train_tokens = 0
    assert max(rewards) <= tolerance, f"the policy must start at the reference, but rewards are up to {max(rewards)}"
    if dpo.loss_type == "sigmoid":
        worst = max(losses, key=lambda loss: abs(loss - math.log(2)))
        assert abs(worst - math.log(2)) <= tolerance, f"the first loss must be ln 2 = {math.log(2):.6f}, not {worst}"


def log_probabilities(
    model, rows: list[dict[str, Any]], pad_id: int, batch_size: int = 16, fast: bool = False
) -> list[tuple[float, float]]:
    """(log p(chosen | prompt), log p(rejected | prompt)) for each row, in nats, summed over the answer and its end token.

    fast: by the fast path's forward pass, which the model must fit.
    """
    import torch

    from aligner import fast_path

    results: list[tuple[float, float]] = [(0.0, 0.0)] * len(rows)
    was_training = model.training
    model.eval()
    for indices in training.batches(rows, batch_size, pair_tokens):
        batch = [rows[index] for index in indices]
        sequences = [row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids") for row in batch]
        prompts = [len(row["prompt_ids"]) for row in batch] * 2
        ids, mask = training.padded(sequences, pad_id, model.device)
        positions = torch.arange(ids.shape[1], device=ids.device)
        answer = (positions >= torch.tensor(prompts, device=ids.device)[:, None]) & mask.bool()
        if fast:
            tokens, _ = fast_path.measure(model, ids, mask, ids.masked_fill(~answer, -100), pairs=True)
        else:
            with torch.no_grad():
                tokens, _ = training.token_log_probabilities(model, ids, mask)
        sums = (tokens * answer[:, 1:]).sum(-1).tolist()
        for place, index in enumerate(indices):
            results[index] = (sums[place], sums[place + len(batch)])
    model.train(was_training)
    return results


# ---- Likelihood of the SFT answers ----------------------------------------------------------------------------------


def sft_likelihood(model, chat: Chat, fast: bool) -> dict[str, float | None]:
    """Perplexity and bits per byte on the held-out SFT answers, as metrics/sft.json has them of base and SFT."""
    rows = list(read_jsonl(SFT_VALIDATION))
    measured = likelihood.evaluate(model, rows, chat.pad_id, likelihood.special_ids(chat), fast=fast)
    return likelihood.summary(measured, likelihood.text_bytes(rows, chat))


# ---- Distance from the reference ------------------------------------------------------------------------------------


def divergence(model, rows: list[dict[str, Any]], chat: Chat, seed: int) -> dict[str, float | None]:
    """KL(policy || reference) in nats, on two kinds of answers to held-out prompts.

    teacher_forced: on the chosen answers, tokens that come from the data; a drift that shows only in what the policy itself
    writes is not seen. sampled: on an answer that the policy draws for itself to each prompt. By the chain rule the mean sum over
    these estimates the divergence of the two distributions over whole answers. An answer of more tokens than the longest
    held-out one, or than there are positions, is cut (samples_cut: the share of such) and counts as far as it goes: the estimate
    is then of the distributions over such beginnings, which is never more than that over whole answers. None where the prompts
    leave no position for an answer.
    """
    longest = max(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids"))
    prompts = [row["prompt_ids"] for row in rows[:: math.ceil(len(rows) / MOST_SAMPLED)]]
    longest = min(longest, model.config.max_position_embeddings - max(map(len, prompts)))
    ends = decoding.end_ids(chat)
    forced = distance(model, [(row["prompt_ids"], row["chosen_ids"]) for row in rows], chat.pad_id)
    answers = sample(model, prompts, chat.pad_id, ends, longest, seed) if longest > 0 else []
    names = ("kl_per_token_sampled", "kl_per_answer_sampled", "kl_per_answer_sampled_low", "kl_per_answer_sampled_high")
    return {
        "kl_per_token_teacher_forced": forced[0],
        **dict(zip(names, distance(model, answers, chat.pad_id) if answers else [None] * 4, strict=True)),
        "samples_cut": _mean([float(ids[-1] not in ends) for _, ids in answers]) if answers else None,
    }


def sample(
    model, prompts: list[list[int]], pad_id: int, ends: list[int], longest: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) for each prompt: the policy's own, its end token included, of at most `longest` tokens.

    Drawn from the whole distribution (temperature 1, nothing left out), from the seed and not from the random state that training
    left, which a resumed run need not share.
    """
    import torch
    from transformers import GenerationConfig

    base, was_training = model.get_base_model(), model.training
    base.generation_config = GenerationConfig()  # transformers would take what is left open from the model's own
    whole = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    settings = GenerationConfig(max_new_tokens=longest, eos_token_id=ends, pad_token_id=pad_id, **whole)
    answers: dict[int, list[int]] = {}
    model.eval()
    torch.manual_seed(seed)
    for indices in training.batches(prompts, SAMPLED_AT_ONCE, len):
        drawn = decoding.complete(base, [prompts[index] for index in indices], pad_id, settings)
        for index, ids in zip(indices, drawn, strict=True):
            end = decoding.end_place(ids, ends)
            answers[index] = ids if end is None else ids[: end + 1]
    model.train(was_training)
    return [(prompt, answers[index]) for index, prompt in enumerate(prompts)]


def distance(model, answers: list[tuple[list[int], list[int]]], pad_id: int) -> list[float | None]:
    """Of (prompt, answer)s: the mean KL per token of them all; that per answer, and its 95 % interval (of one answer: None).

    The interval is the percentile bootstrap's over answers.
    """
    sums = divergences(model, answers, pad_id)
    per_token = sum(sums) / sum(len(ids) for _, ids in answers)
    return [per_token, _mean(sums), *(statistics.exact_bootstrap_interval(sums) or (None, None))]


def divergences(model, answers: list[tuple[list[int], list[int]]], pad_id: int, batch_size: int = 16) -> list[float]:
    """For each (prompt, answer), KL(policy || reference) in nats, the whole vocabulary summed up, over the answer's tokens.

    The reference, the SFT adapter, is loaded beside the policy's and goes again.
    """
    import torch

    was_training = model.training
    model.load_adapter(SFT_ADAPTER, REFERENCE_ADAPTER, use_safetensors=True)
    model.eval()
    results = [0.0] * len(answers)
    for indices in training.batches(answers, batch_size, lambda row: len(row[0]) + len(row[1])):
        batch = [answers[index] for index in indices]
        ids, mask = training.padded([prompt + answer for prompt, answer in batch], pad_id, model.device)
        policy, reference = (log_distributions(model, name, ids, mask) for name in ("default", REFERENCE_ADAPTER))
        positions = torch.arange(1, ids.shape[1], device=ids.device)
        prompts = torch.tensor([len(prompt) for prompt, _ in batch], device=ids.device)
        answer = (positions >= prompts[:, None]) & mask[:, 1:].bool()
        sums = ((policy.exp() * (policy - reference)).sum(-1) * answer).double().sum(-1).tolist()
        for index, value in zip(indices, sums, strict=True):
            results[index] = max(0.0, value)  # below 0 by rounding alone
    model.set_adapter("default")
    model.delete_adapter(REFERENCE_ADAPTER)
    model.train(was_training)
    return results


def log_distributions(model, adapter: str, ids, mask):
    """log p(. | ids[:, :t]) for t >= 1 under one of the model's adapters, in float32: shape (n, length - 1, vocabulary)."""
    import torch

    model.set_adapter(adapter)
    with torch.no_grad():
        return torch.log_softmax(training.token_log_probabilities(model, ids, mask)[1], dim=-1)


# ---- Rewards and ranks ----------------------------------------------------------------------------------------------


def preference_metrics(policy: list[tuple[float, float]], reference: list[tuple[float, float]], beta: float) -> dict[str, float]:
    """What the policy thinks of held-out pairs, from sequence log-probabilities (chosen, rejected) of both models.

    reward = beta * (log policy - log reference); margin = reward(chosen) - reward(rejected); loss = -log sigmoid(margin), always
    the sigmoid's, whatever dpo.loss_type: the log-loss of the forecast sigmoid(margin) that the chosen answer is preferred.
    brier = (1 - sigmoid(margin))^2, another proper score of that forecast: 1/4 where the policy is its reference.
    accuracy counts a margin of exactly 0 as one half (Rafailov et al. 2023, section 5.1).
    """
    pairs = list(zip(policy, reference, strict=True))
    chosen = [beta * (p[0] - r[0]) for p, r in pairs]
    rejected = [beta * (p[1] - r[1]) for p, r in pairs]
    margins = [w - l for w, l in zip(chosen, rejected, strict=True)]
    return {
        "validation_loss": _mean([_softplus(-margin) for margin in margins]),
        "validation_brier": _mean([math.exp(-2 * _softplus(margin)) for margin in margins]),
        "validation_reward_chosen": _mean(chosen),
        "validation_reward_rejected": _mean(rejected),
        "validation_margin": _mean(margins),
        "validation_accuracy": _mean([_order(margin, 0) for margin in margins]),
        "validation_logp_chosen": _mean([p[0] for p in policy]),
        "validation_logp_rejected": _mean([p[1] for p in policy]),
        "chosen_change": _mean([p[0] - r[0] for p, r in pairs]),
        "rejected_change": _mean([p[1] - r[1] for p, r in pairs]),
        "chosen_fell": _mean([float(p[0] < r[0]) for p, r in pairs]),
    }


def rankings(held_out: dict[str, list[tuple[float, float]]], rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Whether each model finds a pair's chosen answer likelier than the rejected one: 1, 0, or 1/2 for a tie, pair by pair.

    No reference takes part (Chen et al. 2024, arXiv 2405.19534). By log p of the whole answer, which is lower for a longer one;
    and per token, by log p divided by the answer's length. held_out: (chosen, rejected) log-probabilities by model.
    """
    lengths = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    ways = {"whole answer": [(1, 1)] * len(rows), "per token": lengths}
    return {
        way: {
            name: [_order(said[0] / by[0], said[1] / by[1]) for said, by in zip(pairs, divisors, strict=True)]
            for name, pairs in held_out.items()
        }
        for way, divisors in ways.items()
    }


def ranking_rows(rankings: dict[str, dict[str, list[float]]]) -> Iterator[list[Any]]:
    """For each model its ranking accuracy, Wilson's interval and n; and against the model that it came from, pair by pair: how
    many it ranks better, how many worse, and the p-value of McNemar's exact test."""
    for way, ranks in rankings.items():
        for name, before in BEFORE.items():
            n, right = len(ranks[name]), sum(ranks[name])
            compared = mcnemar(ranks[name], ranks[before]) if before else (None, None, None)
            yield [way, name, right / n, *statistics.wilson_interval(right, n), n, *compared]


def mcnemar(first: Sequence[float], second: Sequence[float]) -> tuple[int, int, float]:
    """How many pairs the first ranks better than the second, how many worse, and the p-value of no difference."""
    better = sum(a > b for a, b in zip(first, second, strict=True))
    worse = sum(a < b for a, b in zip(first, second, strict=True))
    return better, worse, statistics.sign_test(better, worse)


def summary(
    measured: dict[str, float],
    ranks: dict[str, dict[str, list[float]]],
    kl: dict[str, float | None],
    fit: dict[str, float | None],
    validation: list[dict[str, Any]],
) -> dict[str, float | str | None]:
    """What metrics/dpo.json holds: held-out measures with n and an interval, what moved, and the health in words.

    reward_accuracy_low and _high are Wilson's 95 % interval; longer_is_chosen is the accuracy of the rule "the longer answer is
    the chosen one"; changes of log-probability are means in nats per answer, and per token over all of them. `fit`, perplexity
    and bits per byte, is of the held-out SFT answers, all else of the held-out pairs.
    """
    n, longer = len(validation), _mean([_order(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in validation])
    low, high = statistics.wilson_interval(measured["validation_accuracy"] * n, n)
    chosen, rejected = (_mean([len(row[side]) for row in validation]) for side in ("chosen_ids", "rejected_ids"))
    named = {
        "validation_loss": measured["validation_loss"],
        "brier": measured["validation_brier"],
        "reward_accuracy": measured["validation_accuracy"],
        "reward_accuracy_low": low,
        "reward_accuracy_high": high,
        "reward_margin": measured["validation_margin"],
        "chosen_reward": measured["validation_reward_chosen"],
        "chosen_logp_change": measured["chosen_change"],
        "rejected_logp_change": measured["rejected_change"],
        "chosen_logp_change_per_token": measured["chosen_change"] / chosen,
        "rejected_logp_change_per_token": measured["rejected_change"] / rejected,
        "chosen_fell": measured["chosen_fell"],
        **kl,
        "ranking_accuracy": _mean(ranks["whole answer"]["dpo"]),
        "ranking_accuracy_per_token": _mean(ranks["per token"]["dpo"]),
        **fit,
        "longer_is_chosen": longer,
    }
    rounded = {name: None if value is None else round(value, 4) for name, value in named.items()}
    return {**rounded, "validation_pairs": n, "health": health(measured, longer)}


def health(measured: dict[str, float], longer_is_chosen: float) -> str:
    """One word on held-out pairs, the worst that applies.

    not learning: the reward accuracy is not above chance, nor above what the lengths alone tell (longer, or shorter, is chosen).
    displaced: margins grow, but the chosen answers became less likely too (likelihood displacement: Razin et al. 2024,
    arXiv 2410.08847; Pal et al. 2024, arXiv 2402.13228).
    """
    if measured["validation_accuracy"] <= max(0.5, longer_is_chosen, 1 - longer_is_chosen):
        return "not learning"
    return "displaced" if measured["chosen_change"] < 0 < measured["validation_margin"] else "healthy"


def pair_tokens(row: dict[str, Any]) -> int:
    """Tokens of a pair as trained: the prompt stands before both answers."""
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def _order(chosen: float, rejected: float) -> float:
    """1 where the chosen answer comes first, 1/2 for a tie."""
    return 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _softplus(x: float) -> float:
    """log(1 + e^x) without overflow; -log sigmoid(m) = softplus(-m)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("dpo", main)
