"""A server for this machine: OpenAI's chat completions by `transformers serve`, and a page that asks several models at once.

transformers' own handler parses, generates and streams. Here are its limits, its models (by the names of this pipeline), the
encoding that was trained, and the page. Its routes that load or unload models are not there.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aligner.model.generation import answer_penalty
from aligner.report import blind
from aligner.run.errors import InputError
from aligner.serving import arena
from aligner.serving.models import Models, with_temperature
from aligner.serving.terminal import HIGHEST_PENALTY, HIGHEST_TEMPERATURE

HERE = Path(__file__).parent
PAGE_CSS = HERE.parent / "report" / "page.css"
NEEDS = ("fastapi", "uvicorn", "openai")  # transformers' handler asks for fastapi
MOST_BYTES = 65_536  # of a request
MOST_MESSAGES = 64
MOST_AT_ONCE = 8  # requests that wait or are answered; more are refused
LOCAL_NAMES = ["127.0.0.1", "localhost", "[::1]"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class Completion(Strict):
    """The fields of a chat completion that are served. Any other is refused, since ignoring it would change the meaning.

    repetition_penalty is no field of OpenAI's; by default it is that of params.yaml, like the temperature.
    """

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool = False
    stream_options: dict[str, bool] | None = None  # usage is always sent
    temperature: float | None = Field(None, ge=0, le=HIGHEST_TEMPERATURE)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, gt=0)
    max_completion_tokens: int | None = Field(None, gt=0)
    seed: int | None = None
    repetition_penalty: float | None = Field(None, ge=1, le=HIGHEST_PENALTY)

    def new_tokens(self, default: int) -> int:
        return self.max_completion_tokens or self.max_tokens or default


class Turn(Strict):
    """What the page asks before it shows answers to a prompt: in which order."""

    prompt: str = Field(min_length=1)
    number: int = Field(ge=0)
    seed: int = Field(ge=0, lt=blind.SEEDS)
    models: list[str] = Field(min_length=2, max_length=arena.MOST_MODELS)

    @property
    def id(self) -> str:
        return arena.prompt_id(self.prompt, self.number)


class Ballot(Turn):
    """A choice among the answers that were shown."""

    rater: str = Field(min_length=1, max_length=60)
    answers: dict[str, str]
    choice: Literal["A", "B", "C", "tie", "both bad"]


class Refused(Exception):
    """A request that is not answered: an HTTP status, and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def serve(models: Models, host: str, port: int) -> None:
    """Serves until Ctrl-C. Raises InputError if a package is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--serve needs {', '.join(missing)}. Run: pip install --requirement requirements.txt")
    import uvicorn

    address = f"http://{host}:{port}"
    print(f"{address} (the page), {address}/v1 (OpenAI's chat completions); Ctrl-C ends it", file=sys.stderr)
    uvicorn.run(build_app(models, host), host=host, port=port, log_level="warning", limit_concurrency=64)


def build_app(models: Models, host: str = LOCAL_NAMES[0]):
    """The application: a page, /v1/models, /v1/chat/completions, and the two questions of the page about votes."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def refused(request, error):
        return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=error.status)

    service = Service(models)
    routes = [
        Route("/", service.page, methods=["GET"]),
        Route("/v1/models", service.list_models, methods=["GET"]),
        Route("/v1/chat/completions", service.complete, methods=["POST"]),
        Route("/page/order", service.order, methods=["POST"]),
        Route("/page/vote", service.vote, methods=["POST"]),
    ]
    # Another site's page could reach a server of this machine under a name of its own that leads to 127.0.0.1.
    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_NAMES)] if host in LOCAL_NAMES else []
    return Starlette(routes=routes, middleware=guard, exception_handlers={Refused: refused})


class Service:
    """Answers the requests of `build_app`."""

    def __init__(self, models: Models) -> None:
        self.models, self.gate, self.handler = models, Gate(), chat_handler(models)
        settings = {name: getattr(models.settings, name) for name in ("temperature", "do_sample", "no_repeat_ngram_size")}
        settings["repetition_penalty"] = models.penalty
        self.run = arena.run_fingerprint({name: fingerprint(models.get(name)) for name in models.names}, settings)
        self.html, self.policy = page_of(models, self.run)

    async def page(self, request):
        from starlette.responses import HTMLResponse

        return HTMLResponse(self.html, headers={"Content-Security-Policy": self.policy, "X-Content-Type-Options": "nosniff"})

    async def list_models(self, request):
        from starlette.responses import JSONResponse

        found = [{"id": name, "object": "model", "created": 0, "owned_by": "aligner"} for name in self.models.names]
        return JSONResponse({"object": "list", "data": found})

    async def complete(self, request):
        asked = await read(request, Completion)
        check(self.models, asked)
        body = asked.model_dump(exclude_none=True)
        body["chat_template_kwargs"] = {"penalty": body.pop("repetition_penalty", self.models.penalty)}
        self.gate.enter()
        try:
            response = await self.handler.handle_request(body, f"chatcmpl-{self.gate.total}")
        except BaseException:
            self.gate.leave()
            raise
        return self.gate.until_sent(response)

    async def order(self, request):
        """The order in which the page shows the models' answers to a prompt."""
        from starlette.responses import JSONResponse

        turn = await read(request, Turn)
        known(self.models, turn.models)
        return JSONResponse({"order": arena.order(turn.seed, self.run, turn.models, turn.id)})

    async def vote(self, request):
        """The votes that follow from a choice on the page."""
        from starlette.responses import JSONResponse

        ballot = await read(request, Ballot)
        known(self.models, [*ballot.models, *ballot.answers])
        shown = arena.order(ballot.seed, self.run, ballot.models, ballot.id)
        if set(ballot.answers) != set(shown) or (ballot.choice == "C" and len(shown) < len(arena.LETTERS)):
            raise Refused(400, "a vote needs the answer of each model that was shown, and chooses one of them")
        cast = (self.run, ballot.rater, ballot.seed, ballot.id, ballot.prompt, ballot.answers, shown, ballot.choice)
        return JSONResponse({"shown": shown, "votes": arena.votes(*cast)})


