"""src/export.py: the exported folder is the trained model, loads elsewhere with transformers alone, and is refused otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import finished

import export as program
from aligner.run.errors import InputError
from aligner.serving import card, export, gguf_file

THREE_LINES = """
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("exported"), AutoModelForCausalLM.from_pretrained("exported")
asked = [{"role": "user", "content": "What is the mean?"}]
ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(model.generate(**ids)[0].tolist())
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A finished pipeline of the tiny model."""
    return finished.copy("mini", tmp_path / "work", monkeypatch)


def test_the_exported_model_is_the_trained_one_and_loads_from_another_folder(workspace, tmp_path, capsys):
    target = tmp_path / "elsewhere" / "exported"
    target.parent.mkdir()
    program.main("dpo", target, "safetensors", None)
    prompts = len(workspace.rows("data/prepared/prompts.jsonl"))
    assert (
        f"{prompts} of {prompts} greedy answers and {prompts} of {prompts} encoded prompts are equal" in capsys.readouterr().out
    )
    env = {"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", THREE_LINES], cwd=target.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) > 5
    adapter_loads(target / "adapter", target)


def adapter_loads(folder: Path, merged: Path) -> None:
    """peft finds the base by itself, from any directory, and the result is the merged model."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    assert Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]).is_absolute()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        adapted = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
        expected = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(input_ids=ids).logits
    assert torch.allclose(adapted, expected, atol=1e-4)


def test_a_merged_model_that_is_another_is_refused_and_leaves_nothing(workspace, tmp_path, monkeypatch):
    stock = export.load_plain

    def disturbed(folder, device):
        model, tokenizer = stock(folder, device)
        with torch.no_grad():
            next(model.parameters()).mul_(3)
        return model, tokenizer

    monkeypatch.setattr(export, "load_plain", disturbed)
    with pytest.raises(InputError, match="nothing was exported"):
        program.main("sft", tmp_path / "out", "safetensors", None)
    assert not list(tmp_path.glob("out*"))


def test_the_gate_counts_each_kind_of_difference():
    same = {"prompts": 3, "same_prompts": 3, "same_answers": 3, "tokens": 9, "difference": 1e-4, "dtype": "float32"}
    export.Parity(**same).refuse()
    for change in ({"same_answers": 2}, {"same_prompts": 2}, {"difference": 0.01}, {"difference": float("nan")}):
        with pytest.raises(InputError):
            export.Parity(**same | change).refuse()


def test_an_existing_folder_is_not_overwritten(workspace, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        program.main("dpo", tmp_path, "safetensors", None)


def test_the_card_has_the_figures_of_this_run_and_no_others(workspace):
    parity = export.Parity(3, 3, 3, 9, 1e-6, "float32")
    from aligner.run import params as parameters

    entry = parameters.read().models["mini"]
    text = card.card("dpo", entry, parity, [], 1.1)
    assert "RepetitionPenaltyLogitsProcessor(1.1" in text and "Decoding" not in card.card("dpo", entry, parity, [], 1.0)
    hit_rate = workspace.json("reports/score.json")["models"]["dpo"]["hit_rate"]
    assert f"{hit_rate['estimate']:.3f} ({hit_rate['low']:.3f} to {hit_rate['high']:.3f})" in text
    record = card.record_of("dpo")
    assert record is not None and f"`{record['git']['revision']}" in text and "`dpo.beta`" not in text
    assert f"| dpo.beta | `{record['params']['dpo']['beta']}` |" in text
    figures = workspace.json("reports/dpo.json")
    figures["dpo"]["validation_loss"] = 9.0
    (workspace.folder / "reports/dpo.json").write_text(json.dumps(figures))
    assert card.record_of("dpo") is None  # a record of another run


def test_the_licence_is_that_of_the_base(workspace):
    from aligner.run import params as parameters

    entry = parameters.read().models["mini"]
    assert card.licence_of(entry) == card.UNKNOWN
    (Path(entry.path) / "README.md").write_text("---\nlicense: mit\n---\n# a model\n")
    assert card.licence_of(entry) == "mit"


def test_a_missing_gguf_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install .*gguf"):
        gguf_file.require_library()


@pytest.mark.parametrize("model", ["mini", "qwen2", "zephyr_llama"])
def test_gguf_read_back_by_transformers_is_the_same_model(model, tmp_path, monkeypatch):
    """transformers reads GGUF by code of its own, and undoes llama.cpp's order of rows."""
    pytest.importorskip("gguf")
    from support.workspace import checkpoint
    from transformers import AutoModelForCausalLM

    from aligner.model.chat import Chat

    folder = tmp_path / "model"
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(model), dtype=torch.float32)
    plain.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint(model) / name).read_bytes())
    (folder / "chat_template.jinja").write_text(Chat.load(checkpoint(model)).template)
    gguf_file.write(folder, folder / "model.gguf", "float32")
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.inference_mode():
        assert torch.allclose(read(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4)
