"""dpo: rewards, losses and gradients against the golden cases, against plain arithmetic, and against TRL's own trainer."""

import csv
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shelf, trajectories
from support.golden import DPO_REWARDS as GOLDEN
from support.next_token import NextToken
from support.workspace import Workspace, pair_rows

import dpo
from aligner import intervals
from aligner.model import runtime
from aligner.model.generation import end_ids
from aligner.model.loading import base_fingerprint, load_adapter, load_base, load_chat, save_adapter
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.training import divergence, likelihood
from aligner.training.divergence import distance, divergences, kl_from_reference, sample
from aligner.training.log_probs import log_probabilities
from aligner.training.loop import observe
from aligner.training.preferences import (
    RANKING_COLUMNS,
    dpo_figures,
    mcnemar,
    preference_health,
    preference_metrics,
    ranking_rows,
    rankings,
)
from aligner.training.setup import trainer_tokenizer, training_arguments

NAMES = {
    "validation_loss": "loss",
    "validation_reward_chosen": "reward_chosen",
    "validation_reward_rejected": "reward_rejected",
    "validation_margin": "margin",
    "validation_accuracy": "correct",
    "validation_logp_chosen": "policy_chosen",
    "validation_logp_rejected": "policy_rejected",
}
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "provenance.json"}
LN_2 = pytest.approx(math.log(2), abs=1e-6)
PINNED = {
    **trajectories.settings("dpo"),
    "dpo.beta": 0.1,
    "dpo.loss_type": "sigmoid",
    "dpo.label_smoothing": 0,
    "dpo.sft_weight": 0,
    "dpo.max_grad_norm": 0.7,
    "models.mini.dpo.learning_rate": 0.005,
}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace with an SFT adapter of random weights: a policy of its own, far from the base."""
    return Workspace.copy(shelf.built("dpo-begin", begin), tmp_path, monkeypatch)


def begin(folder):
    with pytest.MonkeyPatch.context() as patch:
        write_sft_adapter(setting(Workspace(folder, patch, **PINNED)))


def setting(workspace, **changes):
    """params as the stage sees them, and what main makes of them before it trains."""
    workspace.params.update(changes)
    params = parameters.load(dpo.PARAMS)
    return SimpleNamespace(
        params=params, runtime=runtime.start(params.model_entry, params.seed), chat=load_chat(params.model_entry)
    )


def write_sft_adapter(given):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=2, lora_dropout=0.1, target_modules="all-linear", init_lora_weights=False
    )
    model = get_peft_model(load_base(given.params.model_entry, given.runtime), config)
    save_adapter(model, dpo.SFT_ADAPTER, given.params.model_entry.path, provenance_of(given))


def provenance_of(given):
    return {"base": base_fingerprint(given.params.model_entry), "chat": given.chat.fingerprint}


def load_policy(given):
    base = load_base(given.params.model_entry, given.runtime)
    return load_adapter(base, dpo.SFT_ADAPTER, trainable=True)


def build(workspace, rows, reference=None, **changes):
    """The trainer as main builds it, its reference the policy at the start unless another is given."""
    given = setting(workspace, **changes)
    policy = load_policy(given)
    if reference is None:
        reference = log_probabilities(policy, rows, given.chat.pad_id)
    return dpo.build_trainer(given.params, given.runtime, given.chat, policy, rows, reference)


def train(workspace, rows, **changes):
    trainer = build(workspace, rows, **changes)
    observe(trainer, "dpo", 1, 1000, dict)
    trainer.train()
    return trainer


def random_rows(n, seed=0):
    source = random.Random(seed)

    def ids(most):
        return [source.randrange(5, 300) for _ in range(source.randrange(2, most))]

    return [{"id": f"r{n}", "prompt_ids": ids(12), "chosen_ids": [*ids(12), 1], "rejected_ids": [*ids(16), 1]} for n in range(n)]


def swapped(rows):
    return [{**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in rows]


def adapter_of(trainer):
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(trainer.model).items()}


# ---- Rewards, margins and losses ------------------------------------------------------------------------------------


def measured(cases, beta):
    policy = [(case["policy_chosen"], case["policy_rejected"]) for case in cases]
    reference = [(case["ref_chosen"], case["ref_rejected"]) for case in cases]
    return preference_metrics(policy, reference, beta)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"margin {case['margin']:g}")
def test_golden_pair(case):
    found = measured([case], case["beta"])
    assert {NAMES[name]: found[name] for name in NAMES} == {
        name: pytest.approx(case[name], rel=1e-12, abs=1e-12) for name in NAMES.values()
    }
    assert found["chosen_fell"] == (case["chosen_logp_drop"] > 0)


def test_golden_pairs_together_are_the_mean_of_each():
    cases = [case for case in GOLDEN if case["beta"] == 0.1]
    found = measured(cases, 0.1)
    for name, golden in NAMES.items():
        assert found[name] == pytest.approx(math.fsum(case[golden] for case in cases) / len(cases), rel=1e-12)
    assert found["chosen_fell"] == sum(case["chosen_logp_drop"] > 0 for case in cases) / len(cases)


def test_a_margin_of_exactly_zero_counts_as_one_half():
    """Margins +0.1, 0, 0 and -0.1 at beta 0.1: (1 + 1/2 + 1/2 + 0) / 4 = 0.5."""
    policy = [(-9, -10), (-10, -10), (-12, -12), (-11, -10)]
    assert preference_metrics(policy, [(-10, -10)] * 4, 0.1)["validation_accuracy"] == 0.5


LOG_PROBABILITIES = st.lists(st.tuples(*[st.integers(-4000, 0).map(lambda n: n / 8)] * 4), min_size=1, max_size=12)


@given(LOG_PROBABILITIES, st.sampled_from([0.0625, 0.5, 1]))
@settings(deadline=None)
def test_swapping_chosen_and_rejected_mirrors_the_measures(pairs, beta):
    """loss(margin) - loss(-margin) = -margin: softplus(-m) - softplus(m) = -m."""
    policy, reference = ([(p[i], p[i + 1]) for p in pairs] for i in (0, 2))
    mirrored_policy, mirrored_reference = ([pair[::-1] for pair in side] for side in (policy, reference))
    one, other = (
        preference_metrics(policy, reference, beta),
        preference_metrics(mirrored_policy, mirrored_reference, beta),
    )
    assert other["validation_margin"] == pytest.approx(-one["validation_margin"], abs=1e-9)
    assert other["validation_accuracy"] == pytest.approx(1 - one["validation_accuracy"])
    assert other["validation_reward_chosen"] == one["validation_reward_rejected"]
    assert other["validation_logp_rejected"] == one["validation_logp_chosen"]
    assert one["validation_loss"] - other["validation_loss"] == pytest.approx(-one["validation_margin"], abs=1e-9)


def test_brier_and_log_loss_by_hand():
    """Margins ln 3, 0, -ln 3 forecast 3/4, 1/2, 1/4: brier (1/16 + 4/16 + 9/16) / 3 = 7/24, loss (ln 4/3 + ln 2 + ln 4) / 3."""
    policy = [(-5, -5 - math.log(3)), (-5, -5), (-5 - math.log(3), -5)]
    found = preference_metrics(policy, [(-5, -5)] * 3, 1)
    assert found["validation_brier"] == pytest.approx(7 / 24)
    assert found["validation_loss"] == pytest.approx((math.log(4 / 3) + math.log(2) + math.log(4)) / 3)


@given(LOG_PROBABILITIES, st.sampled_from([0.0625, 0.5, 1]))
@settings(deadline=None)
def test_a_forecast_and_its_mirror(pairs, beta):
    """With s = sigmoid(m): (1 - s)^2 - s^2 = 1 - 2 s, so that brier - mirrored brier = mean(1 - 2 s); each is in [0, 1]."""
    policy, reference = ([(p[i], p[i + 1]) for p in pairs] for i in (0, 2))
    one = preference_metrics(policy, reference, beta)["validation_brier"]
    other = preference_metrics([p[::-1] for p in policy], [r[::-1] for r in reference], beta)["validation_brier"]
    margins = [beta * (p[0] - r[0] - p[1] + r[1]) for p, r in zip(policy, reference, strict=True)]
    assert one - other == pytest.approx(math.fsum(-math.tanh(m / 2) for m in margins) / len(margins), abs=1e-9)
    assert 0 <= one <= 1


def test_a_policy_that_is_its_reference_forecasts_nothing():
    pairs = [(-3.5, -7.25), (-11, -2), (-4, -4)]
    found = preference_metrics(pairs, pairs, 0.1)
    assert (found["validation_brier"], found["validation_loss"]) == (0.25, math.log(2))


KL = {"kl_per_token_teacher_forced": 0.01234, "kl_per_token_sampled": 0.02, "samples_cut": 0.25}
FIT = {"perplexity": 3.5, "bits_per_byte": 0.75}
RANKS = {"whole answer": {"dpo": [1.0, 0.5, 0.5]}, "per token": {"dpo": [1.0, 1.0, 1.0]}}


def test_summary_counts_and_rounds():
    """Chosen longer, as long, shorter: (1 + 1/2 + 0) / 3 = 0.5; Wilson of 3 of 3 from 3 / (3 + 1.96^2); four decimals.

    The chosen answers gain 3 nats on 3 + 2 + 1 tokens, 0.5 a token.
    """
    rows = [{"chosen_ids": [1] * chosen, "rejected_ids": [1] * 2} for chosen in (3, 2, 1)]
    numbers = dpo_figures(preference_metrics([(-1, -2.5)] * 3, [(-2, -2.5)] * 3, 0.1), RANKS, KL, FIT, rows)
    loss, brier = round(math.log1p(math.exp(-0.1)), 4), round((1 - 1 / (1 + math.exp(-0.1))) ** 2, 4)
    assert numbers == {
        "validation_loss": loss,
        "brier": brier,
        "reward_accuracy": 1,
        "reward_accuracy_low": 0.4385,
        "reward_accuracy_high": 1,
        "reward_margin": 0.1,
        "chosen_reward": 0.1,
        "chosen_logp_change": 1,
        "rejected_logp_change": 0,
        "chosen_logp_change_per_token": 0.5,
        "rejected_logp_change_per_token": 0,
        "chosen_fell": 0,
        "kl_per_token_teacher_forced": 0.0123,
        "kl_per_token_sampled": 0.02,
        "samples_cut": 0.25,
        "ranking_accuracy": 0.6667,
        "ranking_accuracy_per_token": 1,
        "perplexity": 3.5,
        "bits_per_byte": 0.75,
        "longer_is_chosen": 0.5,
        "validation_pairs": 3,
        "health": "healthy",
    }


def test_what_is_undefined_is_null_in_the_summary():
    rows = [{"chosen_ids": [1], "rejected_ids": [1]}]
    measured = preference_metrics([(-1, -2)], [(-1, -2)], 0.1)
    numbers = dpo_figures(measured, RANKS, KL | {"kl_per_token_sampled": None}, FIT | {"bits_per_byte": None}, rows)
    assert [name for name, value in numbers.items() if value is None] == ["kl_per_token_sampled", "bits_per_byte"]


# ---- Ranks without a reference --------------------------------------------------------------------------------------

# Tokens of chosen and rejected, and what the models say: raw, base is right on a alone; per token on a and c too.
RANKED_ROWS = [
    {"chosen_ids": [1] * chosen, "rejected_ids": [1] * rejected} for chosen, rejected in ((2, 2), (2, 4), (4, 2), (3, 3))
]
SAID = {
    "base": [(-2, -3), (-4, -4), (-4, -3), (-5, -2)],
    "sft": [(-2, -3), (-2, -4), (-4, -3), (-2, -2)],
    "dpo": [(-2, -3), (-1, -4), (-2, -3), (-2, -9)],
}


def test_ranks_by_hand():
    """Whole answers: base right, tied, wrong, wrong; sft right, right, wrong, tied; dpo all right.

    Per token: base -1 > -1.5, -2 < -1, -1 > -1.5, wrong; sft right, -1 = -1, right, tied; dpo right, -0.5 > -1, right, right.
    """
    assert rankings(SAID, RANKED_ROWS) == {
        "whole answer": {"base": [1, 0.5, 0, 0], "sft": [1, 1, 0, 0.5], "dpo": [1, 1, 1, 1]},
        "per token": {"base": [1, 0, 1, 0], "sft": [1, 0.5, 1, 0.5], "dpo": [1, 1, 1, 1]},
    }


def test_accuracies_have_an_interval_and_are_compared_with_the_model_before():
    """Whole answers, 1.5, 2.5 and 4 of 4: sft is better on the second and the fourth pair, dpo on the others, p = 2/4 each."""
    rows = [dict(zip(RANKING_COLUMNS, row, strict=True)) for row in ranking_rows(rankings(SAID, RANKED_ROWS))]
    assert [(row["group"], row["model"]) for row in rows] == [
        (way, name) for way in ("whole answer", "per token") for name in ("base", "sft", "dpo")
    ]
    assert [row["ranking_accuracy"] for row in rows] == [1.5 / 4, 2.5 / 4, 1, 2 / 4, 3 / 4, 1]
    assert (rows[1]["low"], rows[1]["high"]) == intervals.wilson_interval(2.5, 4) and rows[1]["prompts"] == 4
    compared = [(row["better"], row["worse"], row["p"]) for row in rows]
    assert compared[:3] == [(None, None, None), (2, 0, 0.5), (2, 0, 0.5)]
    assert mcnemar([1.0, 0.0, 0.5], [0.0, 0.5, 0.0]) == (2, 1, 1.0)


@given(LOG_PROBABILITIES)
@settings(deadline=None)
def test_ranks_of_swapped_pairs_and_of_equal_models(pairs):
    """Swapped labels give 1 - accuracy, by whole answers and per token; a policy that is its reference ranks as it does."""
    said = {"base": [pair[:2] for pair in pairs], "sft": [pair[2:] for pair in pairs], "dpo": [pair[2:] for pair in pairs]}
    rows = [{"chosen_ids": [1] * (1 + place % 3), "rejected_ids": [1] * (1 + place % 2)} for place in range(len(pairs))]
    found = rankings(said, rows)
    mirrored = rankings({name: [pair[::-1] for pair in given] for name, given in said.items()}, swapped(rows))
    for way, ranks in found.items():
        assert mirrored[way] == {name: [1 - rank for rank in each] for name, each in ranks.items()}
        assert ranks["dpo"] == ranks["sft"] and mcnemar(ranks["dpo"], ranks["sft"]) == (0, 0, 1.0)


# ---- Health ---------------------------------------------------------------------------------------------------------

HEALTH = [
    ((0.9, 0.2, 0.3), 0.5, "healthy"),
    ((0.9, -0.2, 0.3), 0.5, "displaced"),
    ((0.5, 0.2, 0.3), 0.5, "not learning"),
    ((0.7, 0.2, 0.3), 0.7, "not learning"),
    ((0.7, 0.2, 0.3), 0.3, "not learning"),
    ((0.71, 0.2, 0.3), 0.3, "healthy"),
    ((0.4, -0.2, -0.1), 0.5, "not learning"),
    ((0.9, -0.2, -0.1), 0.5, "healthy"),
]


@pytest.mark.parametrize(("measures", "longer", "word"), HEALTH)
def test_health_in_words(measures, longer, word):
    """Accuracy must beat chance and both rules of length; a fall of the chosen answers with a growing margin is displacement."""
    names = ("validation_accuracy", "chosen_change", "validation_margin")
    assert preference_health(dict(zip(names, measures, strict=True)), longer) == word


# ---- Log-probabilities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2])
def test_log_probabilities_by_hand(batch_size):
    """Behind the prompt 3, 0: chosen 1, 2 has 1/4 * 1/4, rejected 3 has 1/8; behind 2: 2, 3 has 1/2 * 1/4, 0 has 1/8.

    The prompt's own chances do not count, nor does the padding (token 0, of chance 1/2 behind 0).
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


