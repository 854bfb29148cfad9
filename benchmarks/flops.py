"""Floating-point operations that LoRA training needs, by formula: what MFU (model FLOPs utilisation) counts.

With N linear parameters in the layers, p in the adapters, L layers of attention width h, a vocabulary V and hidden size d, a
sequence of T tokens of which s are trained takes

    T (4N + 6p) + 3 A + 4 s V d        with A = 2 h L T^2

A frozen matrix costs 2 operations a parameter and token forward and 2 for the gradient of its input; an adapter 2 and 4, since it
has a gradient of its own; causal attention looks at half of the sequence on average, and its backward pass costs twice its
forward pass; the frozen head is needed at trained positions alone. What an implementation computes beyond that (padding, logits
again in the backward pass, a merged matrix) does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# TinyLlama-1.1B's shape, in the names of its configuration.
TINYLLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


class Shape(NamedTuple):
    """The inputs of the formula: N, p, L, h, V d, and the number of all parameters in the model's file."""

    linear: int
    adapter: int
    layers: int
    attention: int
    head: int
    parameters: int


def llama(config: dict[str, Any], rank: int) -> Shape:
    """The shape of a Llama by its config.json, with adapters of one rank on all seven linear maps of a layer."""
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, config.get("num_key_value_heads", heads) * width
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    maps = attention + [(hidden, inner), (hidden, inner), (inner, hidden)]
    linear = layers * sum(inputs * outputs for inputs, outputs in maps)
    head = config["vocab_size"] * hidden
    return Shape(
        linear=linear,
        adapter=layers * rank * sum(map(sum, maps)),
        layers=layers,
        attention=queries,
        head=head,
        parameters=linear + head * (1 if config.get("tie_word_embeddings") else 2) + hidden * (2 * layers + 1),
    )


def training(shape: Shape, rows: Iterable[Sequence[int]], prompt_once: bool = False) -> int:
    """FLOPs of a training step over `rows`: a prompt's length and its answers' lengths, one for SFT and two for DPO.

    DPO's reference is not counted. With `prompt_once` the answers of a row share its prompt, as they may; else each has its own.
    """
    tokens = squares = trained = 0
    for prompt, *answers in rows:
        shared = (len(answers) - 1) * prompt_once
        tokens += prompt * (len(answers) - shared) + sum(answers)
        squares += sum((prompt + answer) ** 2 for answer in answers) - shared * prompt**2
        trained += sum(answers)
    forward = 2 * shape.attention * shape.layers * squares
    return tokens * (4 * shape.linear + 6 * shape.adapter) + 3 * forward + 4 * trained * shape.head


def tokens(rows: Iterable[Sequence[int]]) -> int:
    """Tokens of `rows`, padding not among them; a prompt counts once for each of its answers, as trl lays it out."""
    return sum(prompt * len(answers) + sum(answers) for prompt, *answers in rows)
