"""Reads the fields of a row: ids, texts and the turns of a conversation. An invalid field raises BadRow with the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from aligner.data.examples import Messages
from aligner.data.lines import BadRow, is_visible, json_type
from aligner.run.terminal import SHOWN_CHARACTERS, shown

MAX_KEYS_LOOKED_AT = 64


# ---- Fields: ids, texts, turns --------------------------------------------------------------------------------------

SAFE_ID = re.compile(r"(?!.*\.\.)(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|\Z))[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.A)
CHAT_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class TurnStyle:
    """How a format writes one turn of a conversation: its two keys and its role names."""

    role_key: str
    text_key: str
    roles: dict[str, str]


CHAT_TURNS = TurnStyle("role", "content", CHAT_ROLES)
SHAREGPT_TURNS = TurnStyle("from", "value", {**CHAT_ROLES, "human": "user", "gpt": "assistant"})


def row_id(row: dict, line: int, required: bool) -> str:
    """The row's id, which is a safe file name on every system; `line-N` if the row has none and needs none."""
    if "id" not in row:
        if required:
            raise BadRow("missing_id", "`id` is missing" + did_you_mean("id", row) + "; give every row its own id")
        return f"line-{line}"
    id = row["id"]
    if type(id) is not str:
        raise wrong_type(id, "id", "a string")
    if not SAFE_ID.fullmatch(id):
        raise BadRow(
            "hostile_id",
            f"the id {shown(id)} must be 1 to 128 of A-Z a-z 0-9 . _ -, begin with a letter or "
            "digit, and hold no '..' and no device name (con, nul, ...); rename it",
        )
    return id


def required(row: dict, key: str) -> object:
    if key not in row:
        raise BadRow("missing_key", f"`{key}` is missing" + did_you_mean(key, row))
    return row[key]


def required_text(row: dict, key: str) -> str:
    return text_of(required(row, key), key)


def optional_text(row: dict, key: str) -> str | None:
    """The stripped text of `key`; None if the key is missing, null or blank."""
    value = row.get(key)
    if value is None or value == "" or type(value) is str and value.isspace():
        return None
    return text_of(value, key)


def text_of(value: object, name: str) -> str:
    """`value` without surrounding white space; raises BadRow unless it is a string with a visible character."""
    if type(value) is not str:
        raise wrong_type(value, name, "a string")
    text = value.strip()
    if not "!" <= text[:1] <= "~" and not any(map(is_visible, text)):
        raise BadRow(
            "invisible_only" if text else "empty_text",
            f"`{name}` holds " + ("only invisible characters" if text else "no text") + "; fill it in or remove the row",
        )
    return text


def turns(value: object, name: str, style: TurnStyle) -> Messages:
    """A list of turns as (role, content) pairs, in any order of roles."""
    if type(value) is not list:
        raise wrong_type(value, name, "a list of messages")
    if not value:
        raise BadRow("empty_messages", f"`{name}` is an empty list; fill it in or remove the row")
    return tuple([one_turn(message, f"{name}[{index}]", style) for index, message in enumerate(value)])


def one_turn(message: object, name: str, style: TurnStyle) -> tuple[str, str]:
    if type(message) is not dict:
        raise wrong_type(message, name, "an object")
    role, content = message.get(style.role_key), message.get(style.text_key)
    if not (type(role) is str and role in style.roles and type(content) is str) or uses_tools(message):
        raise turn_fault(message, name, style)
    return style.roles[role], text_of(content, name)


def untrained_turns(written: list[dict], name: str, messages: Messages) -> frozenset[int]:
    """The numbers of the assistant messages that their author excludes from training: `weight: 0`, `train: false`, `loss: false`.

    Raises BadRow for a weight between, for a weight on another role's message, and if no message is left to train on.
    """
    found = set()
    for index, message in enumerate(written):
        if len(message) > 2 and not MASK_KEYS.isdisjoint(message):
            if is_untrained(message, f"{name}[{index}]", messages[index][0]):
                found.add(index)
    if found and len(found) == sum(role == "assistant" for role, _ in messages):
        raise BadRow("nothing_trained", f"no message of `{name}` is trained (weight 0); remove the row")
    return frozenset(found)


def is_untrained(message: dict, name: str, role: str) -> bool:
    marks = {key: message[key] for key in MASK_KEYS if message.get(key) is not None}
    for key, mark in marks.items():
        if key in PARTIAL_MASK_KEYS or type(mark) not in (bool, int, float) or mark not in (0, 1):
            ways = "an answer is trained whole (1 or true) or not at all (0 or false)"
            raise BadRow("partial_weight", f"`{name}.{key}` trains a part of a message or a fraction of its loss, but {ways}")
        if mark and role != "assistant":
            raise BadRow("trained_prompt", f"`{name}.{key}` asks to train a {role} message, but only answers are trained")
    return role == "assistant" and not all(marks.values())


