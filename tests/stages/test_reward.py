"""reward: TRL's own trainer takes the same steps, its measures by hand, and the files that the stage writes."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from support import trajectories
from support.policies import provenance_of, random_rows, setting, with_sft_adapter

import reward
from aligner.files import write_json
from aligner.run.errors import InputError
from aligner.training import reward_model
from aligner.training.loop import observe
from aligner.training.reward_model import reliability, reward_figures, reward_metrics
from aligner.training.setup import trainer_tokenizer, training_arguments


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return with_sft_adapter(tmp_path, monkeypatch)


def train(workspace, rows, **changes):
    given = setting(workspace, reward, **changes)
    trainer = reward.build_trainer(given.params, given.runtime, given.chat, rows)
    observe(trainer, "reward", 1, 1000, dict)
    trainer.train()
    return trainer


def stock_trainer(workspace, rows):
    """TRL's unchanged RewardTrainer on the same ids; it pads, and reads the prompt of a pair twice."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    given = setting(workspace, reward)
    params, entry = given.params, given.params.model_entry
    arguments = training_arguments(params.reward, entry.reward, entry, params.seed, given.runtime)
    pairs = [{f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")} for row in rows]
    return RewardTrainer(
        model=reward_model.build(entry, given.runtime, given.chat.pad_id, params.seed),
        args=RewardConfig(center_rewards_coefficient=params.reward.center_rewards_coefficient, **arguments),
        train_dataset=Dataset.from_list(pairs),
        processing_class=trainer_tokenizer(given.chat),
        peft_config=LoraConfig(task_type="SEQ_CLS", bias="none", modules_to_save=["score"], **params.lora.model_dump()),
    )


@pytest.mark.parametrize("padding_free", [True, False])
def test_trl_itself_takes_the_same_steps(workspace, padding_free):
    workspace.params["models.mini.padding_free"] = padding_free
    rows = random_rows(24)
    stock, ours = stock_trainer(workspace, rows), train(workspace, rows)
    assert ours.shares_prompts == padding_free
    observe(stock, "reward", 1, 1000, dict)
    stock.train()
    expected, found = (trajectories.points(trainer.state.log_history) for trainer in (stock, ours))
    assert len(expected["loss"]) >= 12 and abs(expected["loss"][-1] - expected["loss"][0]) > 0.01
    assert found == {key: pytest.approx(values, rel=1e-5, abs=1e-5) for key, values in expected.items()}


def test_scores_do_not_depend_on_batches_or_padding(workspace):
    """The padding-free scores are those of the stock forward pass, one sequence at a time."""
    given = setting(workspace, reward)
    model = train(workspace, random_rows(8)).model
    sequences = [row["prompt_ids"] + row["chosen_ids"] for row in random_rows(9, seed=1)]
    stock = type(model.get_base_model()).forward
    with torch.no_grad():
        model.eval()
        alone = [stock(model.get_base_model(), input_ids=torch.tensor([ids])).logits.item() for ids in sequences]
    assert reward_model.scores(model, sequences, given.chat.pad_id) == pytest.approx(alone, abs=1e-5)


def test_a_pair_of_equal_answers_has_equal_rewards(workspace):
    """What the two sequences share is read once, even if that is all of them."""
    model = train(workspace, random_rows(8)).model.eval()
    ids = torch.tensor([[5, 6, 7, 1, 0], [5, 6, 8, 1, 0], [5, 6, 7, 1, 0], [5, 6, 9, 10, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask, pairs=True).logits[:, 0]
        apart = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)
    assert together[0] == together[2]


def test_measures_by_hand():
    """Margins ln 3 and -ln 3: probabilities 3/4 and 1/4 that the chosen answer is preferred."""
    pairs = [(math.log(3), 0.0), (0.0, math.log(3))]
    found = reward_metrics(pairs)
    assert found["validation_accuracy"] == 0.5 and found["validation_margin"] == 0
    assert found["validation_brier"] == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert found["validation_loss"] == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    (row,) = reliability(pairs)
    assert row[:3] == ["0.7 to 0.8", pytest.approx(0.75), 0.5] and row[5] == 2


def test_equal_length_counts_pairs_within_a_tenth():
    rows = [{"chosen_ids": [1] * chosen, "rejected_ids": [1] * rejected} for chosen, rejected in ((10, 11), (10, 12), (20, 10))]
    figures = reward_figures([(1, 0), (0, 1), (1, 0)], rows)
    assert (figures["equal_length_pairs"], figures["equal_length_accuracy"]) == (1, 1.0)
    assert figures["accuracy"] == pytest.approx(2 / 3, abs=1e-4) and figures["longer_is_chosen"] == pytest.approx(1 / 3, abs=1e-4)
    assert reward_figures([(1, 0)], rows[2:])["equal_length_accuracy"] is None


# ---- The stages ------------------------------------------------------------------------------------------------------


def outputs():
    paths = [*Path("models/reward").iterdir(), reward.METRICS, reward.REPORT, reward.RELIABILITY, *reward.CURVES]
    return {path.as_posix(): path.read_bytes() for path in paths}


def test_a_rerun_writes_the_same_bytes_and_best_of_n_takes_its_favourites(workspace):
    workspace.run("prepare")
    workspace.run("reward")
    first = outputs()
    shutil.rmtree("models/reward")
    workspace.run("reward")
    assert outputs() == first
    workspace.run("best_of_n")
    answers, report = Path("data/generated/best_of_n.jsonl").read_bytes(), workspace.json("reports/best_of_n.json")["best_of_n"]
    rewards = [entry["reward"]["estimate"] for entry in report["curve"]]
    assert [entry["n"] for entry in report["curve"]] == [1, 2, 4] and rewards == sorted(rewards)
    assert len(workspace.rows("data/generated/best_of_n.jsonl")) == len(workspace.rows("data/prepared/prompts.jsonl"))
    workspace.run("best_of_n")
    assert Path("data/generated/best_of_n.jsonl").read_bytes() == answers


def test_a_reward_model_of_another_sft_adapter_is_refused(workspace):
    given = setting(workspace, reward)
    Path("models/reward").mkdir()
    write_json(Path("models/reward/provenance.json"), {**provenance_of(given), "sft": "other"})
    with pytest.raises(InputError, match="models/reward was trained with another sft"):
        reward_model.load(given.params.model_entry, given.runtime, given.chat.pad_id, 17, provenance_of(given))


@pytest.mark.parametrize(
    ("stage", "missing", "message"),
    [
        ("reward", "data/prepared/dpo_train.jsonl", "data/prepared/dpo_train.jsonl is missing.*dvc repro"),
        ("reward", "models/sft/adapter_model.safetensors", "models/sft/adapter_model.safetensors is missing.*dvc repro"),
        ("best_of_n", None, "models/reward is missing; the reward stage writes it"),
    ],
)
def test_a_missing_input_is_one_line(workspace, stage, missing, message):
    workspace.run("prepare")
    if missing:
        Path(missing).unlink()
    with pytest.raises(InputError, match=message):
        workspace.run(stage)
