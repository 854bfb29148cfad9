"""From records to rows of token ids, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from aligner.data.examples import Messages, PreferencePair, SftExample
from aligner.model.chat import Chat
from aligner.run.errors import InputError

# Texts that are encoded together: more gains nothing.
BATCH_CHARACTERS = 2**17
# The longest tokens of usual vocabularies have as many characters, rows of dashes; prose has about four a token.
CHARACTERS_PER_TOKEN = 128


def tokenised(
    row_of: Callable[[Any, Chat, int], dict[str, Any]], chat: Chat, max_length: int, path: str, values: Iterator[Any]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Each value with its row of ids; what the chat template has against it is said with file and id."""
    for batch in batches(values):
        chat.encode_ahead(talk for value in batch if not is_huge(value, max_length) for talk in conversations(value))
        for value in batch:
            try:
                row = {"id": value.id, "too_long": True} if is_huge(value, max_length) else row_of(value, chat, max_length)
            except InputError as error:
                raise InputError(f"{path}: row {value.id}: {error}") from None
            yield value, row


def is_huge(value: SftExample | PreferencePair, max_length: int) -> bool:
    """Whether a row is surely too long by its characters: to encode one of some megabytes would take a gigabyte."""
    longest = max(sum(len(content) for _, content in talk) for talk in conversations(value))
    return longest > CHARACTERS_PER_TOKEN * max_length


def batches(values: Iterator[Any]) -> Iterator[list[Any]]:
    """Values in turn, so many together as hold BATCH_CHARACTERS; a longer one by itself at most ends its batch."""
    batch, size = [], 0
    for value in values:
        batch.append(value)
        size += sum(map(len, value.texts()))
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def conversations(value: SftExample | PreferencePair) -> list[Messages]:
    """What a row trains on: one conversation, or a prompt with each of its two answers."""
    if isinstance(value, SftExample):
        return [value.messages]
    return [(*value.prompt, ("assistant", answer)) for answer in (value.chosen, value.rejected)]


def sft_row(example: SftExample, chat: Chat, max_length: int) -> dict[str, Any]:
    """Ids and labels of a conversation; labels are -100 where nothing is trained."""
    tokens = chat.conversation(example.messages)
    labels = [id if trained else -100 for id, trained in zip(tokens.ids, tokens.trained, strict=True)]
    return {"id": example.id, "input_ids": tokens.ids, "labels": labels, "too_long": len(labels) > max_length}


def pair_row(pair: PreferencePair, chat: Chat, max_length: int) -> dict[str, Any]:
    """Ids of a prompt and of its two answers; a pair is kept whole or not at all."""
    prompt = chat.prompt(pair.prompt)
    chosen, rejected = chat.completion(pair.prompt, pair.chosen), chat.completion(pair.prompt, pair.rejected)
    too_long = len(prompt) + max(len(chosen), len(rejected)) > max_length
    return {"id": pair.id, "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "too_long": too_long}
