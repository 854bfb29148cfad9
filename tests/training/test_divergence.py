"""KL divergence from the reference: equal to the textbook formula in double precision; and its samples."""

import pytest
import torch
from support.policies import load_policy, random_rows, setting, train, with_sft_adapter

import dpo
from aligner.model.generation import end_ids
from aligner.model.loading import load_adapter, load_base
from aligner.training import divergence
from aligner.training.divergence import distance, divergences, kl_from_reference, sample


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return with_sft_adapter(tmp_path, monkeypatch)


def answers_of(rows):
    return [(row["prompt_ids"], row["chosen_ids"]) for row in rows]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_divergence_from_the_reference_is_the_textbook_s(workspace, batch_size):
    """sum_v p(v) log(p(v) / q(v)), one row at a time in double precision, over the chosen answers; no trace stays."""
    given, rows = setting(workspace), random_rows(9)
    policy = train(workspace, rows).model
    reference = load_adapter(load_base(given.params.model_entry, given.runtime), dpo.SFT_ADAPTER).eval()
    expected = [naive_divergence(policy.eval(), reference, row) for row in rows]
    policy.train()
    found = divergences(policy, dpo.SFT_ADAPTER, answers_of(rows), given.chat.pad_id, batch_size)
    assert found == pytest.approx(expected, rel=1e-4) and min(found) > 1e-3
    assert list(policy.peft_config) == ["default"] and policy.active_adapter == "default" and policy.training


def test_the_mean_is_per_token_of_all_answers_and_per_answer(monkeypatch):
    """Sums 1 and 5 over 2 and 4 tokens: 6 / 6 per token, 6 / 2 per answer, from 1 to 5. One answer has no interval."""
    monkeypatch.setattr(divergence, "divergences", lambda model, reference, answers, pad_id: [1.0, 5.0][: len(answers)])
    assert distance(None, dpo.SFT_ADAPTER, [([9], [1, 1]), ([9, 9], [1, 1, 1, 1])], 0) == [1.0, 3.0, 1.0, 5.0]
    assert distance(None, dpo.SFT_ADAPTER, [([9], [1, 1])], 0) == [0.5, 1.0, None, None]


def naive_divergence(policy, reference, row):
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(model(input_ids=ids).logits[0].double(), -1) for model in (policy, reference))
    each = (ours.exp() * (ours - theirs)).sum(-1)
    return each[len(row["prompt_ids"]) - 1 : -1].sum().item()


def test_the_reference_does_not_diverge_from_itself(workspace):
    given = setting(workspace)
    found = kl_from_reference(load_policy(given), dpo.SFT_ADAPTER, random_rows(5), given.chat, 17)
    assert [value for name, value in found.items() if name.startswith("kl")] == [pytest.approx(0, abs=1e-7)] * 5


def answer(policy, given, rows, longest, seed):
    ends = end_ids(given.chat)
    return sample(policy, [row["prompt_ids"] for row in rows], given.chat.pad_id, ends, longest, seed)


def test_samples_follow_the_seed_and_not_the_random_state_that_training_left(workspace):
    given, rows = setting(workspace), random_rows(9)
    policy = load_policy(given)
    policy.train()
    found = []
    for seed, left in ((17, 1), (17, 2), (18, 1)):
        torch.manual_seed(left)
        found.append(answer(policy, given, rows, 20, seed))
    assert found[0] == found[1] != found[2] and policy.training
    assert [prompt for prompt, _ in found[0]] == [row["prompt_ids"] for row in rows]


def test_samples_end_with_their_end_token_or_at_the_longest(workspace):
    """A random model samples all tokens about equally often: with many end tokens, some answers end and others are cut."""
    given, rows = setting(workspace), random_rows(40)
    ends = list(range(5, 60))
    drawn = sample(load_policy(given), [row["prompt_ids"] for row in rows], given.chat.pad_id, ends, 6, 17)
    ended = [ids for _, ids in drawn if ids[-1] in ends]
    assert 0 < len(ended) < len(drawn)
    assert all(1 <= len(ids) <= 6 and not set(ids[:-1]) & set(ends) for _, ids in drawn)
    assert all(len(ids) == 6 for _, ids in drawn if ids[-1] not in ends)


def test_samples_are_drawn_from_the_whole_distribution(workspace):
    """The frequencies of 2,000 first tokens after one prompt match the model's probabilities: chi-square over 8 classes."""
    given, prompt = setting(workspace), random_rows(1)[0]["prompt_ids"]
    policy = load_policy(given).eval()
    policy.get_base_model().generation_config.top_k = 3  # the model's own setting, which must have no effect
    drawn = sample(policy, [prompt] * 2000, given.chat.pad_id, end_ids(given.chat), 1, 17)
    with torch.no_grad():
        chances = torch.softmax(policy(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1)
    classes = torch.arange(len(chances)) % 8
    expected = torch.zeros(8, dtype=torch.float64).index_add(0, classes, chances) * 2000
    counts = torch.bincount(torch.tensor([ids[0] % 8 for _, ids in drawn]), minlength=8)
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # the 0.999 quantile with 7 degrees of freedom
    assert len({ids[0] for _, ids in drawn}) > 100


def test_sampled_answers_are_no_longer_than_held_out_ones_nor_than_there_is_room(workspace, monkeypatch):
    given, rows, asked = setting(workspace), random_rows(6), []
    policy, draw = load_policy(given), sample
    monkeypatch.setattr(divergence, "sample", lambda *arguments: asked.append(arguments[4]) or draw(*arguments))
    found = kl_from_reference(policy, dpo.SFT_ADAPTER, rows, given.chat, 17)
    prompts = max(len(row["prompt_ids"]) for row in rows)
    policy.config.max_position_embeddings = prompts + 2
    kl_from_reference(policy, dpo.SFT_ADAPTER, rows, given.chat, 17)
    assert asked == [max(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")), 2]
    assert 0 <= found["samples_cut"] <= 1
    policy.config.max_position_embeddings = prompts
    none = kl_from_reference(policy, dpo.SFT_ADAPTER, rows, given.chat, 17)
    assert [name for name, value in none.items() if value is not None] == ["kl_per_token_teacher_forced"]


def test_of_very_many_held_out_prompts_some_are_answered_from_all_over(workspace, monkeypatch):
    """Seven pairs and room for three: every third prompt."""
    monkeypatch.setattr(divergence, "MOST_SAMPLED", 3)
    given, rows, asked = setting(workspace), random_rows(7), []
    monkeypatch.setattr(divergence, "sample", lambda model, prompts, *rest: asked.extend(prompts) or [])
    kl_from_reference(load_policy(given), dpo.SFT_ADAPTER, rows, given.chat, 17)
    assert asked == [rows[place]["prompt_ids"] for place in (0, 3, 6)]
