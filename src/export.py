"""export: one model as a folder that plain transformers loads: merged weights, tokenizer, chat template, model card.

reads   data/prepared/{prompts,references}.jsonl, chat.json, the base model, the adapter; for the card: reports/, experiments/
writes  the folder of --to, with the adapter alone in its folder adapter/; with --format gguf also NAME.gguf
command python src/export.py dpo --to exported/dpo
        python src/export.py dpo --to exported/dpo --format gguf      (needs: pip install gguf)

The folder appears only if it passes the gate: loaded by transformers alone, it must encode every eval prompt to the same ids, and
give the same greedy answers and log-probabilities as the adapter on its base (to 0.001 nats in float32). Otherwise nothing is
written and the exit code is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

from aligner.files import read_json, read_jsonl, write_text
from aligner.model import runtime
from aligner.model.loading import (
    PREPARED_CHAT,
    base_fingerprint,
    check_chat,
    check_provenance,
    load_adapter,
    load_base,
    load_chat,
)
from aligner.run import params as parameters
from aligner.run.errors import InputError
from aligner.serving import card, export, gguf_file
from generate import PARAMS, PROMPTS, adapter_of, check_room, generation_settings

REFERENCES = Path("data/prepared/references.jsonl")
FORMATS = ("safetensors", "gguf")


def main(name: str, to: Path, format: str, dtype: str | None) -> None:
    if to.exists():
        raise InputError(f"{to} exists already; remove it, or choose another folder with --to")
    if format == "gguf":
        gguf_file.require_library()
    unfinished = to.with_name(f"{to.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write(name, unfinished, format, dtype)
        unfinished.rename(to)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{to}: exported")


def write(name: str, folder: Path, format: str, dtype: str | None) -> None:
    """Writes everything to `folder`; raises InputError if the exported model is not the trained one."""
    import torch

    params = parameters.load(PARAMS)
    entry = params.model_entry
    started = runtime.start(entry, params.seed)
    chat = load_chat(entry)
    check_chat(chat, read_json(PREPARED_CHAT))
    dtype = dtype or str(started.dtype).removeprefix("torch.")
    greedy = generation_settings(params.generate.model_copy(update={"do_sample": False}), chat)
    adapter = adapter_of(name)
    adapted = with_adapter(entry, started, adapter, chat)
    prompts = export.with_texts(read_jsonl(PROMPTS), read_jsonl(REFERENCES))
    check_room(adapted.config.max_position_embeddings, prompts, params.generate.max_new_tokens)

    full = dataclasses.replace(started, dtype=torch.float32)  # merged in full precision, then rounded once
    merged = with_adapter(entry, full, adapter, chat)
    merged = merged.merge_and_unload() if adapter else merged
    export.write_model(merged.to(getattr(torch, dtype)), folder, entry, chat, generation_settings(params.generate, chat))
    del merged
    plain = export.load_plain(folder, started.device)
    parity = export.measure(adapted, plain, prompts, chat, greedy, dtype, entry.generate.batch_size)
    print(f"{name}: {parity.line()}")
    parity.refuse()

    notes = []
    if adapter is not None:
        export.write_adapter(adapter, folder / "adapter", entry)
        notes.append("`adapter/`: the adapter alone, for peft; `base_model_name_or_path` names its base")
    if format == "gguf":
        file = gguf_file.write(folder, folder / f"{name}.gguf", dtype)
        free = params.generate.model_copy(update={"do_sample": False, "no_repeat_ngram_size": 0})
        bare = generation_settings(free, chat)
        checked = gguf_file.check(file, prompts, lambda rows: export.answers(plain[0], rows, chat, bare), chat, bare)
        print(f"{file.name}: {checked}")
        notes.append(f"`{file.name}`: the same weights for llama.cpp; with plain greedy decoding {checked}")
    write_text(folder / "README.md", card.card(name, entry, parity, notes, params.generate.repetition_penalty))


def with_adapter(entry, started, adapter: Path | None, chat):
    """The base, or the base with its adapter beside the weights, ready to answer."""
    from transformers import GenerationConfig

    base = load_base(entry, started)
    base.generation_config = GenerationConfig()  # else transformers takes unset values from the model's own
    if adapter is None:
        return base.eval()
    check_provenance(adapter, {"base": base_fingerprint(entry), "chat": chat.fingerprint})
    return load_adapter(base, adapter).eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="which model: base, sft, dpo, or another folder of models/")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="gguf adds a file for llama.cpp")
    parser.add_argument(
        "--dtype", choices=list(export.TOLERANCE), help="precision of the weights; default: that of the model's entry"
    )
    arguments = parser.parse_args()
    try:
        main(arguments.model, arguments.to, arguments.format, arguments.dtype)
    except (InputError, OSError) as error:
        sys.exit(f"export: {error}")
