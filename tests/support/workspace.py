"""A temporary workspace with the repository's layout, in which stages run in process on a tiny model and a dozen rows per file.

    workspace = Workspace(tmp_path, monkeypatch, model="gpt2", **{"sft.num_train_epochs": 2})
    workspace.run("prepare")
    workspace.params["dpo.beta"] = 0.2
    workspace.run("generate", "base")

`model` is a name of tiny_models.BUILDERS or a folder with a checkpoint; its copy is in `models/base/weights`, which the
entry `mini` of params.yaml names. The workspace is the current directory until the test ends, so tests use relative paths.
"""

from __future__ import annotations

import functools
import importlib
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from aligner.run.params import StageParams
from aligner.run.record import Run
from support import shelf
from support.tiny_models import BUILDERS

REPOSITORY = Path(__file__).parents[2]
WEIGHTS = "models/base/weights"
NAMES = {"sft": "sft_examples", "pairs": "dpo_pairs", "eval": "eval_prompts", "concepts": "concepts"}
RAW = {kind: f"data/raw/{name}.jsonl" for kind, name in NAMES.items()}
WORDS = ["mean", "median", "mode", "range", "variance", "sample", "event", "outcome", "sum", "product", "chance", "bias"]

# Small enough for a second or two per stage; a test overrides the values that it is about.
SMALL = {
    "model": "mini",
    "models.mini.path": WEIGHTS,
    "models.mini.max_length": 320,
    "models.mini.device": "cpu",
    "models.mini.dtype": "float32",
    "models.mini.threads": 1,
    "models.mini.sft.per_device_train_batch_size": 4,
    "models.mini.sft.gradient_accumulation_steps": 1,
    "models.mini.dpo.per_device_train_batch_size": 4,
    "models.mini.dpo.gradient_accumulation_steps": 1,
    "models.mini.kto.per_device_train_batch_size": 4,
    "models.mini.kto.gradient_accumulation_steps": 1,
    "models.mini.orpo.per_device_train_batch_size": 4,
    "models.mini.orpo.gradient_accumulation_steps": 1,
    "models.mini.generate.batch_size": 5,
    "prepare.validation_share": 0.3,
    "lora.r": 4,
    "sft.num_train_epochs": 1,
    "dpo.num_train_epochs": 1,
    "models.mini.reward.per_device_train_batch_size": 4,
    "models.mini.grpo.per_device_train_batch_size": 4,
    "grpo.num_generations": 2,
    "grpo.max_completion_length": 6,
    "best_of_n.n": 4,
    "kto.num_train_epochs": 1,
    "orpo.num_train_epochs": 1,
    "generate.max_new_tokens": 6,
}


class Params:
    """The workspace's params.yaml by dotted keys; it writes every change at once."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = YAML(typ="safe", pure=True).load(source.read_text(encoding="utf-8"))

    def __getitem__(self, key: str) -> Any:
        return functools.reduce(lambda values, part: values[part], key.split("."), self.values)

    def __setitem__(self, key: str, value: Any) -> None:
        *parents, last = key.split(".")
        (self[".".join(parents)] if parents else self.values)[last] = value
        self.write()

    def __delitem__(self, key: str) -> None:
        *parents, last = key.split(".")
        del (self[".".join(parents)] if parents else self.values)[last]
        self.write()

    def update(self, changes: dict[str, Any]) -> None:
        for key, value in changes.items():
            self[key] = value

    def write(self) -> None:
        with self.path.open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(self.values, file)


def with_entry(params: StageParams, **changes: Any) -> StageParams:
    """The parameters with changed values in the model's entry; a dictionary changes keys of one of its sections."""
    entry = params.model_entry
    whole = {
        key: getattr(entry, key).model_copy(update=value) if isinstance(value, dict) else value for key, value in changes.items()
    }
    return params.model_copy(update={"model_entry": entry.model_copy(update=whole)})


