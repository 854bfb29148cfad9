"""The recipe of the embedded base: its corpus, its optimiser, and reproducible bytes."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "models" / "base"

from corpus import ASSISTANT, END, USER, dialogue, documents, paragraph, read_bank, remark  # noqa: E402

BANK = read_bank(ROOT / "data" / "bank")
SAMPLE = list(itertools.islice(documents(BANK, seed=5), 3000))
SENTENCE_END = re.compile(r"(?<=[.?!]) ")


def bare(name: str) -> str:
    return re.sub(r"^(the|an?) ", "", name).casefold()


def test_every_concept_is_met_in_every_round() -> None:
    """A document names its concept by its name or an alias."""
    for concept in BANK:
        names = [bare(concept.name), *(alias.casefold() for alias in concept.aliases)]
        met = sum(any(name in text.casefold() for name in names) for text in SAMPLE)
        assert met >= 0.8 * len(SAMPLE) / len(BANK), (concept.id, met)


def test_the_corpus_asks_nothing() -> None:
    """Post-training adds the answering of questions."""
    assert not [text for text in SAMPLE if "?" in text]


def test_a_paragraph_says_nothing_twice_and_ends() -> None:
    rng = random.Random(3)
    for concept in BANK:
        text = paragraph(concept, rng)
        sentences = SENTENCE_END.split(text)
        assert len(set(sentences)) == len(sentences), text
        assert text[-1] in ".!", text


def test_a_remark_mentions_its_concept() -> None:
    rng = random.Random(3)
    for concept in BANK * 5:
        said = remark(concept, rng)
        names = [bare(concept.name), *(alias.casefold() for alias in concept.aliases)]
        assert any(name in said.casefold() for name in names), said
        assert "{" not in said and said[-1] in '."', said


def test_an_exchange_begins_with_a_remark_and_ends_with_an_answer() -> None:
    rng = random.Random(3)
    for concept in BANK:
        turns = dialogue(concept, rng).split(END)
        assert len(turns) in (2, 4)
        for turn, marker in zip(turns, itertools.cycle((USER, ASSISTANT))):
            assert turn.startswith(marker) and turn.count("<|") == 1


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_an_orthogonal_update_moves_all_directions_alike(shape: tuple[int, int]) -> None:
    import torch
    from muon import orthogonal

    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
    assert 0.4 < values.min() and values.max() < 1.3


def test_muon_lowers_a_loss_and_decays_weights() -> None:
    import torch
    from muon import Muon

    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(6, 4, generator=generator))
    target = torch.randn(6, 4, generator=generator)
    before, optimizer = (weight - target).square().mean().item(), Muon([weight], lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        (weight - target).square().mean().backward()
        optimizer.step()
    assert (weight - target).square().mean().item() < before / 20
    still = torch.nn.Parameter(torch.ones(2, 2))
    still.grad = torch.zeros(2, 2)
    Muon([still], lr=0.5, weight_decay=0.1).step()
    assert torch.allclose(still, torch.full((2, 2), 0.95))


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    from types import SimpleNamespace

    from pretrain import learning_rate_factor

    params = SimpleNamespace(warmup_steps=10, steps=100)
    factors = [learning_rate_factor(step, params) for step in range(1, 101)]
    assert factors[9] == 1 and max(factors) == 1 and factors[-1] == 0
    assert factors[:10] == sorted(factors[:10]) and factors[9:] == sorted(factors[9:], reverse=True)


@pytest.mark.slow
def test_rebuilding_gives_the_same_bytes(tmp_path: Path) -> None:
    """The recipe trains a small model twice, in different folders and with different hash seeds."""
    found = [rebuild(tmp_path / name, hash_seed) for name, hash_seed in (("one", "0"), ("another", "12345"))]
    assert found[0] == found[1]
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json", "loss.csv"} <= found[0].keys()


def rebuild(root: Path, hash_seed: str) -> dict[str, str]:
    shutil.copytree(ROOT / "data" / "bank", root / "data" / "bank")
    folder = root / "models" / "base"
    folder.mkdir(parents=True)
    for path in BASE.glob("*.py"):
        shutil.copy(path, folder)
    recipe = YAML(typ="safe").load((BASE / "params.yaml").read_text(encoding="utf-8"))
    small = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    recipe["pretrain"] |= small | {"tokenizer_documents": 200, "steps": 4, "warmup_steps": 2, "batch_size": 2, "log_steps": 2}
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(recipe, file)
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "pretrain.py"], cwd=folder, env=environment, check=True, capture_output=True)
    written = [*sorted((folder / "weights").iterdir()), folder / "loss.csv"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
