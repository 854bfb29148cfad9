"""A Llama layer under LoRA as one function with its own backward pass, for training on a CPU.

You may skip this file: it changes no result. For one batch of a small model, autograd makes some 2,000 small calls in
transformers' and peft's modules, each of which allocates a tensor. This code writes a layer out: products that read the same
input are one product, sums are in place, each sequence attends within itself without padding, and the last layer computes only
the positions that are used. Its values equal those of the modules up to the last bits of float32
(tests/training/test_padding_free.py). Other models keep their modules.

Shapes: T tokens in one row, without padding; D is the model's width, and `size` the width of a head. LoRA's A (r, inputs) is
`down`, its B (outputs, r) is `up`, and a weight with its adapter is W + s B A (Hu et al. 2021, arXiv 2106.09685, eq. 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

import torch

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
# Attention weights of sequences up to this length are stored for the backward pass, those of longer ones are recomputed.
LONGEST_STORED = 512


# ---- Which models ------------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """The frozen part of a decoder layer: weights by group, the weights of its two norms, and its constants."""

    weights: list[list[torch.Tensor]]
    norms: tuple[torch.Tensor, torch.Tensor]
    epsilon: float
    scaling: float
    heads: int
    key_heads: int
    size: int


def can_fuse(model) -> bool:
    """Whether a model is a Llama without biases, on a CPU, and each of its products is float32 with one active plain LoRA."""
    from peft.tuners.lora.layer import Linear
    from transformers import LlamaForCausalLM

    if type(model) is not LlamaForCausalLM or model.device.type != "cpu" or model.config.hidden_act != "silu":
        return False
    linears = [linear for layer in model.model.layers for group in _linears(layer) for linear in group]
    if not all(isinstance(each, Linear) and can_merge(each) and each.get_base_layer().bias is None for each in linears):
        return False
    scalings = {each.scaling[name] for each in linears for name in each.active_adapters if name in each.scaling}
    return all(map(merges_now, linears)) and len(scalings) == 1


def _linears(layer) -> list[list]:
    """The linear maps of a decoder layer, by group."""
    return [[attrgetter(name)(layer) for name in group] for group in GROUPS]


def can_merge(layer) -> bool:
    """Whether a layer is plain linear with plain LoRA, in float32; in lower precision the sum would lose small updates."""
    base = layer.get_base_layer()
    plain = type(base) is torch.nn.Linear and base.weight.dtype is torch.float32 and not base.weight.requires_grad
    return plain and not layer.lora_variant and not any(layer.lora_bias.values())


def merges_now(layer) -> bool:
    """Whether exactly one adapter is active, without dropout and not merged into the weights."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    dropping = layer.training and any(getattr(layer.lora_dropout[name], "p", 0) for name in active)
    return not (layer.disable_adapters or layer.merged or dropping) and len(active) == 1


# ---- The row of tokens through all layers ------------------------------------------------------------------------------


class AttentionPlan(NamedTuple):
    """How the tokens of a row attend to each other, and their rotary embeddings.

    counts: the number of tokens of each sequence, in the row's order. prompts: the places of the prompt that each sequence shares
    with an earlier one, usually none. mask: (longest, longest), -inf above the diagonal. rotations: (T, 1, size / 2), cos + i sin
    of each position's angles.
    """

    counts: list[int]
    prompts: list[slice]
    mask: torch.Tensor
    rotations: torch.Tensor


def fused_hidden_states(model, layout, places: torch.Tensor) -> torch.Tensor:
    """The last hidden states at `places` in the row of tokens: (len(places), D)."""
    llama = model.model
    hidden = llama.embed_tokens(layout.ids)[0]
    plan = attention_plan(layout, *llama.rotary_emb(hidden[None], layout.positions))
    kept, order = torch.unique(places, return_inverse=True)
    for number, layer in enumerate(llama.layers, 1):
        frozen, adapters = _parts(model.config, layer)
        hidden = _FusedLayer.apply(hidden, frozen, plan, kept if number == len(llama.layers) else None, *adapters)
    return llama.norm(hidden).index_select(0, order)


