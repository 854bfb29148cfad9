"""sft: its measures and training steps on a tiny random model and rows of random ids, and the files that it writes."""

import csv
import json
import math
import os
import random
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import shelf, trajectories
from support.workspace import Workspace, with_entry

import sft
from aligner.model import runtime
from aligner.model.loading import base_fingerprint, check_provenance, load_adapter, load_base, load_chat, save_adapter
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.training import likelihood, llama_layer, setup
from aligner.training.loop import observe
from aligner.training.setup import compile_layers

ROOT = Path(__file__).resolve().parents[2]
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "provenance.json"}
LINEAR_LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0, "target_modules": "all-linear"}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    return pinned(tmp_path, monkeypatch)


def pinned(folder, monkeypatch):
    lora = {f"lora.{key}": value for key, value in LORA.items()}
    settings = {**trajectories.settings("sft"), "sft.train_sampling_strategy": "random"}
    return Workspace(folder, monkeypatch, **lora, **settings)


def setting(workspace, **changes):
    """The stage's params, and the runtime and chat that main derives from them."""
    workspace.params.update(changes)
    params = parameters.load(sft.PARAMS)
    return SimpleNamespace(
        params=params, runtime=runtime.start(params.model_entry, params.seed), chat=load_chat(params.model_entry)
    )


def build(workspace, rows, **changes):
    given = setting(workspace, **changes)
    trainer = sft.build_trainer(given.params, given.runtime, given.chat, rows)
    observe(trainer, "sft", 1, given.params.sft.eval_steps, dict)
    return trainer


def train(workspace, rows, **changes):
    trainer = build(workspace, rows, **changes)
    trainer.train()
    return trainer


def random_rows(n, seed=0):
    """Rows of unequal length with a prompt and an answer; every third row has a second turn."""
    source = random.Random(seed)
    return [random_row(source, index) for index in range(n)]


def random_row(source, index):
    row = {"id": f"r{index}", "input_ids": [], "labels": []}
    for _ in range(2 if index % 3 == 0 else 1):
        prompt, answer = ([source.randrange(5, 300) for _ in range(source.randrange(2, 12))] for _ in range(2))
        row["input_ids"] += [*prompt, *answer, 1]
        row["labels"] += [*[-100] * len(prompt), *answer, 1]
    return row


def adapter_of(trainer):
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(trainer.model).items()}


# ---- Measures -----------------------------------------------------------------------------------------------


TWO_ROWS = [
    {"input_ids": [0, 0], "labels": [-100, 0]},
    {"input_ids": [1, 2, 3, 3], "labels": [-100, 2, 3, 3]},
]


def one_row_at_a_time(model, rows, special):
    """Measures of all labelled tokens in double precision, each row alone and without padding; `special` is not text."""
    losses, hits, text = [], [], []
    model.eval()
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
        for position, label in enumerate(row["labels"]):
            if label != -100:
                losses.append(-torch.log_softmax(logits[position - 1], -1)[label].item())
                hits.append(logits[position - 1].argmax().item() == label)
                text.append(losses[-1] * (label != special))
    means = {"validation_loss": math.fsum(losses) / len(losses), "token_accuracy": sum(hits) / len(hits)}
    return means | {"text_nats": math.fsum(text)}


