"""The formats of data files: how each recognises a JSON object and builds a record from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from unicodedata import normalize

from aligner.data.examples import ConceptEntry, EvalPrompt, Messages, PreferencePair, Record, SftExample, UnpairedAnswer
from aligner.data.fields import (
    CHAT_TURNS,
    MAX_KEYS_LOOKED_AT,
    SHAREGPT_TURNS,
    check_order,
    keys_shown,
    nearest_key,
    optional_text,
    required,
    required_text,
    row_id,
    text_of,
    turns,
    untrained_turns,
    wrong_type,
)
from aligner.data.lines import BadRow, json_type
from aligner.run.terminal import SHOWN_CHARACTERS, printable, shown

BEGINNING = 64  # characters of two answers that usually tell them apart
MAX_REASON_CHARACTERS = 240  # of the message about a keyword group


# ---- From an object to a record -------------------------------------------------------------------------------------


def messages_example(row: dict, id: str) -> SftExample:
    messages = turns(required(row, "messages"), "messages", CHAT_TURNS)
    check_order(messages, "messages", last="assistant")
    return SftExample(id, messages, untrained_turns(row["messages"], "messages", messages))


def sharegpt_example(row: dict, id: str) -> SftExample:
    messages = turns(required(row, "conversations"), "conversations", SHAREGPT_TURNS)
    check_order(messages, "conversations", last="assistant")
    return SftExample(id, messages, untrained_turns(row["conversations"], "conversations", messages))


def prompt_example(row: dict, id: str) -> SftExample:
    prompt = required_text(row, "prompt")
    answer = required_text(row, answer_key(row, "response"))
    return SftExample(id, (("user", prompt), ("assistant", answer)))


def answer_key(row: dict, usual: str) -> str:
    """The key of the answer, `completion` or `response`; `usual` if the row has neither."""
    answers = [key for key in ("completion", "response") if key in row]
    if len(answers) == 2:
        raise BadRow("two_answers", "both `completion` and `response`; keep one of them")
    return answers[0] if answers else usual


def alpaca_example(row: dict, id: str) -> SftExample:
    prompt = required_text(row, "instruction")
    if context := optional_text(row, "input"):
        prompt = f"{prompt}\n\n{context}"
    return SftExample(id, (("user", prompt), ("assistant", required_text(row, "output"))))


def string_pair(row: dict, id: str) -> PreferencePair:
    prompt, chosen, rejected = (required_text(row, key) for key in ("prompt", "chosen", "rejected"))
    if repeats(prompt, chosen, rejected):
        raise BadRow("repeated_prompt", REPEATED)
    return different_answers(id, (("user", prompt),), chosen, rejected)


def repeats(prompt: str, chosen: str, rejected: str) -> bool:
    """Whether both answers repeat the prompt at their beginning. A prompt of a word or two may begin any answer."""
    return (len(prompt.split()) > 2 or len(prompt) > 15) and chosen.startswith(prompt) and rejected.startswith(prompt)


def message_pair(row: dict, id: str) -> PreferencePair:
    chosen = turns(required(row, "chosen"), "chosen", CHAT_TURNS)
    rejected = turns(required(row, "rejected"), "rejected", CHAT_TURNS)
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1][0] != "assistant":
            raise BadRow("no_answer", f"`{name}` must end with an assistant message, not {messages[-1][0]}")
    prompt = shared_prompt(row, chosen[:-1], rejected[:-1])
    check_order(prompt, "prompt", last="user")
    return different_answers(id, prompt, chosen[-1][1], rejected[-1][1])


def shared_prompt(row: dict, before_chosen: Messages, before_rejected: Messages) -> Messages:
    """The one prompt of both answers: the key `prompt`, or the messages before the answers in both lists.

    If the row has both, they must agree; a `prompt` string need only be one of the user messages (as in UltraFeedback).
    """
    if before_chosen != before_rejected:
        raise BadRow(
            "prompts_differ",
            "`chosen` and `rejected` differ before their last message; they must answer the same prompt",
        )
    if "prompt" not in row and before_chosen:
        return before_chosen
    written = required(row, "prompt")
    if type(written) is str:
        if not before_chosen:
            raise mixed_pair()
        prompt, agrees = before_chosen, ("user", text_of(written, "prompt")) in before_chosen
    else:
        prompt = turns(written, "prompt", CHAT_TURNS)
        agrees = before_chosen in ((), prompt)
    if not agrees:
        raise BadRow("prompts_differ", "`prompt` differs from the messages before the answers in `chosen` and `rejected`")
    return prompt


def string_unpaired(row: dict, id: str) -> UnpairedAnswer:
    prompt = (("user", required_text(row, "prompt")),)
    return UnpairedAnswer(id, prompt, required_text(row, answer_key(row, "completion")), label_of(row))


def message_unpaired(row: dict, id: str) -> UnpairedAnswer:
    prompt = turns(required(row, "prompt"), "prompt", CHAT_TURNS)
    check_order(prompt, "prompt", last="user")
    key = answer_key(row, "completion")
    answer = turns(required(row, key), key, CHAT_TURNS)
    if [role for role, _ in answer] != ["assistant"]:
        raise BadRow("no_answer", f"`{key}` must be one assistant message; write the messages before it into `prompt`")
    return UnpairedAnswer(id, prompt, answer[0][1], label_of(row))


def label_of(row: dict) -> bool:
    label = required(row, "label")
    if type(label) is not bool:
        raise wrong_type(label, "label", "true (a desirable answer) or false (an undesirable one)")
    return label


def different_answers(id: str, prompt: Messages, chosen: str, rejected: str) -> PreferencePair:
    if chosen == rejected:
        raise BadRow("chosen_equals_rejected", "both answers are the same, so the pair teaches nothing; drop it")
    if not begin_apart(chosen, rejected) and seen(chosen) == seen(rejected):
        raise BadRow(
            "chosen_equals_rejected",
            "both answers look the same (invisible characters, line ends and the coding of accents aside), so the pair teaches "
            "nothing; drop it",
        )
    return PreferencePair(id, prompt, chosen, rejected)


def begin_apart(one: str, other: str) -> bool:
    """Whether two texts differ as a reader sees them, by their first characters alone; False where these do not tell.

    ASCII characters keep their places in what is seen; only the last one may join an accent that follows.
    """
    one, other = one[:BEGINNING], other[:BEGINNING]
    return one[:-1] != other[:-1] and one.isascii() and other.isascii() and "\r" not in one and "\r" not in other


def seen(text: str) -> str:
    """A text as a reader sees it: accents composed (NFC), one kind of line end and of space, nothing invisible."""
    if not text.isascii():
        text = HARD_SPACE.sub(" ", normalize("NFC", UNSEEN.sub("", text)))
    return text.replace("\r\n", "\n") if "\r" in text else text


def eval_prompt(row: dict, id: str) -> EvalPrompt:
    keywords = keyword_groups(row["keywords"], "keywords") if "keywords" in row else ()
    all_allowed = row.get("forbidden") in (None, [])
    return EvalPrompt(
        id,
        required_text(row, "prompt"),
        required_text(row, "topic"),
        keywords,
        optional_text(row, "concept"),
        optional_text(row, "kind"),
        () if all_allowed else keyword_groups(row["forbidden"], "forbidden"),
    )


def concept_entry(row: dict, id: str) -> ConceptEntry:
    return ConceptEntry(id, keyword_groups(required(row, "keywords"), "keywords"), required_text(row, "text"))


def keyword_groups(groups: object, name: str) -> tuple[str | dict, ...]:
    """The keyword groups as written; raises BadRow if one of them breaks the rules of aligner.keywords."""
    if type(groups) is not list or not groups:
        raise BadRow("bad_keywords", f"`{name}` must be a list of one or more groups, not {json_type(groups)}")
    for index, group in enumerate(groups):
        if type(group) not in (str, dict):
            raise wrong_type(group, f"{name}[{index}]", "a string or an object")
        if faults := group_faults(group):
            reason = printable("; ".join(faults)[:MAX_REASON_CHARACTERS])
            raise BadRow("bad_keywords", f"`{name}[{index}]`: {reason}")
    return tuple(groups)


def group_faults(group: str | dict) -> list[str]:
    """The faults of a keyword group. A regex may even be too large for Python's compiler."""
    from aligner.keywords.groups import validate_group

    try:
        return validate_group(group)
    except (RecursionError, OverflowError) as fault:
        return [f"a regex that Python cannot compile ({fault}); simplify it"]


