"""grpo: TRL's own trainer computes the same losses, the guard, refused inputs, and the files that the stage writes."""

import shutil
from pathlib import Path

import pytest
import torch
from support.policies import load_policy, setting, with_sft_adapter
from support.workspace import prompt_rows

import grpo
from aligner.files import read_jsonl
from aligner.run.errors import InputError
from aligner.training import trl_internals
from aligner.training.loop import observe
from aligner.training.policy_measures import HeldOut
from aligner.training.rewards import Rewards


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    workspace = with_sft_adapter(tmp_path, monkeypatch)
    workspace.params["grpo.num_train_epochs"] = 3
    workspace.run("prepare")
    return workspace


def build(workspace, **changes):
    given = setting(workspace, grpo, **changes)
    prompts, _ = grpo.read_prompts(given.params, given.chat)
    rewards = Rewards(prompts, list(read_jsonl(grpo.CONCEPTS)), given.chat, given.params.grpo.max_completion_length)
    return grpo.build_trainer(given.params, given, load_policy(given), prompts, rewards)


def train(workspace, **changes):
    trainer = build(workspace, **changes)
    observe(trainer, "grpo", 1, 1000, dict)
    trainer.train()
    return trainer


# ---- The steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, 0.1])
def test_trl_itself_computes_the_same_losses_and_gradients(workspace, beta):
    """On the same samples, scored by TRL's own forward pass, whose prompts are padded on the left.

    Whole runs cannot be compared: a difference in the last bit of a weight can change a sampled token, and then every later one.
    """
    trained = train(workspace, **{"grpo.beta": beta})
    stock_trainer = build(workspace, **{"models.mini.padding_free": False})
    stock_trainer.model.load_state_dict(trained.model.state_dict())
    assert trained.pad_id is not None and stock_trainer.pad_id is None
    trained.model.train()
    inputs = trained._generate_and_score_completions(next(iter(trained.get_train_dataloader())))
    results = []
    for trainer in (trained, stock_trainer):
        trainer.model.train()
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.compute_loss(trainer.model, dict(inputs))
        loss.backward()
        gradients = {name: each.grad.clone() for name, each in trainer.model.named_parameters() if each.grad is not None}
        results.append((loss.item(), gradients, trainer._metrics["train"]["entropy"][-1]))
    (ours, slopes, entropy), (stock, expected, stock_entropy) = results
    assert ours == pytest.approx(stock, abs=1e-5) and entropy == pytest.approx(stock_entropy, rel=1e-5)
    assert slopes.keys() == expected.keys() and max(each.abs().max() for each in expected.values()) > 1e-4
    for name, slope in expected.items():
        torch.testing.assert_close(slopes[name], slope, rtol=1e-3, atol=1e-6)


def test_another_temperature_takes_trls_own_scores(workspace):
    """The padding-free head knows no temperature."""
    assert build(workspace, **{"grpo.temperature": 0.7}).pad_id is None


def test_an_answer_group_shares_its_prompt_and_the_weights_reach_trl(workspace):
    trainer = build(workspace, **{"grpo.reward_weights.keyword_hits": 0.3})
    assert trainer.reward_weights[0].item() == pytest.approx(0.3)
    batch = next(iter(trainer.get_train_dataloader()))
    numbers = [row["number"] for row in batch]
    assert len(numbers) == 4 and numbers[0] == numbers[1] != numbers[2] == numbers[3]


def test_without_scaling_advantages_are_those_of_rloo(workspace):
    """A = r - mean of the group = (G - 1) / G (r - mean of the others)."""
    trainer = build(workspace, **{"grpo.scale_rewards": "none", "grpo.num_generations": 4})
    trainer.model.train()
    seen = []
    stock = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *args: seen.append(stock(*args)) or seen[-1]
    inputs = next(iter(trainer.get_train_dataloader()))
    found = trainer._generate_and_score_completions(inputs)["advantages"]
    rewards = (seen[0] * trainer.reward_weights).sum(1)
    others = (rewards.sum() - rewards) / 3
    torch.testing.assert_close(found, 3 / 4 * (rewards - others), rtol=1e-4, atol=1e-5)


# ---- The guard ------------------------------------------------------------------------------------------------------


