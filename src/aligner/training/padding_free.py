"""The same training steps in less time: no padding, the prompt of a pair once, each LoRA layer as one product.

trl pads a batch to a rectangle, repeats the prompt of a pair before both answers, and on a CPU sends every position through the
head. `unpad` puts all distinct tokens of a batch in one row: layers see each token once, and only attention rearranges them into
sequences. `merge_lora_forward` adds each adapter's low-rank matrix to the frozen one before the product. If
aligner/training/llama_layer.py supports the architecture, it runs whole layers. Log-probabilities equal trl's and peft's up to
the last bits of float32 (tests/training/test_padding_free.py). A model that does not fit keeps the stock forward pass.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from aligner.run import ranks
from aligner.training import llama_layer

NAME = "unpadded"
# Configuration keys of models that transform the values between the last layer and the logits.
BEFORE_LOGITS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


# ---- No padding ------------------------------------------------------------------------------------------------------

# The values that trl reads from a head, in the order of `_FrozenHead`, and the positions that it handles at a time.
SCORES = ("log_probs", "entropy", "mean_logits", "is_top1")
HEAD_ROWS = 128


class Layout(NamedTuple):
    """Maps the tokens of a rectangle (rows, length) to the row of all distinct tokens.

    slots: (rows, length), the index of each token in the row; 0 for padding. own: the indices in the flat rectangle of the first
    occurrence of each token, so `flat[own]` is the row. ids and positions: (1, tokens).
    """

    slots: torch.Tensor
    own: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor


def unpad(trainer, pairs: bool) -> bool:
    """Gives the model of a trl trainer a padding-free forward; if the model does not fit, prints why and returns False.

    pairs: the second half of each batch holds the rejected answers to the prompts of the first half (trl's DPO).
    """
    model = trainer.model.get_base_model()
    if not can_unpad(model, trainer.args.gradient_checkpointing):
        reason = "the base is sharded" if ranks.sharded() else "not a plain causal model with sdpa attention"
        print(f"padding_free: batches are padded, as in trl ({reason})", file=sys.stderr)
        return False
    stock = model.forward

    @functools.wraps(type(model).forward)  # generate() checks arguments against this signature
    def forward(self, *args, fused_lm_head=False, **kwargs):
        if not fused_lm_head:
            return stock(*args, **kwargs)
        labels = kwargs["labels"]
        return score_labels(self, arrange(kwargs["input_ids"], kwargs["attention_mask"], labels, pairs), labels)

    model.forward = types.MethodType(forward, model)
    return True


def token_logps(
    model, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, pairs: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability of each label, whether it is the likeliest token) of right-padded rows; both (rows, length - 1).

    This is the forward pass that `unpad` installs, without gradients; `model`, with or without adapters, must fit (`fits`).
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.no_grad():
        output = score_labels(base, arrange(ids, mask, labels, pairs), labels)
    return output.log_probs, output.is_top1


def fits(model, settings) -> bool:
    """Whether the entry of params.yaml asks for the padding-free forward and the PEFT model supports it."""
    return settings.padding_free and can_unpad(model.get_base_model(), settings.gradient_checkpointing)


def can_unpad(model, gradient_checkpointing: bool) -> bool:
    """Whether a model has replaceable attention that is full and causal, and a plain, frozen linear head.

    A sharded model is left to its own modules: they gather their weights before use, and code that reads weights does not.
    """
    if ranks.sharded():
        return False
    config = model.config.get_text_config()
    plain = all(getattr(config, key, None) is None for key in BEFORE_LOGITS)
    return can_unpad_body(model, gradient_checkpointing) and plain and not model.get_output_embeddings().weight.requires_grad


def can_unpad_body(model, gradient_checkpointing: bool) -> bool:
    """Whether the layers of a model, whatever its head, have replaceable attention that is full and causal."""
    config = model.config.get_text_config()
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    exchangeable = config._attn_implementation == "sdpa" and model._supports_attention_backend
    dense = getattr(config, "num_experts", None) is None and getattr(config, "num_local_experts", None) is None
    return exchangeable and dense and not windowed and not gradient_checkpointing


def arrange(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, pairs: bool) -> Layout:
    """The layout of right-padded rows (rows, length); with `pairs`, a rejected row shares the prompt of its chosen row.

    The labels of the rejected rows show where their prompts end; those of a chosen row may cover its prompt too (ORPO).
    """
    rows, length = ids.shape
    own = mask.bool()
    if pairs:
        half, places = rows // 2, torch.arange(length, device=ids.device)
        prompt = places < (labels[half:] != -100).int().argmax(1)[:, None]
        same = ((ids[:half] == ids[half:]) & own[:half] | ~prompt).all(1)
        borrowed = prompt & same[:, None]
        own = torch.cat([own[:half], own[half:] & ~borrowed])
    flat = own.flatten().nonzero().squeeze(1)
    slots = torch.zeros(rows * length, dtype=torch.long, device=ids.device)
    slots[flat] = torch.arange(len(flat), device=ids.device)
    slots = slots.view(rows, length)
    if pairs:
        slots = torch.cat([slots[:half], torch.where(borrowed, slots[:half], slots[half:])])
    return Layout(slots, flat, ids.flatten()[flat][None], (flat % length)[None])


def hidden_states(model, layout: Layout, places: torch.Tensor) -> torch.Tensor:
    """The last hidden states at `places` in the row of tokens: (len(places), width)."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    config, before = model.config.get_text_config(), model.config.get_text_config()._attn_implementation
    config._attn_implementation = NAME
    try:
        output = model.base_model(input_ids=layout.ids, position_ids=layout.positions, use_cache=False, layout=layout)
    finally:
        config._attn_implementation = before
    return output.last_hidden_state[0].index_select(0, places)


def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, *, layout: Layout, **kwargs):
    """Causal attention within each sequence. query, key, value: (1, heads, tokens, width); returns (1, tokens, heads, width)."""
    grouped = query.shape[1] != key.shape[1]
    query, key, value = (states[0].transpose(0, 1)[layout.slots].transpose(1, 2) for states in (query, key, value))
    output = F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return output.transpose(1, 2).flatten(0, 1)[layout.own][None], None


