"""best_of_n: samples answers of the SFT policy to the eval prompts and takes the one that the reward model likes best.

reads   data/prepared/{prompts,references,concepts}.jsonl, chat.json, models/sft, models/reward, the base model
writes  data/generated/best_of_n.jsonl (the best of the largest n, as the generate stage writes answers),
        {metrics,reports}/best_of_n.json, plots/best_of_n_{reward,hit_rate,length}.csv
params  best_of_n, generate.max_new_tokens, seed, model, the entry's loading keys, padding_free and its generate section
command python src/best_of_n.py        (dvc repro pipelines/dvc.yaml:best_of_n)

The curves show over-optimisation: the reward always grows with n, the hit rate need not (Gao et al. 2022, arXiv 2210.10760). Each
point is the mean over all ways to draw n of the samples, without redrawing: of N samples in ascending order of reward, number i is
the best of n with probability C(i - 1, n - 1) / C(N, n). KL(best-of-n || SFT) = log n - (n - 1) / n nats per answer.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from aligner.files import read_json, read_jsonl, write_csv, write_figures, write_jsonl
from aligner.keywords.scorer import Scorer
from aligner.keywords.text import prepare
from aligner.model import runtime
from aligner.model.batches import batches
from aligner.model.chat import Chat
from aligner.model.generation import complete, end_ids, end_index
from aligner.model.loading import (
    PREPARED_CHAT,
    base_fingerprint,
    check_chat,
    check_provenance,
    load_adapter,
    load_base,
    load_chat,
)
from aligner.model.runtime import Runtime
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.params import StageParams
from aligner.run.record import Run
from aligner.run.stage import run_stage
from aligner.run.terminal import bar
from aligner.scoring.best_of_n import MEASURES, curves, figures_of
from aligner.scoring.concepts import Catalogue
from aligner.training import reward_model
from aligner.training.reward_model import SFT_ADAPTER

ENTRY = "models.${model}"
PARAMS = [*parameters.LOADING, f"{ENTRY}.gradient_checkpointing", f"{ENTRY}.padding_free", f"{ENTRY}.generate"]
PARAMS += ["best_of_n", "generate", "seed"]
PROMPTS = Path("data/prepared/prompts.jsonl")
REFERENCES = Path("data/prepared/references.jsonl")
CONCEPTS = Path("data/prepared/concepts.jsonl")
ANSWERS = Path("data/generated/best_of_n.jsonl")
METRICS = Path("metrics/best_of_n.json")
REPORT = Path("reports/best_of_n.json")
PLOTS = Path("plots")
HEADLINE: dict[str, tuple[str, ...]] = {
    "best_of_n": ("hit_rate", "hit_rate_gain", "oracle_hit_rate", "precision", "best_n", "kl_per_answer_sampled")
}
