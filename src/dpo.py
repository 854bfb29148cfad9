"""dpo: direct preference optimisation with TRL's DPOTrainer; it continues the SFT adapter, and the SFT policy is the reference.

reads   data/prepared/dpo_{train,validation}.jsonl, sft_validation.jsonl, chat.json, models/sft, the base model
writes  models/dpo/ (adapter, provenance), {metrics,reports}/dpo.json, plots/dpo_{loss,rewards,accuracy,logps,ranking}.csv
params  dpo, seed, model, the entry's loading keys and its dpo section
command python src/dpo.py

Before the first step the policy is the reference, so every implicit reward must be 0 and the sigmoid loss ln 2; the stage asserts
this on the trainer's own loss (Rafailov et al. 2023, arXiv 2305.18290, eq. 7). sft_weight adds the chosen answers' own loss (RPO:
Pang et al. 2024, arXiv 2404.19733, eq. 1); held-out losses are the preference loss only.

After training it measures three things once: how base, SFT and DPO rank held-out pairs without a reference, DPO's likelihood on
the held-out SFT answers, and its KL divergence from the reference on its own samples.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from aligner.files import read_jsonl, write_csv, write_figures
from aligner.model.chat import Chat
from aligner.model.loading import check_provenance, load_adapter, load_base, save_adapter
from aligner.model.runtime import Runtime
from aligner.run import params as parameters
from aligner.run.params import Dpo, StageParams
from aligner.run.record import Run
from aligner.run.stage import run_stage
from aligner.training import trl_internals
from aligner.training.held_out import SFT_ADAPTER, VALIDATION, final_figures
from aligner.training.log_probs import log_probabilities, pair_tokens
from aligner.training.loop import train
from aligner.training.preferences import RANKING_COLUMNS, preference_metrics, ranking_rows
from aligner.training.setup import begin, speed_up, trainer_tokenizer, training_arguments

PARAMS = [*parameters.TRAINING, "dpo", "models.${model}.dpo", "seed"]
TRAIN = Path("data/prepared/dpo_train.jsonl")
ADAPTER = Path("models/dpo")
METRICS = Path("metrics/dpo.json")
REPORT = Path("reports/dpo.json")
RANKING = Path("plots/dpo_ranking.csv")
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
HEADLINE: dict[str, tuple[str, ...]] = {
    "dpo": (
        *("validation_loss", "reward_accuracy", "reward_margin", "chosen_logp_change"),
        *("kl_per_answer_sampled", "ranking_accuracy", "perplexity", "health"),
    )
}
STARTING_PAIRS = 16
REWARD_TOLERANCE = {"torch.float32": 1e-3, "torch.bfloat16": 0.5}


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    setup = begin(run, params)
    from aligner.training import padding_free  # imports torch, which must load after begin

    runtime, chat, entry = setup.runtime, setup.chat, params.model_entry
    check_provenance(SFT_ADAPTER, setup.provenance)
    pairs, validation = list(read_jsonl(TRAIN)), list(read_jsonl(VALIDATION))
    with setup.checkpoints("dpo", [TRAIN, VALIDATION, SFT_ADAPTER]) as checkpoints:
        policy = load_adapter(load_base(entry, runtime), SFT_ADAPTER, trainable=True)
        unpadded = padding_free.fits(policy, entry)
        run.phase("load")

        reference = log_probabilities(policy, pairs, chat.pad_id, unpadded=unpadded)
        held_out = {"sft": log_probabilities(policy, validation, chat.pad_id, unpadded=unpadded)}
        run.phase("reference")

        trainer = build_trainer(params, runtime, chat, policy, pairs, reference)
        assert_starts_at_reference(trainer, params.dpo, REWARD_TOLERANCE[str(runtime.dtype)])
        tokens = int(params.dpo.num_train_epochs * sum(map(pair_tokens, pairs)))

        def measure() -> dict[str, float]:  # its last call, after the last step, measures the trained policy
            held_out["dpo"] = log_probabilities(trainer.model, validation, chat.pad_id, unpadded=unpadded)
            return preference_metrics(held_out["dpo"], held_out["sft"], params.dpo.beta)

        final = train(trainer, checkpoints, run, tokens, params.dpo.eval_steps, measure, CURVES)
        save_adapter(trainer.model, ADAPTER, entry.path, setup.provenance)

        measured, ranks = final_figures(trainer.model, "dpo", final, held_out, validation, setup, unpadded)
        figures = {"dpo": measured}
        write_csv(RANKING, RANKING_COLUMNS, ranking_rows(ranks))
        write_figures(figures, REPORT, METRICS, HEADLINE)
    run.note(metrics=figures)
    run.phase("measure")


def build_trainer(
    params: StageParams,
    runtime: Runtime,
    chat: Chat,
    policy,
    pairs: list[dict[str, Any]],
    reference: list[tuple[float, float]],
):
    """TRL's DPOTrainer for the ids that prepare wrote and precomputed reference log-probabilities.

    By itself TRL would tokenise again, and compute the reference at every step with a copy of the adapter.
    """
    from datasets import Dataset
    from trl import DPOConfig

    losses = {params.dpo.loss_type: 1.0} | ({"sft": params.dpo.sft_weight} if params.dpo.sft_weight else {})
    config = DPOConfig(
        beta=params.dpo.beta,
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        label_smoothing=params.dpo.label_smoothing,
        precompute_ref_log_probs=True,
        **training_arguments(params.dpo, params.model_entry.dpo, params.model_entry, params.seed, runtime),
    )
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [
        {**{column: row[column] for column in columns}, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, (chosen, rejected) in zip(pairs, reference, strict=True)
    ]
    trainer = trl_internals.dpo_trainer_class()(
        model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=trainer_tokenizer(chat)
    )
    trainer.model.delete_adapter("ref")
    speed_up(trainer, params.model_entry, pairs=True)
    return trainer


def assert_starts_at_reference(trainer, dpo: Dpo, tolerance: float) -> None:
    """Asserts that policy and reference are the same function: the rewards of each pair are 0, and the sigmoid loss is ln 2.

    It checks each pair separately, since the rewards of mixed-up rows could cancel in the mean of a batch.
    """
    rows = trainer.train_dataset.select(range(min(STARTING_PAIRS, len(trainer.train_dataset))))
    losses, rewards = trl_internals.pairwise_losses(trainer, rows)
    assert max(rewards) <= tolerance, f"the policy must start at the reference, but rewards are up to {max(rewards)}"
    if dpo.loss_type == "sigmoid":
        worst = max(losses, key=lambda loss: abs(loss - math.log(2)))
        assert abs(worst - math.log(2)) <= tolerance, f"the first loss must be ln 2 = {math.log(2):.6f}, not {worst}"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("dpo", main)
