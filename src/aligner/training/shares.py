"""Deals the rows of every batch out to the processes of a training, so that their number changes neither rows, order nor losses.

Every process iterates over the batches that one process would see, and keeps each `world`-th row. accelerate instead gives each
process batches of its own and repeats rows at the end of an epoch, which is another training. The mean over a batch is restored
by weights: DDP averages gradients over processes, so a process's mean over its rows counts by its share of the rows. Losses that
transformers divides by the number of tokens of all processes (`num_items_in_batch`, in SFT) need no weight.
"""

from __future__ import annotations

from typing import Any

from aligner.run import ranks

OWN = "own_share"


def deal_rows(trainer) -> None:
    """Installs this in a trainer of transformers or trl; does nothing for one process.

    A trainer whose loss has terms that are means over tokens defines `weigh_by_tokens(own tokens / all tokens, own rows / all
    rows)` and `tokens_of(rows)`.
    """
    if ranks.world() == 1:
        return
    _take_every_batch(trainer)
    _keep_own_rows(trainer)
    _weigh_losses(trainer)


def _take_every_batch(trainer) -> None:
    stock = trainer.get_train_dataloader

    def get_train_dataloader():
        loader = stock()
        shard = loader.batch_sampler  # accelerate's BatchSamplerShard
        shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    trainer.get_train_dataloader = get_train_dataloader


def _keep_own_rows(trainer) -> None:
    """A process without a row still takes part in the collective operations, with a row that counts for nothing."""
    import torch

    collate = trainer.data_collator
    tokens_of = getattr(trainer, "tokens_of", len)

    def collate_own(rows: list[dict]) -> dict[str, Any]:
        own = rows[ranks.rank() :: ranks.world()]
        batch = collate(own or rows[:1])
        if not own and "labels" in batch:  # transformers counts them on all processes, before it computes a loss
            batch["labels"].fill_(-100)
        batch[OWN] = torch.tensor([[len(own), len(rows)], [tokens_of(own), tokens_of(rows)]])
        return batch

    trainer.data_collator = collate_own


def _weigh_losses(trainer) -> None:
    import torch

    stock, accelerator = trainer.compute_loss, trainer.accelerator
    of_rows, of_metrics = accelerator.gather, accelerator.gather_for_metrics
    counts: list[tuple[int, int]] = []  # (own rows, all rows) of the batch whose loss is being computed

    def gather(tensor):
        """The values of all processes, whose numbers of rows may differ; accelerate's own needs equal shapes."""
        own = tensor if counts[0][0] else tensor[:0] if tensor.dim() else torch.zeros_like(tensor)
        return torch.cat([part.to(tensor.device).reshape(-1) for part in ranks.gathered(own.detach().cpu())])

    def compute_loss(model, inputs, *args, **kwargs):
        (own, rows), (own_tokens, tokens) = inputs.pop(OWN).tolist()
        counts[:] = [(own, rows)]
        even = rows % ranks.world() == 0
        accelerator.gather, accelerator.gather_for_metrics = (of_rows, of_rows) if even else (gather, gather)
        if hasattr(trainer, "weigh_by_tokens"):
            trainer.weigh_by_tokens(own_tokens / max(tokens, 1), own / rows)
        try:
            loss = stock(model, inputs, *args, **kwargs)
        finally:
            accelerator.gather, accelerator.gather_for_metrics = of_rows, of_metrics
        return loss if kwargs.get("num_items_in_batch") is not None else loss * (ranks.world() * own / rows)

    trainer.compute_loss = compute_loss
