"""Shows converted rows as they will be trained on: rendered by the model's chat template, with the trained part in colour."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from aligner.data.examples import EvalPrompt, PreferencePair, Record, SftExample, UnpairedAnswer
from aligner.data.formats import recognise
from aligner.data.tokenise import sft_row
from aligner.model.chat import Chat
from aligner.run.errors import InputError
from aligner.run.terminal import printable_lines

LONGEST = 1200  # characters of a text that is shown
GREEN, RED, END = "\033[32m", "\033[31m", "\033[0m"
Part = tuple[str, str]  # a text, and what it is: context, trained, chosen, rejected
MARKS = {"trained": (GREEN, "[trained>", "<]"), "chosen": (GREEN, "[chosen>", "<]"), "rejected": (RED, "[rejected>", "<]")}


def sample(row: dict[str, Any], target: str, chat: Chat, colour: bool) -> str:
    """A row as text: the context, and each trained part in colour, or between marks where there is no colour."""
    form = recognise(row, target)
    assert form is not None
    try:
        parts = parts_of(form.record(row, row["id"]), chat)
    except InputError as error:
        return f"cannot be rendered: {error}"
    return "".join(shown(shortened(text), what, colour) for text, what in parts)


def parts_of(value: Record, chat: Chat) -> list[Part]:
    decode = lambda ids: chat.tokenizer.decode(ids, skip_special_tokens=False)  # noqa: E731
    if isinstance(value, SftExample):
        row = sft_row(value, chat)
        runs = groupby(zip(row["input_ids"], row["labels"], strict=True), key=lambda pair: pair[1] != -100)
        return [(decode([id for id, _ in run]), "trained" if trained else "context") for trained, run in runs]
    if isinstance(value, PreferencePair):
        answers = [(decode(chat.completion(value.prompt, getattr(value, side))), side) for side in ("chosen", "rejected")]
        return [(decode(chat.prompt(value.prompt)), "context"), answers[0], ("\n", "context"), answers[1]]
    if isinstance(value, UnpairedAnswer):
        answer = decode(chat.completion(value.prompt, value.completion))
        return [(decode(chat.prompt(value.prompt)), "context"), (answer, "chosen" if value.label else "rejected")]
    assert isinstance(value, EvalPrompt)
    return [(decode(chat.prompt((("user", value.prompt),))), "context")]


def shown(text: str, what: str, colour: bool) -> str:
    text = printable_lines(text)
    if what == "context":
        return text
    code, before, after = MARKS[what]
    return f"{code}{text}{END}" if colour else f"{before}{text}{after}"


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)"
