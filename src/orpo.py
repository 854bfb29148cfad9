"""orpo: odds-ratio preference optimisation with TRL's ORPOTrainer; an adapter on the base learns answers and preferences at once.

reads   data/prepared/dpo_{train,validation}.jsonl, sft_validation.jsonl, chat.json, the base model, models/sft (for the KL
        divergence from it)
writes  models/orpo/ (adapter, provenance), {metrics,reports}/orpo.json, plots/orpo_{loss,odds,logps}.csv
params  orpo, lora, seed, model, the entry's loading keys and its orpo section
command python src/orpo.py        (dvc repro pipelines/dvc.yaml:orpo)

With P(y|x) the mean log-probability of an answer's tokens and odds(y|x) = e^P / (1 - e^P), the loss of a pair is
nll(chosen) - beta log sigmoid(log(odds(chosen) / odds(rejected))) (Hong et al. 2024, arXiv 2403.07691, eq. 4 to 7; beta is the
paper's lambda). TRL's nll is the mean over the tokens of prompt and chosen answer. There is no reference model: rewards
are beta P, as in TRL, and changes of log-probability compare with the base, where training starts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aligner.files import read_jsonl, write_figures
from aligner.model.chat import Chat
from aligner.model.loading import check_provenance, load_base, save_adapter
from aligner.model.runtime import Runtime
from aligner.run import params as parameters
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import METHODS, run_stage
from aligner.training import trl_internals
from aligner.training.held_out import SFT_ADAPTER, VALIDATION, final_figures
from aligner.training.log_probs import log_probabilities, pair_tokens
from aligner.training.loop import train
from aligner.training.preferences import orpo_metrics, preference_metrics
from aligner.training.setup import begin, speed_up, trainer_tokenizer, training_arguments

PARAMS = [*parameters.TRAINING, "lora", "models.${model}.orpo", "orpo", "seed"]
TRAIN = Path("data/prepared/dpo_train.jsonl")
ADAPTER = Path("models/orpo")
METRICS = Path("metrics/orpo.json")
REPORT = Path("reports/orpo.json")
CURVES = {
    Path("plots/orpo_loss.csv"): {"loss": "training", "validation_loss": "held out", "validation_nll": "held out, without odds"},
    Path("plots/orpo_odds.csv"): {"log_odds_chosen": "training", "validation_log_odds_ratio": "held out"},
    Path("plots/orpo_logps.csv"): {"validation_logp_chosen": "chosen", "validation_logp_rejected": "rejected"},
}
OWN = ("validation_nll", "validation_odds_loss", "validation_log_odds_ratio")
HEADLINE: dict[str, tuple[str, ...]] = {
    "orpo": (
        *("validation_loss", "validation_nll", "validation_log_odds_ratio", "reward_accuracy"),
        *("chosen_logp_change", "kl_per_answer_sampled", "perplexity", "health"),
    )
}


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    setup = begin(run, params, alone=True)
    from aligner.training import padding_free  # imports torch, which must load after begin

    chat, entry, orpo = setup.chat, params.model_entry, params.orpo
    check_provenance(SFT_ADAPTER, setup.provenance)
    pairs, validation = list(read_jsonl(TRAIN)), list(read_jsonl(VALIDATION))
    run.phase("load")

    with setup.checkpoints("orpo", [TRAIN, VALIDATION, SFT_ADAPTER]) as checkpoints:
        trainer = build_trainer(params, setup.runtime, chat, pairs)
        unpadded = padding_free.fits(trainer.model, entry)
        with trainer.model.disable_adapter():
            held_out = {"base": log_probabilities(trainer.model, validation, chat.pad_id, unpadded=unpadded)}
        tokens = int(orpo.num_train_epochs * sum(map(pair_tokens, pairs)))

        def measure() -> dict[str, float]:  # its last call, after the last step, measures the trained policy
            after = held_out["orpo"] = log_probabilities(trainer.model, validation, chat.pad_id, unpadded=unpadded)
            return preference_metrics(after, held_out["base"], orpo.beta) | orpo_metrics(after, validation, orpo.beta)

        final = train(trainer, checkpoints, run, tokens, orpo.eval_steps, measure, CURVES)
        save_adapter(trainer.model, ADAPTER, entry.path, setup.provenance)
        measured, _ = final_figures(trainer.model, "orpo", final, held_out, validation, setup, unpadded)
        figures = {"orpo": {**{name: round(final[name], 4) for name in OWN}, **measured}}
        write_figures(figures, REPORT, METRICS, HEADLINE)
    run.note(metrics=figures)
    run.phase("measure")


def build_trainer(params: StageParams, runtime: Runtime, chat: Chat, pairs: list[dict[str, Any]]):
    """TRL's ORPOTrainer for the ids that prepare wrote, with a new adapter on the base."""
    from datasets import Dataset
    from peft import LoraConfig

    from aligner.training import padding_free

    trainer_class = trl_internals.orpo_trainer_class()
    from trl.experimental.orpo import ORPOConfig

    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    entry, longest = params.model_entry, max(map(pair_tokens, pairs))
    arguments = training_arguments(params.orpo, entry.orpo, entry, params.seed, runtime)
    trainer = trainer_class(
        model=load_base(entry, runtime),
        args=ORPOConfig(beta=params.orpo.beta, remove_unused_columns=False, **{**arguments, "max_length": longest}),
        train_dataset=Dataset.from_list([{column: row[column] for column in columns} for row in pairs]),
        processing_class=trainer_tokenizer(chat),
        peft_config=LoraConfig(task_type="CAUSAL_LM", bias="none", **params.lora.model_dump()),
    )
    trainer.padding_free = padding_free.fits(trainer.model, entry)
    speed_up(trainer, entry, pairs=True)
    return trainer


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("orpo", main, METHODS)
