"""Every parameter matters: another legal value for any key of params.yaml changes what its stages do.

The stages run on a tiny random model: prepare and score to their end, the others until they would train or generate. The tests
compare what they have built by then: SFTConfig, DPOConfig, LoraConfig, GenerationConfig, the model and the rows (`built`). Stages
run to their end (TO_THE_END) for some keys of each kind and for those that act later. The tests fail for a key without a rule,
and for a stage that declares a key and ignores it.
"""

import contextlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML
from support import finished, shelf
from support.workspace import RAW, REPOSITORY, Params, Workspace, checkpoint, sft_rows

import dpo
import generate
import grpo
import kto
import orpo
import sft
from aligner.files import write_jsonl
from aligner.model import loading
from aligner.run import params as parameters
from aligner.run import ranks
from aligner.run.errors import InputError
from aligner.run.record import Run
from aligner.training import policy_measures, reward_model
from aligner.training.rewards import REWARDS

VALUES = YAML(typ="safe", pure=True).load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
STAGES = {"prepare": (), "sft": (), "dpo": (), "generate": ("base",), "score": ()}
STAGES |= {"unpaired": (), "kto": (), "orpo": (), "reward": (), "best_of_n": (), "grpo": (), "league": ()}
OWN_ROWS = "data/raw/unpaired.jsonl"
REPOSITORY_ID, REVISIONS = "somebody/model", {"mini": "a" * 40, "zephyr_llama": "b" * 40}
BAD_ROWS = "data/raw/bad_sft.jsonl"
LEAKED = "data/raw/leaked_eval.jsonl"
OTHER_PROMPTS = "data/raw/other_prompts.jsonl"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"
SAMPLING = {"generate.do_sample": True}
OF_TOKENIZER = ("chat_template", "max_length", "path", "revision")


class Rule(NamedTuple):
    """Another legal value for a key, and other parameters without which the key would not matter."""

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
    "models.*.processes": Rule(2),
    "models.*.shard": Rule(True),
    "models.*.padding_free": Rule(False),
    "models.*.gradient_checkpointing": Rule(True),
    "models.*.torch_compile": Rule(True),
    "models.*.sft.learning_rate": Rule(0.03),
    "models.*.sft.per_device_train_batch_size": Rule(2),
    "models.*.sft.gradient_accumulation_steps": Rule(2),
    "models.*.dpo.learning_rate": Rule(0.03),
    "models.*.dpo.per_device_train_batch_size": Rule(2),
    "models.*.dpo.gradient_accumulation_steps": Rule(2),
    "models.*.generate.backend": Rule("vllm"),
    "models.*.generate.batch_size": Rule(8),
    "models.*.prepare.processes": Rule(7),
    **{
        f"models.*.{method}.{key}": Rule(value)
        for method in ("kto", "orpo", "reward", "grpo")
        for key, value in (("learning_rate", 0.03), ("per_device_train_batch_size", 2), ("gradient_accumulation_steps", 2))
    },
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
    "generate.repetition_penalty": Rule(1.5),
    "generate.no_repeat_ngram_size": Rule(2),
    "unpaired.rows": Rule(OWN_ROWS),
    "kto.beta": Rule(0.5),
    "kto.loss_type": Rule("apo_zero_unpaired"),
    "kto.desirable_weight": Rule(3),
    "kto.undesirable_weight": Rule(3),
    "orpo.beta": Rule(0.5),
    **{
        f"{method}.{key}": Rule(value)
        for method in ("kto", "orpo", "reward", "grpo")
        for key, value in (
            *(("num_train_epochs", 2), ("lr_scheduler_type", "constant"), ("warmup_steps", 2), ("weight_decay", 0.5)),
            *(("max_grad_norm", 0.01), ("logging_steps", 2), ("eval_steps", 1)),
        )
    },
    "reward.center_rewards_coefficient": Rule(0.5),
    "best_of_n.n": Rule(3),
    "best_of_n.temperature": Rule(3.0),
    "grpo.logging_steps": Rule(3),
    "grpo.prompts": Rule(OTHER_PROMPTS),
    **{f"grpo.reward_weights.{name}": Rule(0.3) for name in REWARDS},
    "grpo.num_generations": Rule(4),
    "grpo.max_completion_length": Rule(9),
    "grpo.temperature": Rule(1.5),
    "grpo.beta": Rule(0.1),
    "grpo.loss_type": Rule("dr_grpo"),
    "grpo.scale_rewards": Rule("none"),
    "league.models": Rule(["base", "sft", "dpo", "kto"]),
    "score.tie_threshold": Rule(1),
    "score.alpha": Rule(0.0001),
    "score.equivalence_margin": Rule(0.9),
}

