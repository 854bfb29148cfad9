"""Generation: batches of left-padded prompts in, new token ids out; and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Collection

from aligner.model.batches import padded
from aligner.model.chat import Chat


def end_ids(chat: Chat) -> list[int]:
    """Ids of the tokens that end an answer: the chat template's and the model's own, which may be the same."""
    return sorted({chat.end_id, chat.tokenizer.token_to_id(chat.eos_token)})


def end_index(new_ids: list[int], ends: Collection[int]) -> int | None:
    """Index of the first end token; None for an answer that was cut."""
    return next((index for index, id in enumerate(new_ids) if id in ends), None)


def complete(model, prompts: list[list[int]], pad_id: int, settings, repetition_penalty: float = 1.0) -> list[list[int]]:
    """The ids that follow each prompt, up to max_new_tokens of them; they are not cut at the end token."""
    import torch

    reversed_ids, reversed_mask = padded([ids[::-1] for ids in prompts], pad_id, model.device)
    ids, mask = reversed_ids.flip(1), reversed_mask.flip(1)
    processors = answer_penalty(repetition_penalty, ids.shape[1])
    with torch.inference_mode():
        cache = preallocated_cache(model.config, ids.shape[1] + settings.max_new_tokens)
        output = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, past_key_values=cache, logits_processor=processors
        )
    return output[:, ids.shape[1] :].tolist()


def answer_penalty(penalty: float, prompt_tokens: int):
    """transformers' processors that penalise tokens which the answer already holds; none for a penalty of 1.

    Only what follows the first `prompt_tokens` ids counts. As `repetition_penalty` of a GenerationConfig, the prompt would too.
    """
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    if penalty == 1:
        return LogitsProcessorList()
    return LogitsProcessorList([RepetitionPenaltyLogitsProcessor(float(penalty), prompt_ignore_length=prompt_tokens)])


def preallocated_cache(config, tokens: int):
    """A key-value cache that allocates room for `tokens` tokens at once.

    transformers copies its whole cache for each new token, which took two fifths of the generation time on a CPU.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class PreallocatedLayer(DynamicLayer):
        """keys and values: (rows, heads, tokens so far, head size), views of the filled part of `buffers`."""

        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                rows, heads, _, size = key_states.shape
                self.buffers = [states.new_empty(rows, heads, tokens, size) for states in (key_states, value_states)]
            start = self.get_seq_length()
            end = start + key_states.shape[-2]
            for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:end] = states
            self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
            return self.keys, self.values

    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
