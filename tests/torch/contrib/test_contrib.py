"""Products, activations and normalization as ONNX Runtime's contrib operators have them, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from graphopt.runtime import ExecutionError


def floats(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


X, SKIP = floats(2, 3, 8), floats(2, 3, 8, seed=1)
GAMMA, BETA, BIAS = floats(8), floats(8, seed=1), floats(8, seed=2)
IMAGE, KERNEL = floats(2, 4, 6, 5), floats(3, 4, 3, 3)
IDS = np.array([[1, 3, 0], [2, 2, 4]], np.int32)
SEGMENTS = np.array([[0, 0, 1], [0, 1, 1]], np.int32)
MASK = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
WORDS, PLACES, KINDS = floats(5, 8), floats(6, 8), floats(2, 8)
EMBED = [IDS, SEGMENTS, WORDS, PLACES, KINDS, GAMMA, BETA]

CASES = {
    "Gelu": ("Gelu", [X], 1, {}),
    "BiasGelu": ("BiasGelu", [X, BIAS], 1, {}),
    "FastGelu": ("FastGelu", [X], 1, {}),
    "FastGelu with a bias": ("FastGelu", [X, BIAS], 1, {}),
    "QuickGelu": ("QuickGelu", [X], 1, {}),
    "QuickGelu with alpha": ("QuickGelu", [X], 1, {"alpha": 0.7}),
    "SkipLayerNormalization": ("SkipLayerNormalization", [X, SKIP, GAMMA], 1, {}),
    "SkipLayerNormalization with biases": ("SkipLayerNormalization", [X, SKIP, GAMMA, BETA, BIAS], 1, {}),
    "SkipLayerNormalization of one skip for all": (
        "SkipLayerNormalization",
        [X, SKIP[:1], GAMMA, BETA],
        1,
        {"epsilon": 0.1},
    ),
    "SkipLayerNormalization of a flat skip": ("SkipLayerNormalization", [X, SKIP[0], GAMMA, BETA], 1, {}),
    "SkipSimplifiedLayerNormalization": (
        "SkipSimplifiedLayerNormalization",
        [X, SKIP, GAMMA],
        1,
        {"epsilon": 0.1},
    ),
    "SkipSimplifiedLayerNormalization with a bias": (
        "SkipSimplifiedLayerNormalization",
        [X, SKIP, GAMMA, BIAS],
        1,
        {},
    ),
    "EmbedLayerNormalization": ("EmbedLayerNormalization", EMBED, 2, {"epsilon": 1e-3}),
    "EmbedLayerNormalization with a mask": (
        "EmbedLayerNormalization",
        [*EMBED, MASK],
        3,
        {"mask_index_type": 1},
    ),
    "EmbedLayerNormalization with places": (
        "EmbedLayerNormalization",
        [IDS, None, WORDS, PLACES, None, GAMMA, BETA, None, np.array([[5, 1, 0]], np.int32)],
        2,
        {},
    ),
    "FusedMatMul": ("FusedMatMul", [floats(2, 3, 4), floats(2, 4, 5)], 1, {"alpha": 0.5}),
    "FusedMatMul, turned": ("FusedMatMul", [floats(2, 4, 3), floats(5, 4)], 1, {"transA": 1, "transB": 1}),
    "FusedMatMul of a vector": ("FusedMatMul", [floats(4), floats(4, 5)], 1, {"transA": 1}),
    "FusedMatMul, batches turned": (
        "FusedMatMul",
        [floats(3, 2, 4), floats(4, 2, 5)],
        1,
        {"transBatchA": 1, "transBatchB": 1},
    ),
    "FusedMatMul, all turned": (
        "FusedMatMul",
        [floats(3, 2, 6, 4), floats(5, 2, 6, 4)],
        1,
        {"transBatchA": 1, "transBatchB": 1, "transB": 1, "alpha": 2.0},
    ),
    "TransposeMatMul": ("TransposeMatMul", [floats(4, 3), floats(4, 5)], 1, {"transA": 1, "alpha": 3.0}),
    **{
        f"FusedGemm with {name}": (
            "FusedGemm",
            [floats(3, 4), floats(5, 4), floats(5)],
            1,
            {"transB": 1, "alpha": 0.5, "activation": name, **numbers},
        )
        for name, numbers in {
            "Relu": {},
            "Sigmoid": {},
            "Tanh": {},
            "Softplus": {},
            "Softsign": {},
            "LeakyRelu": {"activation_alpha": 0.3},
            "Elu": {"activation_alpha": 0.3},
            "ThresholdedRelu": {"activation_alpha": 0.3},
            "HardSigmoid": {"activation_alpha": 0.3, "activation_beta": 0.4},
            "Selu": {"activation_alpha": 1.5, "activation_gamma": 1.2},
        }.items()
    },
    **{
        f"FusedConv with {name}": (
            "FusedConv",
            [IMAGE, KERNEL, floats(3)],
            1,
            {"pads": [1, 1, 1, 1], "activation": name, **({"activation_params": numbers} if numbers else {})},
        )
        for name, numbers in {
            "Relu": (),
            "Sigmoid": (),
            "Tanh": (),
            "LeakyRelu": (0.2,),
            "Clip": (-0.5, 0.75),
            "HardSigmoid": (0.3, 0.4),
        }.items()
    },
    "FusedConv with a sum": (
        "FusedConv",
        [IMAGE, KERNEL, None, floats(2, 3, 4, 3)],
        1,
        {"activation": "Relu"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_as_onnxruntime(against_ort, name):
    op_type, arrays, outputs, attributes = CASES[name]
    against_ort(op_type, arrays, outputs, **attributes)


@pytest.mark.parametrize("op_type", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_the_sum_that_is_normalized_is_an_output(by_torch, op_type):
    total = by_torch(op_type, [X, SKIP, GAMMA], 4)[3]
    np.testing.assert_array_equal(total, X + SKIP)


@pytest.mark.parametrize("op_type", ["Gelu", "BiasGelu", "FastGelu", "QuickGelu", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("dtype", [np.float16])
def test_half_precision_keeps_its_type(by_torch, op_type, dtype):
    arrays = {"BiasGelu": [X, BIAS], "SkipSimplifiedLayerNormalization": [X, SKIP, GAMMA]}.get(op_type, [X])
    (half, *_), (full, *_) = by_torch(op_type, [a.astype(dtype) for a in arrays]), by_torch(op_type, arrays)
    assert half.dtype == dtype
    np.testing.assert_allclose(half, full, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("activation", [0, 1])
def test_group_normalization(by_torch, last, activation):
    x, gamma, beta = floats(2, 4, 3, 5), floats(4), floats(4, seed=1)
    wanted = torch.nn.functional.group_norm(*map(torch.from_numpy, (x,)), 2, *map(torch.from_numpy, (gamma, beta)), 0.1)
    wanted = (torch.nn.functional.silu(wanted) if activation else wanted).numpy()
    options = {"channels_last": last, "groups": 2, "activation": activation, "epsilon": 0.1}
    given = np.moveaxis(x, 1, -1) if last else x
    for arrays in (
        [given, gamma, beta],
        [given - 1, gamma, beta, np.full((2, 4), 3.0, np.float32), -2 * np.ones_like(gamma)],
    ):
        op_type = "GroupNorm" if len(arrays) == 3 else "SkipGroupNorm"
        made = by_torch(op_type, arrays, **options)[0]
        np.testing.assert_allclose(np.moveaxis(made, -1, 1) if last else made, wanted, atol=1e-5)


def test_operators_of_diffusion_models(by_torch):
    np.testing.assert_allclose(by_torch("BiasAdd", [X, BIAS, SKIP])[0], X + BIAS + SKIP, rtol=1e-6)
    left, right = np.split(X + BIAS, 2, -1)
    gelu = torch.nn.functional.gelu(torch.from_numpy(right)).numpy()
    np.testing.assert_allclose(by_torch("BiasSplitGelu", [X, BIAS])[0], left * gelu, rtol=1e-5)


def test_an_activation_that_is_not_fused_is_refused(by_torch):
    with pytest.raises(ExecutionError, match="'Mish' is not one that is joined"):
        by_torch("FusedGemm", [floats(3, 4), floats(4, 5)], activation="Mish")
