"""grpo: group relative policy optimisation with TRL's GRPOTrainer on verifiable rewards; it continues the SFT adapter.

reads   grpo.prompts (training prompts with keyword groups, in the format of eval prompts), data/prepared/{references,concepts,
        dpo_validation,sft_validation}.jsonl, chat.json, models/sft, the base model
writes  models/grpo/ (adapter, provenance), {metrics,reports}/grpo.json,
        plots/grpo_{reward,rewards,held_out,length,entropy,kl,no_spread}.csv
params  grpo, prepare's rules for bad rows, validation and leakage, seed, model, the entry's loading keys and its grpo section
command python src/grpo.py        (dvc repro pipelines/dvc.yaml:grpo)

The policy samples num_generations answers to a prompt. An answer's reward is the weighted sum of the functions in
aligner/training/rewards.py, its advantage A = (r - mean of the group) / standard deviation of the group, and the loss the policy
gradient -rho A + beta KL(policy || SFT) per token (Shao et al. 2024, arXiv 2402.03300, eq. 3; dapo: Yu et al. 2025, arXiv
2503.14476). Each batch of samples gives one step, so rho = 1 and no ratio is ever clipped. With scale_rewards none, A is that of
RLOO times (G - 1) / G (Ahmadian et al. 2024, arXiv 2402.14740).

The guard compares start and end on held-out prompts: a reward that rises while the hit rate or the precision falls is `hacked`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from aligner.data.leakage import EvalPrompts, require_clean, words
from aligner.data.raw_file import RawFile
from aligner.data.split import in_validation
from aligner.files import read_jsonl, write_csv, write_figures
from aligner.keywords.scorer import Scorer
from aligner.model.chat import Chat
from aligner.model.generation import complete, end_ids, end_index
from aligner.model.loading import check_provenance, load_adapter, load_base, save_adapter
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import run_stage
from aligner.training import likelihood, trl_internals
from aligner.training.divergence import kl_from_reference
from aligner.training.held_out import SFT_ADAPTER, SFT_VALIDATION, VALIDATION
from aligner.training.loop import curve, train
from aligner.training.policy_measures import HeldOut, policy_figures
from aligner.training.rewards import REWARDS, Prompt, Rewards
from aligner.training.setup import Setup, begin, speed_up, trainer_tokenizer, training_arguments
from aligner.training.unpaired import in_training_order

PARAMS = [
    *(*parameters.TRAINING, "grpo", "models.${model}.grpo", "seed"),
    *(f"prepare.{key}" for key in ("max_bad_share", "max_leakage", "on_bad_row", "validation_share")),
]
REFERENCES = Path("data/prepared/references.jsonl")
CONCEPTS = Path("data/prepared/concepts.jsonl")
ADAPTER = Path("models/grpo")
METRICS = Path("metrics/grpo.json")
REPORT = Path("reports/grpo.json")
CURVES = {
    Path("plots/grpo_reward.csv"): {"reward": "training", "validation_reward": "held out"},
    Path("plots/grpo_rewards.csv"): {f"rewards/{name}/mean": name for name in REWARDS if name != "length"},
    Path("plots/grpo_held_out.csv"): {"validation_hit_rate": "hit rate", "validation_precision": "precision"},
    Path("plots/grpo_length.csv"): {"completions/mean_length": "training", "validation_tokens": "held out"},
    Path("plots/grpo_entropy.csv"): {"entropy": "training"},
    Path("plots/grpo_kl.csv"): {"validation_kl": "held out"},
    Path("plots/grpo_no_spread.csv"): {"frac_reward_zero_std": "training"},
}
HEADLINE: dict[str, tuple[str, ...]] = {
    "grpo": ("reward", "reward_change", "hit_rate", "precision", "tokens", "kl_per_answer_sampled", "entropy", "health")
}


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    check_batches(params)
    setup = begin(run, params, alone=True)
    from aligner.training import padding_free  # imports torch, which must load after begin

    chat, entry, grpo = setup.chat, params.model_entry, params.grpo
    check_provenance(SFT_ADAPTER, setup.provenance)
    training, held_out = read_prompts(params, chat)
    concepts = list(read_jsonl(CONCEPTS))
    with setup.checkpoints("grpo", [Path(grpo.prompts), CONCEPTS, REFERENCES, SFT_ADAPTER]) as checkpoints:
        policy = load_adapter(load_base(entry, setup.runtime), SFT_ADAPTER, trainable=True)
        check_room(policy, [*training, *held_out], grpo.max_completion_length)
        run.phase("load")

        measured = HeldOut(held_out, Rewards(held_out, concepts, chat, grpo.max_completion_length), grpo, params.seed)
        before = measured.measure(policy)
        run.phase("reference")

        trainer = build_trainer(params, setup, policy, training, Rewards(training, concepts, chat, grpo.max_completion_length))
        # An estimate, since nobody knows how long the answers will be: as long as at the start.
        tokens = int(len(trainer.train_dataset) * grpo.num_generations * measured.tokens_per_prompt)
        final = train(trainer, checkpoints, run, tokens, grpo.eval_steps, lambda: measured.again(trainer, before))
        save_adapter(trainer.model, ADAPTER, entry.path, setup.provenance)
        kl = kl_from_reference(trainer.model, SFT_ADAPTER, list(read_jsonl(VALIDATION)), chat, params.seed)
        unpadded = padding_free.fits(trainer.model, entry)
        fit = likelihood.of_answers(trainer.model, list(read_jsonl(SFT_VALIDATION)), chat, unpadded)
        figures = {"grpo": policy_figures(measured, final, trainer.state.log_history, kl | fit)}
        for path, series in CURVES.items():
            write_csv(path, ["step", "series", "value"], curve(trainer.state.log_history, series))
        write_figures(figures, REPORT, METRICS, HEADLINE)
    if figures["grpo"]["health"] == "hacked":
        print(f"grpo: the reward is hacked: it rose, but on held-out prompts {measured.fallen()} fell", file=sys.stderr)
    run.note(metrics=figures)
    run.phase("measure")


def check_batches(params: StageParams) -> None:
    """InputError unless whole groups fill a step, and some reward has a weight."""
    optimisation, size = params.model_entry.grpo, params.grpo.num_generations
    step = optimisation.per_device_train_batch_size * optimisation.gradient_accumulation_steps
    if step % size:
        raise InputError(
            f"params.yaml: a step of {step} answers (models.<name>.grpo: per_device_train_batch_size times "
            f"gradient_accumulation_steps) holds no whole groups of grpo.num_generations = {size}; make it a multiple"
        )
    if not any(params.grpo.reward_weights.model_dump().values()):
        raise InputError("params.yaml: all of grpo.reward_weights are 0, so every answer is worth the same; give one a weight")


def read_prompts(params: StageParams, chat: Chat) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held-out) prompts, split by prepare's rule. InputError for bad rows, for eval prompts, or for an empty side."""
    path, rules = params.grpo.prompts, params.prepare
    values = RawFile(path, "eval", rules).all_values()
    seen = EvalPrompts(list(read_jsonl(REFERENCES)))
    for value in values:
        seen.look("prompt", value.id, words(value.prompt))
    require_clean(seen, rules.max_leakage, path)
    sides: tuple[list[Prompt], list[Prompt]] = ([], [])
    for value in values:
        scorer = Scorer(value.keywords, value.forbidden, value.prompt)
        prompt = Prompt(value.id, value.prompt, chat.prompt((("user", value.prompt),)), scorer, value.concept)
        sides[in_validation(value.prompt, rules.validation_share)].append(prompt)
    optimisation = params.model_entry.grpo
    groups = optimisation.per_device_train_batch_size * optimisation.gradient_accumulation_steps // params.grpo.num_generations
    for name, side, needed in (("train", sides[0], groups), ("validation", sides[1], 2)):
        if len(side) < needed:
            raise InputError(f"{path}: {len(side)} prompts on the {name} side, but grpo needs {needed}; add prompts")
    return sides


