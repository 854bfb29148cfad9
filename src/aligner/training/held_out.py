"""What every preference method measures once after training, on the same held-out pairs and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.files import read_jsonl
from aligner.training import likelihood
from aligner.training.divergence import kl_from_reference
from aligner.training.log_probs import log_probabilities
from aligner.training.preferences import Ranks, preference_figures, rankings
from aligner.training.setup import Setup

VALIDATION = Path("data/prepared/dpo_validation.jsonl")
SFT_VALIDATION = Path("data/prepared/sft_validation.jsonl")
SFT_ADAPTER = Path("models/sft")


def final_figures(
    model,
    name: str,
    measured: dict[str, float],
    held_out: dict[str, list[tuple[float, float]]],
    pairs: list[dict[str, Any]],
    setup: Setup,
    unpadded: bool,
) -> tuple[dict[str, float | str | None], Ranks]:
    """The figures of reports/<name>.json, and the ranks of the held-out pairs by model.

    measured: the last result of `preference_metrics`. held_out: (chosen, rejected) log-probabilities of `pairs` by model, with
    those of `name`; the base's are added. The figures hold the likelihood of the held-out SFT answers, and the KL divergence from
    the SFT policy on the model's own samples.
    """
    with model.disable_adapter():
        held_out["base"] = log_probabilities(model, pairs, setup.chat.pad_id, unpadded=unpadded)
    ranks = rankings(held_out, pairs)
    kl = kl_from_reference(model, SFT_ADAPTER, pairs, setup.chat, setup.params.seed)
    fit = likelihood.of_answers(model, list(read_jsonl(SFT_VALIDATION)), setup.chat, unpadded)
    return preference_figures(name, measured, ranks, kl, fit, pairs), ranks