# Stages run to their end for eval_steps, which no configuration holds, and for one or two keys of every other kind.
TO_THE_END = {
    ("sft", "sft.eval_steps"),
    ("sft", "sft.num_train_epochs"),
    ("sft", "lora.r"),
    ("sft", "models.*.sft.learning_rate"),
    ("sft", "models.*.padding_free"),
    ("dpo", "dpo.eval_steps"),
    ("dpo", "dpo.beta"),
    ("dpo", "dpo.loss_type"),
    ("dpo", "seed"),
    ("kto", "kto.eval_steps"),
    ("kto", "kto.desirable_weight"),
    ("orpo", "orpo.eval_steps"),
    ("orpo", "orpo.beta"),
    ("reward", "reward.eval_steps"),
    ("grpo", "grpo.eval_steps"),
    ("grpo", "grpo.reward_weights.length"),
    ("grpo", "models.*.padding_free"),
    ("best_of_n", "models.*.gradient_checkpointing"),
    ("best_of_n", "models.*.padding_free"),
    ("generate", "seed"),
    ("generate", "generate.max_new_tokens"),
    ("generate", "models.*.dtype"),
}


# unpaired reads these for a file of one's own, with the code of prepare (tests/stages/test_unpaired.py); grpo for bad rows and
# eval prompts in its file (tests/stages/test_grpo.py).
NOT_BY_DEFAULT = {
    "unpaired": {"model", "prepare", *(f"models.${{model}}.{key}" for key in OF_TOKENIZER)},
    "grpo": {"prepare.max_bad_share", "prepare.max_leakage", "prepare.on_bad_row"},
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
    """The keys that a stage declares, down to single values; tests/report/test_page.py checks those that a page only displays."""
    module = importlib.import_module(stage)
    for name in (
        {*module.PARAMS, *getattr(module, "UNLISTED", ())}
        - set(module.SHOWN if stage in ("score", "league") else ())
        - NOT_BY_DEFAULT.get(stage, set())
    ):
        wanted = name.replace("${model}", "*")
        yield from (key for key in KEYS if key == wanted or key.startswith(wanted + "."))


KEYS = sorted(set(leaves(VALUES)))
PAIRS = sorted((stage, key) for stage in STAGES for key in declared(stage))


# ---- A workspace in which all stages ran, and what one more run of a stage does in a copy of it ---------------------


@pytest.fixture(scope="module")
def everything():
    """The folder of a workspace in which all stages have run, with the alternative inputs."""
    return shelf.built("knobs", lay_out)


def lay_out(folder):
    with pytest.MonkeyPatch.context() as patch:
        workspace = Workspace.copy(finished.with_methods(), folder, patch)
        for name in ("base", "sft", "dpo", "kto", "orpo", "best_of_n", "grpo"):
            path = f"data/generated/{name}.jsonl"
            write_jsonl(Path(path), [{**row, "answer": "the sum" if name == "dpo" else ""} for row in workspace.rows(path)])
    lay_out_alternatives(folder)


def lay_out_alternatives(folder):
    """Writes what the rules name: another checkpoint, two revisions in a hub cache, a template, and other raw files."""
    shutil.copytree(checkpoint("zephyr_llama"), folder / "another")
    for name, revision in REVISIONS.items():
        shutil.copytree(checkpoint(name), folder / "hub/models--somebody--model/snapshots" / revision)
    (folder / "plain.jinja").write_text(TEMPLATE, encoding="utf-8")
    for kind, path in RAW.items():
        lines = (folder / path).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"data/raw/other_{kind}.jsonl").write_text("".join(lines[1:]), encoding="utf-8")
    (folder / BAD_ROWS).write_text((folder / RAW["sft"]).read_text(encoding="utf-8") + "no JSON\n", encoding="utf-8")
    prompts = (folder / "data/raw/grpo_prompts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / OTHER_PROMPTS).write_text("".join(prompts[1:]), encoding="utf-8")
    own = [{"prompt": f"Explain {n}.", "completion": "It is.", "label": n % 2 == 0} for n in range(12)]
    write_jsonl(folder / OWN_ROWS, own)
    leaked = {"id": "leaked", "prompt": sft_rows()[0]["prompt"], "topic": "odd", "keywords": ["mean"]}
    (folder / LEAKED).write_text((folder / RAW["eval"]).read_text(encoding="utf-8") + json.dumps(leaked) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def known():
    """Observations with parameters that several tests share."""
    return {}


@pytest.fixture
def observe(everything, tmp_path, monkeypatch):
    """`observe(stage, changes, to_the_end)` runs a stage in a fresh copy of that workspace with changed params."""
    import torch
    from huggingface_hub import constants

    threads = torch.get_num_threads()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(everything / "hub"))

    def run(stage, changes, to_the_end):
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(everything, folder, ignore=shutil.ignore_patterns("hub"))
        Params(folder / "params.yaml", folder / "params.yaml").update(changes)
        with pytest.MonkeyPatch.context() as patch:
            Workspace.reopen(folder, patch)
            parameters.read()  # the changed file must be legal
            return observed(stage, folder, spy(patch, to_the_end))

    yield run
    torch.set_num_threads(threads)


class Stopped(Exception):
    """Carries what a stage has built out of the stage, before it trains or generates."""


def spy(patch, to_the_end):
    """Records each base that a stage loads, its attention implementation, the shape of every batch, and calls of `compile`.

    It replaces `compile`, which takes half a minute and has a test in test_sft.py. Unless `to_the_end`, it stops the stage.
    """
    import torch
    import transformers

    met = {"bases": [], "attention": [], "shapes": [], "compiled": [], "processes": [], "unpadded": []}

    def noting(*arguments):
        base = loading.load_base(*arguments)
        met["bases"].append(base)
        met["attention"].append(base.config._attn_implementation)
        base.get_input_embeddings().register_forward_pre_hook(lambda layer, inputs: met["shapes"].append(tuple(inputs[0].shape)))
        return base

    def stop(how):
        def instead(built, *arguments, **options):
            raise Stopped(how(built, **options))

        return instead

    def unpadding(*arguments):
        met["unpadded"].append(unpad(*arguments))
        return met["unpadded"][-1]

    unpad = reward_model.unpad
    patch.setattr(reward_model, "unpad", unpadding)
    for stage in (sft, dpo, kto, orpo, generate, reward_model, grpo):
        patch.setattr(stage, "load_base", noting)
    patch.setattr(ranks, "start", lambda *wanted: met["processes"].append(wanted))  # test_several_processes.py starts them
    patch.setattr(torch.nn.Module, "compile", lambda layer, **how: met["compiled"].append((type(layer).__name__, how)))
    patch.setattr(torch.compiler, "set_stance", lambda stance: contextlib.nullcontext())
    if not to_the_end:
        patch.setattr(policy_measures.HeldOut, "measure", unmeasured)
        patch.setattr(transformers.Trainer, "train", stop(trainer_as_built))
        patch.setattr(transformers.GenerationMixin, "generate", stop(generation_as_built))
    return met


def unmeasured(held_out, model):
    """In place of what grpo samples before it trains."""
    held_out.first = [{"tokens": 1.0} for _ in held_out.prompts]
    return {}


def trainer_as_built(trainer, **options):
    """The trainer's SFTConfig, DPOConfig, …, LoraConfig, initial weights and rows, and the forward pass of each module."""
    model = trainer.model
    return {
        "config": trainer.args.to_dict(),
        "lora": model.peft_config["default"].to_dict(),
        "weights": {name: value.tolist() for name, value in model.named_parameters() if value.requires_grad},
        "rows": trainer.train_dataset.to_list(),
        "forward": {name: module.forward.__qualname__ for name, module in model.named_modules()},
    }


def generation_as_built(model, generation_config, input_ids, **options):
    """The GenerationConfig, the first prompts, the penalties, and the random seed."""
    import torch

    penalties = [each.penalty for each in options["logits_processor"]]
    built = {"config": generation_config.to_dict(), "prompts": input_ids.tolist(), "penalties": penalties}
    return built | {"seed": torch.initial_seed()}


def observed(stage, folder, met):
    """All that a run of `stage` shows: its error, or what it built or wrote, its runtime, and the calls of the model."""
    run, built = Run(stage), None
    try:
        importlib.import_module(stage).main(run, *STAGES[stage])
    except Stopped as stopped:
        (built,) = stopped.args
    except InputError as error:
        return str(error)
    return {
        "built": built,
        "files": written(folder),
        "runtime": {name: run.fields.get(name) for name in ("device", "dtype", "threads", "processes")},
        "attention": met["attention"],
        "checkpointing": [base.is_gradient_checkpointing for base in met["bases"]],
        "shapes": met["shapes"],
        "compiled": met["compiled"],
        "unpadded": met["unpadded"],
        "processes": met["processes"],
    }


def written(folder):
    """Bytes of every output, and score's report without its settings, which repeat the parameters."""
    roots = ("data/prepared", "data/generated", "models/sft", "models/dpo", "models/kto", "models/orpo")
    roots += ("models/reward", "models/grpo", "metrics", "plots")
    found = [path for root in roots for path in sorted((folder / root).rglob("*")) if path.is_file()]
    reports = [
        folder / f"reports/{stage}.json"
        for stage in ("prepare", "sft", "dpo", "unpaired", "kto", "orpo", "reward", "best_of_n", "grpo")
    ]
    reports += [folder / "reports/league.html"]
    outputs = {path.relative_to(folder).as_posix(): path.read_bytes() for path in [*found, *reports]}
    score = json.loads((folder / "reports/score.json").read_text(encoding="utf-8"))
    return {**outputs, "reports/score.json": {name: value for name, value in score.items() if name != "settings"}}


def in_entry(key):
    """The key as the workspace's params.yaml spells it, whose model is `mini`."""
    return key.replace("*", "mini")


# ---- The tests ------------------------------------------------------------------------------------------------------


def test_every_key_of_the_file_has_a_rule_and_a_stage_that_reads_it():
    assert sorted(RULES) == KEYS
    assert {key for _, key in PAIRS} == set(KEYS)


def test_what_is_followed_to_the_end_is_declared():
    assert set(PAIRS) >= TO_THE_END


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("to_the_end", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["built", "to the end"])
def test_the_same_parameters_do_the_same(observe, stage, to_the_end):
    """Makes the comparisons below meaningful: nothing differs without a change."""
    assert observe(stage, SAMPLING, to_the_end) == observe(stage, SAMPLING, to_the_end)


@pytest.mark.parametrize(("stage", "key"), sorted(set(PAIRS) - TO_THE_END))
def test_a_declared_key_changes_what_the_stage_builds(observe, known, stage, key):
    assert_it_matters(observe, known, stage, key, to_the_end=False)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "key"), sorted(TO_THE_END))
def test_a_declared_key_changes_what_the_stage_writes(observe, known, stage, key):
    assert_it_matters(observe, known, stage, key, to_the_end=True)


def assert_it_matters(observe, known, stage, key, to_the_end):
    rule = RULES[key]
    start = (stage, str(rule.given), to_the_end)
    if start not in known:
        known[start] = observe(stage, rule.given, to_the_end)
    before = known[start]
    assert isinstance(before, dict) != (key == "prepare.on_bad_row"), f"an error to begin with: {before}"
    assert observe(stage, {**rule.given, in_entry(key): rule.value}, to_the_end) != before
