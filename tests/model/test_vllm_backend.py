"""generate on vLLM: what the worker is asked and answers, against a fake of the few calls, and once against the engine."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.workspace import Workspace
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

import generate
from aligner.model import vllm_backend, vllm_worker
from aligner.model.vllm_worker import Penalties
from aligner.run.errors import InputError
from aligner.run.record import Run

# A fake. It answers with the prompt's last two ids that end nothing, and an end token, and notes what it was given.
FAKE = """
import json, sys
from types import SimpleNamespace
__version__ = "fake"

class SamplingParams(SimpleNamespace):
    pass

def text_of(prompt, params):
    return [id for id in prompt["prompt_token_ids"] if id not in params.stop_token_ids]

class LLM:
    def __init__(self, **settings):
        self.settings = settings

    def generate(self, prompts, params, lora_request, use_tqdm):
        processors = [each.__name__ for each in self.settings.pop("logits_processors", [])]
        adapter = None if lora_request is None else vars(lora_request)
        noted = {"settings": self.settings, "processors": processors, "adapter": adapter}
        noted["params"] = [vars(each) for each in params]
        open("noted.json", "w").write(json.dumps(noted))
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=[*text_of(prompt, each)[-2:], each.stop_token_ids[0]])])
            for prompt, each in zip(prompts, params)
        ]
"""
FAKE_REQUEST = """
from types import SimpleNamespace

class LoRARequest(SimpleNamespace):
    def __init__(self, name, number, folder):
        super().__init__(name=name, number=number, folder=folder)
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace whose base answers by a fake vllm, run by this Python."""
    workspace = Workspace(tmp_path, monkeypatch, **{"models.mini.generate.backend": "vllm", "generate.max_new_tokens": 12})
    workspace.run("prepare")
    fake = tmp_path / "fake"
    for name, text in {
        "vllm/__init__.py": FAKE,
        "vllm/lora/__init__.py": "",
        "vllm/lora/request.py": FAKE_REQUEST,
        "vllm/v1/__init__.py": "",
        "vllm/v1/sample/__init__.py": "",
        "vllm/v1/sample/logits_processor.py": "class AdapterLogitsProcessor:\n    pass\n",
    }.items():
        (fake / name).parent.mkdir(parents=True, exist_ok=True)
        (fake / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(fake))
    monkeypatch.setenv(vllm_backend.PYTHON, sys.executable)
    return workspace


def test_the_engine_gets_ids_ends_and_penalties_and_gives_the_rows_of_generate(workspace):
    run = Run("generate@base")
    generate.main(run, "base")
    noted, prompts = json.loads(Path("noted.json").read_text()), workspace.rows("data/prepared/prompts.jsonl")
    answers = workspace.rows("data/generated/base.jsonl")
    assert [row["id"] for row in answers] == [row["id"] for row in prompts]
    assert {(row["stop"], row["answer_tokens"]) for row in answers} == {("end", 2)} and run.fields["vllm"] == "fake"
    assert noted["processors"] == ["Penalising"] and noted["adapter"] is None
    given = noted["settings"]
    assert (given["dtype"], given["max_num_seqs"], given["enforce_eager"]) == ("float32", 5, True)
    assert not given["trust_remote_code"] and given["generation_config"] == "vllm" and "enable_lora" not in given
    ends = noted["params"][0].pop("stop_token_ids")
    assert noted["params"][0] == {"max_tokens": 12, "ignore_eos": True, "temperature": 0.0, "detokenize": False} and ends


def test_sampled_answers_have_a_seed_of_their_own_each(workspace):
    workspace.params.update({"generate.do_sample": True, "generate.repetition_penalty": 1, "generate.no_repeat_ngram_size": 0})
    workspace.run("generate", "base")
    noted = json.loads(Path("noted.json").read_text())
    seeds = [each["seed"] for each in noted["params"]]
    assert len(set(seeds)) == len(seeds) and noted["processors"] == []
    assert {(each["temperature"], each["top_p"]) for each in noted["params"]} == {(0.7, 0.9)}


def test_an_adapter_is_a_lora_request(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.lora.request", types.SimpleNamespace(LoRARequest=lambda *given: given))
    asked = dict.fromkeys(("model", "dtype", "compiled", "positions", "batch_size", "seed"))
    asked |= {"adapter": "models/sft", "rank": 9, "repetition_penalty": 1, "no_repeat_ngram_size": 0}
    given = vllm_worker.engine_settings(asked)
    assert given["enable_lora"] and given["max_lora_rank"] == 16 and "logits_processors" not in given
    assert vllm_worker.adapter_request("models/sft") == ("adapter", 1, "models/sft")


def test_the_worker_writes_its_reply(workspace, monkeypatch, tmp_path):
    """The same worker, in this process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    for name in vllm_worker.ENVIRONMENT:
        monkeypatch.setenv(name, "1")
    asked = {"model": "m", "adapter": "a", "rank": 4, "dtype": "float32", "compiled": False, "positions": 64, "batch_size": 2}
    asked |= {"prompts": [[1, 2, 3], [4, 5]], "max_new_tokens": 3, "ends": [9], "sampling": None, "seed": 1}
    asked |= {"repetition_penalty": 1.1, "no_repeat_ngram_size": 8}
    Path("asked.json").write_text(json.dumps(asked))
    vllm_worker.main("asked.json", "reply.json")
    reply = json.loads(Path("reply.json").read_text())
    assert reply["new_ids"] == [[2, 3, 9], [4, 5, 9]] and reply["vllm"] == "fake" and reply["seconds"] >= 0
    made = vllm_worker.penalising(1.1, 8)()
    assert isinstance(made.new_req_logits_processor(None), Penalties) and not made.is_argmax_invariant()
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (None, "VLLM_PYTHON names no Python that has it. Make an environment for it"),
        ("no/python", "VLLM_PYTHON is no/python, which is no file"),
        (sys.executable, "whose environment has no vllm. Make an environment for it"),
    ],
)
def test_a_missing_engine_is_named_with_the_way_to_it(workspace, monkeypatch, python, message):
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.delenv(vllm_backend.PYTHON) if python is None else monkeypatch.setenv(vllm_backend.PYTHON, python)
    with pytest.raises(InputError, match=message):
        workspace.run("generate", "base")


