"""Reads any data file of ours, one JSON object per line, and accounts for every physical line of it.

    for row in read_rows("data/raw/sft_examples.jsonl"):
        row.status, row.problems, row.value

A line ends in exactly one class: accepted, warned (kept, with something to look at), rejected or skipped (blank).
What is wrong with a line is data, never an exception. Memory is bounded: one line (16 MiB at most) and, in files whose
rows carry ids, 16 bytes of digest for each id.

The way of a line: bytes -> text -> JSON object -> format -> record -> warnings. The common path is cheap; whatever
fails is diagnosed only then, further down under "Diagnosis".
"""

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from io import TextIOBase
from itertools import islice
from unicodedata import category, normalize

from aligner.errors import InputError

KINDS = ("sft", "pairs", "eval", "concepts")
MAX_LINE_BYTES = 16 * 2**20
MAX_INTEGER_DIGITS = 640  # the least that Python can be told to convert: the same rows pass under every setting
MAX_DEPTH = 64  # of brackets in brackets, the row's own included
MAX_KEYS_LOOKED_AT = 64
SHOWN_CHARACTERS = 60
MAX_REASON_CHARACTERS = 240  # of what the keyword rules say
UTF8_BOM = b"\xef\xbb\xbf"

Messages = tuple[tuple[str, str], ...]  # (role, content) pairs; role is system, user or assistant


@dataclass(frozen=True, slots=True)
class SftExample:
    """A conversation to learn from: an optional system message, then user and assistant in turn, assistant last."""

    id: str
    messages: Messages

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
class EvalPrompt:
    """A prompt to be answered and scored; `keywords` and `forbidden` hold groups as written: a string or an object."""

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
    """A concept of the catalogue, called by its name: its key ideas, as groups, and all that may rightly be said of it."""

    id: str
    keywords: tuple[str | dict, ...]
    text: str

    def texts(self) -> list[str]:
        return [self.id, self.text]


Record = SftExample | PreferencePair | EvalPrompt | ConceptEntry


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong: `kind` is a short snake_case name, `reason` one printable line with the way to mend it."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """One physical line (1-based); `value` is None unless the status is accepted or warned."""

    file: str
    line: int
    status: str
    problems: tuple[Problem, ...] = ()
    value: Record | None = None


class BadRow(Exception):
    """Carries the reason of a rejection from where it is found to `read_line`; never leaves this module."""

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.problem = Problem(kind, reason)


class UnreadableFile(InputError):
    """The file as a whole cannot be read: it is missing, a folder, forbidden or on a failing disk."""

    def __init__(self, path: str, problem: Problem):
        super().__init__(f"{printable(path)}: {problem.kind}: {problem.reason}")
        self.problem = problem


# ---- The reader -----------------------------------------------------------------------------------------------------


def read_rows(path: str | os.PathLike, kind: str | None = None) -> Iterator[Row]:
    """One `Row` per physical line of `path`, in order. `kind` is one of KINDS; None recognises it by the keys.

    Raises ValueError for another `kind`, and on iteration UnreadableFile (an InputError) where a file cannot be read.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)} or None, got {kind!r}")
    name, settled = str(path), FileRules(kind)
    return (read_line(name, line, raw, settled) for line, raw in enumerate(physical_lines(name), start=1))


def physical_lines(path: str) -> Iterator[bytes | None]:
    """The lines of a file as bytes, without the one byte order mark it may begin with; None for an oversized line."""
    try:
        require_end(path)
        with open(path, "rb") as file:
            first = next_line(file)
            if first is not None and first.startswith(UTF8_BOM):
                yield first[len(UTF8_BOM) :]
            elif first != b"":
                yield first
            yield from iter(lambda: next_line(file), b"")
    except OSError as fault:
        raise UnreadableFile(path, file_problem(path, fault)) from fault


def require_end(path: str) -> None:
    """Raises UnreadableFile for what has no end, or may have no beginning: a device, or a named pipe that nobody writes to.

    The pipes that a shell makes (`<(zcat rows.gz)`, /dev/stdin) have no name, and are read like any file.
    """
    mode, place = os.stat(path).st_mode, os.path.realpath(path)
    if place == os.devnull or place.startswith("/dev/fd/") or not os.path.lexists(place):
        return
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        what = "a named pipe" if stat.S_ISFIFO(mode) else "a device"
        raise UnreadableFile(path, Problem("no_regular_file", f"this is {what}, which may never end; name a file"))