# Invisible characters. Joiners and variation selectors are not among them, since they change letters and emoji.
UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
HARD_SPACE = re.compile("[\u00a0\u202f]")


# ---- Formats --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a row: it reads the keys in `keys`, `suits` recognises an object, and `build` makes the record."""

    name: str
    kind: str
    keys: frozenset[str]
    suits: Callable[[dict], bool]
    build: Callable[[dict, str], Record]

    def record(self, row: dict, id: str) -> Record:
        """The record of a row; raises BadRow, also for a label in SFT rows: bad answers would be trained like good ones."""
        if self.kind == "sft" and row.get("label") is not None:
            raise BadRow("labelled_row", LABELLED)
        if not EXCLUDED.isdisjoint(row) and self.kind in TRAINED and any(row.get(key) in (0, False) for key in EXCLUDED):
            raise BadRow("excluded_row", "its `weight`, `train` or `loss` excludes the row from training; remove the row")
        return self.build(row, id)

    def name_of(self, row: dict, line: int) -> str:
        """The id of the record: the name of a concept, the id of any other row."""
        if self.kind == "concepts":
            return required_text(row, "concept")
        return row_id(row, line, required=self.kind == "eval")


def is_pair(row: dict, shape: type) -> bool:
    """Whether a row is a pair with answers of type `shape` (str or list); raises BadRow if it mixes both."""
    if "chosen" not in row and "rejected" not in row:
        return False
    shapes = {type(row.get("chosen")), type(row.get("rejected"))}
    if type(row.get("prompt")) is list:
        shapes.add(list)
    if str in shapes and list in shapes:
        raise mixed_pair()
    return (list in shapes) == (shape is list)


