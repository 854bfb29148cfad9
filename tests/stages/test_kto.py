"""kto: its rows and their order, its steps against TRL's own trainer, and the files that it writes."""

import csv
import math
from pathlib import Path

import pytest
import torch
from support import shelf, trajectories
from support.policies import load_policy, random_rows, setting, with_sft_adapter
from support.workspace import Workspace, pair_rows

import kto
from aligner.model.loading import load_adapter, load_base
from aligner.run.errors import InputError
from aligner.training.log_probs import log_probabilities
from aligner.training.loop import observe
from aligner.training.preferences import kto_metrics, preference_metrics
from aligner.training.setup import trainer_tokenizer, training_arguments
from aligner.training.unpaired import COLUMNS, in_training_order, with_rotated_answers
from unpaired import rows_of

OUTPUTS = ["models/kto/adapter_config.json", "models/kto/adapter_model.safetensors", "models/kto/provenance.json"]
OUTPUTS += ["metrics/kto.json", "reports/kto.json", *map(str, kto.CURVES)]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return with_sft_adapter(tmp_path, monkeypatch)


def unpaired(pairs):
    return [row for pair in pairs for row in rows_of(pair)]


def arranged(given, rows):
    """The rows in training order, with their rotated answers."""
    ordered = in_training_order(rows, given.params.kto.num_train_epochs, given.params.seed)
    return with_rotated_answers(ordered, given.params.model_entry.kto.per_device_train_batch_size)


def train(workspace, rows, **changes):
    given = setting(workspace, kto, **changes)
    policy, ordered = load_policy(given), arranged(given, rows)
    reference = log_probabilities(policy, ordered, given.chat.pad_id, sides=COLUMNS)
    trainer = kto.build_trainer(given.params, given.runtime, given.chat, policy, ordered, reference)
    observe(trainer, "kto", 1, 1000, dict)
    trainer.train()
    return trainer


def stock_trainer(given, texts):
    """TRL's unchanged KTOTrainer: it tokenises, rotates the answers, and computes the reference at every step."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    own = given.params.kto
    arguments = training_arguments(own, given.params.model_entry.kto, given.params.model_entry, given.params.seed, given.runtime)
    config = KTOConfig(
        beta=own.beta,
        loss_type=own.loss_type,
        desirable_weight=own.desirable_weight,
        undesirable_weight=own.undesirable_weight,
        train_sampling_strategy="sequential",
        **{**arguments, "num_train_epochs": 1},
    )
    tokenizer = trainer_tokenizer(given.chat)
    tokenizer.chat_template = given.chat.template
    return KTOTrainer(model=load_policy(given), args=config, train_dataset=Dataset.from_list(texts), processing_class=tokenizer)


def unpaired_texts(rows):
    """The rows of `unpaired` as TRL's conversational rows."""
    texts = {row["id"]: row for row in pair_rows()}
    return [
        {
            "prompt": [{"role": "user", "content": texts[row["id"]]["prompt"]}],
            "completion": [{"role": "assistant", "content": texts[row["id"]][side]}],
            "label": side == "chosen",
        }
        for row in rows
        for side in ("chosen", "rejected")
    ]


@pytest.mark.parametrize("changes", [{}, {"kto.loss_type": "apo_zero_unpaired"}, {"kto.undesirable_weight": 0.5}], ids=str)
@pytest.mark.parametrize("padding_free", [True, False])
def test_trl_itself_takes_the_same_steps(workspace, changes, padding_free):
    """The same ids, losses and weights as TRL's own tokens and its reference at every step, with two epochs and accumulation."""
    workspace.params.update({**changes, "models.mini.padding_free": padding_free})
    workspace.params["models.mini.kto.gradient_accumulation_steps"] = 2
    workspace.run("prepare")
    rows = workspace.rows("data/prepared/dpo_train.jsonl")
    given = setting(workspace, kto)
    texts = in_training_order(unpaired_texts(rows), given.params.kto.num_train_epochs, given.params.seed)
    stock = stock_trainer(given, texts)
    with_kl = () if "kto.loss_type" in changes else ("KL_completion_ids",)
    for column in ("prompt_ids", "completion_ids", *with_kl, "label"):
        assert list(stock.train_dataset[column]) == [row[column] for row in arranged(given, unpaired(rows))]
    observe(stock, "kto", 1, 1000, dict)
    stock.train()
    ours = train(workspace, unpaired(rows))
    expected, found = (trajectories.points(trainer.state.log_history) for trainer in (stock, ours))
    assert len(expected["loss"]) >= 4 and abs(expected["loss"][-1] - expected["loss"][0]) > 0.01
    assert found == {key: pytest.approx(values, rel=1e-5, abs=1e-5) for key, values in expected.items()}
    for name, tensor in stock.model.named_parameters():
        if "lora" in name and ".ref." not in name:
            torch.testing.assert_close(dict(ours.model.named_parameters())[name], tensor, rtol=0, atol=1e-5)


