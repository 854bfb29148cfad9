"""best_of_n: samples answers of the SFT policy to the eval prompts and takes the one that the reward model likes best.

reads   data/prepared/{prompts,references,concepts}.jsonl, chat.json, models/sft, models/reward, the base model
writes  data/generated/best_of_n.jsonl (the best of the largest n, in the form of the generate stage), reports/best_of_n.json,
        metrics/best_of_n.json, plots/best_of_n_{reward,hit_rate,length}.csv
params  best_of_n, generate's limit and penalties, seed, model, the entry's loading keys and generate section
command python src/best_of_n.py        (dvc repro pipelines/dvc.yaml:best_of_n)

The curves show over-optimisation: the reward grows with n, the hit rate need not (Gao et al. 2022, arXiv 2210.10760). Each point
is the mean over all ways to draw n of the samples: of N samples in ascending order of reward, number i is the best of n with
probability C(i - 1, n - 1) / C(N, n). KL(best-of-n || SFT) = log n - (n - 1) / n nats per answer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aligner.files import read_jsonl, write_csv, write_figures, write_jsonl
from aligner.keywords.scorer import Scorer
from aligner.keywords.text import prepare
from aligner.model.batches import batches
from aligner.model.generation import complete, end_index
from aligner.run import params as parameters
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import run_stage
from aligner.run.terminal import bar
from aligner.scoring.best_of_n import Sample, curves, figures_of, points
from aligner.scoring.concepts import Catalogue
from aligner.scoring.inputs import CONCEPTS, read_references
from aligner.scoring.report import rounded
from aligner.text_health import repeats
from aligner.training import reward_model
from aligner.training.reward_model import SFT_ADAPTER
from aligner.training.setup import Setup, begin
from generate import answer_row, check_room, generation_settings, load_model

PARAMS = [
    *(*parameters.LOADING, "best_of_n", "seed"),
    *(f"generate.{key}" for key in ("max_new_tokens", "no_repeat_ngram_size", "repetition_penalty")),
    *(f"models.${{model}}.{key}" for key in ("generate.batch_size", "gradient_checkpointing", "padding_free")),
]
PROMPTS = Path("data/prepared/prompts.jsonl")
ANSWERS = Path("data/generated/best_of_n.jsonl")
METRICS = Path("metrics/best_of_n.json")
REPORT = Path("reports/best_of_n.json")
CURVES = {
    Path("plots/best_of_n_reward.csv"): {"reward": "reward of the picked answer"},
    Path("plots/best_of_n_hit_rate.csv"): {
        "hit_rate": "hit rate",
        "precision": "precision",
        "oracle_hit_rate": "hit rate, picked by the hit rate itself",
    },
    Path("plots/best_of_n_length.csv"): {"words": "words in the picked answer"},
}
HEADLINE: dict[str, tuple[str, ...]] = {
    "best_of_n": (
        *("hit_rate", "hit_rate_gain", "oracle_hit_rate", "precision", "precision_gain", "words"),
        *("health", "kl_per_answer_sampled"),
    )
}


def main(run: Run) -> None:
    params = parameters.load(PARAMS)
    setup = begin(run, params, alone=True)
    prompts, references = list(read_jsonl(PROMPTS)), read_references()
    policy = load_model(params.model_entry, setup.runtime, setup.chat, SFT_ADAPTER)
    check_room(policy.config.max_position_embeddings, prompts, params.generate.max_new_tokens)
    run.phase("load")
    drawn = draw(policy, prompts, setup, params)
    run.phase("generate")
    rewards = score(drawn, setup, params)
    run.phase("score")

    catalogue = Catalogue(list(read_jsonl(CONCEPTS)))
    measured = []
    for reference, samples, values in zip(references, drawn, rewards, strict=True):
        scorer = scorer_of(reference)
        rows = [measures(row["answer"], reference, scorer, catalogue) for row, _ in samples]
        measured.append([{"reward": reward, **row} for reward, row in zip(values, rows, strict=True)])
    entries = curves(measured, curve_points(params.best_of_n.n))
    figures = {"best_of_n": rounded(figures_of(entries))}
    write_jsonl(ANSWERS, (best_row(samples, values) for samples, values in zip(drawn, rewards, strict=True)))
    for path, series in CURVES.items():
        write_csv(path, ["n", "series", "value", "kl"], points(entries, series))
    write_figures(figures, REPORT, METRICS, HEADLINE)
    run.note(metrics={name: figures["best_of_n"][name] for name in HEADLINE["best_of_n"]})
    run.phase("write")


Drawn = list[list[tuple[dict[str, Any], list[int]]]]


def curve_points(most: int) -> list[int]:
    """The powers of two below `most`, and `most`."""
    return [2**power for power in range(most.bit_length()) if 2**power < most] + [most]


def draw(policy, prompts: list[dict[str, Any]], setup: Setup, params: StageParams) -> Drawn:
    """For each prompt, n sampled answers: (row as generate writes it, ids of prompt and answer with its end)."""
    chat, size = setup.chat, params.best_of_n.n
    sampling = {"do_sample": True, "temperature": params.best_of_n.temperature, "top_p": 1.0}
    settings = generation_settings(params.generate.model_copy(update=sampling), chat)
    drawn: Drawn = [[] for _ in prompts]
    at_once = max(1, params.model_entry.generate.batch_size // size)
    with bar("best_of_n", len(prompts) * size, "answer") as progress:
        for indices in batches(prompts, at_once, lambda row: len(row["prompt_ids"])):
            asked = [index for index in indices for _ in range(size)]
            prompt_ids = [prompts[index]["prompt_ids"] for index in asked]
            new_ids = complete(policy, prompt_ids, chat.pad_id, settings, params.generate.repetition_penalty)
            for index, prompt, ids in zip(asked, prompt_ids, new_ids, strict=True):
                end = end_index(ids, settings.eos_token_id)
                row = answer_row(prompts[index], ids, chat, settings.eos_token_id)
                drawn[index].append((row, prompt + (ids if end is None else ids[: end + 1])))
            progress.update(len(asked))
    return drawn


def score(drawn: Drawn, setup: Setup, params: StageParams) -> list[list[float]]:
    """The reward of every sample, by prompt."""
    judge = reward_model.load(params.model_entry, setup.runtime, setup.chat.pad_id, params.seed, setup.provenance)
    values = iter(reward_model.scores(judge, [ids for samples in drawn for _, ids in samples], setup.chat.pad_id))
    return [[next(values) for _ in samples] for samples in drawn]


def best_row(samples: list[tuple[dict[str, Any], list[int]]], rewards: list[float]) -> dict[str, Any]:
    """The row of the sample with the highest reward; of equal ones, the first."""
    return samples[rewards.index(max(rewards))][0]


def scorer_of(reference: dict[str, Any]) -> Scorer:
    return Scorer(reference["keywords"], reference.get("forbidden", ()), reference["prompt"])


def measures(answer: str, reference: dict[str, Any], scorer: Scorer, catalogue: Catalogue) -> Sample:
    """What score measures of an answer, by itself; precision is None if the answer names no idea, or the prompt no concept."""
    named, concept = None, reference.get("concept")
    if concept is not None and concept in catalogue:
        ideas = catalogue.ideas(concept, prepare(answer, reference["prompt"]))
        total = ideas.own + len(ideas.foreign)
        named = ideas.own / total if total else None
    return {
        "hit_rate": scorer.score(answer).rate,
        "precision": named,
        "words": float(len(answer.split())),
        "repeats": float(repeats(answer)),
    }


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_stage("best_of_n", main)
