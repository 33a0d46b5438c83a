"""ONNX Runtime's contrib operators for attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators.attention import heads, joined, rotated, shared, weights
from graphopt.runtimes._torch.table import CONTRIB, operator


def _attended(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return attention over [batch, heads, sequence, size]."""
    factor = scale or 1 / math.sqrt(query.shape[-1])
    if bias is None:
        return functional.scaled_dot_product_attention(query, key, value, scale=factor)
    scores = query @ key.transpose(-1, -2) * factor
    return weights(scores + bias) @ value


def _causal(query: Tensor, key: Tensor, filter_value: float) -> Tensor:
    """Return what hides the keys after each query; the last query sees all of them."""
    rows = torch.arange(query.shape[2], device=query.device)[:, None] + key.shape[2] - query.shape[2]
    hidden = torch.arange(key.shape[2], device=query.device)[None] > rows
    return torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill(hidden, filter_value)


def _added(*biases: Tensor | None) -> Tensor | None:
    total: Tensor | None = None
    for bias in biases:
        if bias is not None:
            total = bias if total is None else total + bias
    return total


def _padding(mask: Tensor | None, query: Tensor, keys: int, filter_value: float) -> Tensor | None:
    """Return what a mask adds to scores: 1 for keys that count [batch, keys] or per query, or their number [batch]."""
    if mask is None:
        return None
    if mask.ndim == 1:
        if len(mask) != len(query):
            raise ValueError("a mask of begins and ends is not computed; give one number per key")
        mask = torch.arange(keys, device=query.device)[None] < mask[:, None]
    mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(mask == 0, filter_value)


@operator("Attention", 1, CONTRIB)
def attention(
    input: Tensor,
    projection: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    qkv_hidden_sizes: tuple[int, ...] | None = None,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor]:
    """Self-attention with the projection of queries, keys and values inside, and the new cache."""
    sizes = list(qkv_hidden_sizes or (projection.shape[1] // 3,) * 3)
    made = input @ projection if bias is None else input @ projection + bias
    query, key, value = (heads(x, num_heads) for x in made.split(sizes, -1))
    if past is not None:
        key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
    total = _added(
        _padding(mask_index, query, key.shape[2], mask_filter_value),
        _causal(query, key, mask_filter_value) if unidirectional else None,
        attention_bias,
    )
    present = torch.stack([key, value]) if key.shape == value.shape else key
    return joined(_attended(query, key, value, total, scale)), present


@operator("MultiHeadAttention", 1, CONTRIB)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, ...]:
    """Attention of projected queries, keys and values, packed or not, and the new cache."""
    if key is None:  # [batch, sequence, heads, 3, size]
        q, k, v = (x.transpose(1, 2) for x in query.unbind(3))
    elif value is None:  # keys and values in one, [batch, sequence, heads, 2, size]
        q = heads(query, num_heads)
        k, v = (x.transpose(1, 2) for x in key.unbind(3))
    else:
        widths = [
            query.shape[-1],
            heads(key, num_heads).shape[-1] * num_heads,
            heads(value, num_heads).shape[-1] * num_heads,
        ]
        parts = [None, None, None] if bias is None else list(bias.split(widths))
        q, k, v = (_biased(x, b, num_heads) for x, b in zip((query, key, value), parts, strict=True))
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    total = _added(
        _padding(key_padding_mask, q, k.shape[2], mask_filter_value),
        _causal(q, k, mask_filter_value) if unidirectional else None,
        attention_bias,
    )
    return joined(_attended(q, k, v, total, scale)), k, v


def _biased(x: Tensor, bias: Tensor | None, count: int) -> Tensor:
    wide = heads(x, count)
    return wide if bias is None else wide + bias.reshape(1, count, 1, -1)


@operator("GroupQueryAttention", 1, CONTRIB)
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    do_rotary: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention with a cache, whose query heads share keys; rotation of positions inside.

    Sequences are taken to be full: `seqlens_k` serves to check it.
    """
    if key is None or value is None:
        size = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        query, key, value = query.split([num_heads * size, kv_num_heads * size, kv_num_heads * size], -1)
    q, k, v = heads(query, num_heads), heads(key, kv_num_heads), heads(value, kv_num_heads)
    total = int(total_sequence_length.reshape(-1)[0])
    before = total - q.shape[2]
    if bool((seqlens_k.reshape(-1) + 1 != total).any()):
        raise ValueError("sequences of different lengths in a batch are not computed; run them one by one")
    if do_rotary and cos_cache is not None and sin_cache is not None:
        places = torch.arange(before, total, device=q.device)[None] if position_ids is None else position_ids.long()
        cos, sin = cos_cache[places].unsqueeze(1), sin_cache[places].unsqueeze(1)
        q, k = (rotated(x, cos, sin, 2 * cos.shape[-1], rotary_interleaved) for x in (q, k))
    if before and past_key is not None and past_value is not None:
        k, v = torch.cat([past_key[:, :, :before], k], 2), torch.cat([past_value[:, :, :before], v], 2)
    keys, values = shared(k, num_heads), shared(v, num_heads)
    scores = q @ keys.transpose(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    scores = scores + _causal(q, keys, -math.inf)
    if local_window_size >= 0:
        rows = torch.arange(before, total, device=q.device)[:, None]
        far = torch.arange(total, device=q.device)[None] <= rows - local_window_size
        scores = scores.masked_fill(far, -math.inf)
    scores = scores if attention_bias is None else scores + attention_bias
    return joined(weights(scores) @ values), k, v


@operator("RotaryEmbedding", 1, CONTRIB)
def rotary_embedding(
    input: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Turn pairs of features by angles of their position; a single position is that of the first token."""
    del is_packed_batching, scale  # neither changes what is computed on the CPU
    packed = input.ndim == 3
    count = num_heads or (input.shape[-1] // (rotary_embedding_dim or 2 * cos_cache.shape[-1]) if packed else 0)
    wide = heads(input, count)
    places = position_ids.long()
    if places.numel() == 1:
        places = places.reshape(1, 1) + torch.arange(wide.shape[2], device=input.device)[None]
    cos, sin = cos_cache[places].unsqueeze(1), sin_cache[places].unsqueeze(1)
    turned = rotated(wide, cos, sin, rotary_embedding_dim or 2 * cos_cache.shape[-1], interleaved)
    return joined(turned) if packed else turned
