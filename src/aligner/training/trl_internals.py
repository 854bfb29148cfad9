"""Every use of a private attribute of trl 1.16 and transformers 5.23, in one file: an upgrade is checked against it.

tests/training/test_trl_internals.py asserts that each of them still exists.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def sft_trainer_class() -> type:
    """TRL's SFTTrainer, whose length-balanced sampler follows the seed: transformers leaves it at 42, whatever the seed."""
    from trl import SFTTrainer

    class SeededSFTTrainer(SFTTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            sampler = super()._get_train_sampler(*args, **kwargs)
            if self.args.train_sampling_strategy == "batch_rebalance":
                sampler.seed = self.args.data_seed
            return sampler

    return SeededSFTTrainer


def dpo_trainer_class() -> type:
    """TRL's DPOTrainer over prepared ids and given reference log-probabilities: it neither tokenises nor computes them again."""
    from trl import DPOTrainer

    class PreparedDPOTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _precompute_ref_logps(self, dataset, *args, **kwargs):
            return dataset

    return PreparedDPOTrainer


def pairwise_losses(trainer, rows) -> tuple[list[float], list[float]]:
    """The preference loss of a DPO trainer on each row by itself, and the absolute rewards that it logged; nothing stays behind.

    The chosen answers' own loss (sft_weight) is left out.
    """
    import torch

    trainer.model.train()
    weights, trainer.loss_weights = trainer.loss_weights, [1.0, *(0.0 for _ in trainer.loss_weights[1:])]
    with torch.no_grad():
        batches = (trainer._prepare_inputs(trainer.data_collator([row])) for row in rows)
        losses = [trainer.compute_loss(trainer.model, batch).item() for batch in batches]
    trainer.loss_weights = weights
    collected = trainer._metrics["train"]
    rewards = [abs(value) for side in ("chosen", "rejected") for value in collected[f"rewards/{side}"]]
    collected.clear()
    trainer._total_train_tokens = 0
    return losses, rewards


def take_over_saving(trainer, save: Callable[[], None]) -> None:
    """Has transformers call `save` where it would write a checkpoint of its own (`control.should_save`)."""
    trainer._save_checkpoint = lambda model, trial: save()


def save_training_state(trainer, folder: Path) -> None:
    """Writes optimiser, scheduler and random state in transformers' own files, which its resume reads."""
    trainer._save_optimizer_and_scheduler(str(folder))
    trainer._save_rng_state(str(folder))


def unlogged_sums(trainer) -> dict[str, Any]:
    """What transformers and trl have summed since the last line of the log, and keep in memory alone."""
    return {
        "loss": trainer._tr_loss.item(),
        "total_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "tokens": trainer._total_train_tokens,
        "metrics": trainer._metrics["train"],
    }


def restore_unlogged_sums(trainer, sums: dict[str, Any]) -> None:
    """Puts the result of `unlogged_sums` back, once transformers has begun to train."""
    trainer._tr_loss += sums["loss"]
    trainer._total_loss_scalar = sums["total_loss"]
    trainer._globalstep_last_logged = sums["last_logged"]
    trainer._total_train_tokens = sums["tokens"]
    trainer._metrics["train"].update(sums["metrics"])