# ---- The start ------------------------------------------------------------------------------------------------------


def start(trainer, loss_type="sigmoid"):
    dpo.assert_starts_at_reference(trainer, SimpleNamespace(loss_type=loss_type), dpo.REWARD_TOLERANCE["torch.float32"])


def test_the_first_loss_is_ln_2_and_the_first_rewards_are_0(workspace):
    trainer = build(workspace, random_rows(8))
    start(trainer)
    assert not trainer._metrics["train"] and trainer._total_train_tokens == 0
    observe(trainer, "dpo", 1, 1000, dict)
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["loss"] == LN_2
    assert [first[f"rewards/{name}"] for name in ("chosen", "rejected", "margins")] == [pytest.approx(0, abs=1e-5)] * 3


def test_the_check_itself_changes_nothing_that_follows(workspace):
    plain, checked = build(workspace, random_rows(12)), build(workspace, random_rows(12))
    start(checked)
    for trainer in (plain, checked):
        observe(trainer, "dpo", 1, 1000, dict)
        trainer.train()
    assert trajectories.points(checked.state.log_history) == trajectories.points(plain.state.log_history)


def of_the_base(workspace, rows):
    """The log-probabilities of the base without its adapter: what a wrong reference would most likely be."""
    given = setting(workspace)
    return log_probabilities(load_base(given.params.model_entry, given.runtime), rows, given.chat.pad_id)


