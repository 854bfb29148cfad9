"""Small, randomly initialised checkpoints in the Hugging Face layout, with the tokenizers and shapes of common models.

Each function writes safetensors weights, config.json, tokenizer.json and tokenizer_config.json to a folder, with the same bytes
on every call. It downloads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

POSITIONS = 512
TEXT = [
    "The mean is the sum of the values divided by their number.",
    "A random variable assigns a number to every outcome of an experiment.",
    "The variance is the mean squared distance from the mean, and its root is the standard deviation.",
    "User asks: what does independence mean? The assistant answers: one event tells nothing about another.",
    "You are a helpful assistant. Answer in one sentence, please!",
    "Two events are disjoint when no outcome belongs to both; the chance of 1 in 36 is small.",
]

# TinyLlama-1.1B-Chat's: the role marks are plain text, and only </s> is a token.
ZEPHYR_TEMPLATE = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

# Qwen2-Instruct's: adds a system prompt to a conversation without one.
CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN2_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def zephyr_llama(folder: Path) -> Path:
    """TinyLlama's shape: grouped-query attention, SentencePiece-style BPE with byte fallback, Zephyr template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = sentencepiece_tokenizer()
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    save_tokenizer(folder, tokenizer, {**settings, **tokens, "chat_template": ZEPHYR_TEMPLATE})
    config = LlamaConfig(**llama_shape(tokenizer), num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
    return save_model(folder, LlamaForCausalLM, config)


def qwen2(folder: Path) -> Path:
    """Qwen2's shape: biased queries, tied embeddings, byte-level BPE over NFC text, ChatML template."""
    from tokenizers import Regex, normalizers, pre_tokenizers
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = byte_level_tokenizer(pre_tokenizers.Sequence([words, byte_level]), normalizers.NFC())
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokens = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    save_tokenizer(folder, tokenizer, {"tokenizer_class": "Qwen2Tokenizer", **tokens, "chat_template": CHATML_TEMPLATE})
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.token_to_id("<|im_end|>")}
    config = Qwen2Config(**llama_shape(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **ends)
    return save_model(folder, Qwen2ForCausalLM, config)


def gpt2(folder: Path) -> Path:
    """GPT-2: learned positions, Conv1D layers, one special token for everything, and no chat template."""
    from tokenizers import pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokens = dict.fromkeys(["bos_token", "eos_token", "unk_token"], "<|endoftext|>")
    save_tokenizer(folder, tokenizer, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **tokens})
    end = tokenizer.token_to_id("<|endoftext|>")
    shape = {"vocab_size": tokenizer.get_vocab_size(), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
    return save_model(folder, GPT2LMHeadModel, GPT2Config(**shape, bos_token_id=end, eos_token_id=end))


def mini(folder: Path) -> Path:
    """The embedded base in a smaller size, made by its own recipe."""
    import pretrain
    import pytest

    folder.mkdir(parents=True, exist_ok=True)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    params = SimpleNamespace(vocab_size=400, tokenizer_documents=100, max_position_embeddings=POSITIONS, **shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "WEIGHTS", folder)
        tokenizer = pretrain.train_tokenizer(iter(TEXT), params)
        pretrain.save_tokenizer(tokenizer, params)
        pretrain.save_model(random_model(lambda: pretrain.build_model(tokenizer, params)))
    return folder


BUILDERS = {"zephyr_llama": zephyr_llama, "qwen2": qwen2, "gpt2": gpt2, "mini": mini}


def sentencepiece_tokenizer():
    """A BPE as converted from SentencePiece: words begin with U+2581, and unknown characters fall back to bytes.

    Words are split for training only; afterwards a text is one word, as in Llama's own tokenizer.json.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    special = ["<unk>", "<s>", "</s>"]
    reserved = special + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=reserved, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    parts = json.loads(tokenizer.to_str())
    parts["pre_tokenizer"] = None
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(parts))


def byte_level_tokenizer(pre_tokenizer, normalizer=None):
    """A BPE over bytes, so every text has ids; special tokens follow its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def llama_shape(tokenizer) -> dict[str, int]:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**shape, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": POSITIONS}


def save_tokenizer(folder: Path, tokenizer, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {**config, "model_max_length": POSITIONS, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def save_model(folder: Path, model_class, config) -> Path:
    random_model(lambda: model_class(config)).save_pretrained(folder)
    return folder


def random_model(build: Callable[[], Any]):
    """The model that `build` makes, the same on every call; the caller's random state does not change.

    Matrices are ten times larger than usual: with tied embeddings and small layers, a model would only repeat its input.
    """
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build()
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return model
