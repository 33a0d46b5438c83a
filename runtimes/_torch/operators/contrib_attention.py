"""ONNX Runtime's contrib operators for attention, with the projection and the cache that belong to it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators.attention import (
    added,
    attended,
    heads,
    joined,
    linear_attention,
    rotated,
    visible,
    weights,
)
from graphopt.runtimes._torch.table import CONTRIB, Host, operator

operator("LinearAttention", 1, CONTRIB)(linear_attention)


def _padding(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """Return which keys are no padding, in a shape that broadcasts against the scores.

    Args:
        mask: not zero for keys that count [batch, keys] or per query [batch, queries, keys], perhaps cut out of a larger
            one [batch, 1, longest, longest]; or where the keys of a sequence end [batch], perhaps followed by where they
            begin [2 batch] or by sums of lengths [3 batch + 2].
        query: [batch, heads, queries, size].
        key: [batch, heads, keys, size].
    """
    if mask is None:
        return None
    batch, rows, keys = query.shape[0], query.shape[2], key.shape[2]
    if mask.ndim == 1:
        places = torch.arange(keys, device=query.device)
        seen = places < mask[:batch, None]
        if len(mask) == 2 * batch:
            seen = seen & (places >= mask[batch:, None])
        return seen[:, None, None]
    if mask.ndim == 4:
        mask = mask[:, :, keys - rows : keys, :keys]
    return (mask != 0)[(slice(None), *(None,) * (4 - mask.ndim))]


def _together(
    query: Tensor, key: Tensor, padding: Tensor | None, causal: int, bias: Tensor | None, hidden: float
) -> Tensor | None:
    """Return the mask that `attended` takes: padding gets a finite number, so that it is seen where nothing else is."""
    mask = None if padding is None else added(padding, query.dtype, hidden)
    if bias is not None:
        mask = bias if mask is None else mask + bias
    seen = visible(query, key, key.shape[2] - query.shape[2], causal)
    if mask is None or seen is None:
        return seen if mask is None else mask
    return mask + added(seen, query.dtype)


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, factor: float) -> Tensor:
    """Return the products of queries and keys, with a mask added."""
    scores = query @ key.transpose(-1, -2) * factor
    return scores if mask is None else scores + added(mask, scores.dtype)


@operator("Attention", 1, CONTRIB)
def attention(
    input: Tensor,
    projection: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: tuple[int, ...] | None = None,
    rotary_embedding_dim: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor]:
    """Self-attention with the projection of queries, keys and values inside, and the new cache."""
    del rotary_embedding_dim  # without rotation it says nothing
    if do_rotary or past_present_share_buffer:
        raise ValueError("Attention that rotates or writes into its cache is not computed")
    sizes = list(qkv_hidden_sizes or (projection.shape[1] // 3,) * 3)
    query, key, value = functional.linear(input, projection.T, bias).split(sizes, -1)
    return self_attention(
        query,
        key,
        value,
        num_heads=num_heads,
        mask_index=mask_index,
        past=past,
        attention_bias=attention_bias,
        mask_filter_value=mask_filter_value,
        scale=scale,
        unidirectional=unidirectional,
    )


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    mask_index: Tensor | None,
    past: Tensor | None,
    attention_bias: Tensor | None = None,
    mask_filter_value: float,
    scale: float,
    unidirectional: int,
) -> tuple[Tensor, Tensor]:
    """Return attention of projected [batch, sequence, heads * size], and the new cache of keys and values."""
    q, k, v = (heads(x, num_heads) for x in (query, key, value))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    mask = _together(q, k, _padding(mask_index, q, k), unidirectional, attention_bias, mask_filter_value)
    factor = scale or 1 / math.sqrt(q.shape[-1])
    return joined(attended(q, k, v, mask, factor)), torch.stack([k, v]) if k.shape == v.shape else k


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
    outputs_: int,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, ...]:
    """Attention of projected queries, keys and values, packed or not, the new cache, and the scores if asked for."""
    if key is None:  # [batch, sequence, heads, 3, size]
        packed = [x.transpose(1, 2) for x in query.unbind(3)]
    elif value is None:  # keys and values in one, [batch, sequence, heads, 2, size]
        packed = [heads(query, num_heads), *(x.transpose(1, 2) for x in key.unbind(3))]
    else:
        packed = [heads(x, num_heads) for x in (query, key, value)]
    if bias is not None:
        parts = bias.split([num_heads * x.shape[-1] for x in packed])
        projected = 1 if key is not None and key.ndim == 4 else 3  # a cache of cross-attention has its bias inside
        for i in range(projected):
            packed[i] = packed[i] + parts[i].reshape(num_heads, 1, -1)
    q, k, v = packed
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    mask = _together(q, k, _padding(key_padding_mask, q, k), unidirectional, attention_bias, mask_filter_value)
    factor = scale or 1 / math.sqrt(q.shape[-1])
    if outputs_ < 4:
        return joined(attended(q, k, v, mask, factor)), k, v
    scores = _scores(q, k, mask, factor)
    return joined(weights(scores) @ v), k, v, scores


@operator("GroupQueryAttention", 1, CONTRIB)
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Host,
    total_sequence_length: Host,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    *,
    causal: int = 1,
    do_rotary: int = 0,
    k_quant_type: str = "NONE",
    kv_cache_bit_width: int = 8,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    qk_norm_epsilon: float = 1e-6,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    sliding_window_cache: int = 0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
    v_quant_type: str = "NONE",
) -> tuple[Tensor, ...]:
    """Attention whose query heads share keys, with rotation of positions and a cache inside.

    The cache may be longer than what it holds, and sequences of a batch may differ in their lengths: `seqlens_k` is the
    place of the last key of each. What queries after the end of a sequence give is not defined.
    """
    del k_scale, v_scale, kv_cache_bit_width  # of a quantized cache
    if (k_quant_type, v_quant_type) != ("NONE", "NONE") or sliding_window_cache:
        raise ValueError("GroupQueryAttention with a quantized cache or one that forgets is not computed")
    if key is None or value is None:
        size = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        query, key, value = query.split([num_heads * size, kv_num_heads * size, kv_num_heads * size], -1)
    q, k, v = heads(query, num_heads), heads(key, kv_num_heads), heads(value, kv_num_heads)
    if q_norm_weight is not None and k_norm_weight is not None:
        q = functional.rms_norm(q, q.shape[-1:], q_norm_weight, qk_norm_epsilon)
        k = functional.rms_norm(k, k.shape[-1:], k_norm_weight, qk_norm_epsilon)
    ends, total = seqlens_k.reshape(-1).astype(np.int64) + 1, int(total_sequence_length.reshape(-1)[0])
    begins = np.zeros_like(ends) if q.shape[2] == total else ends - q.shape[2]
    first: Tensor | int = int(begins[0])
    if (begins != first).any():
        first = torch.from_numpy(begins).to(q.device).reshape(-1, 1, 1, 1)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        places = torch.arange(q.shape[2], device=q.device) + (first if isinstance(first, int) else first[:, :, 0])
        if position_ids is not None:  # of which the first one counts at the start
            given = position_ids.long()
            places = places + given.reshape(-1)[0] if q.shape[2] == total else given.unsqueeze(1)
        cos, sin = cos_cache[places], sin_cache[places]
        q, k = (rotated(x, cos, sin, 2 * cos.shape[-1], rotary_interleaved) for x in (q, k))
    presents = [_cached(past_key, k, first, total), _cached(past_value, v, first, total)]
    keys, values = (x[:, :, :total] for x in presents)
    factor = scale or 1 / math.sqrt(q.shape[-1])
    seen = visible(q, keys, first, causal, local_window_size - 1 if local_window_size > 0 else -1)
    if seen is None and (ends != total).any():
        limits = torch.from_numpy(ends).to(q.device).reshape(-1, 1, 1, 1)
        seen = torch.arange(total, device=q.device) < limits
    mask = seen if attention_bias is None else attention_bias[..., :total]
    if attention_bias is not None and seen is not None:
        mask = mask + added(seen, q.dtype)
    if not softcap and not qk_output and not smooth_softmax and head_sink is None:
        return joined(attended(q, keys, values, mask, factor)), *presents
    keys, values = (x.repeat_interleave(num_heads // kv_num_heads, 1) for x in (keys, values))
    raw = _scores(q, keys, None, factor)
    scores = softcap * torch.tanh(raw / softcap) if softcap else raw
    scores = scores if mask is None else scores + added(mask, scores.dtype)
    sink = q.new_zeros(1) if head_sink is None and smooth_softmax else head_sink
    if sink is None:
        shares = weights(scores)
    else:  # one more key, whose value is zero
        column = sink.to(scores.dtype).reshape(-1, 1, 1).expand(*scores.shape[:-1], 1)
        shares = functional.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    shown = shares if qk_output == 2 else scores if seen is None else scores.masked_fill(~seen, 0.0)
    return joined(shares @ values), *presents, shown


def _cached(past: Tensor | None, new: Tensor, begin: Tensor | int, total: int) -> Tensor:
    """Return a cache with new keys or values in it.

    Args:
        past: [batch, heads, longest, size].
        new: [batch, heads, sequence, size].
        begin: where the new ones go; one place, or [batch, 1, 1, 1].
        total: how much the cache must hold.
    """
    if past is None:
        return new
    if isinstance(begin, int):
        return torch.cat([past[:, :, :begin], new, past[:, :, begin + new.shape[2] :]], 2)
    room = functional.pad(past, (0, 0, 0, max(0, total - past.shape[2])))
    places = torch.arange(new.shape[2], device=new.device)[:, None] + begin
    return room.scatter(2, places.expand(new.shape), new)


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
    del is_packed_batching, scale  # neither changes what is computed
    width = rotary_embedding_dim or 2 * cos_cache.shape[-1]
    wide = heads(input, num_heads or input.shape[-1] // width)
    places = position_ids.long()
    if places.numel() == 1:
        places = places.reshape(1, 1) + torch.arange(wide.shape[2], device=input.device)
    cos, sin = cos_cache[places].unsqueeze(1), sin_cache[places].unsqueeze(1)
    turned = rotated(wide, cos, sin, width, interleaved)
    return joined(turned) if input.ndim == 3 else turned