def moved_along(pairs):
    return pairs[1:] + pairs[:1]


WRONG = {
    "of the base": lambda right, base: base,
    "of other rows": lambda right, base: moved_along(right),
    "sides swapped": lambda right, base: [pair[::-1] for pair in right],
    "chosen a little off": lambda right, base: [(chosen + 0.02, rejected) for chosen, rejected in right],
    "rejected a little off": lambda right, base: [(chosen, rejected - 0.02) for chosen, rejected in right],
    "both off alike": lambda right, base: [(chosen - 1, rejected - 1) for chosen, rejected in right],
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_a_wrong_reference_is_found_before_training(workspace, wrong, loss_type):
    given, rows = setting(workspace), random_rows(4)
    right = log_probabilities(load_policy(given), rows, given.chat.pad_id)
    reference = WRONG[wrong](right, of_the_base(workspace, rows))
    trainer = build(workspace, rows, reference, **{"dpo.loss_type": loss_type})
    with pytest.raises(AssertionError, match="must start at the reference|must be ln 2"):
        start(trainer, loss_type)


@pytest.mark.parametrize("loss_type", ["sigmoid_norm", "hinge", "ipo", "robust", "nca_pair", "apo_zero", "apo_down", "discopop"])
def test_every_other_loss_starts_at_the_reference_too(workspace, loss_type):
    trainer = build(workspace, random_rows(4), **{"dpo.loss_type": loss_type})
    assert trainer.loss_types == [loss_type]
    start(trainer, loss_type)


# ---- The steps ------------------------------------------------------------------------------------------------------


def test_the_trajectory_is_the_committed_one(workspace):
    trainer = train(workspace, random_rows(40))
    assert trainer.state.global_step == 20
    trajectories.check("dpo", trainer.state.log_history)


@pytest.mark.parametrize("rows", [8, 10])
def test_four_pairs_at_once_are_one_pair_four_times(workspace, rows):
    """The loss of a step is the mean over its pairs, however they are cut into passes; the last step may be short."""
    runs = [
        train(
            workspace,
            random_rows(rows),
            **{"models.mini.dpo.per_device_train_batch_size": batch, "models.mini.dpo.gradient_accumulation_steps": passes},
        )
        for batch, passes in ((4, 1), (1, 4))
    ]
    at_once, one_by_one = (trajectories.points(run.state.log_history) for run in runs)
    assert one_by_one == {key: pytest.approx(values, rel=2e-5) for key, values in at_once.items()}
    final, other = (adapter_of(run) for run in runs)
    for name, tensor in final.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=5e-5)