def is_unpaired(row: dict, shape: type) -> bool:
    """Whether a row is a labelled answer whose prompt and answer are of type `shape`; raises BadRow if it mixes both."""
    if "label" not in row or "prompt" not in row or "chosen" in row or "rejected" in row:
        return False
    shapes = {type(row[key]) for key in ("prompt", "completion", "response") if key in row}
    if str in shapes and list in shapes:
        raise BadRow("mixed_str_and_list", "a string beside a message list; write prompt and completion both one way")
    return (list in shapes) == (shape is list)


def is_concept(row: dict) -> bool:
    """Whether a row with keywords is a concept: it has no prompt, and has a text, or a concept without an id."""
    return "keywords" in row and "prompt" not in row and ("text" in row or "concept" in row and "id" not in row)


def is_prompt_alone(row: dict) -> bool:
    """Whether a row is an eval prompt without keywords: no other key is one of another format, or a misspelling of one."""
    if "prompt" not in row or "topic" not in row:
        return False
    return all(key in EVAL_KEYS or nearest_key(key[:SHOWN_CHARACTERS], TRAINING_KEYS | EVAL_KEYS) is None for key in row)


EVAL_KEYS = frozenset(("id", "prompt", "topic", "keywords", "concept", "kind", "forbidden"))
TRAINING_KEYS = frozenset(
    (
        "messages",
        "conversations",
        "instruction",
        "input",
        "output",
        "completion",
        "response",
        "chosen",
        "rejected",
        "label",
        "text",
    )
)
FORMATS = (
    Format(
        "`prompt/chosen/rejected` as strings",
        "pairs",
        frozenset(("id", "prompt", "chosen", "rejected")),
        lambda row: is_pair(row, str),
        string_pair,
    ),
    Format(
        "`prompt/chosen/rejected` as message lists",
        "pairs",
        frozenset(("id", "prompt", "chosen", "rejected")),
        lambda row: is_pair(row, list),
        message_pair,
    ),
    Format(
        "`prompt/completion/label` as strings",
        "unpaired",
        frozenset(("id", "prompt", "completion", "response", "label")),
        lambda row: is_unpaired(row, str),
        string_unpaired,
    ),
    Format(
        "`prompt/completion/label` as message lists",
        "unpaired",
        frozenset(("id", "prompt", "completion", "response", "label")),
        lambda row: is_unpaired(row, list),
        message_unpaired,
    ),
    Format("`messages`", "sft", frozenset(("id", "messages")), lambda row: "messages" in row, messages_example),
    Format(
        "ShareGPT `conversations`",
        "sft",
        frozenset(("id", "conversations")),
        lambda row: "conversations" in row,
        sharegpt_example,
    ),
    Format(
        "Alpaca `instruction/input/output`",
        "sft",
        frozenset(("id", "instruction", "input", "output")),
        lambda row: "instruction" in row,
        alpaca_example,
    ),
    Format(
        "`prompt` + `completion` (or `response`)",
        "sft",
        frozenset(("id", "prompt", "completion", "response")),
        lambda row: "prompt" in row and ("response" in row or "completion" in row),
        prompt_example,
    ),
    Format(
        "concept `concept/keywords/text`",
        "concepts",
        frozenset(("concept", "keywords", "text")),
        is_concept,
        concept_entry,
    ),
    Format(
        "eval `id/prompt/topic/keywords`",
        "eval",
        EVAL_KEYS,
        lambda row: "keywords" in row or is_prompt_alone(row),
        eval_prompt,
    ),
)