def next_line(file) -> bytes | None:
    """The next line with its line end, b"" at the end of the file; an oversized line is passed over and gives None."""
    raw = file.readline(MAX_LINE_BYTES + 1)
    if len(raw) <= MAX_LINE_BYTES:
        return raw
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(2**20)
    return None


def read_line(name: str, line: int, raw: bytes | None, settled: "FileRules") -> Row:
    """The row that one physical line makes, whatever its bytes."""
    try:
        text = decode_line(raw)
        if not text or text.isspace():
            return Row(name, line, "skipped")
        value, warnings = settled.record(parse_object(text), line)
    except BadRow as bad:
        return Row(name, line, "rejected", (bad.problem,))
    return Row(name, line, "warned" if warnings else "accepted", warnings, value)


class FileRules:
    """What the lines so far have settled for the rest of their file: its one format, and the ids that are taken."""

    def __init__(self, kind: str | None):
        self.kind = kind
        self.format: Format | None = None
        self.format_line = 0
        self.ids: set[bytes] = set()
        self.has_unnamed_rows = False

    def record(self, row: dict, line: int) -> tuple[Record, tuple[Problem, ...]]:
        """The normalised record of an object and its warnings; raises BadRow."""
        form = self.format_of(row, line)
        value = form.build(row, form.name_of(row, line))
        self.claim(value.id, given=form.kind == "concepts" or "id" in row)
        return value, key_warnings(row, form.keys) + text_warnings("\n".join(value.texts()))

    def format_of(self, row: dict, line: int) -> "Format":
        """The file's format, which the first recognised row settles; raises BadRow for a row of another one."""
        if self.format is not None and self.format.suits(row):
            return self.format
        found = recognise(row, self.kind)
        if self.format is None:
            if found is None:
                raise unrecognised(row, self.kind)
            self.format, self.format_line = found, line
        elif (other := found or recognise(row, None)) not in (None, self.format):
            raise BadRow(
                "other_format",
                f"a row of {other.name} in a file of {self.format.name} (as of line "
                f"{self.format_line}); one file holds one format: split it",
            )
        return self.format

    def claim(self, id: str, given: bool) -> None:
        """Takes an id for this row; raises BadRow where another row has it, or may have been given it."""
        digest = blake2b(id.encode(), digest_size=16).digest()
        if digest in self.ids:
            raise BadRow("duplicate_id", f"the id {shown(id)} stands on an earlier line too; every row needs its own")
        if not given:
            self.has_unnamed_rows = True
        elif self.has_unnamed_rows and id.startswith("line-"):
            raise BadRow("reserved_id", f"{shown(id)} may name an earlier row without an id; choose another id")
        else:
            self.ids.add(digest)


# ---- From bytes to a JSON object ------------------------------------------------------------------------------------


def decode_line(raw: bytes | None) -> str:
    """The text of a line, strictly UTF-8."""
    if raw is None:
        raise BadRow("oversized_line", f"longer than {MAX_LINE_BYTES // 2**20} MiB; shorten or split the row")
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        raise encoding_fault(raw, fault) from None


def parse_object(text: str) -> dict:
    """The JSON object that a line holds: unique keys, finite numbers, and text that any UTF-8 file can hold."""
    try:
        row = DECODER.decode(text)
    except json.JSONDecodeError as fault:
        raise json_fault(text, fault) from None
    except RecursionError:
        raise too_deep() from None
    if type(row) is not dict:
        raise BadRow("not_an_object", f"a row must be a JSON object {{...}}, not {json_type(row)}; one object per line")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        check_depth(row)
    if "\\u" in text and UNSAFE_ESCAPE.search(text):
        check_characters(row)
    return row


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """The object of these pairs; raises BadRow where json would silently keep the last of two equal keys."""
    row = dict(pairs)
    if len(row) != len(pairs):
        earlier = set()
        twice = next(key for key, _ in pairs if key in earlier or earlier.add(key))
        raise BadRow("duplicate_keys", f"the key {shown(twice)} stands twice in one object; keep one of the two")
    return row