def stock_trainer(given, rows):
    """TRL's DPOTrainer as it comes: it tokenises the texts itself, and asks a copy of the adapter at every step."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        beta=given.params.dpo.beta,
        **training_arguments(
            given.params.dpo, given.params.model_entry.dpo, given.params.model_entry, given.params.seed, given.runtime
        ),
    )
    tokenizer = trainer_tokenizer(given.chat)
    tokenizer.chat_template = given.chat.template
    texts = [
        {"prompt": [{"role": "user", "content": row["prompt"]}]}
        | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        for row in rows
    ]
    return DPOTrainer(model=load_policy(given), args=config, train_dataset=Dataset.from_list(texts), processing_class=tokenizer)


def test_trl_itself_takes_the_same_steps(workspace):
    """Ids of prepare and a reference computed once, against TRL's own tokens and its reference at every step."""
    workspace.params["models.mini.dpo.per_device_train_batch_size"] = 2
    workspace.run("prepare")
    rows = workspace.rows("data/prepared/dpo_train.jsonl")[:10]
    texts = {row["id"]: row for row in pair_rows()}
    stock = stock_trainer(setting(workspace, **{"dpo.num_train_epochs": 1}), [texts[row["id"]] for row in rows])
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert list(stock.train_dataset[column]) == [row[column] for row in rows]
    observe(stock, "dpo", 1, 1000, dict)
    stock.train()
    ours = train(workspace, rows)
    expected, found = (trajectories.points(trainer.state.log_history) for trainer in (stock, ours))
    assert len(expected["loss"]) >= 4 and abs(expected["loss"][-1] - math.log(2)) > 0.01
    assert found == {key: pytest.approx(values, rel=1e-5, abs=1e-5) for key, values in expected.items()}
    for name, tensor in adapter_of(stock).items():
        torch.testing.assert_close(adapter_of(ours)[name], tensor, rtol=0, atol=1e-5)


