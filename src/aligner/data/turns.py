"""Turns of conversations in other projects' layouts, rewritten as `messages` (role, content) of the strict format.

Nothing is checked here beyond what would be lost in the rewriting: the formats of aligner.data.formats check the result.
"""

from __future__ import annotations

import re
from typing import Any

from aligner.data.fields import MASK_KEYS, TOOL_ROLES, uses_tools
from aligner.data.lines import BadRow, json_type
from aligner.run.terminal import shown

Message = dict[str, Any]

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
}
TEXT_PARTS = ("text", "input_text", "output_text")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TRANSCRIPT_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def messages_of(turns: Any, name: str) -> list[Message]:
    """The turns of a list: `role` or `from`, with `content`, `value`, `text` or `parts`. Raises BadRow for tools and images."""
    if type(turns) is not list:
        raise BadRow("wrong_type", f"`{name}` must be a list of messages, not {json_type(turns)}")
    return [message_of(turn, f"{name}[{index}]") for index, turn in enumerate(turns)]


def message_of(turn: Any, name: str) -> Message:
    if type(turn) is not dict:
        raise BadRow("wrong_type", f"`{name}` must be an object, not {json_type(turn)}")
    role = turn.get("role") or turn.get("from") or ""
    if uses_tools(turn) or role in TOOL_ROLES:
        raise BadRow("tool_use", "tool calls and their results are not supported")
    if type(role) is not str or role not in ROLES:
        raise BadRow("unknown_role", f"a turn has the role {shown(str(role))}; known are {', '.join(ROLES)}")
    content = next((turn[key] for key in ("content", "value", "text", "parts") if turn.get(key) is not None), None)
    message = {"role": ROLES[role], "content": text_of_parts(content) if type(content) is list else content}
    if len(turn) > 2:
        message |= {key: turn[key] for key in MASK_KEYS if turn.get(key) is not None}
    return message


def text_of_parts(parts: list) -> str:
    """The text of a list of content parts (OpenAI, Anthropic, Gemini); raises BadRow for an image, audio or any other part."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if type(part) is dict else "text"
        text = part.get("text") if type(part) is dict else part
        if kind not in TEXT_PARTS or type(text) is not str:
            raise BadRow(
                "no_text_part", f"a message has a part of type {shown(str(kind))}; images, audio and files are not supported"
            )
        texts.append(text)
    return "\n".join(texts)


def exchange(prompt: Any, answer: Any) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def with_system(system: Any, messages: list[Message]) -> list[Message]:
    """The messages with a system text before them; raises BadRow if they begin with another one."""
    if not system:
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] == system:
            return messages
        raise BadRow("two_systems", "the row has a system text beside the conversation and another one in it")
    return [{"role": "system", "content": system}, *messages]


def history_of(history: Any) -> list[Message]:
    """Earlier turns as [[question, answer], …] (LLaMA-Factory, ms-swift)."""
    if not history:
        return []
    if type(history) is not list or not all(type(pair) is list and len(pair) == 2 for pair in history):
        raise BadRow("bad_history", "`history` must be a list of [question, answer]")
    return [message for question, answer in history for message in exchange(question, answer)]


def alternating(texts: Any, name: str) -> list[Message]:
    """Turns as a bare list of texts, by user and assistant in turn."""
    if type(texts) is not list:
        raise BadRow("wrong_type", f"`{name}` must be a list of texts, not {json_type(texts)}")
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def is_transcript(text: Any) -> bool:
    """Whether a text is a conversation in HH-RLHF's form: `Human: … Assistant: …`, each after an empty line."""
    return type(text) is str and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def transcript(text: str) -> list[Message]:
    _, *parts = TRANSCRIPT_TURN.split("\n\n" + text.lstrip())
    return [{"role": SPEAKERS[speaker], "content": said.strip()} for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
