"""What tests of contrib operators share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from graphopt.runtimes._torch import values
from graphopt.runtimes._torch.module import OnnxModule


def model_of(op_type, arrays, outputs, attributes):
    """Return a model of one node, and what to feed it; the inputs are arrays, or None for those that are absent.

    Element types that ONNX Runtime does not take from outside become initializers.
    """
    held = {f"x{i}": np.asarray(array) for i, array in enumerate(arrays) if array is not None}
    narrow = {name: array for name, array in held.items() if array.dtype.kind == "V"}
    feeds = {name: array for name, array in held.items() if name not in narrow}
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(
        op_type,
        [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)],
        made,
        domain="com.microsoft",
        **attributes,
    )
    ports = [helper.make_empty_tensor_value_info(name) for name in made]
    stored = [numpy_helper.from_array(array, name) for name, array in narrow.items()]
    graph = helper.make_graph([node], "g", given, ports, stored)
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=9), feeds


@pytest.fixture
def by_torch():
    """Return what the torch runtime computes: (operator, arrays, number of outputs, attributes) -> arrays."""

    def run(op_type, arrays, outputs=1, **attributes):
        model, feeds = model_of(op_type, arrays, outputs, attributes)
        made = OnnxModule(ir.from_proto(model))({name: values.from_numpy(array) for name, array in feeds.items()})
        return [values.to_numpy(value) for value in made.values()]

    return run


@pytest.fixture
def against_ort(by_torch):
    """Return a check that the torch runtime computes what ONNX Runtime does, which returns what both computed.

    Of the outputs the first `compared` are compared; whole numbers may differ by `steps`.
    """
    onnxruntime = pytest.importorskip("onnxruntime")

    def check(op_type, arrays, outputs=1, *, compared=None, atol=1e-5, steps=0, **attributes):
        model, feeds = model_of(op_type, arrays, outputs, attributes)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        wanted = session.run(None, feeds)
        actual = by_torch(op_type, arrays, outputs, **attributes)
        for one, other in list(zip(wanted, actual, strict=True))[:compared]:
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            if one.dtype.kind in "iu":
                assert np.abs(one.astype(int) - other.astype(int)).max() <= steps
            else:
                np.testing.assert_allclose(other.astype(np.float64), one, rtol=max(1e-4, atol), atol=atol)
        return wanted, actual

    return check