def attention_plan(layout, cos: torch.Tensor, sin: torch.Tensor) -> AttentionPlan:
    """The plan of a `padding_free.Layout`; cos and sin: (1, T, size), from the model's rotary embedding."""
    rows, longest = layout.slots.shape
    counts = torch.bincount(layout.own // longest, minlength=rows)
    first = layout.slots[:, 0]
    borrowed = layout.positions[0, counts.cumsum(0) - counts]
    prompts = [slice(start, end) for start, end in zip(first.tolist(), (first + borrowed).tolist(), strict=True)]
    mask = torch.full((longest, longest), -torch.inf).triu_(1)
    half = cos.shape[-1] // 2
    rotations = torch.complex(cos, sin)[0, :, None, :half]
    return AttentionPlan(counts.tolist(), prompts, mask, rotations)


def _parts(config, layer) -> tuple[Layer, list[torch.Tensor]]:
    """A layer's frozen part, and the down and up matrices of its adapters in the order of GROUPS."""
    groups = _linears(layer)
    (name,) = (name for name in groups[0][0].active_adapters if name in groups[0][0].lora_A)
    weights = [[linear.get_base_layer().weight for linear in group] for group in groups]
    downs = [linear.lora_A[name].weight for group in groups for linear in group]
    ups = [linear.lora_B[name].weight for group in groups for linear in group]
    for rotated in (0, 1):  # queries and keys
        weights[0][rotated], ups[rotated] = (_side_by_side(rows, layer) for rows in (weights[0][rotated], ups[rotated]))
    norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
    heads, key_heads, size = config.num_attention_heads, config.num_key_value_heads, layer.self_attn.head_dim
    frozen = Layer(weights, norms, config.rms_norm_eps, groups[0][0].scaling[name], heads, key_heads, size)
    return frozen, [each for pair in zip(downs, ups, strict=True) for each in pair]


class _FusedLayer(torch.autograd.Function):
    """x (T, D) -> (T, D); with `kept` (places), the output at these places only: (len(kept), D)."""

    @staticmethod
    def forward(ctx, x, layer, plan, kept, *adapters):
        merged = [_merge(*each, layer.scaling) for each in zip(layer.weights, _grouped(adapters), strict=True)]
        normed, scale = _normalise(x, layer.norms[0], layer.epsilon)
        heads = _apply_rope(normed @ merged[0].T, layer, plan.rotations)
        mixed, kept_weights = _attend(heads, layer, plan)
        before, mixed_kept = (x, mixed) if kept is None else (x[kept], mixed[kept])
        between = torch.addmm(before, mixed_kept, merged[1].T)
        normed, between_scale = _normalise(between, layer.norms[1], layer.epsilon)
        gates = normed @ merged[2].T
        gate, up = gates.chunk(2, 1)
        ctx.save_for_backward(x, scale, heads, mixed_kept, between, between_scale, gates, *merged, *adapters)
        ctx.rest = layer, plan, kept, kept_weights
        return torch.addmm(between, torch.nn.functional.silu(gate).mul_(up), merged[3].T)

    @staticmethod
    def backward(ctx, gradient):
        x, scale, heads, mixed, between, between_scale, gates, *others = ctx.saved_tensors
        merged, (of_qkv, of_o, of_gates, of_down) = others[:4], _grouped(others[4:])
        layer, plan, kept, kept_weights = ctx.rest

        of_swiglu, swiglu = _swiglu_backward(gradient @ merged[3], gates)
        found = _of_adapters(swiglu, gradient, of_down, layer.scaling)
        normed = (between * between_scale).mul_(layer.norms[1])
        found = _of_adapters(normed, of_swiglu, of_gates, layer.scaling) + found
        gradient = _normalise_backward(of_swiglu @ merged[2], between, between_scale, layer.norms[1]).add_(gradient)

        found = _of_adapters(mixed, gradient, of_o, layer.scaling) + found
        of_mixed = gradient @ merged[1]
        if kept is not None:
            of_mixed = of_mixed.new_zeros(len(x), of_mixed.shape[1]).index_copy_(0, kept, of_mixed)
        of_heads = _apply_rope(_attend_backward(of_mixed, heads, layer, plan, kept_weights), layer, plan.rotations.conj())
        normed = (x * scale).mul_(layer.norms[0])
        found = _of_adapters(normed, of_heads, of_qkv, layer.scaling) + found
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, *found
        of_x = _normalise_backward(of_heads @ merged[0], x, scale, layer.norms[0])
        of_x = of_x.add_(gradient) if kept is None else of_x.index_add_(0, kept, gradient)
        return of_x, None, None, None, *found


# ---- Its parts -----------------------------------------------------------------------------------------------------------


def _grouped(adapters) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The (down, up) pairs of a flat list, by group."""
    pairs = iter(zip(adapters[::2], adapters[1::2], strict=True))
    return [[next(pairs) for _ in group] for group in GROUPS]


def _merge(weights, adapters, scaling: float) -> torch.Tensor:
    """W + s B A of all products of a group, stacked: (outputs, inputs)."""
    merged = weights[0].new_empty(sum(map(len, weights)), weights[0].shape[1])
    for part, weight, (down, up) in zip(merged.split([*map(len, weights)]), weights, adapters, strict=True):
        torch.addmm(weight, up, down, alpha=scaling, out=part)
    return merged


def _of_adapters(x, gradient, adapters, scaling: float) -> list[torch.Tensor]:
    """Gradients of A and B of each product: s (g B)^T x and s g^T (x A^T), for x (T, inputs) and g (T, all outputs)."""
    downs, ups = zip(*adapters, strict=True)
    gradients = gradient.split([*map(len, ups)], 1)
    inner = (x @ torch.cat(downs).T).mul_(scaling).split([*map(len, downs)], 1)
    outer = torch.cat([each @ up for each, up in zip(gradients, ups, strict=True)], 1).mul_(scaling)
    of_downs = (outer.T @ x).split([*map(len, downs)])
    of_ups = [(part.T @ each).T for each, part in zip(gradients, inner, strict=True)]  # twice as fast as each.T @ part
    return [each for pair in zip(of_downs, of_ups, strict=True) for each in pair]


def _normalise(x, weight, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4): (normalised rows, 1 / root mean square of each row (T, 1))."""
    mean_square = torch.linalg.vector_norm(x, dim=1, keepdim=True).square_().div_(x.shape[1])
    scale = mean_square.add_(epsilon).rsqrt_()
    return (x * scale).mul_(weight), scale


def _normalise_backward(gradient, x, scale, weight) -> torch.Tensor:
    """dx = s (g w) - x s^3 mean(g w x), s the inverse root mean square; overwrites `gradient`."""
    gradient.mul_(weight)
    shift = torch.linalg.vecdot(gradient, x)[:, None].mul_(scale**3).div_(-x.shape[1])
    return gradient.mul_(scale).addcmul_(x, shift)


def _side_by_side(rows, layer) -> torch.Tensor:
    """Reorders the rows of a query or key matrix (outputs, inputs): values that RoPE rotates together become neighbours.

    This does not change attention, since queries and keys have the same order.
    """
    return rows.view(-1, 2, layer.self_attn.head_dim // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _apply_rope(heads, layer: Layer, rotations) -> torch.Tensor:
    """Rotates queries and keys in place, each pair as one complex number (RoPE: Su et al. 2021, arXiv 2104.09864, eq. 34).

    heads: (T, (heads + 2 key heads) x size): queries, keys, and values, which stay as they are.
    """
    pairs = torch.view_as_complex(heads.view(len(heads), -1, layer.size // 2, 2))
    pairs[:, : layer.heads + layer.key_heads].mul_(rotations)
    return heads


def _by_head(rows, layer: Layer) -> torch.Tensor:
    """Rows (T, heads x size) as a view (key heads, heads for each key head, T, size)."""
    return rows.view(len(rows), layer.key_heads, -1, layer.size).permute(1, 2, 0, 3)


def _views(heads, layer: Layer) -> list[torch.Tensor]:
    """Queries (key heads, heads for each key head, T, size), keys and values (key heads, T, size), as views of one tensor."""
    widths = [layer.heads * layer.size, layer.key_heads * layer.size, layer.key_heads * layer.size]
    queries, keys, values = (_by_head(part, layer) for part in heads.split(widths, 1))
    return [queries, keys[:, 0], values[:, 0]]


def _sequences(plan: AttentionPlan, *tensors) -> Iterator[tuple]:
    """For each sequence: the prompt that it shares, and its own part of each tensor (..., T, size)."""
    return zip(plan.prompts, *(each.split(plan.counts, -2) for each in tensors), strict=True)


def _seen(own, all_keys, prompt: slice):
    """The keys (or values) that a sequence sees, those of a shared prompt first: (key heads, tokens seen, size)."""
    return own if prompt.start == prompt.stop else torch.cat([all_keys[:, prompt], own], 1)


def _weights(queries, keys, prompt: slice, plan: AttentionPlan, size: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(size)) under the causal mask: (key heads, heads for each x tokens, tokens seen)."""
    borrowed, seen = prompt.stop - prompt.start, keys.shape[1]
    mask = plan.mask[borrowed:seen, :seen].expand(queries.shape[1] // (seen - borrowed), -1, -1).flatten(0, 1)
    return torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=size**-0.5).softmax(-1)


def _attend(heads, layer: Layer, plan: AttentionPlan) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Causal attention of each sequence: (T, heads x size), and the attention weights of short sequences."""
    queries, keys, values = _views(heads, layer)
    output, kept = heads.new_empty(len(heads), layer.heads * layer.size), []
    for prompt, asked, key, value, answer in _sequences(plan, queries, keys, values, _by_head(output, layer)):
        weights = _weights(asked.flatten(1, 2), _seen(key, keys, prompt), prompt, plan, layer.size)
        answer.copy_(torch.bmm(weights, _seen(value, values, prompt)).view_as(answer))
        kept.append(weights if weights.shape[-1] <= LONGEST_STORED else None)
    return output, kept


def _attend_backward(gradient, heads, layer: Layer, plan: AttentionPlan, kept) -> torch.Tensor:
    """Gradients of queries, keys and values, in the layout of `heads`.

    Sequences are processed in the row's order, so a shared prompt has its own sequence's gradient before another is added.
    """
    queries, keys, values = _views(heads, layer)
    result = torch.empty_like(heads)
    of_queries, of_keys, of_values = _views(result, layer)
    parts = _sequences(plan, queries, keys, values, _by_head(gradient, layer), of_queries, of_keys, of_values)
    for weights, (prompt, asked, key, value, of_answer, of_asked, of_key, of_value) in zip(kept, parts, strict=True):
        asked, of_answer, seen = asked.flatten(1, 2), of_answer.flatten(1, 2), _seen(key, keys, prompt)
        if weights is None:
            weights = _weights(asked, seen, prompt, plan, layer.size)
        of_weights = torch.bmm(of_answer, _seen(value, values, prompt).transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(layer.size**-0.5)
        of_asked.copy_(torch.bmm(of_scores, seen).view_as(of_asked))
        borrowed = prompt.stop - prompt.start
        for own, whole, left, right in ((of_key, of_keys, of_scores, asked), (of_value, of_values, weights, of_answer)):
            part = torch.bmm(left.transpose(1, 2), right)
            own.copy_(part[:, borrowed:])
            if borrowed:
                whole[:, prompt] += part[:, :borrowed]
    return result


def _swiglu_backward(gradient, gates) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient of gate and up side by side, silu(gate) * up) (Shazeer 2020, arXiv 2002.05202, eq. 6); overwrites `gradient`."""
    gate, up = gates.chunk(2, 1)
    result = torch.empty_like(gates)
    of_gate, of_up = result.chunk(2, 1)
    silu = torch.nn.functional.silu(gate)
    torch.mul(gradient, silu, out=of_up)
    torch.ops.aten.silu_backward.grad_input(gradient.mul_(up), gate, grad_input=of_gate)
    return result, silu.mul_(up)
