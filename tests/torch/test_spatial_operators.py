"""Convolution, pooling, normalization, resizing, sampling and detection: what onnx's node cases leave out."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

pytest.importorskip("torch")

import torch

from graphopt.runtime import ExecutionError
from graphopt.runtimes._torch import values
from graphopt.runtimes._torch.module import OnnxModule
from graphopt.runtimes._torch.table import Mode, find

HEAD = '<ir_version: 9, opset_import: ["": {}]> '
IMAGE, LINE, SPACE = (2, 4, 7, 6), (2, 4, 9), (1, 2, 4, 5, 3)
STATISTICS = "float[4] s = {1.0, 0.5, -2.0, 3.0}, float[4] b = {0.1, 0.2, 0.3, 0.4}"
RUNNING = f"{STATISTICS}, float[4] m = {{0.3, -0.1, 0.2, 0.0}}, float[4] v = {{0.5, 1.0, 2.0, 3.0}}"

SAME = {
    "Conv padded unevenly": (7, IMAGE, "Conv<pads = [0, 1, 2, 0], strides = [2, 1]>(x, w)", (3, 4, 3, 2)),
    "Conv of the same size": (11, IMAGE, 'Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)', (3, 4, 3, 2)),
    "Conv of the same size, evenly": (11, LINE, 'Conv<auto_pad = "SAME_LOWER">(x, w)', (3, 4, 3)),
    "Conv without padding": (11, SPACE, 'Conv<auto_pad = "VALID", group = 2>(x, w)', (2, 1, 2, 3, 1)),
    "ConvTranspose to a shape": (
        11,
        IMAGE,
        'ConvTranspose<output_shape = [14, 11], strides = [2, 2], auto_pad = "SAME_UPPER">(x, w)',
        (4, 2, 3, 2),
    ),
    "ConvTranspose to a larger shape": (22, LINE, "ConvTranspose<output_shape = [28], strides = [3]>(x, w)", (4, 2, 3)),
    "ConvTranspose by steps wider than windows": (
        11,
        LINE,
        'ConvTranspose<strides = [3], auto_pad = "SAME_LOWER">(x, w)',
        (4, 2, 2),
    ),
    "ConvTranspose padded unevenly": (
        11,
        SPACE,
        "ConvTranspose<pads = [0, 1, 0, 1, 0, 0], dilations = [1, 2, 1]>(x, w)",
        (2, 3, 2, 2, 1),
    ),
    "MaxPool of opset 7": (7, IMAGE, 'MaxPool<kernel_shape = [3, 2], auto_pad = "SAME_LOWER">(x)'),
    "MaxPool over the end with gaps": (
        10,
        SPACE,
        "MaxPool<kernel_shape = [2, 2, 2], strides = [2, 3, 2], ceil_mode = 1, dilations = [2, 1, 1]>(x)",
    ),
    "MaxPool padded unevenly": (12, IMAGE, "MaxPool<kernel_shape = [3, 3], pads = [0, 2, 1, 0]>(x)"),
    "AveragePool of opset 7": (7, IMAGE, "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)"),
    "AveragePool that counts padding": (
        11,
        IMAGE,
        "AveragePool<kernel_shape = [3, 2], pads = [2, 0, 1, 1], strides = [2, 2], ceil_mode = 1, "
        "count_include_pad = 1>(x)",
    ),
    "AveragePool with gaps": (19, LINE, "AveragePool<kernel_shape = [3], pads = [1, 2], dilations = [2]>(x)"),
    "AveragePool over the end": (
        19,
        SPACE,
        "AveragePool<kernel_shape = [2, 2, 2], strides = [3, 2, 2], ceil_mode = 1>(x)",
    ),
    "LpPool of opset 7": (7, IMAGE, "LpPool<kernel_shape = [2, 3], p = 1, pads = [1, 0, 1, 0]>(x)"),
    "LpPool with gaps": (18, IMAGE, "LpPool<kernel_shape = [2, 3], p = 3, dilations = [2, 1], ceil_mode = 1>(x)"),
    "GlobalMaxPool": (7, LINE, "GlobalMaxPool(x)"),
    "GlobalLpPool": (7, LINE, "GlobalLpPool<p = 3>(x)"),
    **{
        f"BatchNormalization of opset {opset}": (opset, IMAGE, "BatchNormalization<epsilon = 0.01>(x, s, b, m, v)")
        for opset in (7, 9, 14, 15)
    },
    "InstanceNormalization": (7, IMAGE, "InstanceNormalization(x, s, b)"),
    "InstanceNormalization of single elements": (21, (2, 4, 1, 1), "InstanceNormalization(x, s, b)"),
    "GroupNormalization": (21, LINE, "GroupNormalization<num_groups = 2>(x, s, b)"),
    "LayerNormalization": (17, (2, 3, 4), "LayerNormalization<axis = 1>(x, s, b)"),
    "LRN": (7, IMAGE, "LRN<size = 3, alpha = 0.5, bias = 2.0>(x)"),
    "MeanVarianceNormalization": (9, IMAGE, "MeanVarianceNormalization(x)"),
    "MaxRoiPool": (7, IMAGE, "MaxRoiPool<pooled_shape = [2, 3], spatial_scale = 0.5>(x, r)"),
    "MaxRoiPool of single pixels": (7, IMAGE, "MaxRoiPool<pooled_shape = [1, 1], spatial_scale = 0.25>(x, r)"),
    "DeformConv of a column": (
        19,
        (1, 4, 5, 1),
        "DeformConv<pads = [0, 1, 0, 1]>(x, w, o)",
        (1, 4, 1, 1),
        (1, 2, 5, 3),
    ),
    **{
        f"{name} of opset {opset}": (opset, IMAGE, text)
        for name, opset, text in (
            ("Upsample", 9, "Upsample(x, up)"),
            ("Upsample, linear,", 9, 'Upsample<mode = "linear">(x, up)'),
            ("Upsample", 7, "Upsample<scales = [1.0, 1.0, 2.0, 1.5]>(x)"),
            ("Resize", 10, "Resize(x, up)"),
            ("Resize to fewer", 10, "Resize(x, down)"),
            ("Resize to fewer", 11, "Resize(x, none, down)"),
            (
                "Resize as TensorFlow did",
                11,
                'Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(x, none, down)',
            ),
            ("Resize by cubes", 13, 'Resize<mode = "cubic">(x, , up)'),
            ("Resize by other cubes", 13, 'Resize<mode = "cubic", cubic_coeff_a = -0.5>(x, , up)'),
            ("Resize from inside", 13, 'Resize<mode = "cubic", exclude_outside = 1>(x, , down)'),
            ("Resize to more from inside", 13, 'Resize<mode = "cubic", exclude_outside = 1>(x, , up)'),
            ("Resize, smoothed,", 18, 'Resize<mode = "linear", antialias = 1>(x, , down)'),
        )
    },
}
"""The opset, the shape of `x`, what is computed, and the shapes of `w` and `o`."""

CONSTANTS = {
    "m": RUNNING,
    "s": STATISTICS,
    "r": "float[3,5] r = {0.0, 1.0, 1.0, 9.0, 7.0, 1.0, -3.0, 2.0, 5.0, 40.0, 1.0, 3.0, 3.0, 2.0, 3.0}",
    "up": "float[4] up = {1.0, 1.0, 2.0, 1.5}",
    "down": "float[4] down = {1.0, 1.0, 0.5, 0.6}, float[0] none = {}",
}


@pytest.fixture
def by_onnxruntime():
    """Return what ONNX Runtime computes."""
    onnxruntime = pytest.importorskip("onnxruntime")

    def run(text, feeds):
        model = parser.parse_model(text).SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return dict(zip([port.name for port in session.get_outputs()], session.run(None, feeds), strict=True))

    return run


@pytest.fixture
def by_torch(parse):
    """Return what the torch runtime computes."""

    def run(text, feeds):
        module = OnnxModule(parse(text))
        with torch.no_grad():
            outputs = module({name: values.from_numpy(array) for name, array in feeds.items()})
        return {name: values.to_numpy(value) for name, value in outputs.items()}

    return run


def graph(opset, ports, constants, nodes, outputs="float[?] y"):
    """Return a model in text."""
    given = ", ".join(f"{kind}[{','.join(map(str, shape))}] {name}" for name, (kind, shape) in ports.items())
    return f"{HEAD.format(opset)} g ({given}) => ({outputs}) <{constants or 'float unused = {0.0}'}> {{ {nodes} }}"


@pytest.mark.parametrize("name", SAME)
def test_same_as_onnxruntime(by_onnxruntime, by_torch, name):
    opset, shape, node, *more = SAME[name]
    shapes = dict(zip(("x", "w", "o"), (shape, *more), strict=False))
    rng = np.random.default_rng(8)
    feeds = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    operands = node[node.rindex("(") + 1 : -1].split(", ")
    constants = next((text for key, text in CONSTANTS.items() if key in operands), "")
    if name == "LayerNormalization":
        constants = "float[3,4] s = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3,4] b = {0,1,0,1,0,1,0,1,0,1,0,1}"
    text = graph(opset, {key: ("float", shape) for key, shape in shapes.items()}, constants, f"y = {node}")
    np.testing.assert_allclose(by_torch(text, feeds)["y"], by_onnxruntime(text, feeds)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(("kind", "dtype"), [("float", np.float32), ("int8", np.int8), ("uint8", np.uint8)])
def test_places_of_the_largest(by_onnxruntime, by_torch, kind, dtype, order):
    x = np.random.default_rng(9).permutation(2 * 3 * 6 * 5).reshape(2, 3, 6, 5).astype(dtype)
    node = f"y, i = MaxPool<kernel_shape = [2, 3], strides = [2, 2], pads = [1, 0, 0, 1], storage_order = {order}>(x)"
    text = graph(12, {"x": (kind, x.shape)}, "", node, f"{kind}[?] y, int64[?] i")
    wanted, actual = by_onnxruntime(text, {"x": x}), by_torch(text, {"x": x})
    for key, array in wanted.items():
        assert array.dtype == actual[key].dtype
        np.testing.assert_array_equal(array, actual[key])


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8])
def test_resize_of_whole_numbers(by_onnxruntime, by_torch, dtype, mode):
    x = np.random.default_rng(10).integers(0, 100, (1, 2, 4, 5)).astype(dtype)
    node = f'y = Resize<mode = "{mode}">(x, , s)'
    text = graph(13, {"x": (x.dtype.name, x.shape)}, "float[4] s = {1.0, 1.0, 2.0, 2.0}", node, f"{x.dtype.name}[?] y")
    actual, wanted = by_torch(text, {"x": x})["y"], by_onnxruntime(text, {"x": x})["y"]
    assert actual.dtype == wanted.dtype
    np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint64, torch.bool, torch.int64])
def test_nearest_moves_numbers_of_any_type_exactly(dtype):
    x = torch.tensor([[[0, 1, 2**62 + 1]]]).to(dtype)
    made = find("", "Resize", 19).function(x, None, np.array([1, 1, 2], np.float32))
    assert made.dtype == dtype
    assert made.to(torch.int64).tolist() == [[[v for v in x.to(torch.int64).flatten().tolist() for _ in range(2)]]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_lrn_is_as_defined(by_torch, size):
    x = np.random.default_rng(11).normal(size=(2, 5, 3)).astype(np.float32)
    wanted = np.zeros_like(x)
    for c in range(5):
        near = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1]
        wanted[:, c] = x[:, c] / (1.5 + 0.7 / size * (near**2).sum(1)) ** 0.6
    text = graph(13, {"x": ("float", x.shape)}, "", f"y = LRN<size = {size}, alpha = 0.7, beta = 0.6, bias = 1.5>(x)")
    np.testing.assert_allclose(by_torch(text, {"x": x})["y"], wanted, rtol=1e-5)


@pytest.mark.parametrize("opset", [7, 9])
def test_training_outputs_of_old_batch_normalization(by_torch, opset):
    x = np.random.default_rng(12).normal(size=(3, 4, 5)).astype(np.float32)
    node = "y, m2, v2, m3, v3 = BatchNormalization<momentum = 0.8>(x, s, b, m, v)"
    outputs = "float[?] y, float[4] m2, float[4] v2, float[4] m3, float[4] v3"
    made = by_torch(graph(opset, {"x": ("float", x.shape)}, RUNNING, node, outputs), {"x": x})
    mean, var = x.mean((0, 2)), x.var((0, 2))
    np.testing.assert_allclose(made["m3"], mean, atol=1e-6)
    np.testing.assert_allclose(made["v3"], var, rtol=1e-5)
    np.testing.assert_allclose(made["m2"], 0.8 * np.array([0.3, -0.1, 0.2, 0.0]) + 0.2 * mean, rtol=1e-5)
    normal = (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5)
    scale, bias = np.array([[1.0], [0.5], [-2.0], [3.0]]), np.array([[0.1], [0.2], [0.3], [0.4]])
    np.testing.assert_allclose(made["y"], normal * scale + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wide", "stored"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
        (torch.float16, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_batch_normalization_learns_statistics(wide, stored):
    x = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(1)).to(wide)
    scale, bias, mean, var = (f(3, dtype=stored) for f in (torch.ones, torch.zeros, torch.zeros, torch.ones))
    normalize = find("", "BatchNormalization", 15).function
    made = normalize(x, scale, bias, mean, var, momentum=0.75, mode_=Mode("batch"))
    assert made.dtype == wide
    exact = x.to(torch.float64)
    assert made.to(torch.float64).mean((0, 2)).abs().max() < 1e-2
    torch.testing.assert_close(mean.to(torch.float64), 0.25 * exact.mean((0, 2)), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(var.to(torch.float64), 0.75 + 0.25 * exact.var((0, 2)), rtol=1e-2, atol=1e-3)
    with torch.no_grad():  # an evaluation leaves them alone
        before = mean.clone()
        normalize(x, scale, bias, mean, var, mode_=Mode("batch"))
    assert torch.equal(mean, before)


@pytest.mark.parametrize("held", ["x", "w"])
def test_integer_convolution_of_whole_numbers_in_floats(held):
    rng = np.random.default_rng(13)
    x, w = (torch.from_numpy(rng.integers(0, 255, shape).astype(np.uint8)) for shape in ((1, 2, 5, 5), (3, 2, 2, 2)))
    zeros = torch.tensor(3, dtype=torch.uint8), torch.tensor([1, 2, 3], dtype=torch.uint8)
    convolve = find("", "ConvInteger", 10).function
    exact = convolve(x, w, *zeros, pads=(1, 0, 0, 1))
    assert exact.dtype == torch.int32
    operands = {"x": x, "w": w}
    operands[held] = operands[held].to(torch.float32).requires_grad_()
    made = convolve(operands["x"], operands["w"], *zeros, pads=(1, 0, 0, 1))
    assert made.dtype == torch.float32
    assert torch.equal(made.to(torch.int32), exact)
    made.sum().backward()
    assert operands[held].grad is not None


def test_non_max_suppression(by_onnxruntime, by_torch):
    rng = np.random.default_rng(14)
    feeds = {
        "x": rng.random((2, 30, 4)).astype(np.float32),
        "s": rng.random((2, 3, 30)).round(1).astype(np.float32),
    }
    constants = "int64[1] n = {5}, float[1] t = {0.3}, float[1] l = {0.2}"
    for attribute in ("center_point_box = 0", "center_point_box = 1"):
        ports = {"x": ("float", (2, 30, 4)), "s": ("float", (2, 3, 30))}
        text = graph(11, ports, constants, f"y = NonMaxSuppression<{attribute}>(x, s, n, t, l)", "int64[?,3] y")
        np.testing.assert_array_equal(by_torch(text, feeds)["y"], by_onnxruntime(text, feeds)["y"])


def test_a_box_that_overlaps_by_the_threshold_stays(by_onnxruntime, by_torch):
    feeds = {"x": np.array([[[0, 0, 1, 1], [0, 0, 1, 0.5]]], np.float32), "s": np.array([[[0.9, 0.8]]], np.float32)}
    ports = {"x": ("float", (1, 2, 4)), "s": ("float", (1, 1, 2))}
    node = "y = NonMaxSuppression(x, s, n, t)"
    text = graph(11, ports, "int64[1] n = {5}, float[1] t = {0.5}", node, "int64[?,3] y")
    assert by_torch(text, feeds)["y"].tolist() == by_onnxruntime(text, feeds)["y"].tolist() == [[0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_of_many_sizes(by_onnxruntime, by_torch, ratio, mode):
    rng = np.random.default_rng(15)
    corners = rng.random((7, 2)) * 10 - 1
    feeds = {
        "x": rng.normal(size=(2, 3, 9, 9)).astype(np.float32),
        "r": np.concatenate([corners, corners + rng.random((7, 2)) * 8], 1).astype(np.float32),
        "i": rng.integers(0, 2, 7),
    }
    ports = {"x": ("float", (2, 3, 9, 9)), "r": ("float", (7, 4)), "i": ("int64", (7,))}
    node = f'RoiAlign<output_height = 2, output_width = 3, sampling_ratio = {ratio}, mode = "{mode}">(x, r, i)'
    for opset in (10, 16):
        text = graph(opset, ports, "", f"y = {node}")
        np.testing.assert_allclose(by_torch(text, feeds)["y"], by_onnxruntime(text, feeds)["y"], rtol=1e-4, atol=1e-5)


def test_no_regions_give_an_empty_tensor():
    x, none = torch.ones(1, 3, 4, 4), torch.zeros(0, 4)
    align, pool = find("", "RoiAlign", 16).function, find("", "MaxRoiPool", 7).function
    assert align(x, none, torch.zeros(0, dtype=torch.int64), output_height=2).shape == (0, 3, 2, 1)
    assert pool(x, torch.zeros(0, 5), pooled_shape=(2, 1)).shape == (0, 3, 2, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["AveragePool", "LpPool", "MaxPool", "Resize", "DFT", "GridSample", "RMSNormalization"]
)
def test_half_precision_stays_half_precision(name, dtype):
    x = torch.randn(1, 2, 4, 4, 2, generator=torch.Generator().manual_seed(2))
    window = {"kernel_shape": (2, 2, 2), "pads": (0, 0, 0, 1, 1, 0)}
    operands, attributes = {
        "AveragePool": ((x,), window),
        "LpPool": ((x,), window),
        "MaxPool": ((x,), {**window, "outputs_": 1}),
        "Resize": ((x, None, np.array([1, 1, 1.5, 2, 1], np.float32)), {"mode": "linear"}),
        "DFT": ((x,), {}),
        "GridSample": ((x, torch.full((1, 2, 2, 2, 3), 0.3)), {}),
        "RMSNormalization": ((x, torch.ones(2)), {}),
    }[name]
    function = find("", name, 24).function
    narrow = [o.to(dtype) if isinstance(o, torch.Tensor) else o for o in operands]
    wanted, made = function(*operands, **attributes), function(*narrow, **attributes)
    assert made.dtype == dtype
    torch.testing.assert_close(made.to(torch.float32), wanted, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize(
    ("ports", "node", "reason"),
    [
        ({"x": (1, 1, 2, 2, 2, 2), "w": (1, 1, 1, 1, 1, 1)}, "Conv(x, w)", "4 spatial axes"),
        ({"x": (1, 1, 2, 2, 2, 2), "w": (1, 1, 1, 1, 1, 1)}, "ConvTranspose(x, w)", "4 spatial axes"),
        ({"x": (1, 1, 2, 2, 2, 2)}, "MaxPool<kernel_shape = [1, 1, 1, 1]>(x)", "4 spatial axes"),
        ({"x": (1, 1, 2, 2, 2), "w": (1, 1, 1, 1, 3)}, 'GridSample<mode = "cubic">(x, w)', "3 spatial axes by 'cubic'"),
        ({"x": (1, 8, 1), "w": ()}, "STFT(x, n)", "needs a window or a frame_length"),
    ],
)
def test_what_is_not_computed_is_said(by_torch, ports, node, reason):
    text = graph(20, {key: ("float", shape) for key, shape in ports.items()}, "int64 n = {2}", f"y = {node}")
    with pytest.raises(ExecutionError, match=reason):
        by_torch(text, {key: np.ones(shape, np.float32) for key, shape in ports.items()})