def score_labels(model, layout: Layout, labels: torch.Tensor):
    """The values of SCORES at the supervised positions, 0 elsewhere, as trl's output type. Each field: (rows, length - 1)."""
    from trl.trainer.utils import FusedCausalLMOutput

    wanted = labels[:, 1:] != -100
    body = llama_layer.fused_hidden_states if llama_layer.can_fuse(model) else hidden_states
    hidden = body(model, layout, layout.slots[:, :-1][wanted])
    head = model.get_output_embeddings()
    scored = _FrozenHead.apply(hidden, head.weight, head.bias, labels[:, 1:][wanted])
    spread = [value.new_zeros(wanted.shape).masked_scatter(wanted, value) for value in scored]
    return FusedCausalLMOutput(**dict(zip(SCORES, spread, strict=True)), label_mask=wanted)


class _FrozenHead(torch.autograd.Function):
    """Log-probability, entropy, mean logit and "is the likeliest" of each target: hidden (n, width), targets (n,) -> four (n,).

    Logits exist for HEAD_ROWS rows at a time. The head is not trained, so the forward pass already computes the gradient of a
    log-probability, W[target] - p W, from the probabilities p; nothing of the vocabulary's size is stored or computed twice.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets):
        parts, mean, shift = [], weight.float().mean(0), 0.0 if bias is None else bias.float().mean()
        for some, wanted in zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
            logits = F.linear(some, weight, bias).float()
            chosen, highest = logits.gather(-1, wanted[:, None]).squeeze(-1), logits.amax(-1)
            shares = logits.softmax(-1)
            total = highest - shares.amax(-1).log()
            slope = weight[:0]
            if ctx.needs_input_grad[0]:
                slope = weight[wanted].sub_(shares.to(weight.dtype) @ weight)
            entropy = total - logits.mul_(shares).sum(-1)
            parts.append((chosen - total, entropy, some.float() @ mean + shift, chosen == highest, slope))
        *scored, slope = map(torch.cat, zip(*parts, strict=True))
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(*scored[1:])
        return tuple(scored)

    @staticmethod
    def backward(ctx, gradient, *_):
        (slope,) = ctx.saved_tensors
        return gradient.to(slope.dtype)[:, None] * slope, None, None, None


# ---- LoRA as one product --------------------------------------------------------------------------------------------


class _MergedLinear(torch.autograd.Function):
    """y = x (W + s B A)^T; PEFT's y = x W^T + s (x A^T) B^T takes two thin products and four passes over all tokens more.

    x (..., inputs), weight (outputs, inputs), down A (r, inputs), up B (outputs, r); gradients for x, A and B.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scaling):
        ctx.save_for_backward(x, weight, down, up)
        ctx.scaling = scaling
        return F.linear(x, torch.addmm(weight, up, down, alpha=scaling), bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, down, up = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ torch.addmm(weight, up, down, alpha=ctx.scaling)
        x, gradient = x.flatten(0, -2), gradient.flatten(0, -2)
        of_down = ((gradient @ up) * ctx.scaling).T @ x
        of_up = gradient.T @ ((x @ down.T) * ctx.scaling)
        return of_x, None, None, of_down, of_up, None


def merge_lora_forward(model) -> int:
    """Installs the merged forward in every LoRA layer of a PEFT model that allows it; returns their number.

    PEFT's own forward still runs without gradients, with active dropout, and unless exactly one adapter is active and unmerged.
    Fused layers (aligner/training/llama_layer.py) do not use it.
    """
    from peft.tuners.lora.layer import Linear

    layers: list[Any] = [module for module in model.modules() if isinstance(module, Linear) and llama_layer.can_merge(module)]
    for layer in layers:
        layer.forward = types.MethodType(_merged_forward(layer.forward), layer)
    return len(layers)


def _merged_forward(stock):
    @functools.wraps(stock)
    def forward(self, x, *args, **kwargs):
        if not torch.is_grad_enabled() or not llama_layer.merges_now(self) or args or kwargs:
            return stock(x, *args, **kwargs)
        (name,), base = (name for name in self.active_adapters if name in self.lora_A), self.get_base_layer()
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        return _MergedLinear.apply(x, base.weight, base.bias, down, up, self.scaling[name])

    return forward
