"""Attention in its forms, and rotary position embedding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import operator
from graphopt.runtimes._torch.values import TYPES


def heads(x: Tensor, count: int) -> Tensor:
    """Return [batch, sequence, heads * size] as [batch, heads, sequence, size]; four axes as they are."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """Return [batch, heads, sequence, size] as [batch, sequence, heads * size]."""
    return x.transpose(1, 2).flatten(2)


def shared(x: Tensor, count: int) -> Tensor:
    """Return keys or values with each head repeated for the query heads that share it."""
    return x if x.shape[1] == count else x.repeat_interleave(count // x.shape[1], 1)


def attended(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, factor: float, *, causal: bool = False
) -> Tensor:
    """Return attention over [batch, heads, sequence, size], where several query heads may share a key.

    Args:
        query: of any number of heads that is a multiple of that of the keys.
        key: what queries are multiplied with.
        value: what the result is a mean of; zeros where a query sees no key.
        mask: truths, where a query sees a key, or what is added to the products; it broadcasts against them.
        factor: of the products.
        causal: whether the i-th query sees the first i keys only; without a mask.
    """
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)].expand(-1, -1, query.shape[2], key.shape[2])
        mask = mask if mask.dtype in (torch.bool, query.dtype) else mask.to(query.dtype)
    grouped = query.shape[1] != key.shape[1]
    return functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal, scale=factor, enable_gqa=grouped
    )


@operator("Attention", 23)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float = 0.0,
    softcap: float = 0.0,
    softmax_precision: int = 0,
    outputs_: int,
) -> tuple[Tensor, ...]:
    """Scaled dot-product attention with masks, a cache, and query heads that share keys."""
    packed = q.ndim == 3
    query, key, value = heads(q, q_num_heads), heads(k, kv_num_heads), heads(v, kv_num_heads)
    offset: Tensor | int = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    elif nonpad_kv_seqlen is not None:
        offset = (nonpad_kv_seqlen - query.shape[2]).reshape(-1, 1, 1, 1)
    factor = scale or 1 / math.sqrt(query.shape[-1])
    plain = outputs_ < 4 and not softcap and not softmax_precision
    bounded = left_window_size >= 0 or right_window_size >= 0 or attn_mask is not None or nonpad_kv_seqlen is not None
    if plain and not bounded and past_key is None:
        made = attended(query, key, value, None, factor, causal=bool(is_causal))
        return (joined(made) if packed else made, key, value)
    seen = visible(query, key, offset, is_causal, left_window_size, right_window_size)
    if nonpad_kv_seqlen is not None:
        seen = both(seen, torch.arange(key.shape[2], device=q.device) < nonpad_kv_seqlen.reshape(-1, 1, 1, 1))
    mask = _masked(seen, attn_mask, key.shape[2])
    if plain:
        made = attended(query, key, value, mask, factor)
        return (joined(made) if packed else made, key, value)
    root = math.sqrt(factor)
    raw = (query * root) @ (shared(key, query.shape[1]) * root).transpose(-1, -2)
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    biased = capped if mask is None else capped + added(mask, capped.dtype)
    kind = TYPES[ir.DataType(softmax_precision)] if softmax_precision else biased.dtype
    shares = weights(biased.to(kind)).to(query.dtype)
    made = shares @ shared(value, query.shape[1])
    steps = (raw, capped, biased, shares)
    return (joined(made) if packed else made, key, value, steps[qk_matmul_output_mode])


def weights(scores: Tensor) -> Tensor:
    """Return the softmax of scores; a row that sees nothing gets zeros."""
    blind = torch.isneginf(scores.detach()).all(-1, keepdim=True)
    return functional.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)


def visible(
    query: Tensor, key: Tensor, offset: Tensor | int, causal: int, left: int = -1, right: int = -1
) -> Tensor | None:
    """Return which keys the place of a query lets it see, or None for all.

    Args:
        query: [batch, heads, queries, size].
        key: [batch, heads, keys, size].
        offset: place of the first query among the keys; one number, or [batch, 1, 1, 1].
        causal: whether a query sees no key after its place.
        left: how many keys before its place it sees; -1 for all.
        right: how many keys after its place it sees; -1 for all.
    """
    if not causal and left < 0 and right < 0:
        return None
    rows = torch.arange(query.shape[2], device=query.device)[:, None] + offset
    columns = torch.arange(key.shape[2], device=query.device)
    seen = columns <= rows if causal else None
    seen = both(seen, columns >= rows - left) if left >= 0 else seen
    return both(seen, columns <= rows + right) if right >= 0 else seen


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return where both of two masks are true; one that is not there is true everywhere."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def added(mask: Tensor, dtype: torch.dtype, hidden: float = -math.inf) -> Tensor:
    """Return what a mask adds to scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, hidden)


