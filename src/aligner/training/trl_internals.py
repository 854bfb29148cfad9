"""All uses of private attributes of the trainers of trl 1.16 and transformers 5.23; check this file when you upgrade either.

tests/training/test_trl_internals.py asserts that each attribute still exists.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aligner.run.errors import InputError


def sft_trainer_class() -> type:
    """TRL's SFTTrainer with a length-balanced sampler that follows the seed; transformers always seeds it with 42."""
    from trl import SFTTrainer

    class SeededSFTTrainer(SFTTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            sampler: Any = super()._get_train_sampler(*args, **kwargs)
            if self.args.train_sampling_strategy == "batch_rebalance":
                sampler = one_process(sampler)
                sampler.seed = self.args.data_seed
            return sampler

    return SeededSFTTrainer


def one_process(sampler):
    """A BatchRebalanceSampler with the batches of one process, whose rows `deal_rows` deals out."""
    return type(sampler)(
        lengths=sampler.lengths,
        effective_batch_size=sampler.effective_batch_size // sampler.dp_size,
        dp_size=1,
        grad_accum=sampler.grad_accum,
        drop_last=sampler.drop_last,
    )


def dpo_trainer_class() -> type:
    """TRL's DPOTrainer for prepared ids and precomputed reference log-probabilities, which it would compute again."""
    import trl.trainer.dpo_trainer
    from trl import DPOTrainer

    skip_model_hash(trl.trainer.dpo_trainer)

    class PreparedDPOTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _precompute_ref_logps(self, dataset, *args, **kwargs):
            return dataset

        def tokens_of(self, rows) -> int:
            return sum(len(row["chosen_ids"]) for row in rows)

        def weigh_by_tokens(self, of_tokens: float, of_rows: float) -> None:
            """Several processes: the sft term is a mean over tokens, and `deal_rows` weighs the whole loss by pairs."""
            self.whole_weights = getattr(self, "whole_weights", self.loss_weights)
            ratio = of_tokens / of_rows if of_rows else 0.0
            terms = zip(self.loss_types, self.whole_weights, strict=True)
            self.loss_weights = [weight * ratio if term == "sft" else weight for term, weight in terms]

    return PreparedDPOTrainer


def kto_trainer_class() -> type:
    """TRL's KTOTrainer for prepared ids with rotated answers and precomputed reference log-probabilities."""
    from trl import KTOTrainer

    class PreparedKTOTrainer(KTOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _precompute_ref_logps(self, dataset, *args, **kwargs):
            return dataset

    return PreparedKTOTrainer


def orpo_trainer_class() -> type:
    """TRL's experimental ORPOTrainer for prepared ids, which it would tokenise itself.

    With `padding_free = True` it scores tokens by the forward pass that `padding_free.unpad` installs; otherwise by its own.
    Raises InputError if the installed TRL has no ORPOTrainer.
    """
    import torch

    try:
        from trl.experimental.orpo import ORPOTrainer
    except ImportError:
        import trl

        raise InputError(f"trl {trl.__version__} has no ORPOTrainer. Run: pip install -r requirements.txt") from None

    class PreparedORPOTrainer(ORPOTrainer):
        padding_free = False

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._metrics, self._total_train_tokens = self._stored_metrics, 0  # as TRL's other trainers name them

        @staticmethod
        def tokenize_row(row: dict[str, Any]) -> dict[str, list[int]]:  # type: ignore[override]
            columns: dict[str, list[int]] = {}
            for side in ("chosen", "rejected"):
                ids = row["prompt_ids"] + row[f"{side}_ids"]
                labels = [-100] * len(row["prompt_ids"]) + row[f"{side}_ids"]
                columns |= {f"{side}_input_ids": ids, f"{side}_attention_mask": [1] * len(ids), f"{side}_labels": labels}
            return columns

        def concatenated_forward(self, model, batch):
            if not self.padding_free:
                return super().concatenated_forward(model, batch)
            inputs = self.concatenated_inputs(batch, padding_value=self.padding_value, device=self.accelerator.device)
            ids, mask, labels = (inputs[f"concatenated_{name}"] for name in ("input_ids", "attention_mask", "labels"))
            half = len(ids) // 2
            scored = torch.cat([ids[:half].masked_fill(mask[:half] == 0, -100), labels[half:]])  # chosen: the prompt too
            output = model(input_ids=ids, attention_mask=mask, labels=scored, use_cache=False, fused_lm_head=True)
            answer = labels[:, 1:] != -100
            means = (output.log_probs * answer).sum(-1) / answer.sum(-1)
            nll = -output.log_probs[:half].sum() / (scored[:half, 1:] != -100).sum()
            logits = [output.mean_logits[part][answer[part]] for part in (slice(half), slice(half, None))]
            return means[:half], means[half:], *logits, nll

    return PreparedORPOTrainer


def skip_model_hash(module) -> None:
    """Stops a trainer of trl from hashing the whole model for the name of a cache that prepared trainers do not write.

    It reads every weight, which a sharded model does not allow. module: the one that defines the trainer.
    """
    module.hash_module = lambda model: None


def pairwise_losses(trainer, rows) -> tuple[list[float], list[float]]:
    """(losses, absolute rewards) of a DPO trainer, computed for each row separately; leaves the trainer's state unchanged.

    The losses exclude the chosen answers' own loss (sft_weight).
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
    """Makes transformers call `save` instead of writing its own checkpoint (`control.should_save`)."""
    trainer._save_checkpoint = lambda model, trial: save()


def save_training_state(trainer, folder: Path) -> None:
    """Writes optimiser and scheduler to the files that transformers reads when it resumes."""
    trainer._save_optimizer_and_scheduler(str(folder))


def random_state(trainer) -> tuple[str, bytes]:
    """Name and content of the file from which transformers restores this process's random state."""
    with tempfile.TemporaryDirectory() as folder:
        trainer._save_rng_state(folder)
        (file,) = Path(folder).iterdir()
        return file.name, file.read_bytes()


def unlogged_sums(trainer) -> dict[str, Any]:
    """The sums since the last line of the log, which transformers and trl keep in memory only."""
    return {
        "loss": trainer._tr_loss.item(),
        "total_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "tokens": trainer._total_train_tokens,
        "metrics": trainer._metrics["train"],
    }


def restore_unlogged_sums(trainer, sums: dict[str, Any]) -> None:
    """Restores the result of `unlogged_sums` after transformers has begun to train."""
    trainer._tr_loss += sums["loss"]
    trainer._total_loss_scalar = sums["total_loss"]
    trainer._globalstep_last_logged = sums["last_logged"]
    trainer._total_train_tokens = sums["tokens"]
    trainer._metrics["train"].update(sums["metrics"])


FLAT_STEPS = 5  # so many steps without any spread of rewards end the run


def grpo_trainer_class() -> type:
    """TRL's GRPOTrainer that can score rows without padding, and ends when the rewards have no spread.

    With `pad_id` set, tokens are scored by the forward pass that `padding_free.unpad` installs. It takes rows padded on the right
    and knows no temperature, while GRPO's prompts are padded on the left; so rows are rearranged, and scores put back.
    """
    import torch
    from trl import GRPOTrainer

    from aligner.model.batches import padded

    class PreparedGRPOTrainer(GRPOTrainer):
        pad_id: int | None = None
        flat_steps = 0

        def _get_per_token_logps_and_entropies(
            self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
        ):
            if self.pad_id is None:
                stock = super()._get_per_token_logps_and_entropies
                return stock(model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs)
            real, prompt = attention_mask.bool(), input_ids.shape[1] - logits_to_keep
            rows = [ids[mask].tolist() for ids, mask in zip(input_ids, real, strict=True)]
            ids, mask = padded(rows, self.pad_id, input_ids.device)
            places = torch.arange(ids.shape[1], device=ids.device)
            answer = (places >= real[:, :prompt].sum(1, keepdim=True)) & mask.bool()
            with self.accelerator.autocast():
                labels = ids.masked_fill(~answer, -100)
                output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
            target = real[:, prompt:]

            def put_back(values):
                return values.new_zeros(target.shape).masked_scatter(target, values[answer[:, 1:]])

            return put_back(output.log_probs), put_back(output.entropy) if compute_entropy else None, None

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            flat = self._metrics["train"]["frac_reward_zero_std"][-1] == 1
            self.flat_steps = self.flat_steps + 1 if flat else 0
            if self.flat_steps >= FLAT_STEPS:
                raise InputError(
                    f"grpo: for {FLAT_STEPS} steps all answers to a prompt got the same reward, so there is nothing to learn; "
                    "raise grpo.temperature or grpo.num_generations, or change grpo.reward_weights in params.yaml"
                )
            return output

    return PreparedGRPOTrainer


def padding_free_rollouts(trainer, entry) -> bool:
    """Whether a GRPO trainer can score its answers without padding: the model fits, and the temperature is 1."""
    from aligner.training import padding_free

    return trainer.temperature == 1 and padding_free.fits(trainer.model, entry)
