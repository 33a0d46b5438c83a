"""RNN, GRU and LSTM: what onnx's node cases leave out, and torch's fused functions against the steps they stand for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

pytest.importorskip("torch")

import torch

from graphopt.runtime import ExecutionError
from graphopt.runtimes._torch import values
from graphopt.runtimes._torch.module import OnnxModule
from graphopt.runtimes._torch.operators import recurrent

TIME, BATCH, INPUTS, HIDDEN = 4, 3, 2, 5
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
LENGTHS = np.array([2, 4, 3], np.int32)


def floats(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).uniform(-1, 1, shape).astype(np.float32)


def model_of(op_type, given, attributes, opset=14):
    """Return a model of one node and what to feed it; `given` names the optional inputs that are there."""
    directions, gates = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op_type]
    batch_first = attributes.get("layout")
    state = (BATCH, directions, HIDDEN) if batch_first else (directions, BATCH, HIDDEN)
    arrays = {
        "x": floats(BATCH, TIME, INPUTS) if batch_first else floats(TIME, BATCH, INPUTS),
        "w": floats(directions, gates * HIDDEN, INPUTS),
        "r": floats(directions, gates * HIDDEN, HIDDEN),
        "b": floats(directions, 2 * gates * HIDDEN),
        "lengths": LENGTHS,
        "h": floats(*state),
        "c": floats(*state, seed=1),
        "p": floats(directions, 3 * HIDDEN),
    }
    names = ["x", "w", "r", "b", "lengths", "h", "c", "p"][: 8 if op_type == "LSTM" else 6]
    feeds = {name: arrays[name] for name in names if name in "xwr" or name in given}
    outputs = ["y", "yh", "yc"][: 3 if op_type == "LSTM" else 2]
    node = helper.make_node(
        op_type, [name if name in feeds else "" for name in names], outputs, hidden_size=HIDDEN, **attributes
    )
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    made = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
    graph = helper.make_graph([node], "g", ports, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), feeds


def by_torch(model, feeds):
    made = OnnxModule(ir.from_proto(model))({name: values.from_numpy(array) for name, array in feeds.items()})
    return [values.to_numpy(value) for value in made.values()]


@pytest.fixture
def by_onnxruntime():
    """Return what ONNX Runtime computes."""
    onnxruntime = pytest.importorskip("onnxruntime")

    def run(model, feeds):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds)

    return run


BOTH = {"direction": "bidirectional"}
GIVEN = {
    "alone": ([], {}),
    "with all": (["b", "h", "c"], {}),
    "backwards": (["b", "h", "c"], {"direction": "reverse"}),
    "both ways": (["b", "h", "c"], BOTH),
    "with lengths": (["b", "h", "c", "lengths"], {}),
    "with lengths, backwards": (["b", "lengths"], {"direction": "reverse"}),
    "with lengths, both ways": (["b", "h", "c", "lengths"], BOTH),
    "clipped": (["b", "h"], {"clip": 0.4}),
}

OTHERS = {
    "RNN by Relu": ("RNN", ["b"], {"activations": ["Relu"]}),
    "RNN by Relu and Tanh": ("RNN", ["b"], {"activations": ["Relu", "Tanh"], **BOTH}),
    **{
        f"RNN by {name}": ("RNN", ["b", "h"], {"activations": [name], **numbers})
        for name, numbers in {
            "Affine": {"activation_alpha": [0.5], "activation_beta": [0.2]},
            "Elu": {"activation_alpha": [0.7]},
            "HardSigmoid": {"activation_alpha": [0.3], "activation_beta": [0.4]},
            "LeakyRelu": {"activation_alpha": [0.3]},
            "ScaledTanh": {"activation_alpha": [0.7], "activation_beta": [1.5]},
            "Sigmoid": {},
            "Softplus": {},
            "Softsign": {},
            "ThresholdedRelu": {"activation_alpha": [0.2]},
        }.items()
    },
    "GRU, linear first": ("GRU", ["b", "h"], {"linear_before_reset": 1}),
    "GRU, linear first, both ways": ("GRU", ["b", "h"], {"linear_before_reset": 1, **BOTH}),
    "GRU, linear first, backwards": ("GRU", ["b"], {"linear_before_reset": 1, "direction": "reverse"}),
    "GRU, linear first, without biases": ("GRU", [], {"linear_before_reset": 1}),
    "GRU, linear first, with lengths": ("GRU", ["b", "lengths"], {"linear_before_reset": 1}),
    "GRU by other functions": ("GRU", ["b"], {"activations": ["HardSigmoid", "Softsign"]}),
    "LSTM with peepholes": ("LSTM", ["b", "h", "c", "p"], {}),
    "LSTM with peepholes, both ways": ("LSTM", ["b", "c", "p", "lengths"], BOTH),
    "LSTM whose gates belong together": ("LSTM", ["b", "h", "c"], {"input_forget": 1}),
    "LSTM by other functions": (
        "LSTM",
        ["b", "h"],
        {
            "activations": ["HardSigmoid", "ScaledTanh", "LeakyRelu"],
            "activation_alpha": [0.3, 0.7, 0.2],
            "activation_beta": [0.4, 1.5],
        },
    ),
}

CASES = OTHERS | {f"{name} {how}": (name, *given) for name in GATES for how, given in GIVEN.items()}


@pytest.mark.parametrize("opset", [7, 14])
@pytest.mark.parametrize("name", CASES)
def test_same_as_onnxruntime(by_onnxruntime, name, opset):
    model, feeds = model_of(*CASES[name], opset)
    for wanted, actual in zip(by_onnxruntime(model, feeds), by_torch(model, feeds), strict=True):
        assert wanted.dtype == actual.dtype
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op_type", GATES)
def test_fused_and_step_by_step_are_the_same(monkeypatch, op_type, dtype, layout, direction):
    extra = {"linear_before_reset": 1} if op_type == "GRU" else {}
    _, feeds = model_of(op_type, ["b", "h", "c"], {"direction": direction, "layout": layout})
    function = {"RNN": recurrent.rnn, "GRU": recurrent.gru, "LSTM": recurrent.lstm}[op_type]

    def outputs_and_gradients():
        tensors = {name: torch.from_numpy(array).to(dtype).requires_grad_() for name, array in feeds.items()}
        x, w, r, b, *states = tensors.values()
        made = function(x, w, r, b, None, *states, direction=direction, layout=layout, **extra)
        return [*made, *torch.autograd.grad(sum(y.square().sum() for y in made), list(tensors.values()))]

    fused = outputs_and_gradients()
    monkeypatch.setattr(recurrent, "_fused", lambda *_: None)
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    for one, other in zip(fused, outputs_and_gradients(), strict=True):
        assert one.dtype == other.dtype == dtype
        assert torch.allclose(one, other, rtol=close, atol=close)


def test_lengths_that_are_all_full_are_no_lengths():
    model, feeds = model_of("LSTM", ["b", "lengths"], {})
    full = by_torch(model, feeds | {"lengths": np.full(BATCH, TIME, np.int32)})
    bare, fewer = model_of("LSTM", ["b"], {})
    for one, other in zip(full, by_torch(bare, fewer), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sequences_may_be_empty():
    model, feeds = model_of("GRU", ["b", "h", "lengths"], {})
    y, last = by_torch(model, feeds | {"lengths": np.array([0, 4, 1], np.int32)})
    assert not y[:, :, 0].any()
    np.testing.assert_array_equal(last[:, 0], feeds["h"][:, 0])


def test_an_activation_that_onnx_has_not_is_refused():
    with pytest.raises(ExecutionError, match="activation 'Swish' is none of ONNX"):
        by_torch(*model_of("RNN", [], {"activations": ["Swish"]}))
