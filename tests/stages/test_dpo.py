"""dpo: its start at the reference, its steps against TRL's own trainer, and the files that it writes."""

import csv
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import shelf, trajectories
from support.policies import build, load_policy, random_rows, setting, swapped, train, with_sft_adapter
from support.workspace import Workspace, pair_rows

import dpo
from aligner.model.loading import load_adapter, load_base
from aligner.run.errors import InputError
from aligner.training import likelihood
from aligner.training.divergence import kl_from_reference
from aligner.training.log_probs import log_probabilities
from aligner.training.loop import observe
from aligner.training.preferences import (
    preference_figures,
    preference_metrics,
    ranking_rows,
    rankings,
)
from aligner.training.setup import trainer_tokenizer, training_arguments

ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "provenance.json"}
LN_2 = pytest.approx(math.log(2), abs=1e-6)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return with_sft_adapter(tmp_path, monkeypatch)


def adapter_of(trainer):
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(trainer.model).items()}


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
    """Log-probabilities of the base without the adapter: the most likely mistake for a reference."""
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
    """The loss of a step is the mean over its pairs, for any split into passes; the last step may be short."""
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
    """TRL's unchanged DPOTrainer: it tokenises the texts, and computes the reference at every step with a copy of the adapter."""
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
    """Compares ids from prepare and a precomputed reference with TRL's own tokens and its reference at every step."""
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
    """Margins grow on the training rows; after training on swapped rows, the same pairs have negative margins."""
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
    """loss = preference loss + weight * nats per token of the chosen answers; the check before training excludes it."""
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
        workspace = with_sft_adapter(folder, patch)
        workspace.params["dpo.eval_steps"] = 2
        workspace.run("prepare")
        workspace.run("dpo")


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


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
    """Compares with reloaded models, the base without any adapter, and the stock forward pass, up to the last bits."""
    given, rows = setting(finished), finished.rows("data/prepared/dpo_validation.jsonl")
    policies = [
        load_adapter(load_base(given.params.model_entry, given.runtime), Path(folder)) for folder in ("models/dpo", "models/sft")
    ]
    base = load_base(given.params.model_entry, given.runtime)
    said = {name: log_probabilities(model, rows, given.chat.pad_id) for name, model in zip(NAMED, (*policies, base), strict=True)}
    kl = kl_from_reference(policies[0].eval(), dpo.SFT_ADAPTER, rows, given.chat, given.params.seed)
    fit = likelihood.of_answers(policies[0], finished.rows("data/prepared/sft_validation.jsonl"), given.chat, unpadded=False)
    measures = preference_metrics(said["dpo"], said["sft"], given.params.dpo.beta)
    expected = preference_figures("dpo", measures, rankings(said, rows), kl, fit, rows)
    assert finished.json("reports/dpo.json")["dpo"] == {name: close(value) for name, value in expected.items()}
    written = [row["ranking_accuracy"] for row in read(dpo.RANKING)]
    assert list(map(float, written)) == [close(row[2]) for row in ranking_rows(rankings(said, rows))]


NAMED = ("dpo", "sft", "base")


def close(value):
    """The same value, with a tolerance for floats."""
    return pytest.approx(value, rel=1e-5, abs=1e-4) if isinstance(value, float) else value


def test_dpo_and_sft_are_measured_on_the_same_held_out_answers(finished, monkeypatch):
    """Before any training DPO's perplexity is SFT's: dpo's measure gives it for the adapter that dpo starts from."""
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
