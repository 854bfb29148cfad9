"""Answers token by token: prompts in a batch, padded on the left, and where an answer ends."""

from __future__ import annotations

from collections.abc import Collection

from aligner.model.batches import padded
from aligner.model.chat import Chat


def end_ids(chat: Chat) -> list[int]:
    """Tokens that end an answer: the template's and the model's own, which may be one."""
    return sorted({chat.end_id, chat.tokenizer.token_to_id(chat.eos_token)})


def end_place(new_ids: list[int], ends: Collection[int]) -> int | None:
    """Where the first end token stands; None in an answer that was cut."""
    return next((index for index, id in enumerate(new_ids) if id in ends), None)


def complete(model, prompts: list[list[int]], pad_id: int, settings) -> list[list[int]]:
    """New ids behind each prompt (left-padded to one length), not cut at the end token."""
    import torch

    reversed_ids, reversed_mask = padded([ids[::-1] for ids in prompts], pad_id, model.device)
    ids, mask = reversed_ids.flip(1), reversed_mask.flip(1)
    with torch.inference_mode():
        cache = roomy_cache(model.config, ids.shape[1] + settings.max_new_tokens)
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, past_key_values=cache)
    return output[:, ids.shape[1] :].tolist()


def roomy_cache(config, tokens: int):
    """A cache of keys and values with room for so many tokens from the start.

    transformers' own is copied, whole, for each new token: on a CPU that was two fifths of the time.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class RoomyLayer(DynamicLayer):
        """keys and values: (rows, heads, tokens so far, size), the filled part of `rooms`."""

        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                rows, heads, _, size = key_states.shape
                self.rooms = [states.new_empty(rows, heads, tokens, size) for states in (key_states, value_states)]
            start = self.get_seq_length()
            end = start + key_states.shape[-2]
            for room, states in zip(self.rooms, (key_states, value_states), strict=True):
                room[:, :, start:end] = states
            self.keys, self.values = (room[:, :, :end] for room in self.rooms)
            return self.keys, self.values

    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
