"""src/chat.py in the terminal, and its votes: a conversation on a tiny model, every command, and what is refused."""

from __future__ import annotations

import io
import itertools
import json

import pytest
from support.workspace import Workspace

import chat
import votes
from aligner.judging.votes import read_votes
from aligner.report import blind
from aligner.run.errors import InputError
from aligner.serving import arena
from aligner.serving.models import with_temperature
from aligner.serving.terminal import Conversation

RUN = "ab" * 32


@pytest.fixture
def models(tmp_path, monkeypatch):
    changes = {"generate.max_new_tokens": 24, "generate.repetition_penalty": 1.5, "generate.no_repeat_ngram_size": 3}
    Workspace(tmp_path, monkeypatch, **changes).run("prepare")
    opened = chat.open_models()
    assert opened.names == ["base"]  # without adapters, only the base can be talked to
    opened.names.append("twin")  # a second name for the same model
    twin = opened.get("base")
    opened.load = lambda name: twin
    return opened


def talk(models, *lines: str) -> tuple[str, Conversation]:
    out = io.StringIO()
    conversation = Conversation(models, "base", out)
    conversation.run(lines)
    return out.getvalue(), conversation


def answer_to(models, *messages: tuple[str, str], penalty: float = 1.5) -> str:
    """The greedy answer as `generate` gives it: at once and without the streamer."""
    from aligner.model.generation import complete, end_index

    ids = models.chat.prompt(messages)
    new = complete(models.get("base"), [ids], models.chat.pad_id, models.settings, penalty)[0]
    return models.chat.decode(new[: end_index(new, models.settings.eos_token_id)])


def test_a_conversation_keeps_what_was_said_and_streams_the_greedy_answer(models):
    shown, conversation = talk(models, "What is the mean?\n", "And the mode?\n", "/quit\n", "never read\n")
    first = answer_to(models, ("user", "What is the mean?"))
    second = answer_to(models, ("user", "What is the mean?"), ("assistant", first.strip()), ("user", "And the mode?"))
    assert [text for role, text in conversation.said["base"] if role == "assistant"] == [first.strip(), second.strip()]
    assert [role for role, _ in conversation.said["base"]] == ["user", "assistant"] * 2
    assert "never read" not in str(conversation.said)
    assert shown.startswith("Talking to base.")


def test_an_answer_arrives_in_pieces_and_stops_when_the_reader_does(models):
    asked = (("user", "What is the mean?"),)
    pieces = list(models.stream("base", asked, 0.0))
    assert "".join(pieces).strip() == answer_to(models, *asked).strip()
    stream = models.stream("base", asked, 1.0)
    next(stream, None)
    stream.close()  # returns although the generation had not ended


def test_the_penalty_is_that_of_params_until_a_command_changes_it(models):
    asked = ("user", "What is the mean?")
    shown, conversation = talk(models, "/penalty 1", "What is the mean?")
    with_it, without = answer_to(models, asked), answer_to(models, asked, penalty=1)
    assert with_it != without  # among so many tokens of a random model some repeat
    assert conversation.said["base"][-1] == ("assistant", without.strip()) and "Penalty 1 (none)." in shown
    _, conversation = talk(models, "What is the mean?")
    assert conversation.said["base"][-1] == ("assistant", with_it.strip())


def test_commands(models):
    shown, conversation = talk(
        models, "/side-by-side", "What is the sum?", "/temperature 0.5", "/model twin", "/system Be short.", "/help"
    )
    assert "[base] " in shown and "[twin] " in shown and "Temperature 0.5." in shown and "/side-by-side" in shown
    assert conversation.active == ["twin"] and conversation.temperature == 0.5
    assert conversation.said == {"base": (("system", "Be short."),), "twin": (("system", "Be short."),)}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/model nobody", "nobody is not a model; there are base, twin"),
        ("/temperature hot", "must be a number from 0 to 5, not hot"),
        ("/temperature -1", "must be a number from 0 to 5"),
        ("/temperature nan", "must be a number from 0 to 5"),
        ("/penalty 0.5", "the penalty must be a number from 1 to 5, not 0.5"),
        ("/unknown", "/unknown is not a command"),
        ("word " * 600, "positions; begin a new conversation"),
    ],
)
def test_a_mistake_is_one_line_and_the_conversation_goes_on(models, line, reason):
    shown, conversation = talk(models, line, "What is the mean?")
    assert reason in shown
    assert len(conversation.said["base"]) == 2


def test_control_characters_of_a_model_do_not_reach_the_terminal(models):
    out = io.StringIO()
    conversation = Conversation(models, "base", out)
    conversation.write("\x1b[2J red")
    assert "\x1b" not in out.getvalue() and "red" in out.getvalue()


def test_temperature_zero_is_greedy(models):
    greedy, warm = with_temperature(models.settings, 0), with_temperature(models.settings, 0.5)
    assert not greedy.do_sample and warm.do_sample and warm.temperature == 0.5
    assert models.settings.do_sample is False  # the original is unchanged


def test_an_absent_adapter_names_the_command(models, monkeypatch):
    monkeypatch.setattr(chat, "open_models", lambda: models)
    with pytest.raises(InputError, match="dvc repro"):
        chat.main("dpo", None, chat.LOCAL)


# ---- Votes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["sft", "dpo"], ["base", "sft", "dpo"]])
def test_votes_of_the_page_are_read_by_votes_py(tmp_path, names):
    rows = []
    for number, choice in enumerate([*arena.LETTERS[: len(names)], "tie", "both bad"]):
        id = arena.prompt_id("What?", number)
        shown = arena.order(5, RUN, names, id)
        answers = {name: f"I am {name}" for name in names}
        cast = arena.votes(RUN, "ann", 5, id, "What?", answers, shown, choice)
        if choice in arena.LETTERS:
            best = shown[arena.LETTERS.index(choice)]
            assert [{"A": row["left_model"], "B": row["right_model"]}[row["verdict"]] for row in cast] == [best] * (
                len(names) - 1
            )
        else:
            assert [row["verdict"] for row in cast] == [choice] * len(list(itertools.combinations(names, 2)))
        rows += cast
    file = tmp_path / "votes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, problems = read_votes([str(file)], RUN, None)
    assert problems == [] and len(found) == len(rows)
    out = io.StringIO()
    assert votes.main(votes_arguments(file), out) == 0


def votes_arguments(file):
    import argparse

    return argparse.Namespace(files=[str(file)], run=RUN, pairs=None)


def test_the_order_depends_on_the_seed_and_for_two_models_is_that_of_the_votes():
    orders = {tuple(arena.order(seed, RUN, ["base", "sft", "dpo"], "x")) for seed in range(60)}
    assert len(orders) == 6
    assert arena.order(9, RUN, ["sft", "dpo"], "x") == list(blind.sides(9, RUN, ["sft", "dpo"], "x"))


def test_equal_answers_give_no_vote():
    answers = {"base": "same", "sft": "same", "dpo": "other"}
    cast = arena.votes(RUN, "ann", 1, "x", "What?", answers, ["base", "sft", "dpo"], "tie")
    assert {frozenset((row["left_model"], row["right_model"])) for row in cast} == {
        frozenset(("base", "dpo")),
        frozenset(("sft", "dpo")),
    }