def test_training_prefers_the_chosen_answers(workspace):
    """On the rows it learns from, margins grow; learning from swapped rows, the very same pairs turn round."""
    given, rows = setting(workspace), random_rows(8)
    reference = log_probabilities(load_policy(given), rows, given.chat.pad_id)
    margins = []
    for learned in (rows, swapped(rows)):
        policy = log_probabilities(train(workspace, learned).model, rows, given.chat.pad_id)
        margins.append(preference_metrics(policy, reference, 0.1)["validation_margin"])
    assert margins[0] > 0.1 and margins[1] < -0.1


def test_beta_and_label_smoothing_reach_the_loss(workspace):
    trainer = build(workspace, random_rows(4), **{"dpo.beta": 0.3, "dpo.label_smoothing": 0.2, "dpo.loss_type": "robust"})
    assert (trainer.beta, trainer.label_smoothing, trainer.loss_types) == (0.3, 0.2, ["robust"])


def test_only_the_adapter_is_trained_and_nothing_is_kept_of_the_reference(workspace):
    trainer = build(workspace, random_rows(8))
    assert list(trainer.model.peft_config) == ["default"]
    assert not [name for name, _ in trainer.model.named_parameters() if ".ref" in name]
    assert trainer.ref_model is None and not any(module.p for module in dropouts(trainer.model))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(before[name], parameter)}
    assert trained and moved == trained and all("lora_" in name for name in trained)