class Workspace:
    """params.yaml, four raw data files and a checkpoint in `folder`, which becomes the current directory."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, model: str | Path = "mini", **overrides: Any) -> None:
        self._enter(folder, monkeypatch)
        shutil.copytree(model if isinstance(model, Path) else checkpoint(model), folder / WEIGHTS)
        self.params = Params(folder / "params.yaml", REPOSITORY / "params.yaml")
        self.params.update({**SMALL, **overrides})
        shutil.copy(REPOSITORY / "requirements.txt", folder)
        rows = {"sft": sft_rows(), "pairs": pair_rows(), "eval": eval_rows(), "concepts": concept_rows()}
        for kind in RAW:
            self.write_rows(kind, rows[kind])
        self.write_prompts(prompt_rows())

    @classmethod
    def reopen(cls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
        """The workspace in `folder`, which is a copy of another one."""
        workspace = cls.__new__(cls)
        workspace._enter(folder, monkeypatch)
        workspace.params = Params(folder / "params.yaml", folder / "params.yaml")
        return workspace

    @classmethod
    def copy(cls, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
        """A copy of the workspace in `source`."""
        return cls.reopen(shutil.copytree(source, folder, dirs_exist_ok=True), monkeypatch)

    def _enter(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.delenv("DVC_ROOT", raising=False)
        monkeypatch.setenv("CI", "1")
        monkeypatch.setattr(socket.socket, "connect", refuse)

    def run(self, stage: str, *arguments: str) -> Run:
        """Runs a stage's `main` with a record, as its script does, and returns the record."""
        run = Run("@".join([stage, *arguments]))
        importlib.import_module(stage).main(run, *arguments)
        run.finish("completed")
        return run

    def run_all(self) -> None:
        """Runs the five stages in order."""
        for stage in ("prepare", "sft", "dpo"):
            self.run(stage)
        for model in ("base", "sft", "dpo"):
            self.run("generate", model)
        self.run("score")

    def write_rows(self, kind: str, rows: list[dict[str, Any]]) -> None:
        """Replaces a raw file: kind is a key of RAW."""
        path = self.folder / RAW[kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def write_prompts(self, rows: list[dict[str, Any]]) -> None:
        """Replaces grpo's prompts."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.folder / "data/raw/grpo_prompts.jsonl").write_text(text, encoding="utf-8")

    def rows(self, path: str) -> list[dict[str, Any]]:
        """The rows of a JSON-lines file."""
        return [json.loads(line) for line in (self.folder / path).read_bytes().splitlines()]

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def files(self) -> set[str]:
        """Relative paths of all files except the base, locks, and run records, whose names hold the time."""
        paths = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        return {path for path in paths if not path.startswith((WEIGHTS, "experiments/", ".cache/"))}


def checkpoint(name: str) -> Path:
    """A checkpoint that is built once per session; copy it before you change it."""
    return shelf.built(f"checkpoint-{name}", BUILDERS[name])


def refuse(*arguments: Any) -> None:
    raise AssertionError(f"a test must not use the network: {arguments[1:]}")


def sft_rows() -> list[dict[str, Any]]:
    return [
        {"id": f"s{n}", "prompt": f"What is the {word}?", "response": f"The {word} is number {n}."} for n, word in number(WORDS)
    ]


def pair_rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{n}",
            "prompt": f"Tell me about the {word}.",
            "chosen": f"The {word} is {n}.",
            "rejected": "It depends on much.",
        }
        for n, word in number(WORDS)
    ]


def eval_rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"e{n}",
            "prompt": f"Please define the {word} in short.",
            "topic": "even odd".split()[n % 2],
            "concept": word,
            "keywords": [word, "the"],
        }
        for n, word in number(WORDS)
    ]


def prompt_rows() -> list[dict[str, Any]]:
    """Prompts of grpo; the tiny model's answers are noise, so a letter is a key idea."""
    return [
        {
            "id": f"g{n}",
            "prompt": f"Explain the {word}.",
            "topic": "all",
            "concept": word,
            "keywords": [word, {"any": ["e"], "match": "substring"}],
        }
        for n, word in number(WORDS)
    ]


def concept_rows() -> list[dict[str, Any]]:
    return [
        {"concept": word, "keywords": [word, f"number {n}"], "text": f"The {word} is number {n}."} for n, word in number(WORDS)
    ]


def number(words: list[str]) -> list[tuple[int, str]]:
    return list(enumerate(words, start=1))
