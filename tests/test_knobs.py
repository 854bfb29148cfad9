"""Every knob is alive: each key of params.yaml, moved to another legal value, changes what its stages really do.

The stages run for real on a tiny random model. What a stage does is all that it writes, what it says of the device, and what
the model meets (`observed`). A key without a rule fails, and so does a stage that declares a key and does nothing with it.
"""

import contextlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML
from support.workspace import RAW, REPOSITORY, Params, Workspace, checkpoint, sft_rows

from aligner.files import write_jsonl
from aligner.model import loading
from aligner.model.loading import load_base
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.run.record import Run

VALUES = YAML(typ="safe", pure=True).load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
STAGES = {"prepare": (), "sft": (), "dpo": (), "generate": ("base",), "score": ()}
REPOSITORY_ID, REVISIONS = "somebody/model", {"mini": "a" * 40, "zephyr_llama": "b" * 40}
BAD_ROWS = "data/raw/bad_sft.jsonl"
LEAKED = "data/raw/leaked_eval.jsonl"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"
SAMPLING = {"generate.do_sample": True}


class Rule(NamedTuple):
    """Another legal value for a key, and what else must hold so that the key matters."""

    value: Any
    given: dict[str, Any] = {}


RULES = {
    "model": Rule("tinyllama", {"models.tinyllama.path": "another", "models.tinyllama.revision": None}),
    "seed": Rule(18, SAMPLING),
    "models.*.path": Rule("another"),
    "models.*.revision": Rule(
        REVISIONS["zephyr_llama"], {"models.mini.path": REPOSITORY_ID, "models.mini.revision": REVISIONS["mini"]}
    ),
    "models.*.chat_template": Rule("plain.jinja"),
    "models.*.max_length": Rule(30),
    "models.*.device": Rule("cuda"),
    "models.*.dtype": Rule("bfloat16"),
    "models.*.attn_implementation": Rule("eager"),
    "models.*.threads": Rule(2),
    "models.*.fast_path": Rule(False),
    "models.*.gradient_checkpointing": Rule(True),
    "models.*.torch_compile": Rule(True),
    "models.*.sft.learning_rate": Rule(0.02),
    "models.*.sft.per_device_train_batch_size": Rule(2),
    "models.*.sft.gradient_accumulation_steps": Rule(2),
    "models.*.dpo.learning_rate": Rule(0.02),
    "models.*.dpo.per_device_train_batch_size": Rule(2),
    "models.*.dpo.gradient_accumulation_steps": Rule(2),
    "models.*.generate.batch_size": Rule(3),
    "prepare.sft": Rule("data/raw/other_sft.jsonl"),
    "prepare.pairs": Rule("data/raw/other_pairs.jsonl"),
    "prepare.eval": Rule("data/raw/other_eval.jsonl"),
    "prepare.concepts": Rule("data/raw/other_concepts.jsonl"),
    "prepare.validation_share": Rule(0.6),
    "prepare.on_bad_row": Rule("drop", {"prepare.sft": BAD_ROWS, "prepare.max_bad_share": 0.5}),
    "prepare.max_bad_share": Rule(0, {"prepare.sft": BAD_ROWS, "prepare.on_bad_row": "drop", "prepare.max_bad_share": 0.5}),
    "prepare.max_leakage": Rule(0, {"prepare.eval": LEAKED, "prepare.max_leakage": 1}),
    "lora.r": Rule(8),
    "lora.lora_alpha": Rule(64),
    "lora.lora_dropout": Rule(0.5),
    "lora.target_modules": Rule(["q_proj", "v_proj"]),
    "sft.num_train_epochs": Rule(2),
    "sft.lr_scheduler_type": Rule("constant"),
    "sft.warmup_steps": Rule(2),
    "sft.weight_decay": Rule(0.5),
    "sft.max_grad_norm": Rule(0.01),
    "sft.logging_steps": Rule(1),
    "sft.eval_steps": Rule(1),
    "sft.train_sampling_strategy": Rule(
        "batch_rebalance", {"models.mini.sft.per_device_train_batch_size": 2, "models.mini.sft.gradient_accumulation_steps": 2}
    ),
    "dpo.beta": Rule(0.5),
    "dpo.loss_type": Rule("ipo"),
    "dpo.label_smoothing": Rule(0.2, {"dpo.loss_type": "robust"}),
    "dpo.sft_weight": Rule(0),
    "dpo.num_train_epochs": Rule(2),
    "dpo.lr_scheduler_type": Rule("constant"),
    "dpo.warmup_steps": Rule(2),
    "dpo.weight_decay": Rule(0.5),
    "dpo.max_grad_norm": Rule(0.01),
    "dpo.logging_steps": Rule(2),
    "dpo.eval_steps": Rule(1),
    "generate.max_new_tokens": Rule(9),
    "generate.do_sample": Rule(True),
    "generate.temperature": Rule(5.0, SAMPLING),
    "generate.top_p": Rule(0.01, SAMPLING),
    "score.tie_threshold": Rule(1),
    "score.alpha": Rule(0.0001),
    "score.equivalence_margin": Rule(0.9),
}


def leaves(values, parents=()):
    """Dotted names of the keys that hold a value; an entry of `models` is `*`."""
    for key, value in values.items():
        path = (*parents, "*" if parents == ("models",) else key)
        if isinstance(value, dict):
            yield from leaves(value, path)
        else:
            yield ".".join(path)


def declared(stage):
    """The keys that a stage says it reads, down to the single values; what score only shows, tests/test_page.py looks for."""
    module = importlib.import_module(stage)
    for name in set(module.PARAMS) - set(module.SHOWN if stage == "score" else ()):
        wanted = name.replace("${model}", "*")
        yield from (key for key in KEYS if key == wanted or key.startswith(wanted + "."))