def finite_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise BadRow("float_overflow", f"{shown(digits)} is beyond what a double holds; write a finite number")
    return number


def bounded_int(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise BadRow("huge_integer", f"a number of {len(digits)} digits; write it as a string")
    return int(digits)


def refuse_constant(name: str) -> None:
    raise BadRow("non_finite_number", f"{name} is not JSON; use null or leave the key out")


DECODER = json.JSONDecoder(
    object_pairs_hook=unique_keys, parse_float=finite_float, parse_int=bounded_int, parse_constant=refuse_constant
)
UNSAFE_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")  # what may be NUL or half a surrogate pair
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def check_depth(row: dict) -> None:
    """Raises BadRow for more than MAX_DEPTH brackets in brackets: what Python itself bears differs by its version."""
    level = [row]
    for _ in range(MAX_DEPTH):
        inner = (item for value in level for item in (value.values() if type(value) is dict else value))
        level = [item for item in inner if type(item) in (dict, list)]
    if level:
        raise too_deep()


def check_characters(row: dict) -> None:
    """Raises BadRow where any key or text of the row holds NUL or a lone surrogate."""
    for text in strings(row):
        if "\0" in text:
            raise BadRow("escaped_nul", "a text holds \\u0000 (NUL), which cannot be tokenised or stored; remove it")
        if LONE_SURROGATE.search(text):
            raise BadRow(
                "lone_surrogate",
                "a text holds half of a surrogate pair (\\ud800 to \\udfff), which no UTF-8 "
                "file can hold; write the whole character",
            )


def strings(value: object) -> Iterator[str]:
    """Every key and every text of a JSON value, however deep, without recursion."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) is str:
            yield value
        elif type(value) is dict:
            yield from value
            waiting.extend(value.values())
        elif type(value) is list:
            waiting.extend(value)


# ---- From an object to a record -------------------------------------------------------------------------------------
# Each builder takes the object and its id, gives the normalised record, and raises BadRow.


def messages_example(row: dict, id: str) -> SftExample:
    messages = turns(required(row, "messages"), "messages", CHAT)
    check_order(messages, "messages", last="assistant")
    return SftExample(id, messages)


def sharegpt_example(row: dict, id: str) -> SftExample:
    messages = turns(required(row, "conversations"), "conversations", SHAREGPT)
    check_order(messages, "conversations", last="assistant")
    return SftExample(id, messages)


def prompt_example(row: dict, id: str) -> SftExample:
    prompt = required_text(row, "prompt")
    answers = [key for key in ("completion", "response") if key in row]
    if len(answers) == 2:
        raise BadRow("two_answers", "both `completion` and `response`; keep one of them")
    answer = required_text(row, answers[0] if answers else "response")
    return SftExample(id, (("user", prompt), ("assistant", answer)))


def alpaca_example(row: dict, id: str) -> SftExample:
    prompt = required_text(row, "instruction")
    if context := optional_text(row, "input"):
        prompt = f"{prompt}\n\n{context}"
    return SftExample(id, (("user", prompt), ("assistant", required_text(row, "output"))))


def string_pair(row: dict, id: str) -> PreferencePair:
    prompt = (("user", required_text(row, "prompt")),)
    return preference(id, prompt, required_text(row, "chosen"), required_text(row, "rejected"))


def message_pair(row: dict, id: str) -> PreferencePair:
    chosen = turns(required(row, "chosen"), "chosen", CHAT)
    rejected = turns(required(row, "rejected"), "rejected", CHAT)
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1][0] != "assistant":
            raise BadRow("no_answer", f"`{name}` must end with an assistant message, not {messages[-1][0]}")
    prompt = shared_prompt(row, chosen[:-1], rejected[:-1])
    check_order(prompt, "prompt", last="user")
    return preference(id, prompt, chosen[-1][1], rejected[-1][1])


def shared_prompt(row: dict, before_chosen: Messages, before_rejected: Messages) -> Messages:
    """The one prompt of both answers: the key `prompt`, or what stands before the answers in both lists.

    Where both stand they must agree; a `prompt` string need only be one of the user messages (as in UltraFeedback).
    """
    if before_chosen != before_rejected:
        raise BadRow(
            "prompts_differ",
            "`chosen` and `rejected` differ before their last message; they must answer the same prompt",
        )
    if "prompt" not in row and before_chosen:
        return before_chosen
    prompt = required(row, "prompt")
    if type(prompt) is str and before_chosen:
        agrees = ("user", text_of(prompt, "prompt")) in before_chosen
    elif type(prompt) is str:
        raise mixed_pair()
    else:
        prompt = turns(prompt, "prompt", CHAT)
        agrees = before_chosen in ((), prompt)
    if not agrees:
        raise BadRow("prompts_differ", "`prompt` is not what stands before the answers in `chosen` and `rejected`")
    return before_chosen or prompt


def preference(id: str, prompt: Messages, chosen: str, rejected: str) -> PreferencePair:
    if chosen == rejected:
        raise BadRow("chosen_equals_rejected", "both answers are the same, so the pair teaches nothing; drop it")
    if seen(chosen) == seen(rejected):
        raise BadRow(
            "chosen_equals_rejected",
            "both answers look the same (invisible characters, line ends and the coding of accents aside), so the pair teaches "
            "nothing; drop it",
        )
    return PreferencePair(id, prompt, chosen, rejected)


def seen(text: str) -> str:
    """A text as a reader sees it: accents composed (NFC), one kind of line end and of space, nothing invisible."""
    if not text.isascii():
        text = HARD_SPACE.sub(" ", normalize("NFC", UNSEEN.sub("", text)))
    return text.replace("\r\n", "\n") if "\r" in text else text


def eval_prompt(row: dict, id: str) -> EvalPrompt:
    keywords = keyword_groups(required(row, "keywords"), "keywords")
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
    """The groups as written, once the keyword rules have found no fault in any of them."""
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
    """What the keyword rules say against a group; a regex may be too much even for Python's compiler."""
    from aligner.keywords import validate_group

    try:
        return validate_group(group)
    except (RecursionError, OverflowError) as fault:
        return [f"a regex that Python cannot compile ({fault}); simplify it"]


# ---- Fields: ids, texts, turns --------------------------------------------------------------------------------------

SAFE_ID = re.compile(r"(?!.*\.\.)(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|\Z))[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.A)
BLANK_LETTERS = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)  # fillers and variation selectors
BLANK_CATEGORIES = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))
# What one does not see in a text; joiners and variation selectors stay, since letters and emoji change with them.
UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
HARD_SPACE = re.compile("[\u00a0\u202f]")
CHAT_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class TurnStyle:
    """How one turn of a conversation is written: its two keys, and what each role is called."""

    role_key: str
    text_key: str
    roles: dict[str, str]


