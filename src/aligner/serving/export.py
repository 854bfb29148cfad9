"""Merged weights, tokenizer and generation settings as a folder that plain transformers loads, and the gate before it.

    write_model(merged, folder, entry, chat, settings)
    parity = measure(adapted, load_plain(folder), prompts, chat, settings)
    parity.refuse()     # InputError unless the folder gives the same log-probabilities and answers

The gate loads the folder as its users will: with AutoModelForCausalLM and AutoTokenizer.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.files import read_json, write_json, write_text
from aligner.model.batches import batches, padded, token_log_probabilities
from aligner.model.chat import Chat
from aligner.model.generation import complete, end_index
from aligner.model.hub import TOKENIZER_FILES, model_folder
from aligner.model.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from aligner.run.errors import InputError
from aligner.run.params import ModelEntry
from aligner.run.terminal import bar

# The largest accepted difference of a token's log-probability (nats), by the precision of the exported weights.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}


@dataclass(frozen=True)
class Parity:
    """How the exported model differs from the adapter on the eval prompts.

    difference: the largest difference of a token's log-probability, in nats, over `tokens` tokens of prompts and answers.
    """

    prompts: int
    same_prompts: int
    same_answers: int
    tokens: int
    difference: float
    dtype: str

    def line(self) -> str:
        return (
            f"{self.same_answers} of {self.prompts} greedy answers and {self.same_prompts} of {self.prompts} encoded prompts are "
            f"equal; log-probabilities differ by at most {self.difference:.2g} nats ({self.tokens:,} tokens, {self.dtype})"
        )

    def refuse(self) -> None:
        """Raises InputError unless the exported model is the same function as the adapter on its base."""
        equal = self.same_answers == self.same_prompts == self.prompts
        if not equal or not self.difference <= TOLERANCE[self.dtype]:
            raise InputError(
                f"nothing was exported, since the merged model is not the model that was trained: {self.line()}; "
                f"accepted are {TOLERANCE[self.dtype]} nats and equal answers. In full precision: --dtype float32"
            )


# ---- The folder ------------------------------------------------------------------------------------------------------


def write_model(merged, folder: Path, entry: ModelEntry, chat: Chat, settings) -> None:
    """Writes a merged model with its tokenizer, its chat template and `settings`, a GenerationConfig.

    The template is the one that was trained with, which may be another than the base's own.
    """
    merged.generation_config = settings
    merged.save_pretrained(folder)
    source = model_folder(entry.path, entry.revision, TOKENIZER_FILES)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    config = read_json(source / "tokenizer_config.json")
    config.pop("chat_template", None)
    config |= {"eos_token": chat.end_token, "pad_token": chat.pad_token}
    write_json(folder / "tokenizer_config.json", config)
    write_text(folder / "chat_template.jinja", chat.template)


def write_adapter(adapter: Path, folder: Path, entry: ModelEntry) -> None:
    """Copies an adapter; its base is named by the hub's id and commit, or by an absolute path, so it loads from any folder."""
    folder.mkdir(parents=True)
    shutil.copyfile(adapter / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    local = Path(entry.path).is_dir()
    base = {"base_model_name_or_path": str(Path(entry.path).resolve()) if local else entry.path, "revision": entry.revision}
    write_json(folder / ADAPTER_CONFIG, read_json(adapter / ADAPTER_CONFIG) | base)


def load_plain(folder: Path, device: str):
    """(model, tokenizer) of an exported folder, loaded as its users will."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    model = loaded.to(device)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


# ---- The gate --------------------------------------------------------------------------------------------------------


def messages_of(prompt: Any) -> list[dict[str, str]]:
    """The messages of an eval prompt, which is a text or a list of messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def measure(adapted, plain, prompts: list[dict[str, Any]], chat: Chat, settings, dtype: str, size: int) -> Parity:
    """Compares a model with its exported copy on rows with `prompt` (text) and `prompt_ids`.

    adapted: the model with its adapter beside the weights. plain: (model, tokenizer) from `load_plain`. size: prompts per batch.
    """
    model, tokenizer = plain
    encoded = [plain_ids(tokenizer, messages_of(row["prompt"])) for row in prompts]
    same_prompts = sum(ids == row["prompt_ids"] for ids, row in zip(encoded, prompts, strict=True))
    same_answers, tokens, largest = 0, 0, 0.0
    with bar("parity", len(prompts), "answer") as progress:
        for indices in batches(prompts, size, lambda row: len(row["prompt_ids"])):
            asked = [prompts[index]["prompt_ids"] for index in indices]
            expected = answers(adapted, asked, chat, settings)
            found = answers(model, [encoded[index] for index in indices], chat, settings)
            same_answers += sum(one == other for one, other in zip(expected, found, strict=True))
            sequences = [ids + answer for ids, answer in zip(asked, expected, strict=True)]
            largest = max(largest, largest_difference(adapted, model, sequences, chat.pad_id))
            tokens += sum(map(len, sequences)) - len(sequences)
            progress.update(len(indices))
    return Parity(len(prompts), same_prompts, same_answers, tokens, largest, dtype)


def plain_ids(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """The ids of a prompt by transformers' own chat template."""
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def answers(model, prompts: list[list[int]], chat: Chat, settings) -> list[list[int]]:
    """Greedy answers up to and without their end token."""
    new = complete(model, prompts, chat.pad_id, settings)
    return [ids[: end_index(ids, settings.eos_token_id)] for ids in new]


def largest_difference(one, other, sequences: list[list[int]], pad_id: int) -> float:
    """The largest difference of a token's log-probability (nats); infinite where either model gives no number."""
    import torch

    ids, mask = padded(sequences, pad_id, one.device)
    with torch.inference_mode():
        first, second = (token_log_probabilities(model, ids, mask)[0] for model in (one, other))
    apart = (first - second).abs()[mask[:, 1:].bool()]
    return apart.nan_to_num(nan=float("inf")).max().item()


def with_texts(rows: Iterable[dict[str, Any]], references: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of prompts.jsonl, each with its text from references.jsonl."""
    texts = {row["id"]: row["prompt"] for row in references}
    return [{**row, "prompt": texts[row["id"]]} for row in rows]
