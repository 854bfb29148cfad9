"""sft: supervised fine-tuning of a LoRA adapter on the chosen base with TRL's SFTTrainer, loss on the assistant's tokens only.

reads   data/prepared/sft_{train,validation}.jsonl, chat.json, the base model
writes  models/sft/ (adapter, provenance), metrics/sft.json, plots/sft.csv
params  sft, lora, seed, model, the entry's loading keys and its sft section
command python src/sft.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aligner import checkpoints, likelihood, modeling, training
from aligner import params as parameters
from aligner.chat import Chat
from aligner.files import read_json, read_jsonl, write_csv, write_json
from aligner.records import Run, run_stage

PARAMS = [
    "lora",
    "model",
    "models.${model}.attn_implementation",
    "models.${model}.chat_template",
    "models.${model}.device",
    "models.${model}.dtype",
    "models.${model}.fast_path",
    "models.${model}.gradient_checkpointing",
    "models.${model}.path",
    "models.${model}.revision",
    "models.${model}.sft",
    "models.${model}.threads",
    "models.${model}.torch_compile",
    "seed",
    "sft",
]
TRAIN = Path("data/prepared/sft_train.jsonl")
VALIDATION = Path("data/prepared/sft_validation.jsonl")
CHAT = Path("data/prepared/chat.json")
ADAPTER = Path("models/sft")
METRICS = Path("metrics/sft.json")
CURVE = Path("plots/sft.csv")

SERIES = {"loss": "training", "validation_loss": "held out"}


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
    train, validation = list(read_jsonl(TRAIN)), list(read_jsonl(VALIDATION))
    run.note(device=where.device, dtype=str(where.dtype), threads=where.threads)
    run.phase("load")

    inputs = {"params": params, "where": where, "provenance": provenance}
    with checkpoints.keep("sft", checkpoints.fingerprint("sft", [CHAT, TRAIN, VALIDATION], **inputs)) as kept:
        trainer = build_trainer(params, where, chat, train)
        fast = fast_path.fits(trainer.model, params.models)
        tokens = int(params.sft.num_train_epochs * sum(len(row["input_ids"]) for row in train))
        special = likelihood.special_ids(chat)

        def measure() -> dict[str, float]:
            return likelihood.evaluate(trainer.model, validation, chat.pad_id, special, fast=fast)

        final = training.train(trainer, kept, run, "sft", tokens, params.sft.eval_steps, measure)
        base = training.first_measures(trainer.state.log_history, final)  # an adapter begins as nothing
        metrics = {"sft": summary(base, final, validation, likelihood.text_bytes(validation, chat))}
        modeling.save_adapter(trainer.model, ADAPTER, params.models.path, provenance)
        write_csv(CURVE, ["step", "series", "value"], training.curve(trainer.state.log_history, SERIES))
        write_json(METRICS, metrics)
    run.note(metrics=metrics)
    run.phase("save")


def build_trainer(params: SimpleNamespace, where: SimpleNamespace, chat: Chat, rows: list[dict[str, Any]]):
    """TRL's SFTTrainer over ids that prepare made: no second tokenisation, no cache of its own."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from aligner import fast_path

    class SeededSFTTrainer(SFTTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            sampler = super()._get_train_sampler(*args, **kwargs)
            if self.args.train_sampling_strategy == "batch_rebalance":
                sampler.seed = self.args.data_seed  # transformers leaves it at 42, whatever the seed
            return sampler

    config = SFTConfig(
        output_dir=tempfile.gettempdir(),
        train_sampling_strategy=params.sft.train_sampling_strategy,
        dataset_kwargs={"skip_prepare_dataset": True},
        **training.training_arguments(params.sft, params.models.sft, params.models, params.seed, where),
    )
    dataset = Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
    trainer = SeededSFTTrainer(
        model=modeling.load_base(params.models, where),
        args=config,
        train_dataset=dataset,
        processing_class=training.trainer_tokenizer(chat),
        peft_config=LoraConfig(task_type="CAUSAL_LM", bias="none", **vars(params.lora)),
    )
    if params.models.fast_path:
        fast_path.merge_products(trainer.model)
        fast_path.unpad(trainer, pairs=False)
    if params.models.torch_compile:
        training.compile_layers(trainer)
    return trainer


def summary(base: dict[str, float], final: dict[str, float], rows: list[dict[str, Any]], size: int) -> dict[str, float | None]:
    """The numbers of metrics/sft.json: of the held-out `rows`, whose answers have `size` bytes, before and after training."""
    return {
        "validation_loss": round(final["validation_loss"], 4),
        **likelihood.summary(final, size),
        "token_accuracy": round(final["token_accuracy"], 4),
        **{f"base_{name}": value for name, value in likelihood.summary(base, size).items()},
        "validation_tokens": likelihood.supervised(rows),
        "validation_bytes": size,
    }


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("sft", main)