CHAT = TurnStyle("role", "content", CHAT_ROLES)
SHAREGPT = TurnStyle("from", "value", {**CHAT_ROLES, "human": "user", "gpt": "assistant"})


def row_id(row: dict, line: int, required: bool) -> str:
    """The row's id, safe as a file name on every system; a row that needs none is called after its line."""
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
    """The stripped text under `key`; None where the key is missing, null or blank."""
    value = row.get(key)
    if value is None or value == "" or type(value) is str and value.isspace():
        return None
    return text_of(value, key)


def text_of(value: object, name: str) -> str:
    """`value` without surrounding white space, once it is a string with something to see."""
    if type(value) is not str:
        raise wrong_type(value, name, "a string")
    text = value.strip()
    if not "!" <= text[:1] <= "~" and not any(map(is_visible, text)):
        raise BadRow(
            "invisible_only" if text else "empty_text",
            f"`{name}` holds " + ("only invisible characters" if text else "no text") + "; fill it in or remove the row",
        )
    return text


def is_visible(character: str) -> bool:
    return character not in BLANK_LETTERS and category(character) not in BLANK_CATEGORIES


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
    plain_text = type(role) is str and role in style.roles and type(content) is str
    if not plain_text or uses_tools(message):
        raise turn_fault(message, name, style)
    return style.roles[role], text_of(content, name)


def uses_tools(message: dict) -> bool:
    """Whether a message calls a tool or answers one; a key that is null or empty, as columnar exports write it, says nothing."""
    return not TOOL_KEYS.isdisjoint(message) and any(message.get(key) for key in TOOL_KEYS)


