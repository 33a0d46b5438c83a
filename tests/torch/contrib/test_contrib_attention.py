"""Attention as ONNX Runtime's contrib operators have it, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from graphopt.runtime import ExecutionError

B, S, N, H, D = 2, 5, 4, 2, 32  # batch, sequence, heads, heads of keys, size of a head
PLACES = np.arange(32)[:, None] / 10.0 ** (np.arange(D // 2) / 4)
COS, SIN = np.cos(PLACES).astype(np.float32), np.sin(PLACES).astype(np.float32)


def floats(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def whole(*numbers):
    return np.array(numbers, np.int32)


X, W, BIAS = floats(B, S, 12), floats(12, 3 * N * D) / 3, floats(3 * N * D)
PAST = floats(2, B, N, 3, D)
RIGHT = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
LEFT = RIGHT[:, ::-1].copy()
SQUARE = np.random.default_rng(0).integers(0, 2, (B, S, S)).astype(np.int32) | np.eye(S, dtype=np.int32)

ATTENTION = {
    "plain": ([X, W, BIAS], {}),
    "scaled": ([X, W, BIAS], {"scale": 0.2}),
    "causal": ([X, W, BIAS], {"unidirectional": 1}),
    "with a mask": ([X, W, BIAS, RIGHT], {}),
    "with a mask that hides little": ([X, W, BIAS, RIGHT], {"mask_filter_value": -2.0}),
    "padded left, causal": ([X, W, BIAS, LEFT], {"unidirectional": 1}),
    "padded right, causal": ([X, W, BIAS, RIGHT], {"unidirectional": 1}),
    "with lengths": ([X, W, BIAS, whole(3, 5)], {}),
    "with ends and begins": ([X, W, BIAS, whole(5, 4, 2, 0)], {}),
    "with a mask of queries": ([X, W, BIAS, SQUARE], {}),
    "with a mask of queries, causal": ([X, W, BIAS, SQUARE], {"unidirectional": 1}),
    "with a cache": ([X, W, BIAS, None, PAST], {}),
    "with a cache, causal": ([X, W, BIAS, None, PAST], {"unidirectional": 1}),
    "with a cache and a mask": ([X, W, BIAS, np.hstack([LEFT[:, :3], RIGHT]), PAST], {"unidirectional": 1}),
    "with what is added": ([X, W, BIAS, RIGHT, None, floats(1, N, S, S)], {}),
    "with what is added, causal": ([X, W, BIAS, None, None, floats(B, 1, S, S)], {"unidirectional": 1}),
    "of unlike sizes": ([X, floats(12, 2 * 64 + 16), floats(144)], {"qkv_hidden_sizes": [64, 64, 16]}),
    "that says that it does not rotate": ([X, W, BIAS], {"do_rotary": 0, "past_present_share_buffer": 0}),
}

Q, K, V = floats(B, S, N * D), floats(B, 6, N * D), floats(B, 6, N * D, seed=1)
CACHE_K, CACHE_V = floats(B, N, 3, D), floats(B, N, 3, D, seed=1)
SIX = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]], np.int32)

MULTI_HEAD = {
    "plain": ([Q, K, V], {}),
    "scaled": ([Q, K, V], {"scale": 0.3}),
    "with a bias": ([Q, K, V, BIAS], {}),
    "with values of another size": ([Q, K, floats(B, 6, N * 3), floats(2 * N * D + 3 * N)], {}),
    "with heads apart": ([Q, floats(B, N, 6, D), floats(B, N, 6, D, seed=1)], {}),
    "with heads apart and a bias": ([Q, floats(B, N, 6, D), floats(B, N, 6, D, seed=1), BIAS], {}),
    "causal": ([Q, K[:, :S], V[:, :S]], {"unidirectional": 1}),
    "padded": ([Q, K, V, None, SIX], {}),
    "padded, hidden little": ([Q, K, V, BIAS, SIX], {"mask_filter_value": -3.0}),
    "with lengths": ([Q, K, V, None, whole(4, 6)], {}),
    "with a mask of queries": ([Q, K[:, :S], V[:, :S], None, SQUARE], {}),
    "with what is added": ([Q, K, V, None, SIX, floats(1, N, S, 6)], {}),
    "with what is added to all heads": ([Q, K, V, None, None, floats(B, 1, S, 6)], {}),
    "with a cache": ([Q, K[:, :S], V[:, :S], BIAS, None, None, CACHE_K, CACHE_V], {}),
    "with a cache, causal": ([Q, K[:, :S], V[:, :S], None, None, None, CACHE_K, CACHE_V], {"unidirectional": 1}),
    "with a cache, padded": (
        [Q, K[:, :S], V[:, :S], None, np.hstack([LEFT[:, :3], RIGHT]), None, CACHE_K, CACHE_V],
        {"unidirectional": 1},
    ),
}

KEYS, VALUES = floats(B, S, H * D), floats(B, S, H * D, seed=1)
ONE = [x[:, :1] for x in (Q, KEYS, VALUES)]
BUFFER = [floats(B, H, 9, D), floats(B, H, 9, D, seed=1)]
START = [Q, KEYS, VALUES, None, None, whole(S - 1, S - 1), whole(S)]
NEXT = [*ONE, *(x[:, :, :4] for x in BUFFER), whole(4, 4), whole(5)]

GROUP_QUERY = {
    "at the start": (START, {}),
    "scaled": (START, {"scale": 0.3}),
    "packed": ([floats(B, S, (N + 2 * H) * D), None, None, None, None, *START[5:]], {}),
    "capped": (START, {"softcap": 2.0}),
    "both ways": (START, {"causal": 0}),
    "in a window": (START, {"local_window_size": 2}),
    "in a window, later": (NEXT, {"local_window_size": 2}),
    "in a window of one": (START, {"local_window_size": 1}),
    "rotated": ([*START, COS, SIN], {"do_rotary": 1}),
    "rotated in pairs": ([*START, COS, SIN], {"do_rotary": 1, "rotary_interleaved": 1}),
    "rotated in part": ([*START, COS[:, :8], SIN[:, :8]], {"do_rotary": 1}),
    "rotated, packed": (
        [floats(B, S, (N + 2 * H) * D), None, None, None, None, *START[5:], COS, SIN],
        {"do_rotary": 1},
    ),
    "with a cache": (NEXT, {}),
    "with a cache, rotated": ([*NEXT, COS, SIN], {"do_rotary": 1}),
    "with places": (
        [*NEXT, COS, SIN, np.full((B, 1), 7, np.int64)],
        {"do_rotary": 1},
    ),
    "with a longer cache": ([*ONE, *BUFFER, whole(4, 4), whole(5)], {}),
    "with lengths": ([*ONE, *BUFFER, whole(2, 6), whole(7)], {}),
    "with lengths, rotated": ([*ONE, *BUFFER, whole(6, 3), whole(7), COS, SIN], {"do_rotary": 1}),
    "with lengths in a window": ([*ONE, *BUFFER, whole(6, 3), whole(7)], {"local_window_size": 2}),
    "with several tokens": (
        [x[:1, :3] for x in (Q, KEYS, VALUES)] + [x[:1, :, :4] for x in BUFFER] + [whole(6), whole(7), COS, SIN],
        {"do_rotary": 1},
    ),
    "with what is added": ([*START, None, None, None, floats(1, N, S, S)], {}),
    "with what is added, later": ([*NEXT, None, None, None, floats(B, 1, 1, 5)], {}),
    "with smoothing": (START, {"smooth_softmax": 1}),
    "with sinks": ([*START, None, None, None, None, floats(N)], {}),
}

POSITIONS = np.stack([np.arange(S) + 3, np.arange(S)]).astype(np.int64)

ROTARY = {
    "of places": ([floats(B, S, N * D), POSITIONS, COS, SIN], {}),
    "from a place": ([floats(B, S, N * D), np.array([4], np.int64), COS, SIN], {}),
    "of heads apart": ([floats(B, N, S, D), POSITIONS, COS, SIN], {}),
    "of pairs": ([floats(B, S, N * D), POSITIONS, COS, SIN], {"interleaved": 1}),
    "of a part": (
        [floats(B, S, N * D), POSITIONS, COS[:, :2], SIN[:, :2]],
        {"rotary_embedding_dim": 4, "num_heads": N},
    ),
    "of a part of heads apart": (
        [floats(B, N, S, D), POSITIONS, COS[:, :2], SIN[:, :2]],
        {"rotary_embedding_dim": 4, "num_heads": N, "interleaved": 1},
    ),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(against_ort, name):
    arrays, attributes = ATTENTION[name]
    outputs = 1 if "qkv_hidden_sizes" in attributes else 2
    against_ort("Attention", arrays, outputs, num_heads=N, **attributes)


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_multi_head_attention(against_ort, name):
    arrays, attributes = MULTI_HEAD[name]
    against_ort("MultiHeadAttention", arrays, 1 if arrays[1].ndim == 4 else 3, num_heads=N, **attributes)


@pytest.mark.parametrize("name", GROUP_QUERY)
def test_group_query_attention(against_ort, name):
    arrays, attributes = GROUP_QUERY[name]
    wanted, actual = against_ort(
        "GroupQueryAttention", arrays, 3, num_heads=N, kv_num_heads=H, compared=1, **attributes
    )
    for one, other in zip(wanted[1:], actual[1:], strict=True):
        assert one.shape == other.shape
        for b, end in enumerate(arrays[5] + 1):
            np.testing.assert_allclose(other[b, :, :end], one[b, :, :end], atol=1e-6)


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_embedding(against_ort, name):
    arrays, attributes = ROTARY[name]
    against_ort("RotaryEmbedding", arrays, **attributes)


@pytest.mark.parametrize("options", [{"qk_output": 1, "softcap": 2.0}, {"qk_output": 1, "local_window_size": 2}])
def test_scores_of_group_query_attention(against_ort, options):
    against_ort("GroupQueryAttention", START, 4, num_heads=N, kv_num_heads=H, **options)
    against_ort("GroupQueryAttention", START, 4, num_heads=N, kv_num_heads=H, **options | {"qk_output": 2})


def test_scores_of_multi_head_attention(by_torch):
    output, _, _, scores = by_torch("MultiHeadAttention", [Q, K, V], 4, num_heads=N)
    query, key, value = (x.reshape(B, -1, N, D).transpose(0, 2, 1, 3) for x in (Q, K, V))
    np.testing.assert_allclose(scores, query @ key.transpose(0, 1, 3, 2) / np.sqrt(D), rtol=1e-4, atol=1e-5)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = shares / shares.sum(-1, keepdims=True) @ value
    np.testing.assert_allclose(output, wanted.transpose(0, 2, 1, 3).reshape(B, -1, N * D), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [0, 1])
def test_first_sequences_of_different_lengths(against_ort, causal):
    arrays = [Q, KEYS, VALUES, None, None, whole(2, 4), whole(S)]
    wanted, actual = against_ort(
        "GroupQueryAttention", arrays, 3, compared=0, num_heads=N, kv_num_heads=H, causal=causal
    )
    for b, end in enumerate((3, 5)):
        np.testing.assert_allclose(actual[0][b, :end], wanted[0][b, :end], atol=1e-5)


def test_packed_heads_are_those_apart(by_torch):
    together = floats(B, S, N, 3, D)
    apart = [together[:, :, :, i].reshape(B, S, N * D) for i in range(3)]
    wanted = by_torch("MultiHeadAttention", [*apart, BIAS], num_heads=N)[0]
    packed = by_torch("MultiHeadAttention", [together, None, None, BIAS], num_heads=N)[0]
    np.testing.assert_allclose(packed, wanted, atol=1e-6)
    half = by_torch("MultiHeadAttention", [apart[0], together[:, :, :, 1:], None, BIAS], num_heads=N)[0]
    np.testing.assert_allclose(half, wanted, atol=1e-6)


def test_a_mask_that_is_part_of_a_larger_one(by_torch):
    mask = np.tril(np.ones((B, 1, 8, 8), np.int32))
    wanted = by_torch("Attention", [X, W, BIAS], num_heads=N, unidirectional=1)[0]
    np.testing.assert_allclose(by_torch("Attention", [X, W, BIAS, mask], num_heads=N)[0], wanted, atol=1e-6)


def test_attention_without_a_bias(by_torch):
    wanted = by_torch("Attention", [X, W, np.zeros_like(BIAS)], num_heads=N)[0]
    np.testing.assert_allclose(by_torch("Attention", [X, W], num_heads=N)[0], wanted, atol=1e-6)


def test_queries_and_keys_are_normalized_before_they_are_rotated(by_torch):
    gains = [floats(D), floats(D, seed=1)]
    normal = [
        x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) for x in (Q.reshape(B, S, N, D), KEYS.reshape(B, S, H, D))
    ]
    flat = [(x * gain).reshape(B, S, -1) for x, gain in zip(normal, gains, strict=True)]
    options = {"num_heads": N, "kv_num_heads": H, "do_rotary": 1}
    wanted = by_torch("GroupQueryAttention", [*flat, *START[2:], COS, SIN], 3, **options)
    actual = by_torch("GroupQueryAttention", [*START, COS, SIN, *(None,) * 5, *gains], 3, **options)
    for one, other in zip(wanted, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("op_type", "arrays", "options"),
    [
        ("Attention", [X, W, BIAS], {"num_heads": N, "do_rotary": 1}),
        ("Attention", [X, W, BIAS], {"num_heads": N, "past_present_share_buffer": 1}),
        ("GroupQueryAttention", START, {"num_heads": N, "kv_num_heads": H, "k_quant_type": "PER_TENSOR"}),
        ("GroupQueryAttention", START, {"num_heads": N, "kv_num_heads": H, "sliding_window_cache": 1}),
    ],
)
def test_what_is_not_computed_is_refused(by_torch, op_type, arrays, options):
    with pytest.raises(ExecutionError, match="is not computed"):
        by_torch(op_type, arrays, **options)
