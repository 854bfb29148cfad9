"""One renderer: messages to token ids and a loss mask, the same for training, generation and judging.

The chat template is the model's own (Jinja, sandboxed). Text of messages is never parsed for special tokens: a `</s>` that a
person typed stays four ordinary characters. A conversation is encoded in runs, cut at the template's special tokens and at the
start of each assistant turn, because that is where generation begins; so the ids of a training prompt are, to the byte, the ids
that generation starts from. `Chat.encode_ahead` makes many rows cheap and changes no id. No torch, no transformers: this module
loads in a fifth of a second.
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

Messages = tuple[tuple[str, str], ...]

# Before a space that stands behind a visible ASCII character and before a letter, no token of GPT-2's rule goes on.
_WORD_START = re.compile("(?<=[!-~])(?= [A-Za-z])")
# Words whose ids are remembered: a few megabytes. Longer ones are hardly met again.
MOST_KNOWN_PARTS = 2**16
LONGEST_KNOWN_PART = 64

# Stand-ins for contents while the template is rendered: private-use characters, which no sane text holds.
_OPEN, _CLOSE = "\ue000", "\ue001"

_OTHER_TEXT = "the chat template {} the text of a message; give models.<name>.chat_template a plainer one"
_OTHER_PROMPT = (
    "the chat template renders a prompt alone otherwise than before an answer, so that training would differ from use; "
    "give models.<name>.chat_template a plainer one"
)


class Tokens(NamedTuple):
    """`ids` of a conversation and, for each id, whether it is trained (assistant text and its end token)."""

    ids: list[int]
    trained: list[bool]

    def add(self, ids: list[int], trained: bool) -> None:
        self.ids.extend(ids)
        self.trained.extend([trained] * len(ids))


class Piece(NamedTuple):
    """A part of the rendered text: the template's, or (with `message` set) the content of one message behind that text."""

    text: str
    message: int | None