def check_order(messages: Messages, name: str, last: str) -> None:
    """Raises BadRow unless the roles are: system or not, then user, assistant, user, ..., ending with `last`."""
    first = 1 if messages[0][0] == "system" else 0
    for index, (role, _) in enumerate(messages[first:]):
        if role != ("assistant" if index % 2 else "user"):
            raise order_fault(role, index, f"{name}[{index + first}]")
    if messages[-1][0] != last:
        raise BadRow(f"ends_with_{messages[-1][0]}", f"`{name}` ends with {messages[-1][0]}, but must end with {last}")


# ---- Formats --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a row: `keys` are those it reads, `suits` tells whether an object is written this way."""

    name: str
    kind: str
    keys: frozenset[str]
    suits: Callable[[dict], bool]
    build: Callable[[dict, str], Record]

    def name_of(self, row: dict, line: int) -> str:
        """What the row is called: a concept by its own name, any other row by its id."""
        if self.kind == "concepts":
            return required_text(row, "concept")
        return row_id(row, line, required=self.kind == "eval")


def is_pair(row: dict, shape: type) -> bool:
    """Whether a row is a pair whose answers are of `shape` (str or list); raises BadRow where they are of both."""
    if "chosen" not in row and "rejected" not in row:
        return False
    shapes = {type(row.get("chosen")), type(row.get("rejected"))}
    if type(row.get("prompt")) is list:
        shapes.add(list)
    if str in shapes and list in shapes:
        raise mixed_pair()
    return (list in shapes) == (shape is list)


def is_concept(row: dict) -> bool:
    """Whether a row with keywords is a concept and no eval prompt: it has no prompt, but a text, or a concept and no id."""
    return "keywords" in row and "prompt" not in row and ("text" in row or "concept" in row and "id" not in row)


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
        frozenset(("id", "prompt", "topic", "keywords", "concept", "kind", "forbidden")),
        lambda row: "keywords" in row,
        eval_prompt,
    ),
)


def recognise(row: dict, kind: str | None) -> Format | None:
    """The first format of this kind (None: of any) that the row is written in."""
    return next((form for form in FORMATS if kind in (None, form.kind) and form.suits(row)), None)


