"""Turns records into rows of token ids, many together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from aligner.data.examples import Messages, PreferencePair, SftExample, TrainingRecord, UnpairedAnswer
from aligner.model.chat import Chat
from aligner.run.errors import InputError

# The longest tokens of common vocabularies (runs of dashes) have this many; prose has about four per token.
CHARACTERS_PER_TOKEN = 128

RowOf = Callable[[Any, Chat], dict[str, Any]]  # sft_row, pair_row or unpaired_row


def tokenised(
    values: Sequence[Any], row_of: RowOf, chat: Chat, max_length: int
) -> Iterator[tuple[Any, dict[str, Any] | InputError | None]]:
    """Yields each record with its row of ids, or with None if it exceeds `max_length` tokens, or with the template's refusal."""
    chat.encode_ahead(talk for value in values if not is_huge(value, max_length) for talk in conversations(value))
    for value in values:
        try:
            row = None if is_huge(value, max_length) else row_of(value, chat)
        except InputError as error:
            yield value, error
        else:
            yield value, row if row is not None and length_of(row) <= max_length else None


def is_huge(value: TrainingRecord, max_length: int) -> bool:
    """Whether a record is too long by its number of characters alone: encoding some megabytes would take a gigabyte of memory."""
    longest = max(sum(len(content) for _, content in talk) for talk in conversations(value))
    return longest > CHARACTERS_PER_TOKEN * max_length


def conversations(value: TrainingRecord) -> list[Messages]:
    """The conversations that a row trains on: one, or a prompt with each of its two answers."""
    if isinstance(value, SftExample):
        return [value.messages]
    if isinstance(value, UnpairedAnswer):
        return [(*value.prompt, ("assistant", value.completion))]
    return [(*value.prompt, ("assistant", answer)) for answer in (value.chosen, value.rejected)]


def sft_row(example: SftExample, chat: Chat) -> dict[str, Any]:
    """Ids and labels of a conversation; labels are -100 outside the answers that are trained."""
    tokens = chat.conversation(example.messages)
    trained = without(example, tokens.trained) if example.untrained else tokens.trained
    labels = [id if in_loss else -100 for id, in_loss in zip(tokens.ids, trained, strict=True)]
    return {"id": example.id, "input_ids": tokens.ids, "labels": labels}


def without(example: SftExample, trained: list[bool]) -> list[bool]:
    """The mask `trained` of a conversation, without the answers in `example.untrained`. Each run of True is one answer."""
    answers = [index for index, (role, _) in enumerate(example.messages) if role == "assistant"]
    runs = [(value, list(run)) for value, run in groupby(trained)]
    if sum(value for value, _ in runs) != len(answers):
        raise InputError("the chat template writes nothing between two answers, so one of them cannot be left untrained")
    order = iter(answers)
    return [value and not masked for value, run in runs for masked in [value and next(order) in example.untrained] for _ in run]


def pair_row(pair: PreferencePair, chat: Chat) -> dict[str, Any]:
    """Ids of a prompt and of its two answers, never truncated."""
    prompt = chat.prompt(pair.prompt)
    chosen, rejected = chat.completion(pair.prompt, pair.chosen), chat.completion(pair.prompt, pair.rejected)
    return {"id": pair.id, "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def unpaired_row(value: UnpairedAnswer, chat: Chat) -> dict[str, Any]:
    """Ids of a prompt and of its answer, never truncated, with the label."""
    completion = chat.completion(value.prompt, value.completion)
    return {"id": value.id, "prompt_ids": chat.prompt(value.prompt), "completion_ids": completion, "label": value.label}


def length_of(row: dict[str, Any]) -> int:
    """Length in tokens of the longest sequence that a row trains on."""
    if "input_ids" in row:
        return len(row["input_ids"])
    if "completion_ids" in row:
        return len(row["prompt_ids"]) + len(row["completion_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
