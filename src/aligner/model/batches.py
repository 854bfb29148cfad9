"""Batches of token ids: padding, grouping by length, and log-probabilities of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def padded(sequences: list[list[int]], value: int, device: str):
    """Pads sequences on the right: (ids, attention mask), both of shape (n, longest)."""
    import torch

    longest = max(map(len, sequences))
    ids = torch.tensor([row + [value] * (longest - len(row)) for row in sequences], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in sequences], device=device)
    return ids, mask


def token_log_probabilities(model, ids, attention_mask):
    """(log-probabilities, logits) in float32: log p(ids[:, t] | ids[:, :t]) for t >= 1, shape (n, length - 1), and its logits."""
    import torch

    logits = model(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1].float()
    return torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1), logits


def batches(rows: list, size: int, length: Callable[[Any], int]) -> list[list[int]]:
    """Groups rows of similar length: lists of at most `size` indices of `rows`, in an order that depends on the rows alone."""
    order = sorted(range(len(rows)), key=lambda index: (length(rows[index]), index))
    return [order[start : start + size] for start in range(0, len(order), size)]
