"""The padding-free forward computes what trl and peft compute: log-probabilities, metrics and gradients."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import BUILDERS
from support.workspace import checkpoint

from aligner.model import runtime
from aligner.training import llama_layer, padding_free

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "label_mask")
PAD = 0


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request):
    return checkpoint(request.param)


def policy(
    folder, unpadded: bool, pairs: bool = False, dropout: float = 0.0, attention: str = "sdpa", checkpointing: bool = False
):
    """A model with a random adapter and trl's head, and with the padding-free forward if `unpadded`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base, config)
    if unpadded:
        padding_free.merge_lora_forward(model)
        padding_free.unpad(SimpleNamespace(model=model, args=SimpleNamespace(gradient_checkpointing=checkpointing)), pairs)
    return model.eval()  # without GPT-2's own dropout; gradients are still computed


def batch(prompts, answers):
    """Right-padded rows of prompt + answer: ids, attention mask, labels on the answers."""
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([
        [-100] * len(prompt) + answer + [-100] * (longest - len(prompt) - len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ])  # fmt: skip
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def some_ids(count: int, seed: int) -> list[int]:
    return torch.randint(5, 60, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [some_ids(count, seed) for seed, count in enumerate((7, 1, 12, 4))]
ANSWERS = [some_ids(count, 10 + seed) for seed, count in enumerate((5, 9, 1, 30))]
OTHERS = [some_ids(count, 20 + seed) for seed, count in enumerate((8, 2, 17, 3))]
SINGLE = batch(PROMPTS, ANSWERS)
PAIRS = batch(PROMPTS * 2, ANSWERS + OTHERS)


def run(model, inputs):
    """The values that trl reads from a forward pass, and the gradients of a loss with a different weight for each position."""
    output = model(**inputs, use_cache=False, fused_lm_head=True)
    weights = torch.linspace(0.5, 1.5, output.log_probs.numel()).view_as(output.log_probs)
    (output.log_probs * weights).sum().backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: getattr(output, name).detach() for name in FIELDS}, gradients


def assert_alike(one, other):
    """Asserts that differences are at most 1e-5 of the largest value."""
    (fields, gradients), (other_fields, other_gradients) = one, other
    assert gradients.keys() == other_gradients.keys() and gradients
    for name, value in {**fields, **gradients}.items():
        expected = {**other_fields, **other_gradients}[name].float()
        assert value.shape == expected.shape
        assert (value.float() - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("pairs", [False, True], ids=["rows", "pairs"])
@pytest.mark.parametrize("head_rows", [3, 1000])
def test_outputs_and_gradients_are_those_of_trl_and_peft(folder, pairs, head_rows, monkeypatch):
    monkeypatch.setattr(padding_free, "HEAD_ROWS", head_rows)
    inputs = PAIRS if pairs else SINGLE
    assert_alike(run(policy(folder, unpadded=True, pairs=pairs), inputs), run(policy(folder, unpadded=False), inputs))


def test_llamas_run_as_fused_layers_and_others_as_modules(folder):
    model = policy(folder, unpadded=True).get_base_model()
    assert llama_layer.can_fuse(model) == (type(model).__name__ == "LlamaForCausalLM")


@pytest.mark.parametrize("pairs", [False, True], ids=["rows", "pairs"])
def test_attention_weights_of_long_sequences_are_computed_again(folder, pairs, monkeypatch):
    inputs, expected = (PAIRS if pairs else SINGLE), []
    for kept in (0, 512):
        monkeypatch.setattr(llama_layer, "LONGEST_STORED", kept)
        expected.append(run(policy(folder, unpadded=True, pairs=pairs), inputs))
    assert all(torch.equal(value, expected[1][1][name]) for name, value in expected[0][1].items())


@pytest.mark.parametrize("pairs", [False, True], ids=["rows", "pairs"])
def test_measures_without_gradients_are_those_of_trl_and_peft(folder, pairs):
    inputs = PAIRS if pairs else SINGLE
    found = padding_free.token_logps(policy(folder, unpadded=False), *inputs.values(), pairs=pairs)
    with torch.no_grad():
        expected = policy(folder, unpadded=False)(**inputs, use_cache=False, fused_lm_head=True)
    torch.testing.assert_close(found[0], expected.log_probs, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1].bool(), expected.is_top1.bool()) and not found[0].requires_grad


def test_gradients_are_the_same_bits_on_every_run(folder):
    """On two threads: no sum depends on the order in which threads finish."""
    model, found, before = policy(folder, unpadded=True, pairs=True), [], torch.get_num_threads()
    torch.set_num_threads(2)
    for _ in range(5):
        model.zero_grad(set_to_none=True)
        found.append(run(model, PAIRS)[1])
    torch.set_num_threads(before)
    assert all(torch.equal(each[name], found[0][name]) for each in found for name in each)


def test_a_layer_sees_each_token_once(folder):
    model, seen = policy(folder, unpadded=True, pairs=True), []
    model.get_input_embeddings().register_forward_pre_hook(lambda layer, inputs: seen.append(tuple(inputs[0].shape)))
    run(model, PAIRS)
    assert seen == [(1, sum(map(len, PROMPTS + ANSWERS + OTHERS)))]


def test_prompts_of_a_pair_that_differ_are_both_read(folder):
    """Even if one is as long as the other, or a prefix of it."""
    altered = [PROMPTS[0][:-1] + [61], PROMPTS[1], PROMPTS[2][:5], [*PROMPTS[3], 9]]
    inputs = batch(PROMPTS + altered, ANSWERS + OTHERS)
    assert_alike(run(policy(folder, unpadded=True, pairs=True), inputs), run(policy(folder, unpadded=False), inputs))


def test_dropout_stays_pefts(folder):
    """With dropout the merged product would be a different function; the padding-free forward still trains."""
    model = policy(folder, unpadded=True, dropout=0.5).train()
    first, second = (run(model, SINGLE)[0]["log_probs"] for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    model.zero_grad()
    assert_alike(run(model, SINGLE), run(policy(folder, unpadded=False), SINGLE))


def test_what_is_measured_is_what_peft_gives(folder):
    """Without gradients the stock forward runs, to the bit; a plain call is unchanged."""
    inputs = {key: value for key, value in SINGLE.items() if key != "labels"}
    with torch.no_grad():
        unpadded, stock = (policy(folder, unpadded=wanted)(**inputs, use_cache=False).logits for wanted in (True, False))
    assert torch.equal(unpadded, stock)


def test_a_model_with_its_adapter_off_is_the_base(folder):
    model = policy(folder, unpadded=True)
    with model.disable_adapter():
        off = model(**SINGLE, use_cache=False, fused_lm_head=True).log_probs
    other = policy(folder, unpadded=False)
    with other.disable_adapter():
        torch.testing.assert_close(off, other(**SINGLE, use_cache=False, fused_lm_head=True).log_probs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reason", [{"attention": "eager"}, {"checkpointing": True}], ids=str)
def test_what_does_not_fit_is_padded_as_ever(folder, reason, capsys):
    assert_alike(run(policy(folder, unpadded=True, **reason), SINGLE), run(policy(folder, unpadded=False), SINGLE))
    assert "padding_free: batches are padded, as in trl" in capsys.readouterr().err


def test_models_that_do_more_before_their_logits_do_not_fit():
    config = SimpleNamespace(_attn_implementation="sdpa", get_text_config=lambda: config)
    head = torch.nn.Linear(2, 3).requires_grad_(False)
    model = SimpleNamespace(config=config, _supports_attention_backend=True, get_output_embeddings=lambda: head)
    assert padding_free.can_unpad(model, gradient_checkpointing=False)
    for key, value in {"final_logit_softcapping": 30.0, "logits_scaling": 8.0, "sliding_window": 64, "num_experts": 8}.items():
        setattr(config, key, value)
        assert not padding_free.can_unpad(model, gradient_checkpointing=False), key
        delattr(config, key)
    head.requires_grad_(True)
    assert not padding_free.can_unpad(model, gradient_checkpointing=False)


def test_low_precision_keeps_pefts_layers(folder):
    model = policy(folder, unpadded=False).to(torch.bfloat16)
    assert padding_free.merge_lora_forward(model) == 0


lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(lengths)
def test_every_token_has_its_place(shape):
    """For all lengths: the slots map the row of tokens back to the rectangle, apart from padding."""
    prompts, chosen, rejected = zip(*[[some_ids(n, 7 * n + k) for k, n in enumerate(each)] for each in shape], strict=True)
    inputs = batch([*prompts, *prompts], [*chosen, *rejected])
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    layout = padding_free.arrange(ids, inputs["attention_mask"], inputs["labels"], pairs=True)
    assert torch.equal(layout.ids[0][layout.slots][mask], ids[mask])
    places = torch.arange(ids.shape[1]).expand_as(ids)
    assert torch.equal(layout.positions[0][layout.slots][mask], places[mask])
    assert layout.ids.shape[1] == sum(map(len, prompts + chosen + rejected))


# ---- Memory ---------------------------------------------------------------------------------------------------------

# Page faults while tensors of 32 MB, 8,192 pages each, are allocated and freed 50 times.
FAULTS = """
import resource, torch
from aligner.model import runtime
{keep}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def layer():
    together = [torch.ones(2**23) for _ in range(2)]
layer()
before = faults()
for _ in range(50):
    layer()
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_tensors_gave_back_is_kept():
    src = Path(runtime.__file__).parents[2]
    found = {}
    for keep in ("runtime.keep_freed_memory()", ""):
        command = [sys.executable, "-c", FAULTS.format(keep=keep)]
        found[keep] = int(subprocess.run(command, env={"PYTHONPATH": str(src)}, capture_output=True, check=True).stdout)
    assert found["runtime.keep_freed_memory()"] < found[""] / 5, found


def test_where_glibc_is_not_nothing_is_told(monkeypatch):
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: SimpleNamespace())
    runtime.keep_freed_memory()
    monkeypatch.setattr(runtime.sys, "platform", "darwin")
    monkeypatch.delattr(runtime.ctypes, "CDLL")
    runtime.keep_freed_memory()
