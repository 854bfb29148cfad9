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
/penalty P             on tokens that an answer already holds; 1 is none
/system TEXT           begin anew with a system message; without text: without one
/new                   begin anew
/help  /quit           (also Ctrl-D)"""
HIGHEST_TEMPERATURE = 5.0
HIGHEST_PENALTY = 5.0


class Conversation:
    """What has been said, by model, and the settings that commands change."""

    def __init__(self, models: Models, name: str, out: TextIO) -> None:
        self.models, self.out = models, out
        self.active = [name]
        self.temperature = float(models.settings.temperature) if models.settings.do_sample else 0.0
        self.penalty = models.penalty
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
            for piece in self.models.stream(name, asked, self.temperature, self.penalty):
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
            self.temperature = number_of(rest, "temperature", 0, HIGHEST_TEMPERATURE)
            return f"Temperature {self.temperature:g}" + (" (greedy)." if self.temperature == 0 else ".")
        if word == "/penalty":
            self.penalty = number_of(rest, "penalty", 1, HIGHEST_PENALTY)
            return f"Penalty {self.penalty:g}" + (" (none)." if self.penalty == 1 else ".")
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


def number_of(text: str, name: str, low: float, high: float) -> float:
    """The number of a command; InputError unless it lies between `low` and `high`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise InputError(f"the {name} must be a number from {low:g} to {high:g}, not {text.strip() or 'nothing'}")
    return value