def test_the_chosen_answers_own_loss_is_added_with_its_weight(workspace):
    """loss = preference loss + weight * nats per token of the chosen answers; the check before training leaves it out."""
    rows = random_rows(4)
    plain, added = (build(workspace, rows, **{"dpo.sft_weight": weight}) for weight in (0, 0.5))
    start(added)
    batch = added._prepare_inputs(added.data_collator([added.train_dataset[place] for place in range(4)]))
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.model.train(), dict(batch)).item() for trainer in (plain, added)]
    nats = -sum(chosen for chosen, _ in log_probabilities(added.model, rows, 0))
    assert losses[1] - losses[0] == pytest.approx(0.5 * nats / sum(len(row["chosen_ids"]) for row in rows), rel=1e-4)


def dropouts(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]


def test_gradient_checkpointing_changes_memory_and_nothing_else(workspace):
    runs = [train(workspace, random_rows(8), **{"models.mini.gradient_checkpointing": wanted}) for wanted in (False, True)]
    stored, recomputed = (trajectories.points(run.state.log_history) for run in runs)
    assert recomputed == {key: pytest.approx(values, rel=1e-5) for key, values in stored.items()}


# ---- The stage ------------------------------------------------------------------------------------------------------

OUTPUTS = ["models/dpo/adapter_config.json", "models/dpo/adapter_model.safetensors", "models/dpo/provenance.json"]
OUTPUTS += ["metrics/dpo.json", "reports/dpo.json", str(dpo.RANKING), *map(str, dpo.CURVES)]


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A workspace in which dpo has run."""
    return Workspace.copy(shelf.built("dpo", run_to_the_end), tmp_path, monkeypatch)


def run_to_the_end(folder):
    with pytest.MonkeyPatch.context() as patch:
        workspace = Workspace.copy(shelf.built("dpo-begin", begin), folder, patch)
        workspace.params["dpo.eval_steps"] = 2
        workspace.run("prepare")
        workspace.run("dpo")


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def answers_of(rows):
    return [(row["prompt_ids"], row["chosen_ids"]) for row in rows]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_divergence_from_the_reference_is_the_textbook_s(workspace, batch_size):
    """sum_v p(v) log(p(v) / q(v)), one row at a time in double precision, at the tokens of the chosen answers; then no trace."""
    given, rows = setting(workspace), random_rows(9)
    policy = train(workspace, rows).model
    reference = load_adapter(load_base(given.params.model_entry, given.runtime), dpo.SFT_ADAPTER).eval()
    expected = [naive_divergence(policy.eval(), reference, row) for row in rows]
    policy.train()
    found = divergences(policy, dpo.SFT_ADAPTER, answers_of(rows), given.chat.pad_id, batch_size)
    assert found == pytest.approx(expected, rel=1e-4) and min(found) > 1e-3
    assert list(policy.peft_config) == ["default"] and policy.active_adapter == "default" and policy.training


def test_the_mean_is_per_token_of_all_answers_and_per_answer(monkeypatch):
    """Sums 1 and 5 over 2 and 4 tokens: 6 / 6 a token, 6 / 2 an answer, from 1 to 5. Of one answer there is no interval."""
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
    """A random model says every token about as often: with many ends some answers end, others are cut."""
    given, rows = setting(workspace), random_rows(40)
    ends = list(range(5, 60))
    drawn = sample(load_policy(given), [row["prompt_ids"] for row in rows], given.chat.pad_id, ends, 6, 17)
    ended = [ids for _, ids in drawn if ids[-1] in ends]
    assert 0 < len(ended) < len(drawn)
    assert all(1 <= len(ids) <= 6 and not set(ids[:-1]) & set(ends) for _, ids in drawn)
    assert all(len(ids) == 6 for _, ids in drawn if ids[-1] not in ends)


def test_samples_are_drawn_from_the_whole_distribution(workspace):
    """2,000 first tokens after one prompt are as frequent as the model's chances, however unlikely: a chi-square of 8 classes."""
    given, prompt = setting(workspace), random_rows(1)[0]["prompt_ids"]
    policy = load_policy(given).eval()
    policy.get_base_model().generation_config.top_k = 3  # of the model's own; it plays no part
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


