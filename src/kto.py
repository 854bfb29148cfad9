"""kto: Kahneman-Tversky optimisation with TRL's KTOTrainer on single good and bad answers; it continues the SFT adapter.

reads   data/prepared/unpaired_{train,validation}.jsonl, {dpo,sft}_validation.jsonl, chat.json, models/sft, the base model
writes  models/kto/ (adapter, provenance), {metrics,reports}/kto.json, plots/kto_{loss,rewards,logps}.csv
params  kto, seed, model, the entry's loading keys and its kto section
command python src/kto.py        (dvc repro pipelines/dvc.yaml:kto)

With r = log pi(y|x) - log pi_ref(y|x), the loss of a row is 1 - sigmoid(beta (r - z0)) for a good completion and
1 - sigmoid(beta (z0 - r)) for a bad one, times its weight (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8). z0 estimates
KL(pi || pi_ref): the mean of r over the batch's prompts, each with the completion of the row before it, and at least 0; it has no
gradient. apo_zero_unpaired leaves z0 out (D'Oosterlinck et al. 2024, arXiv 2408.06266). Before the first step r = 0, so every
loss is half of its weight.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aligner.files import read_jsonl, write_figures
from aligner.model.chat import Chat
from aligner.model.loading import check_provenance, load_adapter, load_base, save_adapter
from aligner.model.runtime import Runtime
from aligner.run import params as parameters
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import METHODS, run_stage
from aligner.training import trl_internals
from aligner.training.held_out import SFT_ADAPTER, VALIDATION, final_figures
from aligner.training.log_probs import PAIR, log_probabilities, pair_tokens
from aligner.training.loop import train
from aligner.training.preferences import kto_metrics, preference_metrics
from aligner.training.setup import begin, speed_up, trainer_tokenizer, training_arguments
from aligner.training.unpaired import COLUMNS, in_training_order, with_rotated_answers

PARAMS = [*parameters.TRAINING, "kto", "models.${model}.kto", "seed"]
TRAIN = Path("data/prepared/unpaired_train.jsonl")
UNPAIRED_VALIDATION = Path("data/prepared/unpaired_validation.jsonl")
ADAPTER = Path("models/kto")
METRICS = Path("metrics/kto.json")
REPORT = Path("reports/kto.json")
CURVES = {
    Path("plots/kto_loss.csv"): {"loss": "training", "validation_loss": "held out"},
    Path("plots/kto_rewards.csv"): {
        "validation_reward_chosen": "chosen, held out",
        "validation_reward_rejected": "rejected, held out",
        "validation_margin": "margin, held out",
        "rewards/margins": "margin, training",
    },
    Path("plots/kto_logps.csv"): {"validation_logp_chosen": "chosen", "validation_logp_rejected": "rejected"},
}
HEADLINE: dict[str, tuple[str, ...]] = {
    "kto": (
        *("validation_loss", "reward_accuracy", "reward_margin", "chosen_logp_change"),
        *("kl_per_answer_sampled", "ranking_accuracy", "perplexity", "health"),
    )
}


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    setup = begin(run, params, alone=True)
    from aligner.training import padding_free  # imports torch, which must load after begin

    chat, entry, kto = setup.chat, params.model_entry, params.kto
    check_provenance(SFT_ADAPTER, setup.provenance)
    rows, pairs = list(read_jsonl(TRAIN)), list(read_jsonl(VALIDATION))
    single = list(read_jsonl(UNPAIRED_VALIDATION))
    single = with_rotated_answers(single, len(single), by=2)  # by 1, a pair's bad answer would meet its own good one
    labels = [row["label"] for row in single]
    with setup.checkpoints("kto", [TRAIN, UNPAIRED_VALIDATION, VALIDATION, SFT_ADAPTER]) as checkpoints:
        policy = load_adapter(load_base(entry, setup.runtime), SFT_ADAPTER, trainable=True)
        unpadded = padding_free.fits(policy, entry)
        run.phase("load")

        def logps(model, some: list[dict[str, Any]], sides: tuple[str, str]) -> list[tuple[float, float]]:
            return log_probabilities(model, some, chat.pad_id, unpadded=unpadded, sides=sides)

        ordered = in_training_order(rows, kto.num_train_epochs, params.seed)
        ordered = with_rotated_answers(ordered, entry.kto.per_device_train_batch_size)
        reference, before = (logps(policy, some, COLUMNS) for some in (ordered, single))
        held_out = {"sft": logps(policy, pairs, PAIR)}
        run.phase("reference")

        trainer = build_trainer(params, setup.runtime, chat, policy, ordered, reference)
        tokens = sum(pair_tokens(row, COLUMNS) for row in ordered)

        def measure() -> dict[str, float]:  # its last call, after the last step, measures the trained policy
            after, held_out["kto"] = logps(trainer.model, single, COLUMNS), logps(trainer.model, pairs, PAIR)
            return preference_metrics(held_out["kto"], held_out["sft"], kto.beta) | kto_metrics(after, before, labels, kto)

        final = train(trainer, checkpoints, run, tokens, kto.eval_steps, measure, CURVES)
        save_adapter(trainer.model, ADAPTER, entry.path, setup.provenance)
        measured, _ = final_figures(trainer.model, "kto", final, held_out, pairs, setup, unpadded)
        figures = {"kto": measured | {"validation_kl": round(final["validation_kl"], 4)}}
        write_figures(figures, REPORT, METRICS, HEADLINE)
    run.note(metrics=figures)
    run.phase("measure")


def build_trainer(
    params: StageParams,
    runtime: Runtime,
    chat: Chat,
    policy,
    rows: list[dict[str, Any]],
    reference: list[tuple[float, float]],
):
    """TRL's KTOTrainer for rows in training order with their rotated answers, and precomputed reference log-probabilities.

    One pass over `rows` is the whole training: `in_training_order` has laid out the epochs, since TRL must not shuffle rows whose
    rotated answers were made for these batches.
    """
    from datasets import Dataset
    from trl import KTOConfig

    kto = params.kto
    arguments = training_arguments(kto, params.model_entry.kto, params.model_entry, params.seed, runtime)
    config = KTOConfig(
        beta=kto.beta,
        loss_type=kto.loss_type,
        desirable_weight=kto.desirable_weight,
        undesirable_weight=kto.undesirable_weight,
        precompute_ref_log_probs=True,
        train_sampling_strategy="sequential",
        **{**arguments, "num_train_epochs": 1},
    )
    columns = ("prompt_ids", *COLUMNS, "label")
    prepared = [
        {**{column: row[column] for column in columns}, "ref_logps": own, "ref_KL_logps": rotated}
        for row, (own, rotated) in zip(rows, reference, strict=True)
    ]
    trainer = trl_internals.kto_trainer_class()(
        model=policy, args=config, train_dataset=Dataset.from_list(prepared), processing_class=trainer_tokenizer(chat)
    )
    trainer.model.delete_adapter("ref")
    speed_up(trainer, params.model_entry, pairs=False)
    return trainer


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("kto", main, METHODS)
