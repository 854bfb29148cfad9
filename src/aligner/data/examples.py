"""The records that data files hold: SFT examples, preference pairs, unpaired answers, eval prompts and concepts."""

from __future__ import annotations

from dataclasses import dataclass

from aligner.model.chat import Messages


@dataclass(frozen=True, slots=True)
class SftExample:
    """A conversation to train on: an optional system message, then user and assistant in turn, ending with the assistant.

    `untrained` holds the numbers of the assistant messages that are context only (`weight: 0`).
    """

    id: str
    messages: Messages
    untrained: frozenset[int] = frozenset()

    def texts(self) -> list[str]:
        return [content for _, content in self.messages]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt: `prompt` ends with a user message, `chosen` and `rejected` are assistant texts."""

    id: str
    prompt: Messages
    chosen: str
    rejected: str

    def texts(self) -> list[str]:
        return [*(content for _, content in self.prompt), self.chosen, self.rejected]


@dataclass(frozen=True, slots=True)
class UnpairedAnswer:
    """One answer to a prompt and its label, as KTO needs it: True if the answer is desirable, False if it is not."""

    id: str
    prompt: Messages
    completion: str
    label: bool

    def texts(self) -> list[str]:
        return [*(content for _, content in self.prompt), self.completion]


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """A prompt to answer and score; `keywords` and `forbidden` are keyword groups as written, each a string or an object."""

    id: str
    prompt: str
    topic: str
    keywords: tuple[str | dict, ...]
    concept: str | None = None
    kind: str | None = None
    forbidden: tuple[str | dict, ...] = ()

    def texts(self) -> list[str]:
        return [self.prompt, self.topic]


@dataclass(frozen=True, slots=True)
class ConceptEntry:
    """A concept of the catalogue, whose id is its name: its keyword groups, and a text with every true statement about it."""

    id: str
    keywords: tuple[str | dict, ...]
    text: str

    def texts(self) -> list[str]:
        return [self.id, self.text]


TrainingRecord = SftExample | PreferencePair | UnpairedAnswer
Record = TrainingRecord | EvalPrompt | ConceptEntry
