"""Renders messages to token ids and a loss mask, in the same way for training and generation.

The chat template is the model's own (Jinja, sandboxed). Message text is never parsed for special tokens: a `</s>` that a person
typed stays four ordinary characters. A conversation is encoded span by span; spans end at the template's special tokens and at
the start of each assistant turn, where generation begins. The ids of a training prompt are therefore exactly the ids that
generation starts from. `Chat.encode_ahead` speeds up many rows and changes no id. This module imports neither torch nor
transformers and loads in a fifth of a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from aligner.model.template import (
    build_tokenizer,
    eos_of_model,
    generation_tag,
    inserts_only,
    raise_exception,
    read_object,
    read_text,
    template_of,
    token_text,
)
from aligner.run.errors import InputError

Messages = tuple[tuple[str, str], ...]  # (role, content) pairs; role is system, user or assistant

# Under GPT-2's rule no token continues across a space between a visible ASCII character and a letter.
_WORD_START = re.compile("(?<=[!-~])(?= [A-Za-z])")
# Limits of the word cache, a few megabytes: its entries, and the characters of a word (longer ones rarely recur).
MOST_KNOWN_PARTS = 2**16
LONGEST_KNOWN_PART = 64

# Private-use characters that mark the place of each content while the template is rendered.
_OPEN, _CLOSE = "\ue000", "\ue001"

_OTHER_TEXT = "the chat template {} the text of a message; set models.<name>.chat_template to a plainer one"
_OTHER_PROMPT = (
    "the chat template renders a prompt differently alone and before an answer, so training would differ from generation; "
    "set models.<name>.chat_template to a plainer one"
)


class Tokens(NamedTuple):
    """The `ids` of a conversation and, for each id, whether it is trained: assistant text and its end token are."""

    ids: list[int]
    trained: list[bool]

    def add(self, ids: list[int], trained: bool) -> None:
        self.ids.extend(ids)
        self.trained.extend([trained] * len(ids))


class Piece(NamedTuple):
    """A part of the rendered text: the template's own text, followed by the content of message number `message`, if any."""

    text: str
    message: int | None


