"""sft: supervised fine-tuning of a LoRA adapter on the chosen base with TRL's SFTTrainer; only the assistant's tokens count.

reads   data/prepared/sft_{train,validation}.jsonl, chat.json, the base model
writes  models/sft/ (adapter, provenance), metrics/sft.json, reports/sft.json, plots/sft.csv
params  sft, lora, seed, model, the entry's loading keys and its sft section
command python src/sft.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aligner.files import read_jsonl, write_figures
from aligner.model.chat import Chat
from aligner.model.loading import load_base, save_adapter
from aligner.model.runtime import Runtime
from aligner.run import params as parameters
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import run_stage
from aligner.training import likelihood, trl_internals
from aligner.training.loop import first_measures, train
from aligner.training.setup import begin, speed_up, trainer_tokenizer, training_arguments

PARAMS = [*parameters.TRAINING, "lora", "models.${model}.sft", "seed", "sft"]
TRAIN = Path("data/prepared/sft_train.jsonl")
VALIDATION = Path("data/prepared/sft_validation.jsonl")
ADAPTER = Path("models/sft")
METRICS = Path("metrics/sft.json")
REPORT = Path("reports/sft.json")
CURVE = Path("plots/sft.csv")

HEADLINE: dict[str, tuple[str, ...]] = {
    "sft": ("validation_loss", "perplexity", "bits_per_byte", "token_accuracy", "base_perplexity")
}
SERIES = {"loss": "training", "validation_loss": "held out"}


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    setup = begin(run, params)
    from aligner.training import padding_free  # imports torch, which must load after begin

    chat = setup.chat
    examples, validation = list(read_jsonl(TRAIN)), list(read_jsonl(VALIDATION))
    run.phase("load")

    with setup.checkpoints("sft", [TRAIN, VALIDATION]) as checkpoints:
        trainer = build_trainer(params, setup.runtime, chat, examples)
        unpadded = padding_free.fits(trainer.model, params.model_entry)
        tokens = int(params.sft.num_train_epochs * sum(len(row["input_ids"]) for row in examples))
        special = likelihood.special_ids(chat)

        def measure() -> dict[str, float]:
            return likelihood.measure(trainer.model, validation, chat.pad_id, special, unpadded=unpadded)

        final = train(trainer, checkpoints, run, tokens, params.sft.eval_steps, measure, {CURVE: SERIES})
        # LoRA's B is zero at step 0, so the first evaluation is the base model's.
        base = first_measures(trainer.state.log_history, final)
        figures = {"sft": sft_figures(base, final, validation, likelihood.text_bytes(validation, chat))}
        save_adapter(trainer.model, ADAPTER, params.model_entry.path, setup.provenance)
        write_figures(figures, REPORT, METRICS, HEADLINE)
    run.note(metrics=figures)
    run.phase("save")


def build_trainer(params: StageParams, runtime: Runtime, chat: Chat, rows: list[dict[str, Any]]):
    """TRL's SFTTrainer for the ids that prepare wrote; it does not tokenise again and writes no cache."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig

    config = SFTConfig(
        train_sampling_strategy=params.sft.train_sampling_strategy,
        dataset_kwargs={"skip_prepare_dataset": True},
        **training_arguments(params.sft, params.model_entry.sft, params.model_entry, params.seed, runtime),
    )
    trainer = trl_internals.sft_trainer_class()(
        model=load_base(params.model_entry, runtime),
        args=config,
        train_dataset=Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]),
        processing_class=trainer_tokenizer(chat),
        peft_config=LoraConfig(task_type="CAUSAL_LM", bias="none", **params.lora.model_dump()),
    )
    speed_up(trainer, params.model_entry, pairs=False)
    return trainer


def sft_figures(
    base: dict[str, float], final: dict[str, float], rows: list[dict[str, Any]], size: int
) -> dict[str, float | None]:
    """The figures of reports/sft.json: held-out `rows`, with `size` answer bytes, before (`base`) and after training."""
    return {
        "validation_loss": round(final["validation_loss"], 4),
        **likelihood.perplexity_and_bits(final, size),
        "token_accuracy": round(final["token_accuracy"], 4),
        **{f"base_{name}": value for name, value in likelihood.perplexity_and_bits(base, size).items()},
        "validation_tokens": likelihood.supervised(rows),
        "validation_bytes": size,
    }


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("sft", main)
