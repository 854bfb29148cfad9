"""chat: talk to base, sft and dpo, in the terminal or through a server with a web page.

reads   the base model, the adapters, data/prepared/chat.json, params.yaml (generate, seed, the model's entry)
command python src/chat.py dpo                    a conversation; /help lists the commands
        python src/chat.py --serve 8080           http://127.0.0.1:8080: a page, and OpenAI's chat completions under /v1

Answers use the chat template that was trained with and the decoding of params.yaml, as those of the report do, unless a command
or a request says otherwise. The server answers this machine only (--host changes this: it asks for no password).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from aligner.files import read_json
from aligner.model import runtime
from aligner.model.loading import PREPARED_CHAT, check_chat, load_chat
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.serving.models import Models
from aligner.serving.terminal import Conversation
from generate import OF_FIVE_STAGES, PARAMS, adapter_of, generation_settings, load_model, trained

LOCAL = "127.0.0.1"


def main(name: str | None, port: int | None, host: str) -> None:
    models = open_models()
    if port is not None:
        from aligner.serving.server import serve

        serve(models, host, port)
    else:
        chosen = name or [each for each in models.names if each in OF_FIVE_STAGES][-1]
        if chosen not in models.names:
            raise InputError(
                f"there is no adapter in {adapter_of(chosen)} (there are: {', '.join(models.names)}). Run: dvc repro"
            )
        models.get(chosen)
        Conversation(models, chosen, sys.stdout).run(typed_lines() if sys.stdin.isatty() else sys.stdin)


def open_models() -> Models:
    """The base and each model whose adapter is there."""
    params = parameters.load(PARAMS)
    started = runtime.start(params.model_entry, params.seed)
    chat = load_chat(params.model_entry)
    if PREPARED_CHAT.is_file():
        check_chat(chat, read_json(PREPARED_CHAT))
    return Models(
        trained(),
        chat,
        lambda name: load_model(params.model_entry, started, chat, adapter_of(name)),
        generation_settings(params.generate, chat),
        params.generate.repetition_penalty,
    )


def typed_lines() -> Iterator[str]:
    """Lines from the keyboard, with the terminal's own editing and history."""
    import contextlib

    with contextlib.suppress(ImportError):  # Windows has no readline
        import readline  # noqa: F401
    while True:
        try:
            yield input()
        except EOFError:
            return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model",
        nargs="?",
        help="whom to talk to: base, sft, dpo, or another folder of models/; default: the last of the three that is there",
    )
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve instead of a conversation")
    parser.add_argument("--host", default=LOCAL, help=f"the address to serve on; default: {LOCAL}, this machine only")
    arguments = parser.parse_args()
    try:
        main(arguments.model, arguments.serve, arguments.host)
    except (InputError, OSError) as error:
        sys.exit(f"chat: {error}")