# ---- Warnings: rows that are kept, with something to look at --------------------------------------------------------

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
DAMAGED_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")  # none of those that only part lines and pages
# UTF-8 that was read as Latin-1 or CP1252: a leading byte as a letter, then each following byte as what it is there.
_FOLLOWING = "[\x80-\xbf" + bytes(range(0x80, 0xA0)).decode("cp1252", "ignore") + "]"
MOJIBAKE = re.compile(f"[ÂÃ]{_FOLLOWING}|(?:[ÎÏÐÑ]{_FOLLOWING}){{2}}|[âï]{_FOLLOWING}{{2}}|ð[Ÿ\x9f]{_FOLLOWING}")
TAG = re.compile("[\U000e0000-\U000e007f]")
HIDDEN_TAG = re.compile("(?<![\U0001f3f4\U000e0020-\U000e007e])[\U000e0000-\U000e007f]")  # but in the flag of a region
MIXED_SCRIPTS = re.compile("[A-Za-z][\u0400-\u04ff]|[\u0400-\u04ff][A-Za-z]")
UNREAD_KEYS = frozenset(("system", "history", "tools", "functions"))
SECRETS = {  # a cheap marker, then what it may stand in and the pattern that decides; each takes linear time
    "@": ("a mail address", r"[\w.%+-]@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2}"),
    "IA": ("an AWS key", r"(?a:\b)A(?:KI|SI)A[0-9A-Z]{16}(?a:\b)"),
    "PRIVATE": ("a private key", r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY"),
    "_": ("a GitHub or Hugging Face token", r"(?a:\b)(?:gh[opsur]|github_pat|hf)_[A-Za-z0-9_]{16}"),
    "sk-": ("an API key", r"(?a:\b)sk-(?=[A-Za-z_-]{0,60}\d)[A-Za-z0-9_-]{16}"),
}


def text_warnings(text: str) -> tuple[Problem, ...]:
    """Warnings about characters and secrets in a row's texts; a secret is named, never shown."""
    warnings = damage(text)
    if not text.isascii() and any(map(text.__contains__, BIDI_CONTROLS)):
        found = ", ".join(f"U+{ord(mark):04X}" for mark in BIDI_CONTROLS if mark in text)
        warnings.append(Problem("bidi_control", f"bidi controls ({found}) can hide what a text says: check it"))
    if any(map(text.__contains__, SECRETS)):
        secrets = [what for marker, (what, pattern) in SECRETS.items() if marker in text and re.search(pattern, text)]
        if secrets:
            warnings.append(
                Problem(
                    "secret_like",
                    f"the text seems to hold {' and '.join(secrets)}, which a model may repeat; replace it",
                )
            )
    return tuple(warnings)


def damage(text: str) -> list[Problem]:
    """Signs that a text was decoded wrongly, cut, or put together from look-alike letters."""
    found = []
    if control := DAMAGED_CONTROL.search(text):
        found.append(Problem("control_character", f"the text holds the control character U+{ord(control[0]):04X}; remove it"))
    if text.isascii():
        return found
    if mojibake := MOJIBAKE.search(text):
        found.append(Problem("mojibake", f"{shown(mojibake[0])} seems to be UTF-8 that was read as CP1252; decode the text anew"))
    if "\ufffd" in text:
        found.append(Problem("replacement_character", "U+FFFD stands where a character could not be decoded; restore it"))
    if mixed := MIXED_SCRIPTS.search(text):
        found.append(Problem("mixed_scripts", f"{shown(mixed[0])} mixes Latin and Cyrillic letters in one word: check it"))
    if TAG.search(text) and HIDDEN_TAG.search(text):
        found.append(Problem("hidden_text", "tag characters (U+E0000 to U+E007F) can hide words from people, not from a model"))
    return found


def key_warnings(row: dict, known: frozenset[str]) -> tuple[Problem, ...]:
    """Warnings about keys that are not read, but look as if they were meant to be."""
    if row.keys() <= known:
        return ()
    unknown = islice((key for key in row if key not in known), MAX_KEYS_LOOKED_AT)
    return tuple(warning for key in unknown if (warning := key_warning(key, row, known)))


def key_warning(key: str, row: dict, known: frozenset[str]) -> Problem | None:
    near = nearest_key(key[:SHOWN_CHARACTERS], known)
    if near is not None and (near not in row or near == plain(key)):
        return Problem("misspelt_key", f"the key {shown(key)} is not read; did you mean {near!r}?")
    if key in UNREAD_KEYS and row[key]:
        return Problem("unread_key", f"`{key}` is not read; write it into the conversation or remove it")
    return None


@lru_cache(maxsize=256)
def nearest_key(key: str, known: frozenset[str]) -> str | None:
    """The known key that `key` looks like a misspelling of. Similarity is difflib's ratio; at 0.82 uid is not id."""
    from difflib import get_close_matches

    if plain(key) in known:
        return plain(key)
    return next(iter(get_close_matches(plain(key), sorted(known), n=1, cutoff=0.82)), None)


def plain(key: str) -> str:
    return key.strip().strip("\ufeff").casefold()


# ---- Diagnosis: only once something is wrong ------------------------------------------------------------------------

SIGNATURES = {  # how files begin that are no text in UTF-8
    b"\x1f\x8b": "gzip-compressed: unpack it first (gunzip)",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"BZh": "bzip2-compressed: unpack it first",
    b"\xfd7zXZ": "xz-compressed: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed: unpack it first",
    b"PAR1": "a Parquet file: export it as JSON Lines",
    b"\xff\xfe\0\0": "UTF-32: convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)",
    b"\0\0\xfe\xff": "UTF-32: convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)",
    b"\xff\xfe": "UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
}
BINARY = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # control bytes but tab, line ends and escape: not of an 8-bit text
OVERLONG = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]")
JSON_LOOKALIKES = {  # what a line that is no JSON begins with (case does not matter), and what it then is
    "\ufeff": (
        "bom_mid_file",
        "a byte order mark inside the file: were files concatenated? remove it (only one, at "
        "the very start of a file, is passed over)",
    ),
    r"#|//|/\*": ("comment_line", "a comment is not JSON; remove the line"),
    r"<{7}|={7}|>{7}|\|{7}": ("merge_conflict", "a Git merge conflict was left in the file; resolve it"),
    r"<[!?/a-z]": (
        "html_error_page",
        "HTML or XML, not JSON: a download has perhaps saved an error page; fetch the file again",
    ),
    "version https://git-lfs|oid sha256:": ("git_lfs_pointer", "a Git LFS pointer, not the data: run git lfs pull"),
    r"[\[{(]\s*[bru]?'": (
        "python_repr",
        "single quotes are not JSON: written by Python's str() or repr()? use json.dumps",
    ),
    r'[\[{]$|[\]}],?$|"[^"]{0,100}"\s*:': (
        "spread_json",
        "JSON spread over several lines; write one object per line (jq -c .)",
    ),
}
TOOL_KEYS = frozenset(("tool_calls", "function_call", "tool_call_id"))
TOOL_ROLES = frozenset(("tool", "function", "function_call", "observation", "ipython", "tool_call", "tool_response"))