@pytest.mark.parametrize("model", ["mini", "zephyr_llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_evaluate_equals_rows_one_at_a_time_whatever_the_batches(tmp_path, monkeypatch, model, batch_size):
    workspace = Workspace(tmp_path, monkeypatch, model=model)
    given, rows = setting(workspace), random_rows(14)
    base = load_base(given.params.model_entry, given.runtime)
    for row in rows[::2]:
        with torch.no_grad():
            row["labels"][-1] = base(input_ids=torch.tensor([row["input_ids"]])).logits[0, -2].argmax().item()
            row["input_ids"][-1] = row["labels"][-1]
    expected = one_row_at_a_time(base, rows, rows[0]["labels"][-1])
    measured = likelihood.measure(base, rows, given.chat.pad_id, {rows[0]["labels"][-1]}, batch_size)
    for name in ("validation_loss", "text_nats"):
        assert measured[name] == pytest.approx(expected[name], rel=1e-6)
    assert measured["token_accuracy"] == expected["token_accuracy"] >= 7 / likelihood.supervised(rows)


def test_evaluate_neither_trains_nor_drops_out(workspace):
    trainer = build(workspace, random_rows(4), **{"lora.lora_dropout": 0.5})
    trainer.model.train()
    before = adapter_of(trainer)
    first, second = (likelihood.measure(trainer.model, random_rows(4), 0, set()) for _ in range(2))
    assert first == second
    assert trainer.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter_of(trainer).items())


def test_sft_figures_describe_the_model_before_and_after():
    """Perplexities exp(ln 8) = 8 and exp(ln 16) = 16; 6 ln 2 and 10 ln 2 nats over 4 bytes are 1.5 and 2.5 bits per byte."""
    base = {"validation_loss": math.log(16), "token_accuracy": 0.0, "text_nats": 10 * math.log(2)}
    final = {"validation_loss": math.log(8), "token_accuracy": 1 / 3, "text_nats": 6 * math.log(2)}
    assert sft.sft_figures(base, final, TWO_ROWS, 4) == {
        "validation_loss": 2.0794,
        "perplexity": 8.0,
        "bits_per_byte": 1.5,
        "token_accuracy": 0.3333,
        "base_perplexity": 16.0,
        "base_bits_per_byte": 2.5,
        "validation_tokens": 4,
        "validation_bytes": 4,
    }


# ---- Training ------------------------------------------------------------------------------------------------


def test_only_the_adapter_is_trained(workspace):
    trainer = build(workspace, random_rows(8))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} == LINEAR_LAYERS
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved == trained


def test_the_adapter_begins_as_nothing(workspace):
    given, rows = setting(workspace), random_rows(6)
    base = likelihood.measure(load_base(given.params.model_entry, given.runtime), rows, given.chat.pad_id, {1})
    assert likelihood.measure(build(workspace, rows).model, rows, given.chat.pad_id, {1}) == base


def test_the_settings_of_lora_reach_the_adapter(workspace):
    changes = {"lora.r": 2, "lora.lora_alpha": 10, "lora.target_modules": ["q_proj", "down_proj"]}
    trainer = build(workspace, random_rows(4), **changes)
    names = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0].split(".")[-1] for name in names} == {"q_proj", "down_proj"}
    layer = next(module for name, module in trainer.model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    assert layer.scaling == {"default": 5} and layer.r == {"default": 2}


def test_the_first_logged_loss_is_that_of_the_trained_tokens_alone(workspace):
    """One step over all rows: TRL's loss is the mean over labelled tokens, as in likelihood.measure."""
    rows = random_rows(8)
    trainer = train(workspace, rows, **{"models.mini.sft.per_device_train_batch_size": 8, "sft.num_train_epochs": 1})
    given = setting(workspace)
    measured = likelihood.measure(load_base(given.params.model_entry, given.runtime), rows, given.chat.pad_id, {1})
    assert trajectories.points(trainer.state.log_history)["loss"] == [pytest.approx(measured["validation_loss"], rel=1e-5)]


def test_the_trajectory_is_the_committed_one(workspace):
    trainer = train(workspace, random_rows(40))
    assert trainer.state.global_step == 20
    trajectories.check("sft", trainer.state.log_history)


def test_scoring_supervised_tokens_only_keeps_every_loss(workspace, monkeypatch):
    """trl's head has the same losses over all positions and over the supervised ones only."""
    import trl.trainer.utils

    monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: False)
    whole = losses_of(train(workspace, random_rows(8)))
    runtime.score_supervised_tokens_only()
    assert trl.trainer.utils._use_triton("cpu")
    assert losses_of(train(workspace, random_rows(8))) == pytest.approx(whole, rel=1e-5)


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def batches_of(rows, passes):
    return {"models.mini.sft.per_device_train_batch_size": rows, "models.mini.sft.gradient_accumulation_steps": passes}


@pytest.mark.parametrize("rows", [8, 10])
def test_four_rows_at_once_are_one_row_four_times(workspace, rows):
    """The loss of a step is the mean over its tokens, for any split into passes; the last step may be short."""
    runs = [train(workspace, random_rows(rows), **batches_of(batch, passes)) for batch, passes in ((4, 1), (1, 4))]
    at_once, one_by_one = (trajectories.points(run.state.log_history) for run in runs)
    assert one_by_one == {key: pytest.approx(values, rel=1e-5) for key, values in at_once.items()}
    final, other = (adapter_of(run) for run in runs)
    assert max(tensor.abs().max() for tensor in final.values()) > 0.05
    for name, tensor in final.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-5)


