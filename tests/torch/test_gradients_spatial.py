"""Gradients of convolution, pooling, normalization, resizing, sampling and spectra."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

HEAD = '<ir_version: 9, opset_import: ["": {}]> '

PLANE, LINE, SPACE, ROWS = (1, 4, 5, 6), (2, 4, 7), (1, 2, 3, 4, 3), (2, 3, 4)

CONVOLUTION = {
    "Conv": (22, "Conv<pads = [1, 1, 1, 1]>", [PLANE, (2, 4, 3, 3), (2,)]),
    "Conv of opset 7, padded unevenly": (7, "Conv<pads = [0, 1, 2, 1], strides = [2, 1]>", [PLANE, (2, 4, 3, 2), (2,)]),
    "Conv in groups with gaps": (11, "Conv<group = 2, dilations = [2, 1]>", [PLANE, (4, 2, 2, 3)]),
    "Conv of the same size": (11, 'Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>', [PLANE, (2, 4, 3, 2)]),
    "Conv of a line": (11, "Conv<strides = [2]>", [LINE, (3, 4, 3), (3,)]),
    "Conv of a space": (11, 'Conv<auto_pad = "SAME_UPPER">', [SPACE, (2, 2, 2, 3, 1)]),
    "ConvTranspose": (11, "ConvTranspose<strides = [2, 2], pads = [1, 0, 1, 0]>", [(1, 4, 3, 3), (4, 2, 3, 2), (2,)]),
    "ConvTranspose to a shape": (
        11,
        "ConvTranspose<strides = [2, 2], output_shape = [6, 7]>",
        [(1, 4, 3, 3), (4, 2, 3, 2), (2,)],
    ),
    "ConvTranspose in groups": (
        22,
        "ConvTranspose<group = 2, strides = [2], output_padding = [1]>",
        [LINE, (4, 1, 3), (2,)],
    ),
    "ConvTranspose of a space": (11, "ConvTranspose<dilations = [2, 1, 1]>", [SPACE, (2, 1, 2, 2, 1)]),
    "CausalConvWithState": (27, 'CausalConvWithState<activation = "silu">', [(1, 3, 5), (3, 1, 3), (3,), (1, 3, 2)]),
    "DeformConv": (19, "DeformConv<pads = [1, 0, 0, 1]>", [(1, 2, 4, 4), (2, 2, 2, 2), (1, 8, 4, 4)]),
    "DeformConv with a mask": (
        22,
        "DeformConv<group = 2, offset_group = 2, strides = [2, 1]>",
        [(1, 2, 4, 4), (2, 1, 2, 1), (1, 8, 2, 4), (2,), (1, 4, 2, 4)],
    ),
}

POOLING = {
    "MaxPool": (12, "MaxPool<kernel_shape = [2, 2], strides = [2, 2]>", [PLANE]),
    "MaxPool over the end": (12, "MaxPool<kernel_shape = [2, 2], strides = [2, 3], ceil_mode = 1>", [PLANE]),
    "MaxPool of opset 7": (7, 'MaxPool<kernel_shape = [2, 3], auto_pad = "SAME_UPPER">', [PLANE]),
    "MaxPool of a line": (10, "MaxPool<kernel_shape = [2], dilations = [3]>", [LINE]),
    "AveragePool": (22, "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>", [PLANE]),
    "AveragePool over the end": (
        11,
        "AveragePool<kernel_shape = [2, 2], strides = [3, 3], pads = [1, 0, 0, 1], ceil_mode = 1, "
        "count_include_pad = 1>",
        [PLANE],
    ),
    "AveragePool with gaps": (19, "AveragePool<kernel_shape = [2, 2], dilations = [2, 3]>", [PLANE]),
    "AveragePool of opset 7": (7, 'AveragePool<kernel_shape = [2], auto_pad = "SAME_LOWER">', [LINE]),
    "LpPool": (11, "LpPool<kernel_shape = [2, 3], p = 3, pads = [1, 0, 0, 1]>", [PLANE]),
    "LpPool with gaps": (18, "LpPool<kernel_shape = [2, 2], dilations = [2, 1], ceil_mode = 1>", [PLANE]),
    "GlobalAveragePool": (7, "GlobalAveragePool", [PLANE]),
    "GlobalMaxPool": (7, "GlobalMaxPool", [SPACE]),
    "GlobalLpPool": (7, "GlobalLpPool<p = 3>", [LINE]),
}

NORMALIZATION = {
    "BatchNormalization trained in opset 9": (9, "BatchNormalization", [PLANE, *[(4,)] * 4]),
    "BatchNormalization of elements": (7, "BatchNormalization<spatial = 0>", [(3, 2, 2), *[(2, 2)] * 4]),
    "BatchNormalization": (15, "BatchNormalization<epsilon = 0.01>", [PLANE, *[(4,)] * 4]),
    "BatchNormalization of the batch": (14, "BatchNormalization<training_mode = 1>", [PLANE, *[(4,)] * 4]),
    "InstanceNormalization": (7, "InstanceNormalization", [LINE, (4,), (4,)]),
    "GroupNormalization by groups": (18, "GroupNormalization<num_groups = 2>", [PLANE, (2,), (2,)]),
    "GroupNormalization": (21, "GroupNormalization<num_groups = 2>", [PLANE, (4,), (4,)]),
    "LayerNormalization": (17, "LayerNormalization<axis = 1>", [ROWS, (3, 4), (3, 4)]),
    "LayerNormalization with a scale that broadcasts": (17, "LayerNormalization<axis = 1>", [ROWS, (4,)]),
    "RMSNormalization": (23, "RMSNormalization", [ROWS, (4,)]),
    "RMSNormalization with a scale that broadcasts": (23, "RMSNormalization<axis = 1>", [ROWS, (3, 1)]),
    "SimplifiedLayerNormalization": (17, "SimplifiedLayerNormalization", [ROWS, (4,)]),
    "LRN": (7, "LRN<size = 3, alpha = 0.5>", [PLANE]),
    "LRN of an even size": (13, "LRN<size = 2, alpha = 0.5, beta = 0.6, bias = 1.5>", [LINE]),
    "MeanVarianceNormalization": (13, "MeanVarianceNormalization<axes = [0, 2]>", [LINE]),
}

RESIZING = {
    "Resize": (19, "<float[4] s = {1.0, 1.0, 2.0, 2.0}>", "Resize(a, , s)"),
    "Resize to the nearest": (13, "<float[4] s = {1.0, 1.0, 0.6, 1.5}>", "Resize(a, , s)"),
    "Resize linearly": (13, "<float[4] s = {1.0, 1.0, 2.0, 1.5}>", 'Resize<mode = "linear">(a, , s)'),
    "Resize linearly to a size": (13, "<int64[4] s = {1, 4, 3, 11}>", 'Resize<mode = "linear">(a, , , s)'),
    "Resize between corners": (
        11,
        "<float[0] r = {}, float[0] f = {}, int64[4] s = {1, 4, 9, 5}>",
        'Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(a, r, f, s)',
    ),
    "Resize by cubes": (13, "<float[4] s = {1.0, 1.0, 2.0, 2.0}>", 'Resize<mode = "cubic">(a, , s)'),
    "Resize by other cubes": (
        13,
        "<float[4] s = {1.0, 1.0, 0.7, 2.0}>",
        'Resize<mode = "cubic", cubic_coeff_a = -0.5, exclude_outside = 1>(a, , s)',
    ),
    "Resize to fewer, smoothed": (
        18,
        "<int64[2] s = {2, 3}>",
        'Resize<mode = "linear", antialias = 1, axes = [2, 3]>(a, , , s)',
    ),
    "Resize a part": (
        19,
        "<float[4] r = {0.1, -0.2, 0.8, 1.1}, int64[2] s = {4, 5}>",
        'Resize<mode = "linear", axes = [2, 3], coordinate_transformation_mode = "tf_crop_and_resize">(a, r, , s)',
    ),
    "Resize of opset 10": (10, "<float[4] s = {1.0, 1.0, 2.0, 0.5}>", 'Resize<mode = "linear">(a, s)'),
    "Upsample": (9, "<float[4] s = {1.0, 1.0, 2.0, 1.5}>", 'Upsample<mode = "linear">(a, s)'),
    "Upsample of opset 7": (7, "", "Upsample<scales = [1.0, 1.0, 2.0, 3.0]>(a)"),
}
"""The opset, constants, and what is computed of an image `a`."""

SPECTRA = {
    "DFT": (20, "<int64 n = {6}>", "DFT(a, n)", (1, 5, 2)),
    "DFT of real numbers": (17, "", "DFT<onesided = 1>(a)", (2, 6, 1)),
    "DFT backwards": (20, "<int64 i = {1}>", "DFT<inverse = 1>(a, , i)", (1, 5, 2)),
    "DFT of real numbers backwards": (17, "", "DFT<inverse = 1>(a)", (1, 5, 1)),
    "STFT": (17, "<int64 s = {2}, int64 n = {4}>", "STFT(a, s, , n)", (1, 9, 1)),
    "STFT of complex numbers": (17, "<int64 s = {3}, int64 n = {4}>", "STFT<onesided = 0>(a, s, , n)", (1, 9, 2)),
    "Col2Im": (18, "<int64[2] i = {4, 5}, int64[2] b = {2, 2}>", "Col2Im(a, i, b)", (1, 8, 12)),
    "Col2Im padded unevenly": (
        18,
        "<int64[2] i = {4, 4}, int64[2] b = {2, 2}>",
        "Col2Im<pads = [0, 1, 1, 1], strides = [2, 1]>(a, i, b)",
        (1, 4, 10),
    ),
    "AffineGrid": (20, "<int64[4] s = {2, 1, 3, 4}>", "AffineGrid(a, s)", (2, 2, 3)),
    "AffineGrid of a space": (
        20,
        "<int64[5] s = {1, 1, 2, 3, 2}>",
        "AffineGrid<align_corners = 1>(a, s)",
        (1, 3, 4),
    ),
    "RoiAlign of opset 10": (
        10,
        "<double[2,4] r = {0.3, 0.2, 3.1, 3.4, 1.2, 1.4, 2.9, 3.8}, int64[2] i = {0, 0}>",
        "RoiAlign<output_height = 2, output_width = 2>(a, r, i)",
        (1, 2, 5, 5),
    ),
    "RoiAlign of the largest": (
        16,
        "<double[2,4] r = {0.3, 0.2, 3.1, 3.4, 1.2, 1.4, 2.9, 3.8}, int64[2] i = {1, 0}>",
        'RoiAlign<output_height = 2, output_width = 1, sampling_ratio = 2, mode = "max">(a, r, i)',
        (2, 2, 5, 5),
    ),
    "MaxRoiPool": (
        7,
        "<double[2,5] r = {0.0, 0.0, 1.0, 3.0, 3.0, 1.0, 2.0, 2.0, 7.0, 4.0}>",
        "MaxRoiPool<pooled_shape = [2, 2]>(a, r)",
        (2, 2, 5, 5),
    ),
}
"""The opset, constants, what is computed of `a`, and its shape."""


def distinct(rng, shape):
    """Draw numbers none of which is near a whole number or another: away from kinks."""
    numbers = (rng.permutation(int(np.prod(shape))) + 0.3) / np.prod(shape)
    return (np.where(rng.random(numbers.shape) < 0.5, -1, 1) * (0.05 + 0.9 * numbers)).reshape(shape)


@pytest.mark.parametrize("name", CONVOLUTION | POOLING | NORMALIZATION)
def test_gradient(check_gradients, name):
    opset, node, shapes = (CONVOLUTION | POOLING | NORMALIZATION)[name]
    rng = np.random.default_rng(3)
    feeds = {f"a{i}": distinct(rng, shape) for i, shape in enumerate(shapes)}
    if node.startswith("BatchNormalization"):
        feeds["a4"] = np.abs(feeds["a4"]) + 0.5  # a variance
    ports = ", ".join(f"double[{','.join(map(str, shape))}] a{i}" for i, shape in enumerate(shapes))
    more = {"trained in opset 9": ", m, v, n, w", "of the batch": ", m, v"}
    outputs = "y" + next((names for part, names in more.items() if name.endswith(part)), "")
    check_gradients(
        f"{HEAD.format(opset)} g ({ports}) => (double[?] y) {{ {outputs} = {node}({', '.join(feeds)}) }}", feeds
    )


@pytest.mark.parametrize("name", RESIZING)
def test_gradient_of_resizing(check_gradients, name):
    opset, constants, node = RESIZING[name]
    image = distinct(np.random.default_rng(4), (1, 4, 3, 5))
    check_gradients(
        f"{HEAD.format(opset)} g (double[1,4,3,5] a) => (double[?] y) {constants} {{ y = {node} }}", {"a": image}
    )


@pytest.mark.parametrize("name", SPECTRA)
def test_gradient_of_spectra_and_regions(check_gradients, name):
    opset, constants, node, shape = SPECTRA[name]
    port = f"double[{','.join(map(str, shape))}] a"
    feeds = {"a": distinct(np.random.default_rng(5), shape)}
    check_gradients(f"{HEAD.format(opset)} g ({port}) => (double[?] y) {constants} {{ y = {node} }}", feeds)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(("mode", "rank"), [("linear", 1), ("linear", 2), ("linear", 3), ("cubic", 2)])
def test_gradient_of_samples(check_gradients, mode, rank, padding, corners):
    rng = np.random.default_rng(6)
    sizes = (3, 4, 5)[:rank]
    ports = f"double[1,2,{','.join(map(str, sizes))}] x, double[1,{'2,' * rank}{rank}] g"
    grid = rng.uniform(-0.8, 0.8, (1, *(2,) * rank, rank))
    attributes = f'mode = "{mode}", padding_mode = "{padding}", align_corners = {corners}'
    check_gradients(
        f"{HEAD.format(20)} g ({ports}) => (double[?] y) {{ y = GridSample<{attributes}>(x, g) }}",
        {"x": rng.normal(size=(1, 2, *sizes)), "g": grid},
    )


def test_gradient_of_unpooling(check_gradients):
    check_gradients(
        f"{HEAD.format(11)} g (double[1,2,4,4] x) => (double[?] y) {{ p, i = MaxPool<kernel_shape = [2, 2], "
        "strides = [2, 2]>(x)  y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(p, i) }",
        {"x": distinct(np.random.default_rng(7), (1, 2, 4, 4))},
    )


def test_gradient_at_windows_of_zeros_is_no_nan(parse):
    import torch

    from graphopt.runtimes._torch.module import OnnxModule

    nodes = {
        "LpPool<kernel_shape = [2]>(x)",
        "GlobalLpPool(x)",
        "MeanVarianceNormalization<axes = [2]>(x)",
    }
    for node in sorted(nodes):
        module = OnnxModule(parse(f"{HEAD.format(13)} g (float[1,1,4] x) => (float[?] y) {{ y = {node} }}"))
        x = torch.zeros(1, 1, 4, requires_grad=True)
        module({"x": x})["y"].sum().backward()
        assert torch.isfinite(x.grad).all(), node