# ---- Limits ----------------------------------------------------------------------------------------------------------


class Gate:
    """Counts the requests that wait or are answered."""

    def __init__(self) -> None:
        self.inside = self.total = 0

    def enter(self) -> None:
        if self.inside >= MOST_AT_ONCE:
            raise Refused(429, f"{self.inside} requests are being answered; ask again later")
        self.inside += 1
        self.total += 1

    def leave(self) -> None:
        self.inside -= 1

    def until_sent(self, response):
        """The response; its request leaves when the last byte is sent or the client is gone."""
        if not hasattr(response, "body_iterator"):
            self.leave()
            return response
        pieces = response.body_iterator

        async def watched():
            try:
                async for piece in pieces:
                    yield piece
            finally:
                await pieces.aclose()
                self.leave()

        response.body_iterator = watched()
        return response


async def read(request, kind: type[Any]):
    """The request's JSON as an object of `kind`; Refused with the reason for anything else."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "the content type must be application/json")  # a form of another site cannot send it
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise Refused(413, f"a request may have {MOST_BYTES:,} bytes")
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        problem = error.errors()[0]
        raise Refused(400, f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}") from None


def known(models: Models, names: list[str]) -> None:
    unknown = [name for name in names if name not in models.names]
    if unknown:
        raise Refused(404, f"{unknown[0]!r} is not a model here; there are {', '.join(models.names)}")


def check(models: Models, asked: Completion) -> None:
    """Refuses an unknown model, and a conversation and answer that exceed the model's positions or cannot be rendered."""
    known(models, [asked.model])
    messages = tuple((message.role, message.content) for message in asked.messages)
    try:
        models.encode(asked.model, messages, asked.new_tokens(models.settings.max_new_tokens))
    except InputError as error:
        raise Refused(400, str(error)) from None


# ---- transformers serve ----------------------------------------------------------------------------------------------


def chat_handler(models: Models):
    """transformers' handler of chat completions, for these models and their trained encoding."""
    import torch
    from transformers import BatchEncoding, PreTrainedTokenizerFast
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.utils import GenerationState

    chat = models.chat

    class TrainedTokenizer(PreTrainedTokenizerFast):
        """Encodes conversations as in training: special tokens that a person types stay text.

        The handler passes what this returns on to model.generate, so the penalty of an answer goes the same way.
        """

        def apply_chat_template(self, conversation, *args, **kwargs):
            ids = chat.prompt(tuple((message["role"], message["content"]) for message in conversation))
            inputs, processors = torch.tensor([ids]), answer_penalty(kwargs["penalty"], len(ids))
            return BatchEncoding({"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "logits_processor": processors})

    tokenizer = TrainedTokenizer(tokenizer_object=chat.tokenizer, eos_token=chat.end_token, pad_token=chat.pad_token)

    class Handler(ChatCompletionHandler):
        def _resolve_model(self, body):
            return body["model"], models.get(body["model"]), tokenizer

        def _build_generation_config(self, body, model_generation_config, use_cb=False):
            asked = Completion.model_validate({key: value for key, value in body.items() if key != "chat_template_kwargs"})
            default = float(models.settings.temperature) if models.settings.do_sample else 0.0
            temperature = default if asked.temperature is None else asked.temperature
            settings = with_temperature(models.settings, temperature, asked.top_p)
            settings.max_new_tokens = asked.new_tokens(settings.max_new_tokens)
            if asked.seed is not None:
                torch.manual_seed(asked.seed)
            return settings

    return Handler(ModelManager(), GenerationState())


def fingerprint(model) -> str:
    """SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ---- The page --------------------------------------------------------------------------------------------------------


def page_of(models: Models, run: str) -> tuple[str, str]:
    """The page, which loads nothing, and its policy: its own style and script, and requests to this server."""
    script = (HERE / "server.js").read_text(encoding="utf-8")
    style = PAGE_CSS.read_text(encoding="utf-8") + (HERE / "server.css").read_text(encoding="utf-8")
    data = json.dumps({"models": models.names, "run": run, "most": arena.MOST_MODELS})
    page = (HERE / "server.html").read_text(encoding="utf-8")
    for mark, text in (("/* style */", style), ("/* data */", data.replace("<", "\\u003c")), ("/* script */", script)):
        page = page.replace(mark, text)
    own = f"style-src 'sha256-{_sha256(style)}'; script-src 'sha256-{_sha256(script)}'"
    rest = "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return page, f"default-src 'none'; {own}; {rest}"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