def test_the_first_losses_are_half_of_their_weights(workspace):
    weights = {"kto.desirable_weight": 3.0, "kto.undesirable_weight": 1.0, "models.mini.kto.per_device_train_batch_size": 20}
    trainer = train(workspace, unpaired(random_rows(10)), **weights)
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert first == pytest.approx(0.5 * (3 + 1) / 2, abs=1e-6)


def test_only_the_adapter_is_kept_and_nothing_of_the_reference(workspace):
    trainer = train(workspace, unpaired(random_rows(4)))
    assert list(trainer.model.peft_config) == ["default"] and trainer.ref_model is None


# ---- Rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "count"), [(1, 10), (2, 20), (2.5, 25), (0.25, 2), (0.001, 1)])
def test_each_epoch_holds_every_row_once_in_an_order_of_its_own(epochs, count):
    rows = [{"n": n} for n in range(10)]
    ordered = in_training_order(rows, epochs, 17)
    assert len(ordered) == count and ordered == in_training_order(rows, epochs, 17) != in_training_order(rows, epochs, 18)
    whole = [ordered[start : start + 10] for start in range(0, count - count % 10, 10)]
    assert all(sorted(each, key=lambda row: row["n"]) == rows for each in whole)
    assert len({str(each) for each in whole}) == len(whole)


def test_answers_rotate_within_a_batch():
    rows = [{"completion_ids": [n]} for n in range(5)]
    assert [row["KL_completion_ids"] for row in with_rotated_answers(rows, 3)] == [[2], [0], [1], [4], [3]]
    assert [row["KL_completion_ids"] for row in with_rotated_answers(rows, 5, by=2)] == [[3], [4], [0], [1], [2]]


# ---- Held-out measures ----------------------------------------------------------------------------------------------


def test_the_held_out_loss_is_that_of_the_paper(workspace):
    """beta 0.5; r = 1 and -3 for a good and a bad row; mismatched answers moved by 2 and 0, so z0 = 1: by hand."""
    section = setting(workspace, kto, **{"kto.beta": 0.5, "kto.desirable_weight": 1.0, "kto.undesirable_weight": 2.0}).params.kto
    measured = kto_metrics([(-4, -8), (-9, -5)], [(-5, -10), (-6, -5)], [True, False], section)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    good, bad = 1 - sigmoid(0.5 * (1 - 1)), 1 - sigmoid(0.5 * (1 + 3))
    assert measured == {"validation_loss": pytest.approx((good + 2 * bad) / 2), "validation_kl": 1.0}
    assert kto_metrics([(-4, -12)], [(-5, -10)], [True], section)["validation_kl"] == 0.0


# ---- The stage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, monkeypatch):
    return Workspace.copy(shelf.built("kto", run_to_the_end), tmp_path, monkeypatch)


def run_to_the_end(folder):
    with pytest.MonkeyPatch.context() as patch:
        workspace = with_sft_adapter(folder, patch)
        workspace.params["kto.eval_steps"] = 2
        workspace.run("prepare")
        workspace.run("unpaired")
        workspace.run("kto")


def test_a_second_run_writes_the_same_bytes(finished):
    first = {path: Path(path).read_bytes() for path in OUTPUTS}
    for path in OUTPUTS:
        Path(path).unlink()
    finished.run("kto")
    assert {path: Path(path).read_bytes() for path in OUTPUTS} == first


def test_the_report_is_about_the_stored_adapter(finished):
    """Compares with reloaded models and the stock forward pass."""
    given, rows = setting(finished, kto), finished.rows("data/prepared/dpo_validation.jsonl")
    held_out = with_rotated_answers(unpaired(rows), 2 * len(rows), by=2)
    policies = [
        load_adapter(load_base(given.params.model_entry, given.runtime), Path(folder)) for folder in ("models/kto", "models/sft")
    ]
    single = [log_probabilities(model, held_out, given.chat.pad_id, sides=COLUMNS) for model in policies]
    own = kto_metrics(*single, [row["label"] for row in held_out], given.params.kto)
    of_pairs = preference_metrics(
        *(log_probabilities(model, rows, given.chat.pad_id) for model in policies), given.params.kto.beta
    )
    report = finished.json("reports/kto.json")["kto"]
    assert report["validation_loss"] == pytest.approx(own["validation_loss"], abs=1e-4)
    assert report["reward_margin"] == pytest.approx(of_pairs["validation_margin"], abs=1e-4)
    assert report["validation_pairs"] == len(rows) and report["reward_margin"] > 0


def test_the_curves_begin_at_the_reference(finished):
    """Each row's loss is half its weight there, 1.33 for good and 1 for bad ones, of which there are as many."""
    with next(iter(kto.CURVES)).open(encoding="utf-8", newline="") as file:
        first = next(row for row in csv.DictReader(file) if row["series"] == "held out")
    assert (first["step"], float(first["value"])) == ("0", pytest.approx((1.33 + 1) / 4, abs=1e-5))


def test_an_adapter_of_another_base_is_refused(workspace):
    workspace.run("prepare")
    workspace.run("unpaired")
    config = Path("models/base/weights/config.json")
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="models/sft was trained with another base"):
        workspace.run("kto")