def uses_tools(message: dict) -> bool:
    """Whether a message calls a tool or answers one. Columnar exports write unused keys as null or empty; these do not count."""
    return not TOOL_KEYS.isdisjoint(message) and any(message.get(key) for key in TOOL_KEYS)


def check_order(messages: Messages, name: str, last: str) -> None:
    """Raises BadRow unless the roles are: an optional system, then user, assistant, user, ..., ending with `last`."""
    first = 1 if messages[0][0] == "system" else 0
    for index, (role, _) in enumerate(messages[first:]):
        if role != ("assistant" if index % 2 else "user"):
            raise order_fault(role, index, f"{name}[{index + first}]")
    if messages[-1][0] != last:
        raise BadRow(f"ends_with_{messages[-1][0]}", f"`{name}` ends with {messages[-1][0]}, but must end with {last}")


PARTIAL_MASK_KEYS = frozenset(("train_detail", "training_detail"))  # Axolotl's, for parts of a message
MASK_KEYS = frozenset(("weight", "train", "loss", *PARTIAL_MASK_KEYS))


# ---- Keys that look like a known one --------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def nearest_key(key: str, known: frozenset[str]) -> str | None:
    """The known key that `key` seems to misspell. Similarity is difflib's ratio; with a cutoff of 0.82, uid is not id."""
    from difflib import get_close_matches

    if plain_key(key) in known:
        return plain_key(key)
    return next(iter(get_close_matches(plain_key(key), sorted(known), n=1, cutoff=0.82)), None)


def plain_key(key: str) -> str:
    return key.strip().strip("\ufeff").casefold()


# ---- Diagnosis of a faulty field ------------------------------------------------------------------------------------

TOOL_KEYS = frozenset(("tool_calls", "function_call", "tool_call_id"))
TOOL_ROLES = frozenset(("tool", "function", "function_call", "observation", "ipython", "tool_call", "tool_response"))


def turn_fault(message: dict, name: str, style: TurnStyle) -> BadRow:
    """Why a turn is not plain text by a system, a user or an assistant."""
    role, content = message.get(style.role_key), message.get(style.text_key)
    for key in (style.role_key, style.text_key):
        if key not in message and not uses_tools(message):
            return BadRow("missing_key", f"`{name}.{key}` is missing" + did_you_mean(key, message))
    if type(role) is not str:
        return wrong_type(role, f"{name}.{style.role_key}", "a string")
    if role in TOOL_ROLES or uses_tools(message):
        return BadRow("tool_use", f"`{name}` is a tool or function message; these are not supported: remove the row")
    if role not in style.roles:
        return BadRow("unknown_role", f"`{name}` has the role {shown(role)}; known are {', '.join(style.roles)}")
    if type(content) is list:
        return BadRow(
            "content_parts_list",
            f"`{name}` holds a list of content parts; multimodal parts are not supported: write the text as one string",
        )
    return wrong_type(content, f"{name}.{style.text_key}", "a string")


def order_fault(role: str, index: int, name: str) -> BadRow:
    if role == "system":
        return BadRow("system_in_middle", f"`{name}` is a system message; only the first message may be one")
    if index == 0:
        return BadRow("starts_with_assistant", f"`{name}` is by the assistant, but a user message must come first")
    return BadRow(
        "roles_not_alternating",
        f"`{name}` is the second {role} message in a row; user and assistant must alternate: join the two",
    )


def wrong_type(value: object, name: str, expected: str) -> BadRow:
    return BadRow("wrong_type", f"`{name}` must be {expected}, not {json_type(value)}; nothing is converted silently")


def did_you_mean(key: str, row: dict) -> str:
    """The end of "`key` is missing": the key that may have been meant, or all keys of the row."""
    from difflib import get_close_matches

    there = {plain_key(other[:SHOWN_CHARACTERS]): other for other in islice(row, MAX_KEYS_LOOKED_AT)}
    near = get_close_matches(key, there, n=1, cutoff=0.7)
    return f"; did you mean it by {shown(there[near[0]])}?" if near else f"; there is {keys_shown(row)}"


def keys_shown(row: dict) -> str:
    return ", ".join(map(shown, islice(row, 8))) + (", ..." if len(row) > 8 else "") if row else "no key at all"
