"""Decides whether a chat template leaves message contents unchanged, and finds a model's template and end token."""

from __future__ import annotations

import json
from pathlib import Path

from aligner.run.errors import InputError

# For a model without a template, such as GPT-2. No prompt ends in a space, which would split the answer's first word in two.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


def build_tokenizer(tokenizer_json: str):
    """The tokenizer that a tokenizer.json describes, without truncation and padding; InputError if it describes none."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # tokenizers raises no narrower class
        raise InputError(f"tokenizer.json describes no tokenizer ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# ---- What a template can do to contents ---------------------------------------------------------------------------------

# Filters whose result depends on the role alone, and the attributes of a loop that depend on the position alone.
_FILTERS = frozenset(("capitalize", "count", "length", "lower", "title", "trim", "upper"))
_PLACES = frozenset(("first", "index", "index0", "last", "length", "revindex", "revindex0"))


def inserts_only(node, turn: str | None = None) -> bool:
    """Whether a template's statements only write contents unchanged, and everything else depends on the roles alone.

    `turn` is the name of the loop's message. In doubt the answer is no: such a template is rendered with every conversation,
    and the result is compared.
    """
    from jinja2 import nodes

    match node:
        case nodes.Template():
            return all(inserts_only(child) for child in node.body)
        case nodes.Output():
            return all(_is_inserted(child, turn) for child in node.nodes)
        case nodes.If():
            branches = [*node.body, *node.elif_, *node.else_]
            return _is_free(node.test, turn) and all(inserts_only(child, turn) for child in branches)
        case nodes.For(target=nodes.Name(name=name), iter=nodes.Name(name="messages"), test=None, else_=[], recursive=False):
            return turn is None and name != "loop" and all(inserts_only(child, name) for child in node.body)
    return isinstance(node, nodes.Break | nodes.Continue)


def _is_inserted(node, turn: str | None) -> bool:
    """Whether an expression writes whole contents, text that depends on no content, or a sequence of both."""
    from jinja2 import nodes

    match node:
        case nodes.Add():
            return _is_inserted(node.left, turn) and _is_inserted(node.right, turn)
        case nodes.Concat():
            return all(_is_inserted(child, turn) for child in node.nodes)
        case nodes.CondExpr():
            values = [node.expr1] if node.expr2 is None else [node.expr1, node.expr2]
            return _is_free(node.test, turn) and all(_is_inserted(child, turn) for child in values)
    return turn is not None and _field(node) == (turn, "content") or _is_free(node, turn)


def _is_free(node, turn: str | None) -> bool:
    """Whether an expression's value depends on no content."""
    from jinja2 import nodes

    match node:
        case nodes.Const() | nodes.TemplateData():
            return True
        case nodes.Name():
            return node.name not in ("messages", "loop", turn)
        case nodes.Getattr(node=nodes.Name(name="loop")):
            return node.attr in _PLACES
        case nodes.Getattr() | nodes.Getitem():
            return _field(node) in ((turn, "role"), ("messages", "role"))
        case nodes.Filter(node=nodes.Name(name="messages")):
            return node.name in ("count", "length")
        case nodes.Filter():
            known = node.name in _FILTERS and not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)
            return known and node.node is not None and _is_free(node.node, turn)
        case nodes.Test(args=[], kwargs=[], dyn_args=None, dyn_kwargs=None):
            return _is_free(node.node, turn)
        case nodes.Call(node=nodes.Name(name="raise_exception"), kwargs=[], dyn_args=None, dyn_kwargs=None):
            return all(_is_free(child, turn) for child in node.args)
        case nodes.Compare() | nodes.Operand() | nodes.BinExpr() | nodes.Not() | nodes.Concat() | nodes.CondExpr():
            return all(_is_free(child, turn) for child in node.iter_child_nodes())
    return False


def _field(node) -> tuple[str, str] | None:
    """(name, field) of `name.field` and `name['field']`; ('messages', field) of `messages[0]['field']`."""
    from jinja2 import nodes

    match node:
        case nodes.Getattr(node=nodes.Name(name=name), attr=field):
            return name, field
        case nodes.Getitem(node=nodes.Name(name=name), arg=nodes.Const(value=field)):
            return name, field
        case nodes.Getitem(node=nodes.Getitem(node=nodes.Name(name="messages"), arg=nodes.Const()), arg=nodes.Const(value=field)):
            return "messages", field
    return None


def raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def generation_tag():
    """`{% generation %}…{% endgeneration %}` marks the trained part in some templates; here its body is rendered as it is."""
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationTag


def template_of(folder: Path, config: dict, template_file: str | None) -> str:
    """The template that params.yaml names, else the model's own, else PLAIN_TEMPLATE."""
    if template_file:
        return read_text(Path(template_file))
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    own = config.get("chat_template")
    if isinstance(own, list):
        named = [entry for entry in own if isinstance(entry, dict) and entry.get("name") == "default"]
        own = named[0].get("template") if named else None
    if not isinstance(own, str | None):
        raise InputError(f"tokenizer_config.json: chat_template must be a text, got {own!r:.60}")
    return own or PLAIN_TEMPLATE


def token_text(config: dict, role: str) -> str | None:
    """A special token of tokenizer_config.json, where it is a string or an object with a `content`."""
    token = config.get(role)
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str | None) or isinstance(token, dict) and text is None:
        raise InputError(f"tokenizer_config.json: {role} must be a text, got {token!r:.60}")
    return text


def eos_of_model(folder: Path, tokenizer_json: str) -> str:
    """The end token of a model whose tokenizer_config.json names none: the token of eos_token_id in config.json."""
    id = read_object(folder / "config.json").get("eos_token_id")
    is_id = isinstance(id, int) and 0 <= id < 2**32
    token = build_tokenizer(tokenizer_json).id_to_token(id) if is_id else None
    if token is None:
        raise InputError(f"{folder}: neither tokenizer_config.json nor config.json names an end token (eos_token)")
    return token


def read_object(path: Path) -> dict:
    """The JSON object in a model's file; InputError if there is none."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). Copy or download the model's files again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, not {value!r:.60}. Copy or download the model's files again")
    return value


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing; a model folder needs tokenizer.json, tokenizer_config.json and config.json"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error})") from None
