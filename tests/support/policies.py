"""Trainers of preferences on a tiny model with an SFT adapter of random weights: a policy of its own, far from the base."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dpo
from aligner.model import runtime
from aligner.model.loading import base_fingerprint, load_adapter, load_base, load_chat, save_adapter
from aligner.run import params as parameters
from aligner.training.log_probs import log_probabilities
from aligner.training.loop import observe
from support import shelf, trajectories
from support.workspace import Workspace

PINNED = {
    **trajectories.settings("dpo"),
    **trajectories.settings("kto"),
    **trajectories.settings("orpo"),
    **trajectories.settings("reward"),
    **trajectories.settings("grpo"),
    "models.mini.kto.learning_rate": 0.005,
    "dpo.beta": 0.1,
    "dpo.loss_type": "sigmoid",
    "dpo.label_smoothing": 0,
    "dpo.sft_weight": 0,
    "dpo.max_grad_norm": 0.7,
    "models.mini.dpo.learning_rate": 0.005,
}


def with_sft_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with that adapter, which becomes the current directory."""
    return Workspace.copy(shelf.built("dpo-begin", begin), folder, monkeypatch)


def begin(folder):
    with pytest.MonkeyPatch.context() as patch:
        write_sft_adapter(setting(Workspace(folder, patch, **PINNED)))


def setting(workspace, stage=dpo, **changes):
    """params as the stage sees them, and what main makes of them before it trains."""
    workspace.params.update(changes)
    params = parameters.load(stage.PARAMS)
    return SimpleNamespace(
        params=params, runtime=runtime.start(params.model_entry, params.seed), chat=load_chat(params.model_entry)
    )


def write_sft_adapter(given):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=2, lora_dropout=0.1, target_modules="all-linear", init_lora_weights=False
    )
    model = get_peft_model(load_base(given.params.model_entry, given.runtime), config)
    save_adapter(model, dpo.SFT_ADAPTER, given.params.model_entry.path, provenance_of(given))


def provenance_of(given):
    return {"base": base_fingerprint(given.params.model_entry), "chat": given.chat.fingerprint}


def load_policy(given):
    base = load_base(given.params.model_entry, given.runtime)
    return load_adapter(base, dpo.SFT_ADAPTER, trainable=True)


def build(workspace, rows, reference=None, **changes):
    """The trainer as main builds it, its reference the policy at the start unless another is given."""
    given = setting(workspace, **changes)
    policy = load_policy(given)
    if reference is None:
        reference = log_probabilities(policy, rows, given.chat.pad_id)
    return dpo.build_trainer(given.params, given.runtime, given.chat, policy, rows, reference)


def train(workspace, rows, **changes):
    trainer = build(workspace, rows, **changes)
    observe(trainer, "dpo", 1, 1000, dict)
    trainer.train()
    return trainer


def random_rows(n, seed=0):
    source = random.Random(seed)

    def ids(most):
        return [source.randrange(5, 300) for _ in range(source.randrange(2, most))]

    return [{"id": f"r{n}", "prompt_ids": ids(12), "chosen_ids": [*ids(12), 1], "rejected_ids": [*ids(16), 1]} for n in range(n)]


def swapped(rows):
    return [{**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in rows]