def file_problem(path: str, fault: OSError) -> Problem:
    if isinstance(fault, FileNotFoundError):
        return Problem("missing_file", "there is no such file; check the path")
    if os.path.isdir(path):
        return Problem("directory", "this is a folder; name the files in it")
    return Problem("unreadable_file", f"it cannot be read: {fault.strerror or type(fault).__name__}")


def encoding_fault(raw: bytes, fault: UnicodeDecodeError) -> BadRow:
    """Why a line is not UTF-8: another kind of file, a cut character, or another encoding."""
    if other := other_file(raw):
        return other
    broken = raw[fault.start : fault.start + 2]
    where = f"byte 0x{broken[0]:02x} at column {fault.start + 1} is not UTF-8"
    if BINARY.search(raw):
        return BadRow("not_utf8_text", f"{where}, and there are control bytes: the file may be UTF-16, or no text at all")
    if broken[0] == 0xED and broken[1:] >= b"\xa0":
        return BadRow("lone_surrogate", f"{where}: half of a surrogate pair (CESU-8?); write the file anew as UTF-8")
    if OVERLONG.match(raw, fault.start):
        return BadRow("overlong_utf8", f"{where}: an overlong form, more bytes than the character has; write it anew as UTF-8")
    if fault.end - fault.start > 1 or fault.reason == "unexpected end of data":
        return BadRow("truncated_multibyte", f"{where}: an incomplete character; was the text cut by bytes?")
    return BadRow("latin1_byte", f"{where}: the file may be Latin-1/CP1252; convert it (iconv -f CP1252 -t UTF-8)")


def other_file(raw: bytes) -> BadRow | None:
    """The other kind of file that a line is the beginning of, by its first bytes."""
    hints = (hint for signature, hint in SIGNATURES.items() if raw.startswith(signature))
    return next((BadRow("not_utf8_text", f"the file seems to be {hint}") for hint in hints), None)


def json_fault(text: str, fault: json.JSONDecodeError) -> BadRow:
    """Why a line is not JSON: something else altogether, or a slip at the place where the decoder stopped."""
    begin = text.strip()
    if other := other_file(text.encode()):
        return other
    for start, (kind, reason) in JSON_LOOKALIKES.items():
        if re.match(start, begin, re.I):
            return BadRow(kind, reason)
    where = f"at column {fault.pos + 1}"
    if "\0" in text:
        return BadRow("raw_nul", "a NUL byte: the file may be UTF-16 or damaged; write it anew as UTF-8")
    if fault.msg.startswith("Unterminated string") or fault.pos >= len(text.rstrip()):
        return BadRow(
            "truncated_json",
            "the line ends inside the row: it was cut off, or a text holds a raw line break (write \\n)",
        )
    if fault.msg.startswith("Invalid control character"):
        return BadRow("raw_control_character", f"a raw control character {where}; escape it (\\n, \\t, \\u001b)")
    if text.startswith(("None", "True", "False"), fault.pos):
        return BadRow("python_repr", f"Python's None, True or False {where}; JSON has null, true and false")
    if fault.msg == "Extra data":
        return BadRow("extra_data", f"more text after the row, {where}; one object per line, lines ending in \\n")
    found = text[fault.pos]
    if not found.isascii():
        where += f" (U+{ord(found):04X}, {found if is_visible(found) and found.isprintable() else 'which shows nothing'})"
    return BadRow("not_json", f"not JSON {where}: {fault.msg}; check the quotes, commas and brackets there")


