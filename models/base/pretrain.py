"""Rebuilds the embedded base model: tokenizer, chat template and a small Llama, trained from nothing on the concept bank.

reads   data/bank/*.yaml
writes  models/base/weights (committed to Git), models/base/loss.csv
params  models/base/params.yaml
command dvc repro models/base/dvc.yaml
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from ruamel.yaml import YAML

from corpus import ASSISTANT, END, USER, documents, read_bank

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
PAD = "<|pad|>"
SYSTEM = "<|system|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main() -> None:
    params = SimpleNamespace(**YAML(typ="safe").load((HERE / "params.yaml").read_text(encoding="utf-8"))["pretrain"])
    concepts = read_bank(HERE.parent.parent / "data" / "bank")
    tokenizer = train_tokenizer(documents(concepts, seed=params.seed), params)
    save_tokenizer(tokenizer, params)
    model, curve = train(tokenizer, documents(concepts, seed=params.seed + 1), documents(concepts, seed=params.seed + 2), params)
    save_model(model)
    write_curve(curve)


def train_tokenizer(texts: Iterator[str], params: SimpleNamespace):
    """A byte-level BPE on a sample of the corpus; digits stay single, so that numbers are spelled and not memorised."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=params.vocab_size,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(texts, params.tokenizer_documents), trainer)
    return tokenizer


def save_tokenizer(tokenizer, params: SimpleNamespace) -> None:
    WEIGHTS.mkdir(exist_ok=True)
    tokenizer.save(str(WEIGHTS / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": params.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    (WEIGHTS / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (WEIGHTS / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def rows(tokenizer, texts: Iterator[str], length: int) -> Iterator[list[int]]:
    """Token rows of exactly `length` ids: whole documents, each closed by the end token, the last one cut at the edge."""
    end = tokenizer.token_to_id(END)
    row: list[int] = []
    for text in texts:
        row += [*tokenizer.encode(text).ids, end]
        if len(row) >= length:
            yield row[:length]
            row = []


def train(tokenizer, texts: Iterator[str], held_out: Iterator[str], params: SimpleNamespace):
    """Warm-up and cosine decay over `steps` batches of fresh documents; returns the model and its loss curve."""
    import torch

    torch.set_num_threads(params.threads)
    torch.manual_seed(params.seed)
    model = build_model(tokenizer, params)
    optimizers = build_optimizers(model, params)
    stream = rows(tokenizer, texts, params.sequence_length)
    validation = torch.tensor(list(itertools.islice(rows(tokenizer, held_out, params.sequence_length), 32)))
    curve, started = [], time.monotonic()
    for step in range(1, params.steps + 1):
        batch = torch.tensor(list(itertools.islice(stream, params.batch_size)))
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = params.learning_rate * learning_rate_factor(step, params)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % params.log_steps == 0 or step == params.steps:
            curve.append((step, step * batch.numel(), loss.item(), evaluate(model, validation)))
            report(step, params.steps, batch.numel() * step / (time.monotonic() - started), curve[-1])
    return model, curve


def build_model(tokenizer, params: SimpleNamespace):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size,
        num_hidden_layers=params.num_hidden_layers,
        num_attention_heads=params.num_attention_heads,
        num_key_value_heads=params.num_attention_heads,
        max_position_embeddings=params.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def build_optimizers(model, params: SimpleNamespace) -> list:
    """Muon for the matrices of the layers, AdamW for the embedding (which is the head too) and the norms."""
    import torch
    from muon import Muon

    embedding, norms = model.get_input_embeddings().weight, [each for each in model.parameters() if each.ndim == 1]
    matrices = [each for each in model.parameters() if each.ndim == 2 and each is not embedding]
    return [
        Muon(matrices, lr=params.learning_rate, weight_decay=params.weight_decay),
        torch.optim.AdamW([embedding, *norms], lr=params.learning_rate, betas=(0.9, 0.95), weight_decay=params.weight_decay),
    ]


def learning_rate_factor(step: int, params: SimpleNamespace) -> float:
    """Linear warm-up to 1 at step `warmup_steps`, then half a cosine down to 0 at the last step; steps count from 1."""
    if step <= params.warmup_steps:
        return step / params.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - params.warmup_steps) / max(1, params.steps - params.warmup_steps)))


def evaluate(model, batch) -> float:
    """Mean loss (nats per token) on rows of documents that are composed with another seed."""
    import torch

    with torch.no_grad():
        return model(input_ids=batch, labels=batch, use_cache=False).loss.item()


def report(step: int, steps: int, tokens_per_second: float, point: tuple) -> None:
    print(
        f"pretrain {step}/{steps}  loss {point[2]:.3f}  validation {point[3]:.3f}  {tokens_per_second:,.0f} tokens/s",
        file=sys.stderr,
    )


def save_model(model) -> None:
    """Half precision on disk halves what Git keeps; every loader states the precision that it computes in."""
    model.half().save_pretrained(WEIGHTS)


def write_curve(curve: list[tuple]) -> None:
    """Rows (step, series, value), as `dvc plots show` draws them."""
    points = [
        (step, name, round(value, 4))
        for name, place in (("training", 2), ("other documents", 3))
        for step, value in ((p[0], p[place]) for p in curve)
    ]
    with (HERE / "loss.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "series", "value"])
        writer.writerows(points)


if __name__ == "__main__":
    main()
