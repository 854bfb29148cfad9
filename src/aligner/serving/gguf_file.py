"""An exported folder as one GGUF file for llama.cpp: Llama and Qwen2, written by the optional package `gguf`.

Weights, hyperparameters and tokenizer go into one file. llama.cpp knows the rule that splits a text into words by a name
(`tokenizer.ggml.pre`); a tokenizer with another rule is refused, because it would encode differently there.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aligner.files import read_json
from aligner.model.chat import Chat
from aligner.run.errors import InputError

ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2"}
CHECKED = 32  # eval prompts that llama.cpp answers for the check


def require_library() -> None:
    """Raises InputError unless the package gguf is installed."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError("--format gguf needs the package gguf. Run: pip install --constraint requirements.txt gguf")


def write(folder: Path, file: Path, dtype: str) -> Path:
    """Writes the model in `folder` (safetensors, config.json, tokenizer.json) to `file`; matrices in `dtype`, vectors in float32.

    Raises InputError for an architecture or tokenizer that has no name in llama.cpp.
    """
    import gguf

    config = read_json(folder / "config.json")
    if config["model_type"] not in ARCHITECTURES:
        raise InputError(f"GGUF is written for {' and '.join(ARCHITECTURES)} only, not for {config['model_type']}")
    arch = gguf.MODEL_ARCH[ARCHITECTURES[config["model_type"]]]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    add_hyperparameters(writer, config, dtype)
    add_tokenizer(writer, folder, config)
    add_tensors(writer, folder, config, arch, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_hyperparameters(writer, config: dict[str, Any], dtype: str) -> None:
    import gguf

    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    kinds = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[kinds[dtype]])


# ---- Tokenizer -------------------------------------------------------------------------------------------------------


def add_tokenizer(writer, folder: Path, config: dict[str, Any]) -> None:
    import gguf

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = read_json(folder / "tokenizer_config.json")
    ids = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    added = {token["id"] for token in tokenizer["added_tokens"]}
    texts = {id: text for text, id in ids.items()}
    tokens = [texts.get(id, f"[unused{id}]") for id in range(config["vocab_size"])]
    sentencepiece = bool(tokenizer["model"].get("byte_fallback"))
    types = [token_type(id, tokens[id], special, added, id in texts, sentencepiece) for id in range(len(tokens))]
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default" if sentencepiece else pre_tokenizer(tokenizer))
    writer.add_token_list([text.encode() for text in tokens])
    writer.add_token_types([int(gguf.TokenType[kind]) for kind in types])
    if sentencepiece:  # a merge's rank is its token's id, as in Llama's own tokenizer.model
        writer.add_token_scores([-float(id) for id in range(len(tokens))])
    else:
        merges = tokenizer["model"]["merges"]
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for role, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("pad", writer.add_pad_token_id)):
        if (text := settings.get(f"{role}_token")) is not None:
            add(ids[text if isinstance(text, str) else text["content"]])
    writer.add_add_bos_token(False)  # the chat template writes it where the model was trained with it
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def token_type(id: int, text: str, special: set[int], added: set[int], used: bool, sentencepiece: bool) -> str:
    """llama.cpp's name for a kind of token."""
    if not used:
        return "UNUSED"
    if id in special:
        return "UNKNOWN" if sentencepiece and text == "<unk>" else "CONTROL"
    if id in added:
        return "USER_DEFINED"
    return "BYTE" if sentencepiece and len(text) == 6 and text.startswith("<0x") else "NORMAL"


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the rule that splits a text into words; InputError for a rule that has none here."""
    rule = tokenizer["pre_tokenizer"] or {}
    steps = rule.get("pretokenizers", [rule])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and "\\p{N}|" in steps[0]["pattern"].get("Regex", ""):
        return "qwen2"
    raise InputError("llama.cpp has no known name for this tokenizer's rule of words, so it would encode texts differently")


# ---- Weights ---------------------------------------------------------------------------------------------------------


def add_tensors(writer, folder: Path, config: dict[str, Any], arch, dtype: str) -> None:
    """Adds each tensor under llama.cpp's name."""
    import gguf
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    kind = gguf.GGMLQuantizationType[{"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                values = file.get_tensor(name).float().numpy()
                if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
                    heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
                    values = interleaved(values, heads)
                stored = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else kind
                writer.add_tensor(
                    names.get_name(name, try_suffixes=(".weight", ".bias")),
                    gguf.quants.quantize(values, stored),
                    raw_dtype=stored,
                )


def interleaved(values, heads: int):
    """The rows of each head in llama.cpp's order for Llama: the two rows that rotate together lie side by side."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)


# ---- Check -----------------------------------------------------------------------------------------------------------


def check(
    file: Path,
    prompts: list[dict[str, Any]],
    answer: Callable[[list[list[int]]], list[list[int]]],
    chat: Chat,
    settings,
) -> str:
    """What llama.cpp makes of the file, in words: its encodings and greedy answers beside those of `answer`.

    settings: plain greedy decoding, since llama.cpp knows no no_repeat_ngram_size. Its keys and values are kept in float32 here
    (float16 by default), so that only the weights and the arithmetic are compared. Without the package llama-cpp-python: "not
    checked". Raises InputError if most answers differ, as with wrong weights.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        return "not checked with llama.cpp (pip install llama-cpp-python, then export again)"
    from llama_cpp import GGML_TYPE_F32, Llama

    rows = [row["prompt_ids"] for row in prompts]
    asked = rows[:CHECKED]
    longest = max(map(len, rows)) + settings.max_new_tokens
    places = {"n_ctx": longest, "n_batch": longest, "type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}
    model = Llama(str(file), verbose=False, n_threads=1, **places)
    same = sum(llama_answer(model, ids, settings) == wanted for ids, wanted in zip(asked, answer(asked), strict=True))
    encoded = sum(
        model.tokenize(chat.tokenizer.decode(ids, skip_special_tokens=False).encode(), add_bos=False, special=True) == ids
        for ids in rows
    )
    model.close()
    found = f"llama.cpp gives {same} of {len(asked)} greedy answers and {encoded} of {len(rows)} encoded prompts the same"
    if 2 * same < len(asked):
        raise InputError(f"nothing was exported: {found}")
    return found


def llama_answer(model, prompt: list[int], settings) -> list[int]:
    """llama.cpp's greedy answer, up to and without its end token."""
    model.reset()
    answer: list[int] = []
    for id in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if id in settings.eos_token_id or len(answer) == settings.max_new_tokens:
            break
        answer.append(id)
    return answer