def test_a_failure_of_the_engine_is_its_last_line():
    assert (
        vllm_backend.failure(1, "warning\nRuntimeError: no memory\n\n") == "vllm ended with exit code 1: RuntimeError: no memory"
    )
    assert vllm_backend.failure(-9, "") == "vllm ended with exit code -9: no message"


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), max_size=12),
    st.sampled_from([1.0, 1.1, 2.0]),
    st.integers(0, 4),
)
@settings(deadline=None, max_examples=30)
def test_penalties_are_those_of_transformers(prompt, answer, penalty, size):
    """After every token of an answer, as transformers' two processors compute it for prompt and answer together."""
    penalties = Penalties(penalty, size)
    for length in range(len(answer) + 1):
        logits = torch.linspace(-2, 2, 6).repeat(1, 1)
        ids = torch.tensor([prompt + answer[:length]])
        expected = NoRepeatNGramLogitsProcessor(size)(ids, logits.clone()) if size else logits.clone()
        if length:
            expected = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=len(prompt))(ids, expected)
        assert penalties(prompt, answer[:length], logits[0].clone()).tolist() == expected[0].tolist()


@pytest.mark.slow
@pytest.mark.skipif(vllm_backend.PYTHON not in os.environ, reason=f"{vllm_backend.PYTHON} names no Python with vllm")
def test_the_engine_answers_like_transformers(tmp_path, monkeypatch):
    """The embedded base on some eval prompts, greedy with both penalties, float32: all answers are equal."""
    root = Path(__file__).resolve().parents[2]
    workspace = Workspace(tmp_path, monkeypatch, **{"models.mini.path": str(root / "models/base/weights")})
    workspace.params.update({"models.mini.max_length": 256, "generate.max_new_tokens": 60})
    workspace.run("prepare")
    answers = {}
    for backend in ("transformers", "vllm"):
        workspace.params["models.mini.generate.backend"] = backend
        workspace.run("generate", "base")
        answers[backend] = workspace.rows("data/generated/base.jsonl")
    assert answers["vllm"] == answers["transformers"]
