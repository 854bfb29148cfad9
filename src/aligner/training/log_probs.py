"""Log-probabilities of the answers of preference pairs."""

from __future__ import annotations

from typing import Any

from aligner.model.batches import batches, padded, token_log_probabilities
from aligner.run import ranks

PAIR = ("chosen_ids", "rejected_ids")


def log_probabilities(
    model,
    rows: list[dict[str, Any]],
    pad_id: int,
    batch_size: int = 16,
    unpadded: bool = False,
    sides: tuple[str, str] = PAIR,
) -> list[tuple[float, float]]:
    """(log p(chosen | prompt), log p(rejected | prompt)) for each row, in nats, summed over the answer and its end token.

    unpadded: use the padding-free forward pass, which must support the model (`padding_free.fits`). sides: the columns of the two
    answers.
    """
    import torch

    from aligner.training import padding_free

    results: list[tuple[float, float]] = [(0.0, 0.0)] * len(rows)
    was_training = model.training
    model.eval()
    for indices in ranks.own(batches(rows, batch_size, lambda row: pair_tokens(row, sides))):
        batch = [rows[index] for index in indices]
        sequences = [row["prompt_ids"] + row[side] for side in sides for row in batch]
        prompts = [len(row["prompt_ids"]) for row in batch] * 2
        ids, mask = padded(sequences, pad_id, model.device)
        positions = torch.arange(ids.shape[1], device=ids.device)
        answer = (positions >= torch.tensor(prompts, device=ids.device)[:, None]) & mask.bool()
        if unpadded:
            tokens, _ = padding_free.token_logps(model, ids, mask, ids.masked_fill(~answer, -100), pairs=True)
        else:
            with torch.no_grad():
                tokens, _ = token_log_probabilities(model, ids, mask)
        sums = (tokens * answer[:, 1:]).sum(-1).tolist()
        for place, index in enumerate(indices):
            results[index] = (sums[place], sums[place + len(batch)])
    model.train(was_training)
    return ranks.summed(results)


def pair_tokens(row: dict[str, Any], sides: tuple[str, str] = PAIR) -> int:
    """The number of trained tokens of a pair, in which the prompt precedes both answers."""
    return 2 * len(row["prompt_ids"]) + sum(len(row[side]) for side in sides)
