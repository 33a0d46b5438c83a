"""Every operator of ONNX's own tests, converted with its inputs and outputs: it is valid, loads and computes the same."""

from __future__ import annotations

import warnings

import onnx
import onnx_ir as ir
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
from graphopt.passes.precision.to_float16 import ToFloat16
from graphopt.pipeline import Pipeline, begin, feeds_for

CPU = target.find("cpu")
FLOAT = onnx.TensorProto.FLOAT


def models():
    """Return one small model for each operator that takes or gives float32."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found = {}
    for case in cases:
        graph = case.model.graph
        ports = [*graph.input, *graph.output]
        if len(graph.node) == 1 and any(port.type.tensor_type.elem_type == FLOAT for port in ports):
            found.setdefault(graph.node[0].op_type, case.model)
    return found


MODELS = models()


@pytest.mark.parametrize("op_type", MODELS)
def test_operator(op_type):
    model = ir.from_proto(MODELS[op_type])
    try:
        start = begin(model, CPU, (), op_type)
        pipe = Pipeline(start, CPU, feeds_for(start, None, 0, op_type))
    except UserError as reason:
        pytest.skip(str(reason))
    step = pipe.run(ToFloat16(keep_io=False, min_sqnr=10.0))
    assert step.status != "reverted", step.reason
    if step.status == "skipped":
        pytest.skip(step.reason)
    onnx.checker.check_model(ir.to_proto(pipe.model), full_check=True)
    for level in ("none", "basic", "extended"):
        runtime.open_session(pipe.model, target.find(f"cpu{{level={level}}}"))
