"""Likelihood: perplexity and bits per byte by hand, for any batch size, and the bytes of answers."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.next_token import NextToken
from support.workspace import Workspace

from aligner.model.loading import load_base, load_chat
from aligner.run import params as parameters
from aligner.training import likelihood, padding_free

MODELS = ["mini", "zephyr_llama", "qwen2", "gpt2"]
ANSWERS = ["The mean is 3.5.", " Zwölf Äpfel, naïve:\n- 2 × 3 = 6 ≠ 7", "概率 🎲 is a chance", "</s> typed by hand <|end|>"]
SMALL = [
    {"input_ids": [0, 1], "labels": [-100, 1]},
    {"input_ids": [2, 2, 3, 3, 0], "labels": [-100, 2, 3, -100, 0]},
    {"input_ids": [1, 0, 3], "labels": [-100, 0, 3]},
]


def entry_of(tmp_path, monkeypatch, model):
    """The model's entry of params.yaml in a workspace with this model."""
    Workspace(tmp_path, monkeypatch, model=model)
    return parameters.load(["model", "models.${model}"]).model_entry


def chat_of(tmp_path, monkeypatch, model):
    return load_chat(entry_of(tmp_path, monkeypatch, model))


def row_of(chat, *turns):
    """A row as prepare writes it: a conversation of questions and trained answers."""
    roles = ("user", "assistant") * len(turns)
    tokens = chat.conversation(tuple(zip(roles, turns, strict=False)))
    return {
        "input_ids": tokens.ids,
        "labels": [id if own else -100 for id, own in zip(tokens.ids, tokens.trained, strict=True)],
    }


# ---- Formulas -------------------------------------------------------------------------------------------------------


def test_perplexity_and_bits_by_hand():
    """8 ln 2 nats over 4 tokens: perplexity 2^2 = 4. Of these, 6 ln 2 nats on 3 bytes of text: 2 bits per byte."""
    measured = {"validation_loss": 2 * math.log(2), "token_accuracy": 1.0, "text_nats": 6 * math.log(2)}
    assert likelihood.perplexity_and_bits(measured, 3) == {"perplexity": 4.0, "bits_per_byte": 2.0}


def test_bits_per_byte_of_no_text_are_undefined():
    measured = {"validation_loss": 1.0, "token_accuracy": 1.0, "text_nats": 0.0}
    assert likelihood.perplexity_and_bits(measured, 0) == {"perplexity": 2.7183, "bits_per_byte": None}


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_perplexity_weighs_tokens_whatever_the_batches(batch_size):
    """Chances 1/4 | 1/2, 1/4, 1/4 | 1/4, 1/8 of six tokens: exp((ln 4 + ln 2 + 2 ln 4 + ln 4 + ln 8) / 6) = 2^(12/6) = 4."""
    measured = likelihood.measure(NextToken(), SMALL, 0, {3}, batch_size)
    assert math.exp(measured["validation_loss"]) == pytest.approx(4, rel=1e-6)


def test_special_tokens_count_for_perplexity_and_not_for_bits():
    """Token 3 is special: its ln 4 and ln 8 do not count as text, which leaves ln 4, ln 2, ln 4, ln 4."""
    with_ends, without = (likelihood.measure(NextToken(), SMALL, 0, special) for special in ({3}, set()))
    assert with_ends["validation_loss"] == without["validation_loss"]
    assert with_ends["text_nats"] == pytest.approx(7 * math.log(2), rel=1e-6)
    assert without["text_nats"] == pytest.approx(12 * math.log(2), rel=1e-6)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