def test_rebalanced_batches_make_the_same_steps(workspace):
    """Only the assignment of rows to passes differs: a step is the same mean over the same tokens."""
    strategies = ("random", "batch_rebalance")
    runs = [
        train(workspace, random_rows(16), **batches_of(2, 4), **{"sft.train_sampling_strategy": strategy})
        for strategy in strategies
    ]
    plain, rebalanced = (trajectories.points(run.state.log_history) for run in runs)
    assert len(plain["loss"]) == 4
    sizes = [sum(batch["input_ids"].numel() for batch in run.get_train_dataloader()) for run in runs]
    assert sizes[1] < sizes[0], "rebalanced batches must hold less padding"
    assert rebalanced == {key: pytest.approx(values, rel=1e-5) for key, values in plain.items()}


@pytest.mark.parametrize("strategy", ["random", "batch_rebalance"])
def test_the_seed_decides_the_order_of_the_rows(workspace, strategy):
    """LoRA's B is zero at first, so the first loss depends only on which rows come first."""
    workspace.params.update({"sft.train_sampling_strategy": strategy, "sft.num_train_epochs": 0.25})
    losses = [
        trajectories.points(train(workspace, random_rows(16), seed=seed).state.log_history)["loss"][0] for seed in (17, 18, 17)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == losses[2]


def test_gradient_checkpointing_changes_memory_and_nothing_else(workspace):
    runs = [train(workspace, random_rows(8), **{"models.mini.gradient_checkpointing": wanted}) for wanted in (False, True)]
    stored, recomputed = (trajectories.points(run.state.log_history) for run in runs)
    assert runs[1].model.is_gradient_checkpointing
    assert recomputed == {key: pytest.approx(values, rel=1e-5) for key, values in stored.items()}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("fast", [False, True])
def test_compiled_layers_train_the_same(workspace, monkeypatch, fast):
    """With rows of many lengths and a measurement during training, the layers are compiled once."""
    monkeypatch.setattr(llama_layer, "can_fuse", lambda model: False)
    counters = torch._dynamo.utils.counters
    counters.clear()
    given, rows = setting(workspace, **{"models.mini.padding_free": fast}), random_rows(12)
    logs = []
    try:
        for wanted in (False, True):
            given.params = with_entry(given.params, torch_compile=wanted)
            trainer = sft.build_trainer(given.params, given.runtime, given.chat, rows)
            measure = lambda model=trainer.model: likelihood.measure(model, rows, given.chat.pad_id, {1})  # noqa: E731
            observe(trainer, "sft", 1, 2, measure)
            trainer.train()
            logs.append(trajectories.points(trainer.state.log_history))
    finally:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()
    assert logs[1] == {key: pytest.approx(values, rel=1e-4) for key, values in logs[0].items()}
    assert 0 < counters["stats"]["unique_graphs"] <= 2 and not counters["graph_break"]


def test_what_cannot_be_compiled_is_said(workspace, monkeypatch):
    given, rows = setting(workspace, **{"models.mini.torch_compile": True}), random_rows(4)
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"C\+\+ compiler.*torch_compile to false"):
        sft.build_trainer(given.params, given.runtime, given.chat, rows)
    model = torch.nn.Linear(2, 2)
    model._no_split_modules = None
    with pytest.raises(InputError, match=r"Linear does not name its layers.* set models\.<name>\.torch_compile to false"):
        compile_layers(SimpleNamespace(model=SimpleNamespace(get_base_model=lambda: model)))


def test_measuring_more_often_does_not_change_the_training(workspace):
    """With dropout, whose random numbers a measurement must not consume."""
    rows, losses = random_rows(12), []
    for steps in (1, 1000):
        given = setting(workspace, **{"lora.lora_dropout": 0.3})
        trainer = sft.build_trainer(given.params, given.runtime, given.chat, rows)
        measure = lambda model=trainer.model, pad_id=given.chat.pad_id: likelihood.measure(model, rows, pad_id, {1})  # noqa: E731
        observe(trainer, "sft", 1, steps, measure)
        trainer.train()
        losses.append(trajectories.points(trainer.state.log_history))
    assert losses[0] == losses[1]