def unrecognised(row: dict, kind: str | None) -> BadRow:
    """Why a row is of no format of its file's kind: it is of another kind, or its keys are misspelt."""
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


def turn_fault(message: dict, name: str, style: TurnStyle) -> BadRow:
    """Why a turn is no plain text of a system, a user or an assistant."""
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


def too_deep() -> BadRow:
    return BadRow("deep_nesting", f"more than {MAX_DEPTH} brackets inside one another; flatten the row")


def mixed_pair() -> BadRow:
    return BadRow("mixed_str_and_list", "strings beside message lists; write prompt, chosen and rejected all one way")


def wrong_type(value: object, name: str, expected: str) -> BadRow:
    return BadRow("wrong_type", f"`{name}` must be {expected}, not {json_type(value)}; nothing is converted silently")


def json_type(value: object) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list" if value else "an empty list",
        dict: "an object",
    }
    return names[type(value)]


def did_you_mean(key: str, row: dict) -> str:
    """The end of "`key` is missing": the key that was perhaps meant by it, or those that there are."""
    from difflib import get_close_matches

    there = {plain(other[:SHOWN_CHARACTERS]): other for other in islice(row, MAX_KEYS_LOOKED_AT)}
    near = get_close_matches(key, there, n=1, cutoff=0.7)
    return f"; did you mean it by {shown(there[near[0]])}?" if near else f"; there is {keys_shown(row)}"


def keys_shown(row: dict) -> str:
    return ", ".join(map(shown, islice(row, 8))) + (", ..." if len(row) > 8 else "") if row else "no key at all"


def shown(text: str) -> str:
    """A text of a row as messages may show it: quoted, escaped, and cut; no control sequence gets through."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")


def printable(text: str) -> str:
    """A path or a message as it is, or escaped where it holds anything that a terminal could act on."""
    return text if text.isprintable() else repr(text)[1:-1]


# ---- The ledger and the check ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ledger:
    """Counts physical lines, each in exactly one of four classes; accepted and warned rows are kept."""

    accepted: int = 0
    warned: int = 0
    rejected: int = 0
    skipped: int = 0

    def add(self, row: Row) -> None:
        setattr(self, row.status, getattr(self, row.status) + 1)

    @property
    def lines(self) -> int:
        return self.accepted + self.warned + self.rejected + self.skipped

    def line(self) -> str:
        return f"accepted={self.accepted} warned={self.warned} rejected={self.rejected} skipped={self.skipped}"


def check(paths: Iterable[str | os.PathLike], out: TextIOBase) -> int:
    """Writes every bad or warned row of these files and one line of counts to `out`; the exit code, 0 or 1.

    0 needs all files readable, with at least one row that is not blank, and no rejected row.
    """
    ledger, faulty_files = Ledger(), 0
    for path in map(str, paths):
        if problem := check_file(path, ledger, out):
            faulty_files += 1
            write_line(out, f"{printable(path)}: {problem.kind}: {problem.reason}")
    write_line(out, ledger.line())
    return 1 if faulty_files or ledger.rejected else 0


def check_file(path: str, ledger: Ledger, out: TextIOBase) -> Problem | None:
    """Streams one file into the ledger and its bad rows to `out`; the problem of the file as a whole, if it has one."""
    not_blank = ledger.lines - ledger.skipped
    try:
        for row in read_rows(path):
            ledger.add(row)
            for line in report_lines(row):
                write_line(out, line)
    except UnreadableFile as fault:
        return fault.problem
    if ledger.lines - ledger.skipped == not_blank:
        return Problem("empty_file", "the file holds no rows; fill it or leave it out")
    return None


def report_lines(row: Row) -> list[str]:
    """`FILE:LINE: kind: reason` for each problem of a row, marked as a warning where the row is kept."""
    if not row.problems:
        return []
    prefix = f"{printable(row.file)}:{row.line}: " + ("warning: " if row.status == "warned" else "")
    return [f"{prefix}{problem.kind}: {problem.reason}" for problem in row.problems]


def write_line(out: TextIOBase, line: str) -> None:
    """Writes a line with whatever the stream's encoding lacks escaped."""
    encoding = out.encoding or "utf-8"
    out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
