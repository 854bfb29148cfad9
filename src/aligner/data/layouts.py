"""The layouts in which other projects publish data: how each is recognised by its keys and rewritten in a strict format.

    layout = recognise_layout(row)          # nulls must have been removed from the row: without_nulls
    layout.read(row)                        # a row of the strict format of layout.kind, or BadRow with the reason

A layout of kind "prompt" has no answers and can only become eval prompts. LAYOUTS is in order: the first that suits is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aligner.data.formats import repeats
from aligner.data.lines import BadRow, json_type
from aligner.data.turns import (
    Message,
    alternating,
    exchange,
    history_of,
    is_transcript,
    message_of,
    messages_of,
    transcript,
    with_system,
)

Row = dict[str, Any]
CUT = "prompts cut from the beginning of both answers"
FIRST_TURN = "later turns of a prompt left out"
ANSWERS = ("completion", "response", "output", "answer")
LABELS = {True: True, False: False, "true": True, "false": False, "True": True, "False": False, "1": True, "0": False}


def without_nulls(row: Row) -> Row:
    """The row without keys whose value is null: files with columns write them for keys that a row does not have."""
    return {key: value for key, value in row.items() if value is not None} if None in row.values() else row


# ---- Examples --------------------------------------------------------------------------------------------------------


def read_messages(row: Row) -> Row:
    name = next(key for key in ("messages", "conversations", "conversation", "contents") if key in row)
    system = row.get("system") or row.get("systemInstruction") or row.get("system_prompt")
    if type(system) is dict:
        system = message_of({"role": "system", **system}, "systemInstruction")["content"]
    if row.get("tools") or row.get("functions"):
        raise BadRow("tool_use", "tool calls and their results are not supported")
    return {"messages": with_system(system, messages_of(row[name], name))}


def read_alternating(row: Row) -> Row:
    name = next(key for key in ("data", "dialog", "dialogue") if key in row)
    return {"messages": alternating(row[name], name)}


def read_exchange(row: Row) -> Row:
    answer = first(row, ANSWERS)
    if type(row.get("prompt")) is list or type(answer) is list:
        return {"messages": as_prompt(row["prompt"]) + as_answer(answer)}
    earlier = history_of(row.get("history"))
    return {"messages": with_system(system_of(row), [*earlier, *exchange(question_of(row), answer)])}


def question_of(row: Row) -> Any:
    """The question: its text, and the input or context below it."""
    question = first(row, ("instruction", "prompt", "question", "query", "input"))
    context = first(row, ("input", "context"), "")
    if not context or context is question:
        return question
    if type(context) is not str or type(question) is not str:
        raise BadRow("wrong_type", f"question and context must be texts, not {json_type(question)} and {json_type(context)}")
    if context.isspace():
        return question
    return f"{question}\n\n{context}"


def system_of(row: Row) -> Any:
    return first(row, ("system", "system_prompt"), "")


def first(row: Row, keys: tuple[str, ...], otherwise: Any = None) -> Any:
    for key in keys:
        if key in row:
            return row[key]
    return otherwise


def as_prompt(value: Any) -> list[Message]:
    return messages_of(value, "prompt") if type(value) is list else [{"role": "user", "content": value}]


def as_answer(value: Any) -> list[Message]:
    if type(value) is list:
        return messages_of(value, "answer")
    return [message_of(value, "answer")] if type(value) is dict else [{"role": "assistant", "content": value}]


# ---- Pairs -----------------------------------------------------------------------------------------------------------


def pair(prompt: list[Message], chosen: Any, rejected: Any) -> Row:
    return {"prompt": prompt, "chosen": as_answer(chosen), "rejected": as_answer(rejected)}


def read_message_pair(row: Row) -> Row:
    """Answers as messages: with the conversation in another key, or as whole conversations."""
    if earlier := first(row, ("conversations", "messages")):
        return pair(with_system(row.get("system"), messages_of(earlier, "conversations")), row["chosen"], row["rejected"])
    answers = {side: as_answer(row[side]) for side in ("chosen", "rejected")}
    prompt = row.get("prompt")
    if type(prompt) is str and len(answers["chosen"]) > 1 or prompt is None or prompt == []:
        return ({"prompt": prompt} if prompt else {}) | answers
    return {"prompt": with_system(row.get("system"), as_prompt(prompt))} | answers


def read_transcripts(row: Row) -> Row:
    """HH-RLHF: both texts hold the whole conversation."""
    return {side: transcript(row[side]) for side in ("chosen", "rejected")}


def read_string_pair(row: Row) -> Row:
    chosen, rejected = first(row, ("chosen", "chosen_response")), first(row, ("rejected", "rejected_response"))
    question = question_of(row)
    prompt = with_system(system_of(row), [*history_of(row.get("history")), {"role": "user", "content": question}])
    if type(question) is type(chosen) is type(rejected) is str:
        beginning, one, other = question.strip(), chosen.strip(), rejected.strip()
        if repeats(beginning, one, other):
            return pair(prompt, one.removeprefix(beginning), other.removeprefix(beginning)) | {"notes": CUT}
    return pair(prompt, chosen, rejected)


def read_implicit_pair(row: Row) -> Row:
    """TRL's implicit prompt: what both texts have in common at their beginning, up to a word's end, is the prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    size = next(
        (place for place, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    while size and not chosen[size - 1].isspace():
        size -= 1
    if not chosen[:size].strip():
        raise BadRow("no_prompt", "the row has no prompt, and chosen and rejected have no beginning in common")
    return pair([{"role": "user", "content": chosen[:size]}], chosen[size:], rejected[size:])


def read_openai_pair(row: Row) -> Row:
    given = row["input"]
    if type(given) is not dict or given.get("tools"):
        raise BadRow("tool_use", "`input` must hold messages without tools")
    return pair(messages_of(given.get("messages"), "input.messages"), row["preferred_output"], row["non_preferred_output"])


def read_two_answers(row: Row) -> Row:
    """Two answers and the number or name of the better one (PKU-SafeRLHF, SHP, chatbot arena, StackExchange)."""
    if "response_j" in row:
        return pair([{"role": "user", "content": row["question"]}], row["response_j"], row["response_k"])
    if "response_0" in row:
        answers, better = (row["response_0"], row["response_1"]), row["better_response_id"]
        prompt = row["prompt"]
    elif "human_ref_A" in row:
        answers, better, prompt = (row["human_ref_A"], row["human_ref_B"]), 1 - int(row["labels"]), row["history"]
    else:
        return read_arena(row)
    if better not in (0, 1):
        raise BadRow("no_winner", "neither answer is the better one")
    return pair([{"role": "user", "content": prompt}], answers[int(better)], answers[1 - int(better)])


def read_arena(row: Row) -> Row:
    if row["winner"] not in ("model_a", "model_b"):
        raise BadRow("no_winner", "neither answer is the better one")
    sides = [messages_of(row[f"conversation_{side}"], f"conversation_{side}") for side in "ab"]
    chosen, rejected = sides if row["winner"] == "model_a" else reversed(sides)
    return {"chosen": chosen, "rejected": rejected}


# ---- Labelled answers, prompts, refused layouts --------------------------------------------------------------------------


def read_unpaired(row: Row) -> Row:
    label = first(row, ("label", "kto_tag"))
    if type(label) not in (bool, int, str) or label not in LABELS:
        raise BadRow("bad_label", f"the label must be true or false, not {json_type(label)}")
    rest = {key: value for key, value in row.items() if key not in ("label", "kto_tag")}
    messages = (read_messages if "messages" in row or "conversations" in row else read_exchange)(rest)["messages"]
    return {"prompt": messages[:-1], "completion": messages[-1:], "label": LABELS[label]}


def read_prompt(row: Row) -> Row:
    if "turns" in row:
        texts = row["turns"]
        if type(texts) is not list or not texts:
            raise BadRow("wrong_type", f"`turns` must be a list of texts, not {json_type(texts)}")
        return {"prompt": texts[0]} | ({"notes": FIRST_TURN} if len(texts) > 1 else {})
    return {"prompt": question_of(row)}


def refuse_segments(row: Row) -> Row:
    raise BadRow("template_free", "segments of raw text have no roles; write the row as messages")


def refuse_text(row: Row) -> Row:
    raise BadRow("raw_text", "raw text has no question and no answer; write the row as messages")


# ---- The layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout: it reads `keys`, `suits` recognises a row, and `read` rewrites it in the strict format of `kind`."""

    name: str
    kind: str
    keys: frozenset[str]
    suits: Callable[[Row], bool]
    read: Callable[[Row], Row]


def has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


def has_answer(*questions: str) -> Callable[[Row], bool]:
    return lambda row: any(key in row for key in questions) and any(key in row for key in ANSWERS)


def is_labelled(row: Row) -> bool:
    answered = "messages" in row or "conversations" in row or has_answer("prompt", "instruction", "question", "query")(row)
    return ("label" in row or "kto_tag" in row) and answered


def both(row: Row, *types: type) -> bool:
    return type(row.get("chosen")) in types and type(row.get("rejected")) in types


def _layout(name: str, kind: str, keys: str, suits: Callable[[Row], bool], read: Callable[[Row], Row]) -> Layout:
    return Layout(name, kind, frozenset(keys.split()), suits, read)


SIDES = "prompt chosen rejected"
QUESTION = "instruction prompt question query input context system system_prompt history"
EXCHANGE = f"{QUESTION} {' '.join(ANSWERS)}"
LAYOUTS = (
    _layout(
        "OpenAI preferences",
        "pairs",
        "input preferred_output non_preferred_output",
        has("input", "preferred_output", "non_preferred_output"),
        read_openai_pair,
    ),
    _layout(
        "chatbot arena battles",
        "pairs",
        "conversation_a conversation_b winner",
        has("conversation_a", "conversation_b", "winner"),
        read_two_answers,
    ),
    _layout(
        "two responses and the better one's number (PKU-SafeRLHF)",
        "pairs",
        "prompt response_0 response_1 better_response_id",
        has("prompt", "response_0", "response_1", "better_response_id"),
        read_two_answers,
    ),
    _layout(
        "SHP: history, human_ref_A, human_ref_B, labels",
        "pairs",
        "history human_ref_A human_ref_B labels",
        has("history", "human_ref_A", "human_ref_B", "labels"),
        read_two_answers,
    ),
    _layout(
        "StackExchange: question, response_j, response_k",
        "pairs",
        "question response_j response_k",
        has("question", "response_j", "response_k"),
        read_two_answers,
    ),
    _layout(
        "HH-RLHF transcripts",
        "pairs",
        "chosen rejected",
        lambda row: is_transcript(row.get("chosen")) and is_transcript(row.get("rejected")),
        read_transcripts,
    ),
    _layout(
        "chosen and rejected as messages",
        "pairs",
        f"{SIDES} system conversations messages",
        lambda row: both(row, list, dict) or both(row, str) and ("conversations" in row),
        read_message_pair,
    ),
    _layout(
        "prompt, chosen and rejected as texts",
        "pairs",
        f"{QUESTION} {SIDES} chosen_response rejected_response",
        lambda row: (both(row, str) or "chosen_response" in row and "rejected_response" in row) and question_of(row) is not None,
        read_string_pair,
    ),
    _layout("TRL's implicit prompt", "pairs", "chosen rejected", lambda row: both(row, str), read_implicit_pair),
    _layout(
        "answers with a label (KTO)", "unpaired", f"{EXCHANGE} label kto_tag messages conversations", is_labelled, read_unpaired
    ),
    _layout("messages", "sft", "messages system tools functions", has("messages"), read_messages),
    _layout(
        "ShareGPT conversations",
        "sft",
        "conversations conversation system system_prompt tools",
        lambda row: "conversations" in row or type(row.get("conversation")) is list,
        read_messages,
    ),
    _layout("Gemini contents", "sft", "contents systemInstruction", has("contents"), read_messages),
    _layout(
        "a list of texts by user and assistant in turn",
        "sft",
        "data dialog dialogue",
        lambda row: any(type(row.get(key)) is list for key in ("data", "dialog", "dialogue")),
        read_alternating,
    ),
    _layout(
        "Dolly: instruction, context, response",
        "sft",
        EXCHANGE,
        lambda row: "instruction" in row and "context" in row and has_answer("instruction")(row),
        read_exchange,
    ),
    _layout("Alpaca: instruction, input, output", "sft", EXCHANGE, has_answer("instruction"), read_exchange),
    _layout("question and answer", "sft", EXCHANGE, has_answer("question", "query"), read_exchange),
    _layout("prompt and completion", "sft", EXCHANGE, has_answer("prompt"), read_exchange),
    _layout("Axolotl segments", "sft", "segments", has("segments"), refuse_segments),
    _layout("MT-Bench questions", "prompt", "turns", has("turns"), read_prompt),
    _layout(
        "prompts alone",
        "prompt",
        QUESTION,
        lambda row: any(key in row for key in ("prompt", "instruction", "question", "query")),
        read_prompt,
    ),
    _layout("raw text", "sft", "text", has("text"), refuse_text),
)


def recognise_layout(row: Row) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.suits(row)), None)


def shape_of(row: Row) -> tuple:
    """What `recognise_layout` looks at, so that rows of one shape have one layout: keys, types, whether texts are transcripts."""
    transcripts = is_transcript(row.get("chosen")) and is_transcript(row.get("rejected"))
    return (transcripts, *row, *map(type, row.values()))