@settings(deadline=None)
def test_answers_are_the_runs_of_labels(own):
    labels = [7 if each else -100 for each in own]
    spans = list(likelihood.answers_in(labels))
    assert [place for start, end in spans for place in range(start, end)] == [place for place, each in enumerate(own) if each]
    assert all(end < start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


TWO_ROWS = [
    {"input_ids": [0, 0], "labels": [-100, 0]},
    {"input_ids": [1, 2, 3, 3], "labels": [-100, 2, 3, 3]},
]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_measure_by_hand(batch_size):
    """Probabilities 1/2 | 1/4, 1/4, 3/8 of four tokens: loss (ln 2 + 2 ln 4 + ln 8/3) / 4, not the mean of the two rows.

    Token 3 is special; the text tokens 0 and 2 have ln 2 + ln 4 nats.

    The likeliest next tokens are 0 after 0 (right), 0 after 1 (wrong), 2 after 2 (wrong), 3 after 3 (right): 2 of 4.
    """
    model = NextToken()
    measured = likelihood.measure(model, TWO_ROWS, 0, {3}, batch_size)
    loss = (math.log(2) + 2 * math.log(4) + math.log(8 / 3)) / 4
    nats = pytest.approx(math.log(2) + math.log(4), rel=1e-6)
    assert measured == {"validation_loss": pytest.approx(loss, rel=1e-6), "token_accuracy": 0.5, "text_nats": nats}
    assert model.training is True


def test_measure_counts_labelled_tokens_alone():
    """Of 1, 2, 3, 3 only the last 3 counts: its probability is 3/8, and it is the likeliest."""
    measured = likelihood.measure(NextToken(), [{"input_ids": [1, 2, 3, 3], "labels": [-100, -100, -100, 3]}], 0, set())
    nats = pytest.approx(math.log(8 / 3), rel=1e-6)
    assert measured == {"validation_loss": nats, "token_accuracy": 1, "text_nats": nats}


def test_supervised_counts_labels():
    """2 + 0 + 3 tokens have a label."""
    rows = [{"labels": [-100, 7, 0]}, {"labels": [-100, -100]}, {"labels": [1, 1, 1]}]
    assert [likelihood.supervised(rows), likelihood.supervised([])] == [5, 0]


# ---- Bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_bytes_are_those_of_the_answer_as_it_was_written(tmp_path, monkeypatch, model, answer):
    """Neither the question nor a special token adds bytes; special tokens that somebody typed are text."""
    chat = chat_of(tmp_path, monkeypatch, model)
    row = row_of(chat, "What is ä?", answer)
    written = chat.decode([label for label in row["labels"] if label != -100 and label not in likelihood.special_ids(chat)])
    assert written.strip() == answer.strip(), "the tokenizer is not lossless: choose another answer"
    assert likelihood.text_bytes([row], chat) == len(answer.encode())


@pytest.mark.parametrize("model", MODELS)
def test_bytes_of_several_turns_and_rows_add_up(tmp_path, monkeypatch, model):
    chat = chat_of(tmp_path, monkeypatch, model)
    rows = [row_of(chat, "One?", "It is one.", "Two?", "It is two, ja."), row_of(chat, "Three?", "Drei.")]
    assert likelihood.text_bytes(rows, chat) == sum(map(len, ("It is one.", "It is two, ja.", "Drei.")))
    assert likelihood.text_bytes([], chat) == 0


@pytest.mark.parametrize("model", MODELS)
def test_end_tokens_are_special_and_words_are_not(tmp_path, monkeypatch, model):
    chat = chat_of(tmp_path, monkeypatch, model)
    row = row_of(chat, "What?", "The mean of the sum")
    special = likelihood.special_ids(chat)
    assert chat.end_id in special and row["labels"][-1] == chat.end_id
    assert special.isdisjoint(label for label in row["labels"][:-1])


# ---- Both ways of measuring -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_padding_free_forward_measures_the_same(tmp_path, monkeypatch, model):
    entry, special = entry_of(tmp_path, monkeypatch, model), {5, 9, 11}
    chat = load_chat(entry)
    base = load_base(entry, SimpleNamespace(device="cpu", dtype=torch.float32)).requires_grad_(False)
    rows = [row_of(chat, f"What is the {word}?", f"The {word} is it." * repeat) for word, repeat in (("mean", 1), ("sum", 4))]
    assert padding_free.can_unpad(base, gradient_checkpointing=False)
    slow, fast = (likelihood.measure(base, rows, chat.pad_id, special, unpadded=wanted) for wanted in (False, True))
    assert fast == pytest.approx(slow, rel=1e-4)
