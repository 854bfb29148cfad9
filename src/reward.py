"""reward: a Bradley-Terry reward model on the preference pairs with TRL's RewardTrainer; its body starts from the SFT policy.

reads   data/prepared/dpo_{train,validation}.jsonl, chat.json, models/sft, the base model
writes  models/reward/ (adapter and head, provenance), {metrics,reports}/reward.json, plots/reward_{loss,accuracy,reliability}.csv
params  reward, lora, seed, model, the entry's loading keys and its reward section
command python src/reward.py        (dvc repro pipelines/dvc.yaml:reward)

With r the head's value at a sequence's last token, the loss of a pair is -log sigmoid(r(chosen) - r(rejected)) (Bradley-Terry;
Ouyang et al. 2022, arXiv 2203.02155, eq. 1) + center_rewards_coefficient (r(chosen) + r(rejected))^2, which keeps rewards near 0
(Eisenstein et al. 2023, arXiv 2312.09244).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aligner.files import read_jsonl, write_csv, write_figures
from aligner.model.chat import Chat
from aligner.model.loading import check_provenance, save_adapter
from aligner.model.runtime import Runtime
from aligner.run import params as parameters
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import run_stage
from aligner.training import reward_model
from aligner.training.log_probs import pair_tokens
from aligner.training.loop import curve, train
from aligner.training.reward_model import RELIABILITY_COLUMNS, REWARD_ADAPTER, SFT_ADAPTER
from aligner.training.setup import begin, compile_layers, trainer_tokenizer, training_arguments

PARAMS = [*parameters.TRAINING, "lora", "models.${model}.reward", "reward", "seed"]
TRAIN = Path("data/prepared/dpo_train.jsonl")
VALIDATION = Path("data/prepared/dpo_validation.jsonl")
METRICS = Path("metrics/reward.json")
REPORT = Path("reports/reward.json")
RELIABILITY = Path("plots/reward_reliability.csv")
CURVES = {
    Path("plots/reward_loss.csv"): {"loss": "training", "validation_loss": "held out"},
    Path("plots/reward_accuracy.csv"): {"accuracy": "training", "validation_accuracy": "held out"},
}
HEADLINE: dict[str, tuple[str, ...]] = {
    "reward": ("validation_loss", "accuracy", "equal_length_accuracy", "brier", "calibration_error", "margin")
}


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    setup = begin(run, params, alone=True)
    chat = setup.chat
    check_provenance(SFT_ADAPTER, setup.provenance)
    pairs, validation = list(read_jsonl(TRAIN)), list(read_jsonl(VALIDATION))
    with setup.checkpoints("reward", [TRAIN, VALIDATION, SFT_ADAPTER]) as checkpoints:
        trainer = build_trainer(params, setup.runtime, chat, pairs)
        run.phase("load")
        tokens = int(params.reward.num_train_epochs * sum(map(pair_tokens, pairs)))
        latest: list[tuple[float, float]] = []

        def measure() -> dict[str, float]:  # its last call, after the last step, measures the trained model
            latest[:] = reward_model.pair_scores(trainer.model, validation, chat.pad_id)
            return reward_model.reward_metrics(latest)

        train(trainer, checkpoints, run, tokens, params.reward.eval_steps, measure)
        figures = {"reward": reward_model.reward_figures(latest, validation)}
        save_adapter(trainer.model, REWARD_ADAPTER, params.model_entry.path, reward_model.provenance_of(setup.provenance))
        for path, series in CURVES.items():
            write_csv(path, ["step", "series", "value"], curve(trainer.state.log_history, series))
        write_csv(RELIABILITY, RELIABILITY_COLUMNS, reward_model.reliability(latest))
        write_figures(figures, REPORT, METRICS, HEADLINE)
    run.note(metrics=figures)
    run.phase("save")


def build_trainer(params: StageParams, runtime: Runtime, chat: Chat, pairs: list[dict[str, Any]]):
    """TRL's RewardTrainer for the ids that prepare wrote: a new adapter and a head on the SFT policy's body."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    entry = params.model_entry

    class PairRewardTrainer(RewardTrainer):
        shares_prompts = False

        def compute_loss(self, model, inputs, *args, **kwargs):
            inputs = {**inputs, "pairs": True} if self.shares_prompts else inputs
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = PairRewardTrainer(
        model=reward_model.build(entry, runtime, chat.pad_id, params.seed),
        args=RewardConfig(
            center_rewards_coefficient=params.reward.center_rewards_coefficient,
            **training_arguments(params.reward, entry.reward, entry, params.seed, runtime),
        ),
        train_dataset=Dataset.from_list(
            [{f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")} for row in pairs]
        ),
        processing_class=trainer_tokenizer(chat),
        peft_config=LoraConfig(task_type="SEQ_CLS", bias="none", modules_to_save=["score"], **params.lora.model_dump()),
    )
    trainer.shares_prompts = reward_model.unpad(trainer.model, entry)
    if entry.torch_compile:
        compile_layers(trainer)
    return trainer


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("reward", main)
