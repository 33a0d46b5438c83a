"""Gradients of recurrence and attention, and of the contrib operators of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

HEAD = '<ir_version: 9, opset_import: ["": {}, "com.microsoft": 1, "ai.onnx.preview": 1]> '


def recurrent(gates, directions=1, *, biased=True):
    """Return the shapes of X, W, R and B: 3 times, 2 sequences, 2 inputs, 2 in the state."""
    shapes = [(3, 2, 2), (directions, 2 * gates, 2), (directions, 2 * gates, 2)]
    return [*shapes, (directions, 4 * gates)] if biased else shapes


STATE, STATES = (1, 2, 2), (2, 2, 2)
BOTH = 'direction = "bidirectional"'

RECURRENCE = {
    "RNN": (14, "RNN<hidden_size = 2>(0, 1, 2, 3, , 4)", [*recurrent(1), STATE]),
    "RNN by Relu, backwards": (
        7,
        'RNN<hidden_size = 2, activations = ["Relu"], direction = "reverse">(0, 1, 2, 3)',
        recurrent(1),
    ),
    "RNN by other functions": (
        7,
        f'RNN<hidden_size = 2, activations = ["Softplus", "ScaledTanh"], {BOTH}>(0, 1, 2, 3)',
        recurrent(1, 2),
    ),
    "RNN in batches first": (14, "RNN<hidden_size = 2, layout = 1>(0, 1, 2)", recurrent(1, biased=False)),
    "GRU": (14, "GRU<hidden_size = 2>(0, 1, 2, 3, , 4)", [*recurrent(3), STATE]),
    "GRU, linear first": (
        14,
        f"GRU<hidden_size = 2, linear_before_reset = 1, {BOTH}>(0, 1, 2, 3, , 4)",
        [*recurrent(3, 2), STATES],
    ),
    "GRU, linear first, with lengths": (
        7,
        'GRU<hidden_size = 2, linear_before_reset = 1, direction = "reverse">(0, 1, 2, 3, lengths)',
        recurrent(3),
    ),
    "LSTM": (14, "LSTM<hidden_size = 2>(0, 1, 2, 3, , 4, 5)", [*recurrent(4), STATE, STATE]),
    "LSTM, both ways": (7, f"LSTM<hidden_size = 2, {BOTH}>(0, 1, 2)", recurrent(4, 2, biased=False)),
    "LSTM with lengths and peepholes": (
        7,
        f"LSTM<hidden_size = 2, {BOTH}>(0, 1, 2, 3, lengths, , , 4)",
        [*recurrent(4, 2), (2, 6)],
    ),
    "LSTM whose gates belong together": (
        22,
        "LSTM<hidden_size = 2, input_forget = 1, clip = 5.0>(0, 1, 2, 3)",
        recurrent(4),
    ),
}

Q, K, V = (1, 4, 3, 2), (1, 2, 3, 2), (1, 2, 3, 4)
FLAT = [(1, 3, 8), (1, 3, 4), (1, 3, 8)]
COUNTS = "q_num_heads = 4, kv_num_heads = 2"
CACHE = [(1, 2, 2, 2), (1, 2, 2, 4)]

ATTENTION = {
    "Attention": (23, "Attention(0, 1, 2)", [Q, K, V]),
    "Attention, flat and causal": (23, f"Attention<{COUNTS}, is_causal = 1, scale = 0.4>(0, 1, 2)", FLAT),
    "Attention with a mask": (23, "Attention(0, 1, 2, seen)", [Q, K, V]),
    "Attention with what is added": (23, "Attention(0, 1, 2, 3)", [Q, K, V, (1, 4, 3, 3)]),
    "Attention with a cache": (23, "Attention<is_causal = 1>(0, 1, 2, , 3, 4)", [Q, K, V, *CACHE]),
    "Attention, capped": (24, "Attention<softcap = 2.0, is_causal = 1>(0, 1, 2)", [Q, K, V]),
    "Attention in a window": (25, "Attention<left_window_size = 1, right_window_size = 0>(0, 1, 2)", [Q, K, V]),
    "Attention of few keys": (24, "Attention(0, 1, 2, , , , two)", [Q, K, V]),
    "Attention in another precision": (24, "Attention<softmax_precision = 11>(0, 1, 2)", [Q, K, V]),
    "FlexAttention": (
        24,
        "ai.onnx.preview.FlexAttention<score_mod = s (double[?] a) => (double[?] b) { b = Tanh(a) }, "
        "prob_mod = p (double[?] c) => (double[?] d) { d = Mul(c, c) }>(0, 1, 2)",
        [Q, K, V],
    ),
    **{
        f"LinearAttention, {rule}": (
            27,
            f'LinearAttention<{COUNTS}, update_rule = "{rule}">({operands})',
            [*FLAT, (1, 2, 2, 4), *shapes],
        )
        for rule, operands, shapes in (
            ("linear", "0, 1, 2, 3", []),
            ("gated", "0, 1, 2, 3, 4", [(1, 3, 4)]),
            ("delta", "0, 1, 2, 3, , 4", [(1, 3, 1)]),
            ("gated_delta", "0, 1, 2, 3, 4, 5", [(1, 3, 2), (1, 3, 2)]),
        )
    },
    "RotaryEmbedding": (23, "RotaryEmbedding<num_heads = 2>(0, 1, 2)", [(1, 3, 8), (1, 3, 2), (1, 3, 2)]),
    "RotaryEmbedding of pairs of a part": (
        23,
        "RotaryEmbedding<interleaved = 1, rotary_embedding_dim = 2>(0, 1, 2, places)",
        [(1, 2, 3, 4), (3, 1), (3, 1)],
    ),
}

WIDE, GAIN = (1, 3, 8), (8,)

CONTRIB = {
    "Gelu": ("Gelu(0)", [WIDE]),
    "BiasGelu": ("BiasGelu(0, 1)", [WIDE, GAIN]),
    "FastGelu": ("FastGelu(0, 1)", [WIDE, GAIN]),
    "QuickGelu": ("QuickGelu<alpha = 0.8>(0)", [WIDE]),
    "BiasSplitGelu": ("BiasSplitGelu(0, 1)", [WIDE, GAIN]),
    "BiasAdd": ("BiasAdd(0, 1, 2)", [WIDE, GAIN, WIDE]),
    "FusedMatMul": (
        "FusedMatMul<alpha = 0.5, transA = 1, transBatchB = 1>(0, 1)",
        [(2, 3, 2), (3, 2, 2)],
    ),
    "FusedGemm": ('FusedGemm<activation = "Tanh", transB = 1, alpha = 0.5>(0, 1, 2)', [(3, 4), (2, 4), (2,)]),
    "FusedConv": ('FusedConv<activation = "Sigmoid">(0, 1, 2, 3)', [(1, 2, 3, 3), (2, 2, 2, 2), (2,), (1, 2, 2, 2)]),
    "SkipLayerNormalization": ("SkipLayerNormalization(0, 1, 2, 3, 4)", [WIDE, WIDE, GAIN, GAIN, GAIN]),
    "SkipSimplifiedLayerNormalization": ("SkipSimplifiedLayerNormalization(0, 1, 2, 3)", [WIDE, WIDE, GAIN, GAIN]),
    "EmbedLayerNormalization": (
        "EmbedLayerNormalization(places, places, 0, 1, 2, 3, 4)",
        [(3, 4), (3, 4), (3, 4), (4,), (4,)],
    ),
    "GroupNorm": ("GroupNorm<groups = 2, activation = 1>(0, 1, 2)", [(1, 2, 2, 4), (4,), (4,)]),
    "SkipGroupNorm": (
        "SkipGroupNorm<groups = 2, activation = 1, channels_last = 0>(0, 1, 2, 3, 4)",
        [(1, 4, 2, 2), (4,), (4,), (1, 4), (4,)],
    ),
    "Attention": ("Attention<num_heads = 2, unidirectional = 1>(0, 1, 2)", [(1, 3, 4), (4, 12), (12,)]),
    "Attention with a mask and a cache": (
        "Attention<num_heads = 2>(0, 1, 2, kept, 3)",
        [(1, 3, 4), (4, 12), (12,), (2, 1, 2, 2, 2)],
    ),
    "MultiHeadAttention": ("MultiHeadAttention<num_heads = 2>(0, 1, 2, 3)", [(1, 3, 4)] * 3 + [(12,)]),
    "MultiHeadAttention with what is added": (
        "MultiHeadAttention<num_heads = 2, unidirectional = 1>(0, 1, 2, , , 3, 4, 5)",
        [*[(1, 3, 4)] * 3, (1, 2, 3, 5), (1, 2, 2, 2), (1, 2, 2, 2)],
    ),
    "MultiHeadAttention, packed": ("MultiHeadAttention<num_heads = 2>(0)", [(1, 3, 2, 3, 2)]),
    "MultiHeadAttention, keys and values packed": (
        "MultiHeadAttention<num_heads = 2>(0, 1)",
        [(1, 3, 4), (1, 4, 2, 2, 2)],
    ),
    "GroupQueryAttention": (
        "GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(0, 1, 2, , , last, three)",
        [(1, 3, 8), (1, 3, 4), (1, 3, 4)],
    ),
    "GroupQueryAttention, packed, rotated, in a window, capped": (
        "GroupQueryAttention<num_heads = 4, kv_num_heads = 2, do_rotary = 1, local_window_size = 2, softcap = 2.0>"
        "(0, , , , , last, three, 1, 2)",
        [(1, 3, 16), (4, 1), (4, 1)],
    ),
    "GroupQueryAttention with lengths, sinks and what is normalized": (
        "GroupQueryAttention<num_heads = 2, kv_num_heads = 1>(0, 1, 2, 3, 4, ends, three, , , , 5, 6, , , 7, 8)",
        [(2, 1, 4), (2, 1, 2), (2, 1, 2), (2, 1, 4, 2), (2, 1, 4, 2), (1, 2, 1, 3), (2,), (2,), (2,)],
    ),
    "RotaryEmbedding": ("RotaryEmbedding(0, places, 1, 2)", [WIDE, (3, 2), (3, 2)]),
    "MatMulNBits": (
        "MatMulNBits<K = 16, N = 2, bits = 4, block_size = 16>(0, codes, 1, 2, , 3)",
        [(2, 16), (2, 1), (2, 1), (2,)],
    ),
}

FIXED = (
    "int32[2] lengths = {2, 3}, bool[3,3] seen = {1,0,0, 1,1,0, 0,1,1}, int64[1] two = {2}, "
    "int64[1,3] places = {2, 0, 1}, int32[1,5] kept = {1, 0, 1, 1, 1}, int32[1] last = {2}, int32 three = {3}, "
    "int32[2] ends = {2, 1}, uint8[2,1,8] codes = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}"
)
"""Operands that are constants."""


def graph(opset, node, count):
    """Return a model in text; operands are the numbers of inputs, or names of constants."""
    name, operands = node[: node.rindex("(")], node[node.rindex("(") + 1 : -1].split(", ")
    named = ["i" + x if x.isdecimal() else x for x in operands]
    ports = ", ".join(f"double[?] i{i}" for i in range(count))
    return f"{HEAD.format(opset)} g ({ports}) => (double[?] y) <{FIXED}> {{ y = {name}({', '.join(named)}) }}"


def arrays(shapes):
    rng = np.random.default_rng(4)
    return {f"i{i}": rng.uniform(-1, 1, shape) for i, shape in enumerate(shapes)}


@pytest.mark.parametrize("name", RECURRENCE | ATTENTION)
def test_gradient(check_gradients, name):
    opset, node, shapes = (RECURRENCE | ATTENTION)[name]
    check_gradients(graph(opset, node, len(shapes)), arrays(shapes))


@pytest.mark.parametrize("name", CONTRIB)
def test_gradient_of_a_contrib_operator(check_gradients, name):
    node, shapes = CONTRIB[name]
    check_gradients(graph(17, f"com.microsoft.{node}", len(shapes)), arrays(shapes))
