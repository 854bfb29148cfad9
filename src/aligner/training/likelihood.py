"""A model's likelihood of held-out answers: loss, perplexity and bits per byte, teacher-forced, over all answer tokens.

Base, SFT and DPO are measured on the same answers: sft measures the base before its first step, where LoRA's B is zero, and its
own model after the last step; dpo measures its model at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Set
from typing import Any

from aligner.model.batches import batches, padded, token_log_probabilities
from aligner.model.chat import Chat
from aligner.run import ranks


def special_ids(chat: Chat) -> frozenset[int]:
    """Ids of tokens without text: those that only the template may write, and those that end an answer."""
    return frozenset({*chat.special_tokens.values(), chat.end_id, chat.tokenizer.token_to_id(chat.eos_token)})


def supervised(rows: list[dict[str, Any]]) -> int:
    """The number of trained or measured tokens in `rows`."""
    return sum(label != -100 for row in rows for label in row["labels"])


def text_bytes(rows: list[dict[str, Any]], chat: Chat) -> int:
    """UTF-8 bytes of the supervised text of `rows`, without special tokens.

    It counts the text that the tokens decode to, so a tokenizer that changes or loses characters is not charged for them. An
    answer's bytes are those that it adds to the preceding text, since some tokenizers decode the first word without its space.
    """
    special = special_ids(chat)

    def size(ids: list[int]) -> int:
        return len(chat.decode([id for id in ids if id not in special]).encode())

    return sum(
        size(row["input_ids"][:end]) - size(row["input_ids"][:start]) for row in rows for start, end in answers_in(row["labels"])
    )


def answers_in(labels: list[int]) -> Iterator[tuple[int, int]]:
    """(start, end) of each stretch of supervised tokens, end exclusive."""
    for hidden, run in itertools.groupby(range(len(labels)), key=lambda place: labels[place] == -100):
        places = list(run)
        if not hidden:
            yield places[0], places[-1] + 1


def measure(
    model, rows: list[dict[str, Any]], pad_id: int, special: Set[int], batch_size: int = 16, unpadded: bool = False
) -> dict[str, float]:
    """Mean loss (nats per token) and accuracy over all supervised tokens of `rows`, independent of the batches.

    text_nats is the sum of losses over the tokens that are not in `special`. unpadded: use the padding-free forward pass, which
    must support the model (`padding_free.fits`).
    """
    import torch

    from aligner.training import padding_free

    loss = correct = text = 0.0
    was_training = model.training
    model.eval()
    for indices in ranks.own(batches(rows, batch_size, lambda row: len(row["input_ids"]))):
        batch = [rows[index] for index in indices]
        ids, mask = padded([row["input_ids"] for row in batch], pad_id, model.device)
        labels, _ = padded([row["labels"] for row in batch], -100, model.device)
        supervised_positions = labels[:, 1:] != -100
        of_text = supervised_positions & ~torch.isin(labels[:, 1:], torch.tensor(sorted(special), device=labels.device))
        if unpadded:
            log_probabilities, right = padding_free.token_logps(model, ids, mask, labels, pairs=False)
        else:
            with torch.no_grad():
                log_probabilities, logits = token_log_probabilities(model, ids, mask)
            right = logits.argmax(-1) == ids[:, 1:]
        loss -= log_probabilities[supervised_positions].sum().item()
        text -= log_probabilities[of_text].sum().item()
        correct += right[supervised_positions].sum().item()
    model.train(was_training)
    ((loss, correct, text),) = ranks.summed([(loss, correct, text)])
    total = supervised(rows)
    return {"validation_loss": loss / total, "token_accuracy": correct / total, "text_nats": text}


def of_answers(model, rows: list[dict[str, Any]], chat: Chat, unpadded: bool) -> dict[str, float | None]:
    """Perplexity and bits per byte of a model on the prepared `rows`."""
    return perplexity_and_bits(measure(model, rows, chat.pad_id, special_ids(chat), unpadded=unpadded), text_bytes(rows, chat))


def perplexity_and_bits(measured: dict[str, float], size: int) -> dict[str, float | None]:
    """Perplexity and bits per byte, from the result of `measure` on answers whose text has `size` bytes.

    perplexity = exp(nats / tokens) over all tokens, end tokens included, not a mean over rows or batches. bits_per_byte = nats
    of the text / (ln 2 * its bytes), which is comparable between tokenizers; None for answers without text.
    """
    bits = measured["text_nats"] / (math.log(2) * size) if size else None
    return {
        "perplexity": round(math.exp(measured["validation_loss"]), 4),
        "bits_per_byte": None if bits is None else round(bits, 4),
    }