class Span(NamedTuple):
    """Text that is encoded in one piece, and what follows it: an answer, a special token of the template, or the end."""

    context: str
    answer: str | None
    special: int | None


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template. Build it with `Chat.load`."""

    tokenizer_json: str
    template: str
    eos_token: str
    bos_token: str
    pad_token: str

    @classmethod
    def load(cls, folder: Path, template_file: str | None = None) -> Chat:
        """Reads tokenizer.json, tokenizer_config.json and the template from a model's folder (Hugging Face layout).

        Raises InputError for files that are missing, are not JSON, or hold values of the wrong type.
        """
        config = read_object(folder / "tokenizer_config.json")
        tokenizer_json = read_text(folder / "tokenizer.json")
        try:
            build_tokenizer(tokenizer_json)
            tokens = {role: token_text(config, role) for role in ("eos_token", "bos_token", "pad_token")}
            template = template_of(folder, config, template_file)
        except InputError as error:
            raise InputError(f"{folder}: {error}. Copy or download the model's files again") from None
        eos = tokens["eos_token"] or eos_of_model(folder, tokenizer_json)
        return cls(tokenizer_json, template, eos, tokens["bos_token"] or "", tokens["pad_token"] or eos)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that turns messages into ids; each stage stores it and compares it with the previous stage's."""
        parts = [self.tokenizer_json, self.template, self.eos_token, self.bos_token, self.pad_token]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def tokenizer(self):
        return build_tokenizer(self.tokenizer_json)

    @cached_property
    def _content_tokenizer(self):
        """The same tokenizer without its added tokens, which treats `</s>` as text."""
        return build_tokenizer(json.dumps(json.loads(self.tokenizer_json) | {"added_tokens": [], "post_processor": None}))

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text and id of the tokens that only the template may write, longest first."""
        added = [token for token in json.loads(self.tokenizer_json).get("added_tokens", []) if token["special"]]
        return {token["content"]: token["id"] for token in sorted(added, key=lambda token: -len(token["content"]))}

    @cached_property
    def pad_id(self) -> int:
        return self._id_of(self.pad_token, "pad_token")

    @cached_property
    def end_token(self) -> str:
        """The token that ends an assistant's turn: the first special token that the template writes after it, else eos."""
        after = self._skeleton(("user", "assistant"), generation_prompt=False)[-1].text
        found = [(after.index(token), token) for token in self.special_tokens if token in after]
        return min(found)[1] if found else self.eos_token

    @cached_property
    def end_id(self) -> int:
        return self._id_of(self.end_token, "eos_token")

    def prompt(self, messages: Messages) -> list[int]:
        """Ids from which the assistant's next turn is generated; `messages` ends with a user message."""
        self._require_insertion(messages, generation_prompt=True)
        return self._encode(self._spans(messages, generation_prompt=True)).ids

    def completion(self, messages: Messages, answer: str) -> list[int]:
        """Ids of the assistant's `answer` to `messages`, including its end token: the continuation of `prompt(messages)`."""
        return self.conversation((*messages, ("assistant", answer))).ids[len(self.prompt(messages)) :]

    def conversation(self, messages: Messages) -> Tokens:
        """Ids of a conversation that ends with an assistant's turn, and which of them are trained.

        Raises InputError when the last answer does not follow the prompt from which generation would begin.
        """
        self._require_insertion(messages, generation_prompt=False)
        self._require_insertion(messages[:-1], generation_prompt=True)
        spans, prompt = self._spans(messages, generation_prompt=False), self._spans(messages[:-1], generation_prompt=True)
        tokens = self._encode(spans)
        if [*spans[:-2], Span(spans[-2].context, None, None)] != prompt:
            ids = self._encode(prompt).ids
            if tokens.ids[: len(ids)] != ids:
                raise InputError(_OTHER_PROMPT)
        return tokens

    def encode_ahead(self, conversations: Iterable[Messages]) -> None:
        """Encodes the texts of many conversations together, for later calls; this takes a fraction of the time of single calls.

        It skips a conversation that the template refuses; a later call for that conversation raises the error.
        """
        texts: dict[str, None] = {}
        for messages in conversations:
            with contextlib.suppress(InputError):
                for span in [
                    *self._spans(messages, generation_prompt=False),
                    *self._spans(messages[:-1], generation_prompt=True),
                ]:
                    texts[span.context] = None
                    if span.answer is not None:
                        texts[span.context + span.answer] = None
        texts.pop("", None)
        self._ahead.clear()
        self._ahead.update(zip(texts, self._ids_of_all(texts), strict=True))

    @cached_property
    def _ahead(self) -> dict[str, list[int]]:
        """Ids of the texts that were encoded ahead."""
        return {}

    def _ids_of_all(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of texts. If no token joins two words, each word is encoded once, and a text's ids are those of its words."""
        parts = [_WORD_START.split(text) if self._parts_words else [text] for text in texts]
        if len(self._known_parts) > MOST_KNOWN_PARTS:
            self._known_parts.clear()
        known = self._known_parts
        new = list(dict.fromkeys(part for words in parts for part in words if part not in known))
        found = self._content_tokenizer.encode_batch_fast(new, add_special_tokens=False)
        known.update(zip(new, (encoding.ids for encoding in found), strict=True))
        ids = [list(chain.from_iterable(map(known.__getitem__, words))) for words in parts]
        for part in new:
            if not self._parts_words or len(part) > LONGEST_KNOWN_PART:
                del known[part]
        return ids

    @cached_property
    def _known_parts(self) -> dict[str, list[int]]:
        """Ids of the words seen so far."""
        return {}

    @cached_property
    def _parts_words(self) -> bool:
        """Whether the tokenizer is certain to split a text before " a", whatever the context: GPT-2's rule (ByteLevel)."""
        parts = json.loads(self.tokenizer_json)
        *before, last = _pre_tokenizer_steps(parts["pre_tokenizer"])
        cuts = last.get("type") == "ByteLevel" and last.get("use_regex", True) and not last["add_prefix_space"]
        plain = parts["normalizer"] is None and not parts["model"].get("dropout")
        return cuts and plain and all(step["type"] == "Digits" for step in before)

    def decode(self, ids: list[int]) -> str:
        """The text of ids without special tokens, as people see it."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _encode(self, spans: list[Span]) -> Tokens:
        """Ids and mask of spans: an answer and its end token are trained, all other text is context."""
        tokens = Tokens([], [])
        for span in spans:
            tokens.add(self._text_ids(span.context), trained=False)
            if span.answer is not None:
                tokens.add([*self._continue(span.context, span.answer), self.end_id], trained=True)
            elif span.special is not None:
                tokens.add([span.special], trained=False)
        return tokens

    def _spans(self, messages: Messages, generation_prompt: bool) -> list[Span]:
        """The spans of a prompt, or of a conversation up to its last answer."""
        spans: list[Span] = []
        context = ""
        for text, message, special in self._layout(tuple(role for role, _ in messages), generation_prompt):
            if message is not None and messages[message][0] == "assistant":
                spans.append(Span(context, text + messages[message][1], None))
                context = ""
            elif message is not None:
                context += messages[message][1]
            else:
                context += text
                if special is not None:
                    spans.append(Span(context, None, special))
                    context = ""
        return [*spans, Span(context, None, None)]

    def _layout(self, roles: tuple[str, ...], generation_prompt: bool) -> list[tuple[str, int | None, int | None]]:
        """The rendered text of a sequence of roles, without contents: (text, message, special token that follows) in order.

        It omits the end tokens, which `_encode` adds after each answer, and whatever the template writes after the last answer.
        """
        cache = self.__dict__.setdefault("_layouts", {})
        if (roles, generation_prompt) not in cache:
            pieces = self._turns(roles, generation_prompt)
            layout: list[tuple[str, int | None, int | None]] = []
            for piece in pieces if generation_prompt else pieces[:-1]:
                if piece.message is not None:
                    layout.append((piece.text, piece.message, None))
                else:
                    layout += [(text, None, special) for text, special in self._cut(piece.text)]
            cache[roles, generation_prompt] = layout
        return cache[roles, generation_prompt]

    def _turns(self, roles: tuple[str, ...], generation_prompt: bool) -> list[Piece]:
        """The skeleton, in which white space before an answer belongs to the answer, and without end tokens after answers."""
        pieces = list(self._skeleton(roles, generation_prompt))
        for index, piece in enumerate(pieces[:-1]):
            if piece.message is not None and roles[piece.message] == "assistant":
                before = pieces[index - 1].text
                if before.endswith(self._lead):
                    pieces[index - 1] = Piece(before.removesuffix(self._lead), None)
                    pieces[index] = Piece(self._lead, piece.message)
                pieces[index + 1] = Piece(self._without_end(pieces[index + 1].text), None)
        return pieces

    def _require_insertion(self, messages: Messages, generation_prompt: bool) -> None:
        """Raises InputError when the template does anything but insert each content unchanged."""
        skeleton = self._skeleton(tuple(role for role, _ in messages), generation_prompt)
        if {piece.message for piece in skeleton} != {None, *range(len(messages))}:
            raise InputError(_OTHER_TEXT.format("leaves out"))
        if not self._inserts_only:
            pieces = (piece.text if piece.message is None else messages[piece.message][1] for piece in skeleton)
            if "".join(pieces) != self._render(messages, generation_prompt):
                raise InputError(_OTHER_TEXT.format("changes"))

    @cached_property
    def _inserts_only(self) -> bool:
        """Whether the template is known to insert all contents unchanged; conversations then need no rendering to check."""
        return inserts_only(self._environment.parse(self.template))

    @cached_property
    def _lead(self) -> str:
        """White space between a generation prompt and the answer (Llama 2, Mistral), which counts as part of the answer.

        Raises InputError when the template writes anything else there: generation would begin at another place than training.
        """
        prompt = self._skeleton(("user",), generation_prompt=True)[-1].text
        before_answer = self._skeleton(("user", "assistant"), generation_prompt=False)[-3].text
        lead = before_answer.removeprefix(prompt)
        if not before_answer.startswith(prompt) or lead.strip():
            raise InputError(_OTHER_PROMPT)
        return lead

    def _without_end(self, text: str) -> str:
        before, _, after = text.partition(self.end_token)
        return after if not before.strip() else text

    def _skeleton(self, roles: tuple[str, ...], generation_prompt: bool) -> list[Piece]:
        """The template's pieces for a sequence of roles, without contents; rendered once per sequence."""
        cache = self.__dict__.setdefault("_skeletons", {})
        if (roles, generation_prompt) not in cache:
            stand_ins = tuple((role, f"{_OPEN}{index}{_CLOSE}") for index, role in enumerate(roles))
            cache[roles, generation_prompt] = _split(self._render(stand_ins, generation_prompt))
        return cache[roles, generation_prompt]

    def _render(self, messages: Messages, generation_prompt: bool) -> str:
        import jinja2

        try:
            return self._compiled.render(
                messages=[{"role": role, "content": content} for role, content in messages],
                add_generation_prompt=generation_prompt,
                eos_token=self.eos_token,
                bos_token=self.bos_token,
                pad_token=self.pad_token,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise InputError(f"the chat template refuses the roles {[role for role, _ in messages]}: {error}") from None
        except (RecursionError, MemoryError) as error:
            raise InputError(f"the chat template needs more memory than is available ({type(error).__name__})") from None

    @cached_property
    def _compiled(self):
        return self._environment.from_string(self.template)

    @cached_property
    def _environment(self):
        """Jinja's sandbox, with the settings and helpers that chat templates are written for."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", generation_tag()]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        return environment

    def _text_ids(self, text: str) -> list[int]:
        """Ids of plain text; InputError if the vocabulary still turns it into a control token."""
        ids = self._ahead.get(text)
        if ids is None:
            ids = self._content_tokenizer.encode(text, add_special_tokens=False).ids if text else []
        if not self._control_ids.isdisjoint(ids):
            raise InputError(f"the tokenizer turns plain text into a control token: {text[:60]!r}")
        return ids

    @cached_property
    def _control_ids(self) -> set[int]:
        unknown = json.loads(self.tokenizer_json)["model"].get("unk_token")
        return {id for token, id in self.special_tokens.items() if token != unknown}

    def _continue(self, context: str, text: str) -> list[int]:
        """Ids of `text` when it follows `context`; the first piece of a word may depend on what precedes it."""
        before = self._text_ids(context)
        both = self._text_ids(context + text)
        return both[len(before) :] if both[: len(before)] == before else self._text_ids(text)

    def _cut(self, text: str) -> list[tuple[str, int | None]]:
        """Splits the template's own text after each special token: pairs (text before it, its id); the last has no id."""
        if not self.special_tokens:
            return [(text, None)]
        parts = re.split("(" + "|".join(map(re.escape, self.special_tokens)) + ")", text)
        pairs = zip(parts[::2], [*parts[1::2], None], strict=True)
        return [(before, None if token is None else self.special_tokens[token]) for before, token in pairs]

    def _id_of(self, token: str, role: str) -> int:
        id = self.tokenizer.token_to_id(token) if token else None
        if id is None:
            raise InputError(f"the tokenizer has no {role} ({token!r} is not in its vocabulary); set it in tokenizer_config.json")
        return id


def _pre_tokenizer_steps(pre_tokenizer: dict | None) -> list[dict]:
    """The steps of a pre-tokenizer in tokenizer.json; no pre-tokenizer counts as one empty step."""
    return pre_tokenizer["pretokenizers"] if pre_tokenizer and "pretokenizers" in pre_tokenizer else [pre_tokenizer or {}]


def _split(rendered: str) -> list[Piece]:
    """Splits a rendered skeleton at the marks of contents."""
    first, *rest = re.split(f"{_OPEN}([0-9]+){_CLOSE}", rendered)
    pieces = [Piece(first, None)]
    for index, text in zip(rest[::2], rest[1::2], strict=True):
        pieces += [Piece("", int(index)), Piece(text, None)]
    return pieces
