"""The gradient of every differentiable operator, against finite differences in float64.

The graphs are onnx's own node cases: of each operator those that differ in their attributes, the smallest ones first,
with floats widened to float64.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("torch")

import onnx_ir as ir
import torch

from graphopt.runtimes._torch import table
from graphopt.runtimes._torch.module import OnnxModule

WITHOUT = {
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero", "OneHot", "Shape", "Size", "NonMaxSuppression"), "gives indices"),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN"), "gives truths"),
    **dict.fromkeys(("And", "Or", "Xor", "Not", "BitShift", "BitwiseNot"), "takes truths or bits"),
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitCast"), "takes bits"),
    **dict.fromkeys(("Ceil", "Floor", "Round", "Sign", "Hardmax"), "is flat nearly everywhere"),
    **dict.fromkeys(("QuantizeLinear", "DynamicQuantizeLinear"), "has a gradient by convention, which has tests"),
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"), "takes whole numbers"),
    **dict.fromkeys(("DequantizeLinear", "Cast", "CastLike"), "changes the type, so that float64 does not pass"),
    **dict.fromkeys(("Bernoulli", "Dropout", "Multinomial"), "draws numbers"),
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), "draws numbers"),
    **dict.fromkeys(("Constant", "ConstantOfShape", "EyeLike", "Range"), "makes tensors out of nothing"),
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"), "makes tensors of sizes"),
    **dict.fromkeys(("SequenceEmpty", "SequenceLength", "SequenceConstruct", "SequenceErase"), "is of sequences"),
    **dict.fromkeys(("Optional", "OptionalHasElement", "OptionalGetElement"), "is of optionals"),
    **dict.fromkeys(("SequenceInsert", "SequenceAt", "SequenceMap", "ConcatFromSequence"), "is of sequences"),
    **dict.fromkeys(("SplitToSequence",), "is of sequences"),
    "StringConcat": "takes text",
    "Unique": "takes texts or whole numbers apart",
    "Mod": "jumps",
}
"""Operators that have no gradient to check, with the reason."""

UNTESTED = {
    "MaxRoiPool": "onnx has no case for it",
    "GlobalLpPool": "onnx has no case for it",
}
"""Differentiable ones without any check, with the reason."""

ELSEWHERE = set(
    re.findall(r"[A-Z]\w+", "".join(p.read_text() for p in Path(__file__).parent.glob("test_gradients_*.py")))
)
"""Words of the files beside this one, which check families of operators by tables of their own."""

CONSTANT = {"BatchNormalization": (3, 4), "RoiAlign": (1,)}
"""Operands that no gradient goes to: stored statistics, and the corners of regions."""

LARGEST = 2000
"""Elements of a case above which finite differences take too long."""
MOST = 3
"""Cases for each operator."""


def cases():
    """Return `(operator, case)`, a few for each operator of one node."""
    from onnx.backend.test.loader import load_model_tests

    with np.errstate(all="ignore"):
        found = [c for c in load_model_tests(kind="node") if len(c.model.graph.node) == 1]
    chosen = {}
    for case in sorted(found, key=lambda c: (_size(c), c.name)):
        node = case.model.graph.node[0]
        version = {entry.domain: entry.version for entry in case.model.opset_import}[node.domain]
        known = table.FIRST <= version <= table.LAST if not node.domain else node.domain != "ai.onnx.ml"
        if node.op_type in WITHOUT or not known or not table.find(node.domain, node.op_type, version):
            continue
        facts = tuple(sorted((a.name, str(a)) for a in node.attribute if a.type != onnx.AttributeProto.GRAPH))
        kinds = chosen.setdefault(node.op_type, {})
        if _is_usable(case) and len(kinds) < MOST:
            kinds.setdefault(facts, case)
    return [(name, case) for name, kinds in sorted(chosen.items()) for case in kinds.values()]


def _size(case):
    return sum(getattr(x, "size", 10**6) for x in case.data_sets[0][0])


def _is_usable(case):
    """Tell whether a case takes float32 tensors only (and whole numbers), and few of them."""
    inputs, outputs = case.data_sets[0]
    arrays = [x for x in (*inputs, *outputs) if isinstance(x, np.ndarray)]
    floats = [x for x in arrays if x.dtype.kind == "f"]
    graphs = any(a.type == onnx.AttributeProto.GRAPH for a in case.model.graph.node[0].attribute)
    return (
        len(arrays) == len(inputs) + len(outputs)
        and not graphs
        and all(x.dtype == np.float32 and np.isfinite(x).all() for x in floats)
        and any(x.dtype.kind == "f" and x.size for x in inputs)
        and outputs[0].dtype.kind == "f"
        and all(x.dtype.kind != "O" for x in arrays)
        and _size(case) <= LARGEST
        and outputs[0].size <= LARGEST
    )


def widened(model):
    """Return a model whose floats are float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for attribute in copy.graph.node[0].attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == onnx.TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
    return ir.from_proto(copy)


CASES = cases()


def test_every_operator_is_checked_or_says_why_not():
    checked = {name for name, _ in CASES}
    standard = {name for domain, name in table.entries() if domain == ""}
    left = standard - checked - ELSEWHERE - set(WITHOUT) - set(UNTESTED) - {"SimplifiedLayerNormalization"}
    assert not left


@pytest.mark.parametrize(("name", "case"), CASES, ids=[case.name for _, case in CASES])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gradient(name, case):
    module = OnnxModule(widened(case.model))
    arrays = case.data_sets[0][0]
    node, rng = case.model.graph.node[0], np.random.default_rng(0)
    version = {entry.domain: entry.version for entry in case.model.opset_import}[node.domain]
    hosts = table.find(node.domain, node.op_type, version).hosts
    tensors, moved = {}, []
    for port, array in zip(case.model.graph.input, arrays, strict=True):
        place = list(node.input).index(port.name)
        fixed = array.dtype != np.float32 or hosts[place : place + 1] == (True,) or place in CONSTANT.get(name, ())
        # examples lie on kinks, such as zero
        wide = array if fixed else array.astype(np.float64) + rng.uniform(0.01, 0.02, array.shape)
        tensors[port.name] = torch.from_numpy(np.array(wide, dtype=np.float64 if array.dtype == np.float32 else None))
        if not fixed:
            moved.append(port.name)

    def function(*values):
        outputs = list(module(tensors | dict(zip(moved, values, strict=True))).values())
        return [x for x in outputs if isinstance(x, torch.Tensor) and x.dtype == torch.float64 and x.requires_grad]

    inputs = [tensors[key].requires_grad_() for key in moved]
    assert function(*inputs), "no output depends on an input by a gradient"
    assert torch.autograd.gradcheck(function, inputs, atol=1e-4, fast_mode=True)