# ---- Outputs ------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A workspace in which sft has run."""
    return Workspace.copy(shelf.built("sft", run_to_the_end), tmp_path, monkeypatch)


def run_to_the_end(folder):
    with pytest.MonkeyPatch.context() as patch:
        workspace = pinned(folder, patch)
        workspace.params.update({"sft.eval_steps": 2, "sft.num_train_epochs": 2})
        workspace.run("prepare")
        workspace.run("sft")


def test_the_adapter_folder_holds_exactly_three_files(finished):
    assert {path.name for path in (finished.folder / "models/sft").iterdir()} == ADAPTER_FILES
    config = finished.json("models/sft/adapter_config.json")
    assert list(config) == sorted(config)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {name.split(".")[-1] for name in config["target_modules"]} == LINEAR_LAYERS
    assert (config["base_model_name_or_path"], config["inference_mode"]) == ("models/base/weights", True)
    assert str(finished.folder) not in json.dumps(config)


def test_the_provenance_names_base_and_chat(finished):
    given = setting(finished)
    expected = {"base": base_fingerprint(given.params.model_entry), "chat": given.chat.fingerprint}
    assert finished.json("models/sft/provenance.json") == expected
    check_provenance(Path("models/sft"), expected)


def test_a_stored_adapter_loads_back_to_the_same_logits(workspace):
    trainer = train(workspace, random_rows(12))
    save_adapter(trainer.model, Path("models/sft"), "models/base/weights", {})
    given = setting(workspace)
    base = load_base(given.params.model_entry, given.runtime)
    ids = torch.tensor([random_rows(1)[0]["input_ids"]])
    with torch.no_grad():
        trained, plain = trainer.model.eval()(input_ids=ids).logits, base.eval()(input_ids=ids).logits.clone()
        loaded = load_adapter(base, Path("models/sft")).eval()(input_ids=ids).logits
    assert torch.equal(loaded, trained)
    assert (loaded - plain).abs().max() > 0.01


def test_metrics_are_the_measures_of_the_base_and_of_the_stored_adapter(finished):
    """Compares with the stock forward pass, up to the last bits, and with a base without any adapter."""
    given, rows = setting(finished), finished.rows("data/prepared/sft_validation.jsonl")
    base = load_base(given.params.model_entry, given.runtime)
    measured = [likelihood.measure(base, rows, given.chat.pad_id, likelihood.special_ids(given.chat))]
    model = load_adapter(base, Path("models/sft"))
    measured.append(likelihood.measure(model, rows, given.chat.pad_id, likelihood.special_ids(given.chat)))
    expected = sft.sft_figures(*measured, rows, likelihood.text_bytes(rows, given.chat))
    found = finished.json("reports/sft.json")["sft"]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert found["perplexity"] < found["base_perplexity"] and found["bits_per_byte"] < found["base_bits_per_byte"]


def test_the_curve_has_both_series_from_the_first_to_the_last_step(finished):
    with open("plots/sft.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "series", "value"]
    steps = {name: [int(row["step"]) for row in rows if row["series"] == name] for name in ("training", "held out")}
    assert len(rows) == sum(map(len, steps.values()))
    last = steps["training"][-1]
    assert steps == {"training": list(range(1, last + 1)), "held out": [*range(0, last, 2), last]}
    assert all(earlier < later for series in steps.values() for earlier, later in pairwise(series))
    final = finished.json("reports/sft.json")["sft"]["validation_loss"]
    assert float(rows[-1]["value"]) == pytest.approx(final, abs=1e-4)


@pytest.mark.slow
def test_the_same_bytes_in_another_process_with_another_hash_seed(finished):
    """target_modules is a set, whose order follows the hash seed."""
    files = [*(f"models/sft/{name}" for name in sorted(ADAPTER_FILES)), "metrics/sft.json", "reports/sft.json", "plots/sft.csv"]
    first = {path: Path(path).read_bytes() for path in files}
    for path in files:
        Path(path).unlink()
    run_as_command(hash_seed="1" if os.environ.get("PYTHONHASHSEED") != "1" else "2")
    assert {path: Path(path).read_bytes() for path in files} == first


def run_as_command(hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    script = [sys.executable, str(ROOT / "src" / "sft.py")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