KEYS = sorted(set(leaves(VALUES)))
PAIRS = sorted((stage, key) for stage in STAGES for key in declared(stage))


# ---- A workspace in which all stages ran, and what one more run of a stage does in a copy of it ---------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a workspace that has been through all stages, with other inputs lying beside the first ones."""
    with pytest.MonkeyPatch.context() as patch:
        workspace = Workspace(tmp_path_factory.mktemp("knobs"), patch)
        workspace.run_all()
        for name in ("base", "sft", "dpo"):
            path = f"data/generated/{name}.jsonl"
            write_jsonl(Path(path), [{**row, "answer": "the sum" if name == "dpo" else ""} for row in workspace.rows(path)])
        lay_out_alternatives(workspace.folder)
        yield workspace.folder


def lay_out_alternatives(folder):
    """What the rules name: another checkpoint, two revisions in a hub cache, a template, and other raw files."""
    shutil.copytree(checkpoint("zephyr_llama"), folder / "another")
    for name, revision in REVISIONS.items():
        shutil.copytree(checkpoint(name), folder / "hub/models--somebody--model/snapshots" / revision)
    (folder / "plain.jinja").write_text(TEMPLATE, encoding="utf-8")
    for kind, path in RAW.items():
        lines = (folder / path).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"data/raw/other_{kind}.jsonl").write_text("".join(lines[1:]), encoding="utf-8")
    (folder / BAD_ROWS).write_text((folder / RAW["sft"]).read_text(encoding="utf-8") + "no JSON\n", encoding="utf-8")
    leaked = {"id": "leaked", "prompt": sft_rows()[0]["prompt"], "topic": "odd", "keywords": ["mean"]}
    (folder / LEAKED).write_text((folder / RAW["eval"]).read_text(encoding="utf-8") + json.dumps(leaked) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def known():
    """What the stages do with the parameters that several tests start from."""
    return {}


@pytest.fixture
def observe(finished, tmp_path, monkeypatch):
    """`observe(stage, changes)`: what the stage does in a fresh copy of the finished workspace with changed params."""
    import torch
    from huggingface_hub import constants

    threads = torch.get_num_threads()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(finished / "hub"))

    def run(stage, changes):
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("hub"))
        monkeypatch.chdir(folder)
        Params(folder / "params.yaml", folder / "params.yaml").update(changes)
        parameters.read()  # whatever stands there must be legal
        with pytest.MonkeyPatch.context() as patch:
            return observed(stage, folder, spy(patch))

    yield run
    torch.set_num_threads(threads)


def spy(patch):
    """Notes each base that a stage loads, with its way of attention, the shape of every batch of ids that it meets, and what is
    to be compiled; that takes half a minute and is left to test_sft.py."""
    import torch

    met = {"bases": [], "attention": [], "shapes": [], "compiled": []}
    load_base = load_base

    def noting(*arguments):
        base = load_base(*arguments)
        met["bases"].append(base)
        met["attention"].append(base.config._attn_implementation)
        base.get_input_embeddings().register_forward_pre_hook(lambda layer, inputs: met["shapes"].append(tuple(inputs[0].shape)))
        return base

    patch.setattr(loading, "load_base", noting)
    patch.setattr(torch.nn.Module, "compile", lambda layer, **how: met["compiled"].append((type(layer).__name__, how)))
    patch.setattr(torch.compiler, "set_stance", lambda stance: contextlib.nullcontext())
    return met


def observed(stage, folder, met):
    """All that a run of `stage` shows: its error, or what it wrote, where it ran, and what the model met."""
    run = Run(stage)
    try:
        importlib.import_module(stage).main(run, *STAGES[stage])
    except InputError as error:
        return str(error)
    return {
        "files": written(folder),
        "where": {name: run.fields.get(name) for name in ("device", "dtype", "threads")},
        "attention": met["attention"],
        "checkpointing": [base.is_gradient_checkpointing for base in met["bases"]],
        "shapes": met["shapes"],
        "compiled": met["compiled"],
    }


def written(folder):
    """Bytes of every output; the report repeats the parameters and would change without any effect."""
    outputs = [
        path
        for root in ("data/prepared", "data/generated", "models/sft", "models/dpo", "metrics", "plots")
        for path in sorted((folder / root).rglob("*"))
        if path.is_file()
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in outputs}


def in_entry(key):
    """The key as params.yaml of the workspace spells it, whose model is `mini`."""
    return key.replace("*", "mini")


# ---- The tests ------------------------------------------------------------------------------------------------------


def test_every_key_of_the_file_has_a_rule_and_a_stage_that_reads_it():
    assert sorted(RULES) == KEYS
    assert {key for _, key in PAIRS} == set(KEYS)


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_parameters_do_the_same(observe, stage):
    """What makes the comparisons below mean something: nothing differs by itself."""
    assert observe(stage, SAMPLING) == observe(stage, SAMPLING)


@pytest.mark.parametrize(("stage", "key"), PAIRS)
def test_a_declared_key_changes_what_the_stage_does(observe, known, stage, key):
    rule = RULES[key]
    if (stage, str(rule.given)) not in known:
        known[stage, str(rule.given)] = observe(stage, rule.given)
    before = known[stage, str(rule.given)]
    assert isinstance(before, dict) != (key == "prepare.on_bad_row"), f"an error to begin with: {before}"
    assert observe(stage, {**rule.given, in_entry(key): rule.value}) != before