class Run(NamedTuple):
    """Text that is encoded at once, and what ends it: an answer, a special token of the template, or the end of all."""

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

        Raises InputError for files that are missing, no JSON, or not of the types that they should hold.
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
        """SHA-256 of everything that turns messages into ids; artefacts keep it, and the next stage compares."""
        parts = [self.tokenizer_json, self.template, self.eos_token, self.bos_token, self.pad_token]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def tokenizer(self):
        return build_tokenizer(self.tokenizer_json)

    @cached_property
    def _content_tokenizer(self):
        """The same tokenizer without its added tokens: to it, `</s>` is text."""
        return build_tokenizer(json.dumps(json.loads(self.tokenizer_json) | {"added_tokens": [], "post_processor": None}))

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text to id of the tokens that only the template may write, longest first."""
        added = [token for token in json.loads(self.tokenizer_json).get("added_tokens", []) if token["special"]]
        return {token["content"]: token["id"] for token in sorted(added, key=lambda token: -len(token["content"]))}

    @cached_property
    def pad_id(self) -> int:
        return self._id_of(self.pad_token, "pad_token")

    @cached_property
    def end_token(self) -> str:
        """What ends an assistant's turn: the first special token that the template writes behind one, else eos."""
        after = self._skeleton(("user", "assistant"), generation_prompt=False)[-1].text
        found = [(after.index(token), token) for token in self.special_tokens if token in after]
        return min(found)[1] if found else self.eos_token

    @cached_property
    def end_id(self) -> int:
        return self._id_of(self.end_token, "eos_token")

    def prompt(self, messages: Messages) -> list[int]:
        """Ids from which the assistant's next turn is generated; `messages` ends with a user's."""
        self._require_insertion(messages, generation_prompt=True)
        return self._encode(self._runs(messages, generation_prompt=True)).ids

    def completion(self, messages: Messages, answer: str) -> list[int]:
        """Ids of the assistant's `answer` to `messages`, end token included: what follows `prompt(messages)`."""
        return self.conversation((*messages, ("assistant", answer))).ids[len(self.prompt(messages)) :]

    def conversation(self, messages: Messages) -> Tokens:
        """Ids of a whole conversation that ends with an assistant's turn, and which of them are trained.

        Raises InputError when its last answer does not stand behind the prompt that generation would begin from.
        """
        self._require_insertion(messages, generation_prompt=False)
        self._require_insertion(messages[:-1], generation_prompt=True)
        runs, prompt = self._runs(messages, generation_prompt=False), self._runs(messages[:-1], generation_prompt=True)
        tokens = self._encode(runs)
        if [*runs[:-2], Run(runs[-2].context, None, None)] != prompt:
            ids = self._encode(prompt).ids
            if tokens.ids[: len(ids)] != ids:
                raise InputError(_OTHER_PROMPT)
        return tokens

    def encode_ahead(self, conversations: Iterable[Messages]) -> None:
        """Encodes the texts of these conversations together, for the calls that follow: a fraction of the work of one by one.

        A conversation that the template refuses is passed over; it is refused when it is asked for.
        """
        texts: dict[str, None] = {}
        for messages in conversations:
            with contextlib.suppress(InputError):
                for run in [*self._runs(messages, generation_prompt=False), *self._runs(messages[:-1], generation_prompt=True)]:
                    texts[run.context] = None
                    if run.answer is not None:
                        texts[run.context + run.answer] = None
        texts.pop("", None)
        self._ahead.clear()
        self._ahead.update(zip(texts, self._ids_of_all(texts), strict=True))

    @cached_property
    def _ahead(self) -> dict[str, list[int]]:
        """Texts that were encoded ahead, and their ids."""
        return {}

    def _ids_of_all(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of texts. Where no token joins two words each word is encoded once, and a text is its words' ids in a row."""
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
        """Words that were met, and their ids."""
        return {}

    @cached_property
    def _parts_words(self) -> bool:
        """Whether the tokenizer surely cuts a text before " a", whatever stands around it: GPT-2's rule, which ByteLevel is."""
        parts = json.loads(self.tokenizer_json)
        *before, last = _steps(parts["pre_tokenizer"])
        cuts = last.get("type") == "ByteLevel" and last.get("use_regex", True) and not last["add_prefix_space"]
        plain = parts["normalizer"] is None and not parts["model"].get("dropout")
        return cuts and plain and all(step["type"] == "Digits" for step in before)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out, as shown to people."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _encode(self, runs: list[Run]) -> Tokens:
        """Ids and mask of runs: an answer is trained with its end token, all other text is context."""
        tokens = Tokens([], [])
        for run in runs:
            tokens.add(self._text_ids(run.context), trained=False)
            if run.answer is not None:
                tokens.add([*self._continue(run.context, run.answer), self.end_id], trained=True)
            elif run.special is not None:
                tokens.add([run.special], trained=False)
        return tokens

    def _runs(self, messages: Messages, generation_prompt: bool) -> list[Run]:
        """What is encoded of a prompt, or of a conversation up to its last answer."""
        runs, context = [], ""
        for text, message, special in self._layout(tuple(role for role, _ in messages), generation_prompt):
            if message is not None and messages[message][0] == "assistant":
                runs.append(Run(context, text + messages[message][1], None))
                context = ""
            elif message is not None:
                context += messages[message][1]
            else:
                context += text
                if special is not None:
                    runs.append(Run(context, None, special))
                    context = ""
        return [*runs, Run(context, None, None)]

    def _layout(self, roles: tuple[str, ...], generation_prompt: bool) -> list[tuple[str, int | None, int | None]]:
        """The rendered text of a sequence of roles in order, without contents: (text, message, special token behind the text).

        It lacks the end tokens that `_encode` adds behind each answer itself, and what stands behind the last one.
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
        """The skeleton, with the template's white space before an answer made the answer's own and its end token left out."""
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
        """Raises InputError when the template does other than insert each content."""
        skeleton = self._skeleton(tuple(role for role, _ in messages), generation_prompt)
        if {piece.message for piece in skeleton} != {None, *range(len(messages))}:
            raise InputError(_OTHER_TEXT.format("leaves out"))
        if not self._inserts_only:
            pieces = (piece.text if piece.message is None else messages[piece.message][1] for piece in skeleton)
            if "".join(pieces) != self._render(messages, generation_prompt):
                raise InputError(_OTHER_TEXT.format("changes"))

    @cached_property
    def _inserts_only(self) -> bool:
        """Whether the template can be seen to insert contents as they are, whatever they are: then none need be rendered."""
        return inserts_only(self._environment.parse(self.template))

    @cached_property
    def _lead(self) -> str:
        """White space that the template writes between a generation prompt and the answer (Llama 2, Mistral): the answer's own.

        Raises InputError when anything else stands there: generation would begin elsewhere than training.
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
        """The template's pieces for a sequence of roles, contents left empty; rendered once per sequence."""
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
            raise InputError(f"the chat template needs more memory than there is ({type(error).__name__})") from None

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
        """Ids of plain text; raises InputError if the vocabulary gives a control token for it all the same."""
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
        """Ids of `text` as the tokenizer writes it behind `context` (a word's first piece may depend on what is before it)."""
        before = self._text_ids(context)
        both = self._text_ids(context + text)
        return both[len(before) :] if both[: len(before)] == before else self._text_ids(text)

    def _cut(self, text: str) -> list[tuple[str, int | None]]:
        """The template's own text, cut behind each special token: pairs (text before it, its id), the last one without id."""
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


def _steps(pre_tokenizer: dict | None) -> list[dict]:
    """A pre-tokenizer of tokenizer.json as a list of its steps; none is one empty step."""
    return pre_tokenizer["pretokenizers"] if pre_tokenizer and "pretokenizers" in pre_tokenizer else [pre_tokenizer or {}]


def _split(rendered: str) -> list[Piece]:
    """Cuts a rendered skeleton at its stand-ins."""
    first, *rest = re.split(f"{_OPEN}([0-9]+){_CLOSE}", rendered)
    pieces = [Piece(first, None)]
    for index, text in zip(rest[::2], rest[1::2], strict=True):
        pieces += [Piece("", int(index)), Piece(text, None)]
    return pieces
