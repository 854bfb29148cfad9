"""The models that one can talk to, loaded when they are first asked, and their answers as streams of text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aligner.model.chat import Chat, Messages
from aligner.model.generation import answer_penalty
from aligner.run.errors import InputError


@dataclass
class Models:
    """Models by name. `load` returns the model of a name.

    settings: the GenerationConfig that conversations start from. penalty: on tokens that an answer already holds; 1 is off.
    """

    names: list[str]
    chat: Chat
    load: Callable[[str], Any]
    settings: Any
    penalty: float = 1.0
    _loaded: dict[str, Any] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    def get(self, name: str):
        """The loaded model of a name."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self.load(name)
            return self._loaded[name]

    def encode(self, name: str, messages: Messages, max_new_tokens: int) -> list[int]:
        """The ids from which the answer is generated: the rendering that was trained.

        Raises InputError if prompt and answer exceed the model's positions, or the messages do not end with the user's.
        """
        if not messages or messages[-1][0] != "user":
            raise InputError("the last message must be the user's")
        ids = self.chat.prompt(messages)
        positions = self.get(name).config.max_position_embeddings
        if len(ids) + max_new_tokens > positions:
            raise InputError(
                f"the conversation has {len(ids)} tokens and the answer may have {max_new_tokens}, but {name} has {positions} "
                "positions; begin a new conversation, or ask for a shorter answer"
            )
        return ids

    def stream(self, name: str, messages: Messages, temperature: float, penalty: float | None = None) -> Iterator[str]:
        """The answer of a model to a conversation, piece by piece. temperature 0 is greedy; penalty None is that of `self`.

        If the reader stops early, generation stops at the next token.
        """
        import torch
        from transformers import TextIteratorStreamer

        settings = with_temperature(self.settings, temperature)
        ids = self.encode(name, messages, settings.max_new_tokens)
        model, stop = self.get(name), threading.Event()
        decoder: Any = _Decoder(self.chat)
        streamer = TextIteratorStreamer(decoder, skip_prompt=True, timeout=None)
        inputs = torch.tensor([ids], device=model.device)
        processors = answer_penalty(self.penalty if penalty is None else penalty, len(ids))
        failure: list[BaseException] = []

        def run() -> None:
            try:
                with torch.inference_mode():
                    model.generate(
                        input_ids=inputs,
                        attention_mask=torch.ones_like(inputs),
                        generation_config=settings,
                        logits_processor=processors,
                        streamer=streamer,
                        stopping_criteria=[
                            lambda ids, scores, **_: torch.full((ids.shape[0],), stop.is_set(), device=ids.device)
                        ],
                    )
            except Exception as error:  # it belongs to the reader of the stream, which would wait for ever
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            stop.set()
            thread.join()
        if failure:
            raise failure[0]


class _Decoder:
    """The part of a tokenizer that transformers' streamer uses: special tokens are left out."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return self.chat.decode([int(id) for id in ids])


def with_temperature(settings, temperature: float, top_p: float | None = None):
    """A copy of a GenerationConfig that samples at `temperature`, or is greedy at 0."""
    import copy

    changed = copy.deepcopy(settings)
    changed.do_sample = temperature > 0
    changed.temperature = temperature if temperature else None
    changed.top_p = (top_p if top_p is not None else changed.top_p) if temperature else None
    changed.top_k = 0 if temperature else None
    return changed