def test_the_sft_adapter_on_disk_stays_as_it_was(workspace):
    before = contents("models/sft")
    workspace.run("prepare")
    workspace.run("dpo")
    assert contents("models/sft") == before
    after = contents("models/dpo")
    assert set(after) == ADAPTER_FILES
    assert after["adapter_model.safetensors"] != before["adapter_model.safetensors"]
    assert after["provenance.json"] == before["provenance.json"]


def test_metrics_are_the_measures_of_the_stored_adapter_against_the_sft_adapter(finished):
    """Of models that are loaded anew, the base without any adapter, and by the stock forward pass, up to the last bits."""
    given, rows = setting(finished), finished.rows("data/prepared/dpo_validation.jsonl")
    policies = [
        load_adapter(load_base(given.params.model_entry, given.runtime), Path(folder)) for folder in ("models/dpo", "models/sft")
    ]
    base = load_base(given.params.model_entry, given.runtime)
    said = {name: log_probabilities(model, rows, given.chat.pad_id) for name, model in zip(NAMED, (*policies, base), strict=True)}
    kl = kl_from_reference(policies[0].eval(), dpo.SFT_ADAPTER, rows, given.chat, given.params.seed)
    fit = likelihood.of_answers(policies[0], finished.rows("data/prepared/sft_validation.jsonl"), given.chat, unpadded=False)
    measures = preference_metrics(said["dpo"], said["sft"], given.params.dpo.beta)
    expected = dpo_figures(measures, rankings(said, rows), kl, fit, rows)
    assert finished.json("reports/dpo.json")["dpo"] == {name: close(value) for name, value in expected.items()}
    written = [row["ranking_accuracy"] for row in read(dpo.RANKING)]
    assert list(map(float, written)) == [close(row[2]) for row in ranking_rows(rankings(said, rows))]