def recognise(row: dict, kind: str | None) -> Format | None:
    """The first format of this kind (None: of any kind) that suits the row."""
    for form in FORMATS:
        if (kind is None or kind == form.kind) and form.suits(row):
            return form
    return None


# ---- Diagnosis of a faulty row --------------------------------------------------------------------------------------


TRAINED = ("sft", "pairs", "unpaired")
EXCLUDED = frozenset(("weight", "train", "loss"))  # keys whose 0 or false excludes a row
REPEATED = (
    "`chosen` and `rejected` repeat the prompt at their beginning, so it would be trained on as a part of the answers; cut it "
    "(python src/convert.py FILE --to pairs does)"
)
LABELLED = (
    "`label` marks good and bad answers (KTO), and SFT would train on both; keep the good rows alone, without the key, "
    "or give the file to a method that reads labels"
)


def unrecognised(row: dict, kind: str | None) -> BadRow:
    """Why a row has no format of its file's kind: it is of another kind, or its keys are misspelt."""
    if other := recognise(row, None):
        return BadRow("wrong_kind", f"a row of {other.name} ({other.kind}) in a file that is read as {kind}")
    known = [form for form in FORMATS if kind in (None, form.kind)]
    keys = frozenset().union(*(form.keys for form in known))
    guesses = [
        f"{near!r} for {shown(key)}"
        for key in islice(row, MAX_KEYS_LOOKED_AT)
        if key not in keys and (near := nearest_key(key[:SHOWN_CHARACTERS], keys))
    ]
    hint = f"did you mean {', '.join(guesses[:4])}?" if guesses else f"the row has {keys_shown(row)}."
    return BadRow("unknown_format", f"of no known format; {hint} Known: {', '.join(form.name for form in known)}")


def mixed_pair() -> BadRow:
    return BadRow("mixed_str_and_list", "strings beside message lists; write prompt, chosen and rejected all one way")
