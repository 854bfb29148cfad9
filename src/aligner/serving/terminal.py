"""A conversation in the terminal: lines in, streamed answers out.

    Conversation(models, "dpo", out).run(lines)

Each model keeps its own conversation: with /side-by-side several models answer the same message, each after its own answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TextIO

from aligner.model.chat import Messages
from aligner.run.errors import InputError
from aligner.run.terminal import printable_lines
from aligner.serving.models import Models

HELP = """\
/model NAME            talk to another model: {names}
/side-by-side NAMES    several models answer each message; without names: all of them
/temperature T         0 is greedy, 1 the model's own distribution
/system TEXT           begin anew with a system message; without text: without one
/new                   begin anew
/help  /quit           (also Ctrl-D)"""
HIGHEST_TEMPERATURE = 5.0


class Conversation:
    """What has been said, by model, and the settings that commands change."""

    def __init__(self, models: Models, name: str, out: TextIO) -> None:
        self.models, self.out = models, out
        self.active = [name]
        self.temperature = float(models.settings.temperature) if models.settings.do_sample else 0.0
        self.begin()

    def begin(self, system: str = "") -> None:
        self.said: dict[str, Messages] = {name: ((("system", system),) if system else ()) for name in self.models.names}

    def run(self, lines: Iterable[str]) -> None:
        """Answers each line, until /quit or the last line."""
        self.write(f"Talking to {', '.join(self.active)}. /help lists the commands.\n")
        for line in self.prompted(lines):
            text = line.strip()
            try:
                if text == "/quit":
                    return
                if text.startswith("/"):
                    self.write(self.command(*text.partition(" ")[::2]) + "\n")
                elif text:
                    self.answer(text)
            except InputError as error:
                self.write(f"{error}\n")
            except KeyboardInterrupt:
                self.write("\n(stopped)\n")

    def prompted(self, lines: Iterable[str]):
        """The lines, with a prompt before each."""
        iterator = iter(lines)
        while True:
            self.write("> ")
            try:
                line = next(iterator, None)
            except KeyboardInterrupt:
                line = None
            if line is None:
                self.write("\n")
                return
            yield line

    def answer(self, text: str) -> None:
        """Streams each active model's answer and keeps it. An answer that was stopped or refused is not kept."""
        for name in self.active:
            if len(self.active) > 1:
                self.write(f"[{name}] ")
            asked: Messages = (*self.said[name], ("user", text))
            answer = ""
            for piece in self.models.stream(name, asked, self.temperature):
                answer += piece
                self.write(piece)
            self.write("\n")
            self.said[name] = (*asked, ("assistant", answer.strip()))

    def command(self, word: str, rest: str) -> str:
        """Carries out a command and returns what to say."""
        if word == "/model":
            self.active = self.known([rest.strip()])
            return f"Talking to {self.active[0]}."
        if word == "/side-by-side":
            self.active = self.known(rest.replace(",", " ").split() or self.models.names)
            return f"{', '.join(self.active)} answer each message."
        if word == "/temperature":
            self.temperature = temperature_of(rest)
            return f"Temperature {self.temperature:g}" + (" (greedy)." if self.temperature == 0 else ".")
        if word in ("/new", "/system"):
            self.begin(rest.strip() if word == "/system" else "")
            return "A new conversation."
        if word == "/help":
            return HELP.format(names=", ".join(self.models.names))
        raise InputError(f"{word} is not a command; /help lists them")

    def known(self, names: list[str]) -> list[str]:
        unknown = [name for name in names if name not in self.models.names]
        if unknown:
            raise InputError(f"{unknown[0] or 'nothing'} is not a model; there are {', '.join(self.models.names)}")
        return list(dict.fromkeys(names))

    def write(self, text: str) -> None:
        """Shows text at once; a model's control characters are escaped."""
        encoding = self.out.encoding or "utf-8"
        self.out.write(printable_lines(text).encode(encoding, "backslashreplace").decode(encoding))
        self.out.flush()


def temperature_of(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= HIGHEST_TEMPERATURE:
        raise InputError(f"the temperature must be a number from 0 to {HIGHEST_TEMPERATURE:g}, not {text.strip() or 'nothing'}")
    return value
