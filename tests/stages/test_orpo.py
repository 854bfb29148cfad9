"""orpo: its steps against TRL's own trainer, its measures by hand, and the files that it writes."""

import csv
import math
import sys
from pathlib import Path

import pytest
import torch
from support import shelf, trajectories
from support.policies import random_rows, setting, with_sft_adapter
from support.workspace import Workspace, pair_rows

import orpo
from aligner.model.loading import load_adapter, load_base
from aligner.run.errors import InputError
from aligner.training import trl_internals
from aligner.training.log_probs import log_probabilities
from aligner.training.loop import observe
from aligner.training.preferences import orpo_metrics
from aligner.training.setup import trainer_tokenizer, training_arguments

OUTPUTS = ["models/orpo/adapter_config.json", "models/orpo/adapter_model.safetensors", "models/orpo/provenance.json"]
OUTPUTS += ["metrics/orpo.json", "reports/orpo.json", *map(str, orpo.CURVES)]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return with_sft_adapter(tmp_path, monkeypatch)


def train(workspace, rows, **changes):
    given = setting(workspace, orpo, **changes)
    trainer = orpo.build_trainer(given.params, given.runtime, given.chat, rows)
    observe(trainer, "orpo", 1, 1000, dict)
    trainer.train()
    return trainer


def stock_trainer(given, rows):
    """TRL's unchanged ORPOTrainer, which tokenises the texts."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    entry = given.params.model_entry
    arguments = training_arguments(given.params.orpo, entry.orpo, entry, given.params.seed, given.runtime)
    tokenizer = trainer_tokenizer(given.chat)
    tokenizer.chat_template = given.chat.template
    return ORPOTrainer(
        model=load_base(entry, given.runtime),
        args=ORPOConfig(beta=given.params.orpo.beta, **{**arguments, "max_length": 512}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", bias="none", **given.params.lora.model_dump()),
    )


def conversations(rows):
    texts = {row["id"]: row for row in pair_rows()}
    return [
        {"prompt": [{"role": "user", "content": texts[row["id"]]["prompt"]}]}
        | {side: [{"role": "assistant", "content": texts[row["id"]][side]}] for side in ("chosen", "rejected")}
        for row in rows
    ]


@pytest.mark.parametrize("padding_free", [True, False])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_trl_itself_takes_the_same_steps(workspace, padding_free, beta):
    workspace.params.update({"orpo.beta": beta, "models.mini.padding_free": padding_free})
    workspace.params.update(
        {f"models.mini.orpo.{key}": 2 for key in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    )
    workspace.run("prepare")
    rows = workspace.rows("data/prepared/dpo_train.jsonl")
    stock, ours = stock_trainer(setting(workspace, orpo), conversations(rows)), train(workspace, rows)
    for side in ("chosen", "rejected"):
        for column in ("input_ids", "attention_mask", "labels"):
            name = f"{side}_{column}"
            assert list(stock.train_dataset[name]) == list(ours.train_dataset[name])
    observe(stock, "orpo", 1, 1000, dict)
    stock.train()
    expected, found = (trajectories.points(trainer.state.log_history) for trainer in (stock, ours))
    assert len(expected["loss"]) >= 4 and abs(expected["loss"][-1] - expected["loss"][0]) > 0.01
    assert found == {key: pytest.approx(values, rel=1e-5, abs=1e-5) for key, values in expected.items()}
    for name, tensor in stock.model.named_parameters():
        if "lora" in name:
            torch.testing.assert_close(dict(ours.model.named_parameters())[name], tensor, rtol=0, atol=1e-5)
    logged = [[entry[key] for entry in each.state.log_history if key in entry] for each in (stock, ours) for key in METRICS]
    assert logged[len(METRICS) :] == [pytest.approx(values, rel=1e-4, abs=1e-5) for values in logged[: len(METRICS)]]


METRICS = ("nll_loss", "log_odds_chosen", "log_odds_ratio", "rewards/accuracies", "rewards/margins", "logps/chosen")


def test_the_padding_free_pass_is_taken_where_params_ask_for_it(workspace):
    given = setting(workspace, orpo)
    assert orpo.build_trainer(given.params, given.runtime, given.chat, random_rows(4)).padding_free
    given = setting(workspace, orpo, **{"models.mini.padding_free": False})
    assert not orpo.build_trainer(given.params, given.runtime, given.chat, random_rows(4)).padding_free


def test_a_trl_without_orpo_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.experimental.orpo", None)
    with pytest.raises(InputError, match=r"trl \S+ has no ORPOTrainer. Run: pip install -r requirements.txt"):
        trl_internals.orpo_trainer_class()


# ---- Held-out measures ----------------------------------------------------------------------------------------------


def test_the_held_out_measures_by_hand():
    """Two tokens of probability 1/2 and 1/4 each: odds 1 and 1/3, so the log odds ratio is ln 3."""
    rows = [{"chosen_ids": [1, 1], "rejected_ids": [1, 1, 1]}]
    measured = orpo_metrics([(2 * math.log(1 / 2), 3 * math.log(1 / 4))], rows, beta=0.5)
    assert measured["validation_log_odds_ratio"] == pytest.approx(math.log(3))
    assert measured["validation_odds_loss"] == pytest.approx(-math.log(3 / 4))
    assert measured["validation_nll"] == pytest.approx(math.log(2))
    assert measured["validation_loss"] == pytest.approx(math.log(2) - 0.5 * math.log(3 / 4))
    assert measured["validation_brier"] == pytest.approx((1 / 4) ** 2)
    assert measured["validation_margin"] == pytest.approx(0.5 * math.log(2)) and measured["validation_accuracy"] == 1
    certain = orpo_metrics([(0.0, -3.0)], rows, beta=0.5)
    assert all(math.isfinite(value) for value in certain.values())


# ---- The stage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, monkeypatch):
    return Workspace.copy(shelf.built("orpo", run_to_the_end), tmp_path, monkeypatch)


def run_to_the_end(folder):
    with pytest.MonkeyPatch.context() as patch:
        workspace = with_sft_adapter(folder, patch)
        workspace.params["orpo.eval_steps"] = 2
        workspace.run("prepare")
        workspace.run("orpo")


def test_a_second_run_writes_the_same_bytes(finished):
    first = {path: Path(path).read_bytes() for path in OUTPUTS}
    for path in OUTPUTS:
        Path(path).unlink()
    finished.run("orpo")
    assert {path: Path(path).read_bytes() for path in OUTPUTS} == first


def test_the_report_is_about_the_stored_adapter(finished):
    given, rows = setting(finished, orpo), finished.rows("data/prepared/dpo_validation.jsonl")
    policy = load_adapter(load_base(given.params.model_entry, given.runtime), orpo.ADAPTER)
    measured = orpo_metrics(log_probabilities(policy, rows, given.chat.pad_id), rows, given.params.orpo.beta)
    report = finished.json("reports/orpo.json")["orpo"]
    for name in ("validation_loss", "validation_nll", "validation_log_odds_ratio"):
        assert report[name] == pytest.approx(measured[name], abs=1e-4)
    assert report["kl_per_answer_sampled"] > 0 and report["chosen_logp_change"] > 0


def test_the_curves_hold_the_series_that_dvc_draws(finished):
    for path, series in orpo.CURVES.items():
        with path.open(encoding="utf-8", newline="") as file:
            assert {row["series"] for row in csv.DictReader(file)} == set(series.values())