def held_out(changes):
    """Measures of 12 prompts at the start, and later with these changes, which differ a little from prompt to prompt."""
    guard = HeldOut([], None, None, 17)
    guard.first = [{"reward": 0.5, "keyword_hits": 0.5, "precision": 0.5} for _ in range(12)]
    guard.last = [
        {name: value + changes.get(name, 0) * (1 + number / 100) for name, value in row.items()}
        for number, row in enumerate(guard.first)
    ]
    return guard


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"reward": 0.2, "keyword_hits": 0.1}, "healthy"),
        ({"reward": 0.2, "keyword_hits": -0.1}, "hacked"),
        ({"reward": 0.2, "keyword_hits": 0.1, "precision": -0.1}, "hacked"),
        ({"keyword_hits": 0.1}, "not learning"),
        ({"reward": -0.1, "keyword_hits": -0.1}, "not learning"),
    ],
)
def test_a_reward_that_rises_while_hits_or_precision_fall_is_hacked(changes, word):
    assert held_out(changes).health() == word
    assert held_out({"precision": -0.1, "keyword_hits": -0.1}).fallen() == "the hit rate and the precision"


def test_measuring_leaves_the_random_state_as_it_was(workspace):
    given = setting(workspace, grpo)
    _, prompts = grpo.read_prompts(given.params, given.chat)
    guard = HeldOut(prompts, Rewards(prompts, [], given.chat, 6), given.params.grpo, 17)
    policy, before = load_policy(given), torch.random.get_rng_state()
    found = guard.measure(policy)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found == guard.measure(policy) and found["validation_kl"] == pytest.approx(0, abs=1e-6)


# ---- Refused inputs -------------------------------------------------------------------------------------------------


def test_rewards_without_spread_end_the_run(workspace, monkeypatch):
    """At a temperature near 0 all answers of a group are the same."""
    monkeypatch.setattr(trl_internals, "FLAT_STEPS", 2)
    workspace.params["grpo.temperature"] = 1e-4
    with pytest.raises(InputError, match="for 2 steps all answers to a prompt got the same reward.*raise grpo.temperature"):
        workspace.run("grpo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grpo.num_generations": 3}, "a step of 4 answers .* holds no whole groups of grpo.num_generations = 3"),
        (dict.fromkeys([f"grpo.reward_weights.{name}" for name in grpo.REWARDS], 0), "all of grpo.reward_weights are 0"),
        ({"grpo.max_completion_length": 100000}, "grpo.max_completion_length is 100000, but the longest prompt has"),
        ({"grpo.prompts": "data/raw/none.jsonl"}, "data/raw/none.jsonl"),
        ({"prepare.validation_share": 0.999}, "prompts on the train side, but grpo needs 2"),
    ],
)
def test_impossible_settings_are_one_message(workspace, changes, message):
    workspace.params.update(changes)
    with pytest.raises(InputError, match=message):
        workspace.run("grpo")


def test_an_eval_prompt_is_no_training_prompt(workspace):
    rows = prompt_rows()
    workspace.write_prompts([*rows, {**rows[0], "id": "leak", "prompt": "Please define the mean in short."}])
    with pytest.raises(InputError, match="eval prompts .* overlap with the training texts"):
        workspace.run("grpo")


# ---- The stage ------------------------------------------------------------------------------------------------------


def test_a_rerun_writes_the_same_bytes(workspace):
    before = Path("models/sft/adapter_model.safetensors").read_bytes()
    runs = []
    for _ in range(2):
        shutil.rmtree("models/grpo", ignore_errors=True)
        workspace.run("grpo")
        paths = [*Path("models/grpo").iterdir(), grpo.METRICS, grpo.REPORT, *grpo.CURVES]
        runs.append({path.as_posix(): path.read_bytes() for path in paths})
    assert runs[0] == runs[1]
    assert Path("models/sft/adapter_model.safetensors").read_bytes() == before
    assert before != Path("models/grpo/adapter_model.safetensors").read_bytes()
    report = workspace.json("reports/grpo.json")["grpo"]
    assert report["health"] in ("healthy", "hacked", "not learning") and report["kl_per_answer_sampled"] > 0