def check_room(model, prompts: list[Prompt], longest: int) -> None:
    """InputError if the longest prompt and an answer exceed the model's positions."""
    prompt, positions = max(len(each.ids) for each in prompts), model.config.max_position_embeddings
    if prompt + longest > positions:
        raise InputError(
            f"params.yaml: grpo.max_completion_length is {longest}, but the longest prompt has {prompt} tokens and the model "
            f"{positions} positions; set it to {positions - prompt} or less"
        )


def build_trainer(params: StageParams, setup: Setup, policy, prompts: list[Prompt], rewards: Rewards):
    """TRL's GRPOTrainer for prepared ids; `generation.complete` samples, and all epochs are laid out in one."""
    from datasets import Dataset
    from trl import GRPOConfig

    grpo, entry = params.grpo, params.model_entry
    arguments = training_arguments(grpo, entry.grpo, entry, params.seed, setup.runtime)
    arguments.pop("max_length")
    config = GRPOConfig(
        beta=grpo.beta,
        loss_type=grpo.loss_type,
        scale_rewards=grpo.scale_rewards,
        num_generations=grpo.num_generations,
        max_completion_length=grpo.max_completion_length,
        temperature=grpo.temperature,
        reward_weights=[getattr(grpo.reward_weights, name) for name in REWARDS],
        shuffle_dataset=False,
        disable_dropout=True,  # as in DPO: else the policy that samples is not the one that is scored
        **{**arguments, "num_train_epochs": 1},
    )
    groups = entry.grpo.per_device_train_batch_size * entry.grpo.gradient_accumulation_steps // grpo.num_generations
    ordered = in_training_order([{"number": n} for n in range(len(prompts))], grpo.num_train_epochs, params.seed)
    ordered = ordered[: max(groups, len(ordered) // groups * groups)]
    trainer = trl_internals.grpo_trainer_class()(
        model=policy,
        reward_funcs=rewards.functions(),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": str(row["number"]), **row} for row in ordered]),
        processing_class=trainer_tokenizer(setup.chat),
        rollout_func=rollout(prompts, setup.chat, config),
    )
    unpadded = trl_internals.padding_free_rollouts(trainer, entry)
    trainer.pad_id = setup.chat.pad_id if unpadded else None
    # TRL's own scores need its own forward pass: its rows are padded on the left.
    speed_up(trainer, entry if unpadded else entry.model_copy(update={"padding_free": False}), pairs=False)
    return trainer


def rollout(prompts: list[Prompt], chat: Chat, config):
    """TRL's rollout function: samples answers to prompts, named by their index, with the whole distribution of the policy."""
    from transformers import GenerationConfig

    ends = end_ids(chat)
    sampling = {"do_sample": True, "temperature": config.temperature, "top_p": 1.0, "top_k": 0}
    settings = GenerationConfig(
        max_new_tokens=config.max_completion_length, eos_token_id=ends, pad_token_id=chat.pad_id, **sampling
    )

    def sample(asked: list[str], trainer) -> dict[str, Any]:
        base, was_training = trainer.model.get_base_model(), trainer.model.training
        base.generation_config = GenerationConfig()  # else transformers takes unset values from the model's own
        trainer.model.eval()
        ids_of = [prompts[int(number)].ids for number in asked]
        drawn = complete(base, ids_of, chat.pad_id, settings)
        trainer.model.train(was_training)
        cut = [ids if (end := end_index(ids, ends)) is None else ids[: end + 1] for ids in drawn]
        return {"prompt_ids": ids_of, "completion_ids": cut, "logprobs": None}

    return sample


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("grpo", main)