NAMED = ("dpo", "sft", "base")


def close(value):
    """The same but for the last digits of a float."""
    return pytest.approx(value, rel=1e-5, abs=1e-4) if isinstance(value, float) else value


def test_dpo_and_sft_are_measured_on_the_same_held_out_answers(finished, monkeypatch):
    """DPO's perplexity after no training at all would be SFT's: the adapter that dpo starts from, by dpo's own measure."""
    given = setting(finished)
    rows = finished.rows("data/prepared/sft_validation.jsonl")
    policy = load_policy(given)
    measured = likelihood.measure(policy, rows, given.chat.pad_id, likelihood.special_ids(given.chat))
    size = likelihood.text_bytes(rows, given.chat)
    found = likelihood.of_answers(policy, rows, given.chat, unpadded=False)
    assert found == likelihood.perplexity_and_bits(measured, size)
    assert size == sum(len(f"The {word} is number {n}.".encode()) for n, word in held_out_words(rows))


def held_out_words(rows):
    from support.workspace import WORDS, number

    ids = {row["id"] for row in rows}
    return [(n, word) for n, word in number(WORDS) if f"s{n}" in ids]


def test_the_held_out_curves_begin_at_the_reference_and_end_at_the_metrics(finished):
    curves = {path.stem: read(path) for path in dpo.CURVES}
    metrics = finished.json("reports/dpo.json")["dpo"]
    ends = {("dpo_loss", "held out"): ("validation_loss", LN_2), ("dpo_accuracy", "held out"): ("reward_accuracy", 0.5)}
    ends |= {("dpo_rewards", f"{name}, held out"): (f"{name}_reward", 0) for name in ("chosen",)}
    ends |= {("dpo_rewards", "margin, held out"): ("reward_margin", 0)}
    for (curve, series), (metric, first) in ends.items():
        points = [(int(row["step"]), float(row["value"])) for row in curves[curve] if row["series"] == series]
        assert points[0] == (0, first)
        assert points[-1][1] == pytest.approx(metrics[metric], abs=1e-4)


def test_the_curves_hold_the_series_that_dvc_draws(finished):
    for path, series in dpo.CURVES.items():
        rows = read(path)
        assert list(rows[0]) == ["step", "series", "value"]
        assert {row["series"] for row in rows} == set(series.values())
        assert all(math.isfinite(float(row["value"])) for row in rows)


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_run_writes_the_same_bytes(finished):
    first = {path: Path(path).read_bytes() for path in OUTPUTS}
    for path in OUTPUTS:
        Path(path).unlink()
    finished.run("dpo")
    assert {path: Path(path).read_bytes() for path in OUTPUTS} == first


def test_an_adapter_of_another_base_is_refused(workspace):
    workspace.run("prepare")
    config = Path("models/base/weights/config.json")
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"models/sft was trained with another base \(.*dvc repro --force"):
        workspace.run("dpo")
    assert not Path("models/dpo").exists()


def test_an_adapter_of_another_chat_template_is_refused(workspace):
    template = Path("models/base/weights/chat_template.jinja")
    template.write_text(template.read_text(encoding="utf-8").replace("<|end|>", "<|end|>\n"), encoding="utf-8")
    workspace.run("prepare")
    with pytest.raises(InputError, match="models/sft was trained with another chat"):
        workspace.run("dpo")


def test_data_of_another_chat_template_are_refused(workspace):
    workspace.run("prepare")
    template = Path("models/base/weights/chat_template.jinja")
    template.write_text(template.read_text(encoding="utf-8") + "{# other #}", encoding="utf-8")
    with pytest.raises(InputError, match="data/prepared was made with another tokenizer or chat template"):
        workspace.run("dpo")


@pytest.mark.parametrize("missing", ["models/sft", "models/sft/adapter_model.safetensors", "data/prepared/dpo_train.jsonl"])
def test_a_missing_input_is_named_with_the_way_to_it(workspace, missing):
    workspace.run("prepare")
    shutil.rmtree(missing) if Path(missing).is_dir() else Path(missing).unlink()
    with pytest.raises(InputError, match=rf"{missing}.* is missing.*dvc repro"):
        workspace.run("dpo")
