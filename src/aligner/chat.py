"""One renderer: messages to token ids and a loss mask, the same for training, generation and judging.

The chat template is the model's own (Jinja, sandboxed). Text of messages is never parsed for special tokens: a `</s>` that a
person typed stays four ordinary characters. A conversation is encoded in runs, cut at the template's special tokens and at the
start of each assistant turn, because that is where generation begins; so the ids of a training prompt are, to the byte, the ids
that generation starts from. No torch, no transformers: this module loads in a fifth of a second.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from aligner.errors import InputError

Messages = tuple[tuple[str, str], ...]

# For a model that brings no template (GPT-2, say). A prompt that ended in a space would cut the answer's first word in two.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)

# Stand-ins for contents while the template is rendered: private-use characters, which no sane text holds.
_OPEN, _CLOSE = "\ue000", "\ue001"

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
    """A part of the rendered text: the template's, or (with `message` set) the content of one message."""

    text: str
    message: int | None


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
        config = _read_object(folder / "tokenizer_config.json")
        tokenizer_json = _read(folder / "tokenizer.json")
        try:
            _tokenizer(tokenizer_json)
            tokens = {role: _token_text(config, role) for role in ("eos_token", "bos_token", "pad_token")}
            template = _template(folder, config, template_file)
        except InputError as error:
            raise InputError(f"{folder}: {error}. Copy or download the model's files again") from None
        eos = tokens["eos_token"] or _eos_of_model(folder, tokenizer_json)
        return cls(tokenizer_json, template, eos, tokens["bos_token"] or "", tokens["pad_token"] or eos)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that turns messages into ids; artefacts keep it, and the next stage compares."""
        parts = [self.tokenizer_json, self.template, self.eos_token, self.bos_token, self.pad_token]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def tokenizer(self):
        return _tokenizer(self.tokenizer_json)

    @cached_property
    def _content_tokenizer(self):
        """The same tokenizer without its added tokens: to it, `</s>` is text."""
        return _tokenizer(json.dumps(json.loads(self.tokenizer_json) | {"added_tokens": [], "post_processor": None}))

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
        return self._encode(messages, self._pieces(messages, generation_prompt=True)).ids

    def completion(self, messages: Messages, answer: str) -> list[int]:
        """Ids of the assistant's `answer` to `messages`, end token included: what follows `prompt(messages)`."""
        return self.conversation((*messages, ("assistant", answer))).ids[len(self.prompt(messages)) :]

    def conversation(self, messages: Messages) -> Tokens:
        """Ids of a whole conversation that ends with an assistant's turn, and which of them are trained.

        Raises InputError when its last answer does not stand behind the prompt that generation would begin from.
        """
        tokens, prompt = self._encode(messages, self._pieces(messages, generation_prompt=False)[:-1]), self.prompt(messages[:-1])
        if tokens.ids[: len(prompt)] != prompt:
            raise InputError(_OTHER_PROMPT)
        return tokens

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out, as shown to people."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _encode(self, messages: Messages, pieces: list[Piece]) -> Tokens:
        """Ids and mask of pieces: an answer is trained with its end token, all other text is context."""
        tokens, run = Tokens([], []), ""
        for piece in pieces:
            if piece.message is not None and messages[piece.message][0] == "assistant":
                tokens.add(self._text_ids(run), trained=False)
                tokens.add([*self._continue(run, piece.text), self.end_id], trained=True)
                run = ""
            elif piece.message is not None:
                run += piece.text
            else:
                for text, special in self._cut(piece.text):
                    run += text
                    if special is not None:
                        tokens.add([*self._text_ids(run), special], trained=False)
                        run = ""
        tokens.add(self._text_ids(run), trained=False)
        return tokens

    def _pieces(self, messages: Messages, generation_prompt: bool) -> list[Piece]:
        """The rendered text in pieces, without the end tokens that `_encode` adds behind each answer itself.

        Raises InputError when the template does other than insert each content.
        """
        skeleton = self._skeleton(tuple(role for role, _ in messages), generation_prompt)
        left_out = set(range(len(messages))) - {piece.message for piece in skeleton}
        pieces = [piece if piece.message is None else Piece(messages[piece.message][1], piece.message) for piece in skeleton]
        if left_out or "".join(piece.text for piece in pieces) != self._render(messages, generation_prompt):
            fault = "leaves out" if left_out else "changes"
            raise InputError(f"the chat template {fault} the text of a message; give models.<name>.chat_template a plainer one")
        for index, piece in enumerate(pieces[:-1]):
            if piece.message is not None and messages[piece.message][0] == "assistant":
                before = pieces[index - 1].text
                if before.endswith(self._lead):
                    pieces[index - 1] = Piece(before.removesuffix(self._lead), None)
                    pieces[index] = Piece(self._lead + piece.text, piece.message)
                pieces[index + 1] = Piece(self._without_end(pieces[index + 1].text), None)
        return pieces

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
        """The template in Jinja's sandbox, with the settings and helpers that chat templates are written for."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        return environment.from_string(self.template)

    def _text_ids(self, text: str) -> list[int]:
        """Ids of plain text; raises InputError if the vocabulary gives a control token for it all the same."""
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


def _tokenizer(tokenizer_json: str):
    """The tokenizer that a tokenizer.json describes, with nothing cut and nothing padded; InputError if it describes none."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # tokenizers raises no narrower class, whatever is wrong
        raise InputError(f"tokenizer.json describes no tokenizer ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _split(rendered: str) -> list[Piece]:
    """Cuts a rendered skeleton at its stand-ins."""
    first, *rest = re.split(f"{_OPEN}([0-9]+){_CLOSE}", rendered)
    pieces = [Piece(first, None)]
    for index, text in zip(rest[::2], rest[1::2], strict=True):
        pieces += [Piece("", int(index)), Piece(text, None)]
    return pieces


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _generation_tag():
    """`{% generation %}…{% endgeneration %}` marks the trained part in some templates; here it is simply passed through."""
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationTag


def _template(folder: Path, config: dict, template_file: str | None) -> str:
    """The template that params name, else the model's own, else the plain one."""
    if template_file:
        return _read(Path(template_file))
    if (folder / "chat_template.jinja").exists():
        return _read(folder / "chat_template.jinja")
    own = config.get("chat_template")
    if isinstance(own, list):
        named = [entry for entry in own if isinstance(entry, dict) and entry.get("name") == "default"]
        own = named[0].get("template") if named else None
    if not isinstance(own, str | None):
        raise InputError(f"tokenizer_config.json: chat_template must be a text, got {own!r:.60}")
    return own or PLAIN_TEMPLATE


def _token_text(config: dict, role: str) -> str | None:
    """A token of tokenizer_config.json, which spells it as a string or as an object with its content."""
    token = config.get(role)
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str | None) or isinstance(token, dict) and text is None:
        raise InputError(f"tokenizer_config.json: {role} must be a text, got {token!r:.60}")
    return text


def _eos_of_model(folder: Path, tokenizer_json: str) -> str:
    """The end token of a model whose tokenizer_config.json names none: by the id in config.json."""
    id = _read_object(folder / "config.json").get("eos_token_id")
    is_id = isinstance(id, int) and 0 <= id < 2**32
    token = _tokenizer(tokenizer_json).id_to_token(id) if is_id else None
    if token is None:
        raise InputError(f"{folder}: neither tokenizer_config.json nor config.json names an end token (eos_token)")
    return token


def _read_object(path: Path) -> dict:
    """The JSON object that a file of a model holds."""
    try:
        value = json.loads(_read(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}). Copy or download the model's files again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, not {value!r:.60}. Copy or download the model's files again")
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing; a model folder needs tokenizer.json, tokenizer_config.json and config.json"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error})") from None
