"""Log-probabilities of answers: by hand, and equal to those of one row at a time."""

import math

import pytest
import torch
from support.next_token import NextToken
from support.policies import load_policy, random_rows, setting, swapped, with_sft_adapter
from support.workspace import Workspace

from aligner.model.loading import load_base
from aligner.training.log_probs import log_probabilities


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return with_sft_adapter(tmp_path, monkeypatch)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_log_probabilities_by_hand(batch_size):
    """After the prompt 3, 0: chosen 1, 2 has 1/4 * 1/4, rejected 3 has 1/8; after 2: 2, 3 has 1/2 * 1/4, 0 has 1/8.

    Neither the prompt's probabilities count nor the padding's (token 0, of probability 1/2 after 0).
    """
    rows = [
        {"prompt_ids": [3, 0], "chosen_ids": [1, 2], "rejected_ids": [3]},
        {"prompt_ids": [2], "chosen_ids": [2, 3], "rejected_ids": [0]},
    ]
    model = NextToken()
    found = log_probabilities(model, rows, 0, batch_size)
    expected = [(1 / 16, 1 / 8), (1 / 8, 1 / 8)]
    assert [tuple(map(math.exp, pair)) for pair in found] == [pytest.approx(pair, rel=1e-6) for pair in expected]
    assert model.training is True


def naive(model, prompt, answer):
    """sum of log p(token | all before it), one row without padding, in double precision."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    chances = torch.log_softmax(logits, -1)
    return math.fsum(chances[len(prompt) + place - 1, token].item() for place, token in enumerate(answer))


@pytest.mark.parametrize("model", ["mini", "zephyr_llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_log_probabilities_equal_rows_one_at_a_time(tmp_path, monkeypatch, model, batch_size):
    given = setting(Workspace(tmp_path, monkeypatch, model=model))
    base, rows = load_base(given.params.model_entry, given.runtime).eval(), random_rows(10)
    found = log_probabilities(base, rows, given.chat.pad_id, batch_size)
    for row, (chosen, rejected) in zip(rows, found, strict=True):
        assert chosen == pytest.approx(naive(base, row["prompt_ids"], row["chosen_ids"]), rel=1e-6)
        assert rejected == pytest.approx(naive(base, row["prompt_ids"], row["rejected_ids"]), rel=1e-6)


def test_swapped_rows_have_swapped_log_probabilities(workspace):
    given, rows = setting(workspace), random_rows(9)
    policy = load_policy(given)
    plain, mirrored = (log_probabilities(policy, given_rows, given.chat.pad_id) for given_rows in (rows, swapped(rows)))
    assert [pair[::-1] for pair in mirrored] == [pytest.approx(pair, rel=1e-6) for pair in plain]
