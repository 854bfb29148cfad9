"""Converts rows of any layout, one by one, and accounts for each: converted, or left out with a reason.

conversion = Conversion("sft", "alpaca")
for number, row in rows_of(source):
    for line in conversion.lines(number, row): …
conversion.layouts, conversion.left_out, conversion.unused, conversion.notes
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson

from aligner.convert.sources import Source
from aligner.data.fields import SAFE_ID
from aligner.data.formats import recognise
from aligner.data.layouts import Layout, Row, recognise_layout, shape_of, without_nulls
from aligner.data.lines import BadRow, check_characters
from aligner.data.reader import KINDS
from aligner.run.terminal import printable

TARGETS = tuple(kind for kind in KINDS if kind != "concepts")
SHOWN = 3
TOPICS = ("topic", "category", "dataset", "subject")
KEPT = frozenset(("id", *TOPICS))
EVAL_KEYS = ("keywords", "kind", "concept", "forbidden")
MOST_SHAPES = 1000  # shapes of rows whose layout is remembered


class LeftOut:
    """How many rows were left out for one reason, and the first of them."""

    def __init__(self, place: str, reason: str) -> None:
        self.count, self.place, self.reason = 0, place, reason


class Conversion:
    """Converts the rows of one or more sources to one kind (one of TARGETS) and counts what happened to each."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.given = self.written = 0
        self.layouts: Counter[str] = Counter()
        self.left_out: dict[str, LeftOut] = {}
        self.unused: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.samples: list[Row] = []
        self._ids: set[int] = set()
        self._known: dict[tuple, Layout | None] = {}

    def lines(self, source: Source, number: int, row: Row | BadRow) -> list[bytes]:
        """The JSON lines that a row becomes: none if it is left out, two for a pair that becomes labelled answers."""
        self.given += 1
        try:
            if isinstance(row, BadRow):
                raise row
            layout, row = self._layout(source, row)
            written = layout.read(row)
            notes = written.pop("notes", None)
            results = [self._checked(source, number, row, one) for one in KIND_TO[self.target](layout.kind, written, row)]
        except BadRow as bad:
            self._leave_out(source, number, bad)
            return []
        self.layouts[layout.name] += 1
        if unused := row.keys() - layout.keys:
            self.unused.update(unused - KEPT - (set(EVAL_KEYS) if self.target == "eval" else set()))
        if notes:
            self.notes[notes] += 1
        return results

    def _layout(self, source: Source, row: Row) -> tuple[Layout, Row]:
        row = without_nulls(row)
        if source.columns:
            row = {source.columns.get(key, key): value for key, value in row.items()}
        if source.tags:
            row = {key: [retagged(turn, source.tags) for turn in value] if is_turns(value) else retagged(value, source.tags)
                   if key in ("chosen", "rejected") else value for key, value in row.items()}  # fmt: skip
        layout = self._recognised(row)
        if layout is None:
            raise BadRow(
                "unknown_layout", f"no known layout has the keys {', '.join(list(row)[:8])}; name them: --map KEY=COLUMN"
            )
        return layout, row

    def _recognised(self, row: Row) -> Layout | None:
        """The layout of a row, remembered for rows of the same shape: most files have one or two shapes."""
        shape = shape_of(row)
        try:
            return self._known[shape]
        except KeyError:
            if len(self._known) == MOST_SHAPES:
                self._known.clear()
            return self._known.setdefault(shape, recognise_layout(row))

    def _checked(self, source: Source, number: int, given: Row, written: Row) -> bytes:
        """One line of the output; raises BadRow if the strict reader would refuse it."""
        form = recognise(written, self.target)
        assert form is not None
        form.record(written, "line-1")
        try:
            row = {"id": self._id(source, number, given, written.pop("side", "")), **written}
            line = orjson.dumps(row)
        except TypeError:
            raise BadRow("lone_surrogate", "a text holds half of a surrogate pair, which no UTF-8 file can hold") from None
        if b"\\u0000" in line:
            check_characters(written)
        if len(self.samples) < SHOWN:
            self.samples.append(row)
        self.written += 1
        return line + b"\n"

    def _id(self, source: Source, number: int, row: Row, side: str) -> str:
        """The row's own id if it is one that prepare takes and is new; else the source's name and the row's number."""
        given = row.get("id", row.get("question_id", row.get("prompt_id")))
        id = str(given) + side if type(given) in (str, int) else ""
        if not id or not SAFE_ID.fullmatch(id) or id.startswith("line-") or hash(id) in self._ids:
            id = f"{stem_of(source.path)}-{number}{side}"
            while hash(id) in self._ids:
                id += "x"
        self._ids.add(hash(id))
        return id

    def _leave_out(self, source: Source, number: int, bad: BadRow) -> None:
        kind, place = bad.problem.kind, f"{printable(source.name)}, row {number}"
        entry = self.left_out.setdefault(kind, LeftOut(place, bad.problem.reason))
        entry.count += 1