def _masked(seen: Tensor | None, mask: Tensor | None, keys: int) -> Tensor | None:
    """Return a mask of truths or numbers with what a query does not see hidden; keys that it leaves out are hidden."""
    if mask is None:
        return seen
    missing = keys - mask.shape[-1]
    if mask.dtype == torch.bool:
        return both(seen, functional.pad(mask, (0, missing)) if missing else mask)
    mask = functional.pad(mask, (0, missing), value=-math.inf) if missing else mask
    return mask if seen is None else mask + added(seen, mask.dtype)


@operator("FlexAttention", 1, "ai.onnx.preview")
def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    prob_mod: Callable[[Tensor], list[Any]] | None = None,
    scale: float = 0.0,
    score_mod: Callable[[Tensor], list[Any]] | None = None,
    softmax_precision: int = 0,
) -> Tensor:
    """Attention whose scores and probabilities pass through bodies."""
    key, value = shared(k, q.shape[1]), shared(v, q.shape[1])
    kind = TYPES[ir.DataType(softmax_precision)] if softmax_precision else torch.promote_types(q.dtype, torch.float32)
    scores = (q @ key.transpose(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))).to(kind)
    scores = score_mod(scores)[0] if score_mod else scores
    shares = functional.softmax(scores, -1)
    shares = prob_mod(shares)[0] if prob_mod else shares
    return shares.to(v.dtype) @ value


@operator("LinearAttention", 27)
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """Attention without a softmax, as a recurrence over time; and the state after it."""
    del chunk_size  # it changes the speed of others only
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (heads(x.to(wide), n) for x, n in ((query, q_num_heads), (key, kv_num_heads), (value, kv_num_heads)))
    state = (
        q.new_zeros(q.shape[0], kv_num_heads, k.shape[-1], v.shape[-1]) if past_state is None else past_state.to(wide)
    )
    gate = None if decay is None else torch.exp(heads(decay.to(wide), kv_num_heads))
    rate = None if beta is None else heads(beta.to(wide).expand(*beta.shape[:2], kv_num_heads), kv_num_heads)
    factor = scale or 1 / math.sqrt(q.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        if gate is not None and update_rule.startswith("gated"):
            state = state * gate[:, :, t, :, None]
        new = v[:, :, t]
        if update_rule.endswith("delta"):
            assert rate is not None
            new = rate[:, :, t] * (new - torch.einsum("bhkv,bhk->bhv", state, k[:, :, t]))
        state = state + k[:, :, t, :, None] * new[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], shared(state, q_num_heads)) * factor)
    last = state.to(query.dtype if past_state is None else past_state.dtype)
    return joined(torch.stack(outputs, 2)).to(query.dtype), last


@operator("RotaryEmbedding", 23)
def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Turn pairs of features by angles of their position (Su et al., RoFormer, arXiv:2104.09864)."""
    packed = x.ndim == 3
    wide = heads(x, num_heads)
    cos, sin = (c if position_ids is None else c[position_ids.to(torch.int64)] for c in (cos_cache, sin_cache))
    turned = rotated(wide, cos.unsqueeze(1), sin.unsqueeze(1), rotary_embedding_dim, interleaved)
    return joined(turned) if packed else turned


def rotated(x: Tensor, cos: Tensor, sin: Tensor, width: int, interleaved: int) -> Tensor:
    """Turn the first `width` features (all for 0) of [batch, heads, sequence, size]."""
    width = width or x.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    cos, sin = cos[..., : width // 2], sin[..., : width // 2]
    one, other = (part[..., ::2], part[..., 1::2]) if interleaved else part.chunk(2, -1)
    first, second = one * cos - other * sin, one * sin + other * cos
    made = torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)
    return torch.cat([made, rest], -1) if rest.shape[-1] else made