@lru_cache
def stem_of(path: str) -> str:
    """The beginning of the ids that a source's rows get: its name, as far as an id may hold it."""
    stem = re.sub(r"[^A-Za-z0-9_-]", "", path.rstrip("/").rsplit("/", 1)[-1].split(".")[0])[:60] or "row"
    return stem if stem[0].isalnum() else "row"


def is_turns(value: Any) -> bool:
    return type(value) is list and bool(value) and type(value[0]) is dict


def retagged(turn: Any, tags: dict[str, str]) -> Any:
    """A turn with the usual keys and roles in place of those that a dataset_info.json names."""
    if type(turn) is not dict:
        return turn
    renamed = {tags.get(key, key): value for key, value in turn.items()}
    if type(renamed.get("role")) is str:
        renamed["role"] = tags.get(renamed["role"], renamed["role"])
    return renamed


# ---- From a layout's kind to the kind that is written ---------------------------------------------------------------------


def to_sft(kind: str, row: Row, given: Row) -> list[Row]:
    """An example; of a pair the chosen answer, of labelled answers the good ones."""
    if kind == "pairs":
        return [{"messages": [*prompt_of(row), row["chosen"][-1]]}]
    if kind == "unpaired" and not row["label"]:
        raise BadRow("undesirable", "its label is false: a bad answer is no example")
    if kind == "unpaired":
        return [{"messages": [*row["prompt"], *row["completion"]]}]
    return [required_kind("sft", kind, row)]


def to_pairs(kind: str, row: Row, given: Row) -> list[Row]:
    return [required_kind("pairs", kind, row)]


def to_unpaired(kind: str, row: Row, given: Row) -> list[Row]:
    """A labelled answer; of a pair both answers, the chosen one as desirable."""
    if kind != "pairs":
        return [required_kind("unpaired", kind, row)]
    prompt = prompt_of(row)
    require_alike(row)
    return [
        {"prompt": prompt, "completion": row[side][-1:], "label": side == "chosen", "side": f"-{side}"}
        for side in ("chosen", "rejected")
    ]


def require_alike(row: Row) -> None:
    """Raises BadRow where the strict reader would refuse the pair."""
    form = recognise(row, "pairs")
    assert form is not None
    form.record(row, "line-1")


def to_eval(kind: str, row: Row, given: Row) -> list[Row]:
    """A prompt of one user message, with its topic and, if the row has any, its keywords."""
    if kind == "prompt":
        text = row["prompt"]
        if type(text) is list:
            text = one_question(prompt_of({"prompt": text}))
    else:
        text = one_question(row["messages"][:-1] if kind == "sft" else prompt_of(row))
    topic = next((given[key] for key in TOPICS if type(given.get(key)) is str and given[key].strip()), "all")
    return [{"prompt": text, "topic": topic} | {key: given[key] for key in EVAL_KEYS if key in given}]


def one_question(messages: list[dict]) -> Any:
    if len(messages) != 1:
        raise BadRow("no_single_question", "an eval prompt is one question of a user, without system text and earlier turns")
    return messages[0]["content"]


def prompt_of(row: Row) -> list[dict]:
    """The messages before the answers; those of `chosen` where the row has no prompt or only a text of it."""
    from aligner.data.turns import messages_of

    prompt = row.get("prompt")
    return messages_of(prompt, "prompt") if type(prompt) is list else row["chosen"][:-1]


def required_kind(wanted: str, kind: str, row: Row) -> Row:
    if kind != wanted:
        raise BadRow("wrong_kind", f"a row of {'prompts alone' if kind == 'prompt' else kind} cannot become one of {wanted}")
    return row


KIND_TO: dict[str, Callable[[str, Row, Row], list[Row]]] = {
    "sft": to_sft, "pairs": to_pairs, "unpaired": to_unpaired, "eval": to_eval,
}  # fmt: skip
