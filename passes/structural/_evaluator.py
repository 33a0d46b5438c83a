"""Evaluate one node with constant inputs, by ONNX's reference evaluator, and distrust the answer"""

from __future__ import annotations

import math
import warnings

import numpy as np
import onnx
import onnx_ir as ir

# fmt: off
OPERATORS = frozenset(
    [
        "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "BitShift",
        "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Clip", "Compress",
        "Concat", "ConstantOfShape", "Cos", "Cosh", "CumSum", "DepthToSpace", "Div", "Einsum", "Elu", "Equal", "Erf",
        "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gemm", "Greater",
        "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "MatMul", "Max",
        "Mean", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "Pad", "Pow", "Range", "Reciprocal",
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND",
        "Shape", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub",
        "Sum", "Tan", "Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
    ]
)
# fmt: on
"""Operators that the reference evaluator computes as ONNX Runtime does, in all operator sets. Not so: Attention, LRN,
MaxUnpool, Resize, and Softmax below opset 13."""
_SMALL = 1024
"""Constants of at most this many elements are shown to shape inference."""


class Refused(Exception):
    """A node must stay; the message says why."""


class Call:
    """A node with constant inputs, as a model of its own."""

    def __init__(
        self, node: ir.Node, tensors: dict[ir.Value, ir.TensorProtocol | None], opsets: dict[str, int]
    ) -> None:
        """Build the model and infer what it will return.

        Raises:
            Refused: ONNX does not know what it returns.
        """
        self._feeds: dict[str, np.ndarray] = {}
        inputs, initializers = [], []
        proto = ir.to_proto(node)
        for index, value in enumerate(node.inputs):
            tensor = None if value is None else tensors[value]
            if tensor is None:
                continue
            name = proto.input[index] = f"input{index}"
            if tensor.size <= _SMALL:
                initializers.append(ir.to_proto(tensor))
                initializers[-1].name = name
            else:
                inputs.append(onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy()))
                self._feeds[name] = tensor.numpy()
        for index, name in enumerate(proto.output):
            proto.output[index] = name and f"output{index}"
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
        self._model = onnx.helper.make_model(
            onnx.helper.make_graph([proto], "node", inputs, outputs, initializers),
            opset_imports=[onnx.helper.make_opsetid(node.domain, opsets.get(node.domain, 1))],
        )
        try:
            inferred = onnx.shape_inference.infer_shapes(self._model)
        except onnx.shape_inference.InferenceError as error:
            raise Refused(f"ONNX cannot infer what it returns: {_first_line(error)}") from None
        types = {output.name: output.type.tensor_type for output in inferred.graph.output}
        self._types = [types.get(name) for name in proto.output]
        if any(type_ is not None and not type_.elem_type for type_ in self._types):
            raise Refused("ONNX cannot infer that it returns a tensor")

    @property
    def nbytes(self) -> int:
        """The size of the results as far as shapes tell, in bytes."""
        total = 0.0
        for type_ in filter(None, self._types):
            if type_.HasField("shape") and all(dim.HasField("dim_value") for dim in type_.shape.dim):
                total += ir.DataType(type_.elem_type).itemsize * math.prod(dim.dim_value for dim in type_.shape.dim)
        return int(total)

    def run(self) -> list[np.ndarray | None]:
        """Evaluate, and return one array per output of the node, None for one that is left out.

        Raises:
            Refused: the evaluator fails, or contradicts shape inference.
        """
        from onnx.reference import ReferenceEvaluator

        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                results = iter(ReferenceEvaluator(self._model).run(None, self._feeds))
        except Exception as error:  # its operators are plain numpy code and raise whatever numpy raises
            raise Refused(f"the reference evaluator cannot compute it: {_first_line(error)}") from None
        return [None if type_ is None else _checked(next(results), type_) for type_ in self._types]


def _checked(result: object, expected: onnx.TypeProto.Tensor) -> np.ndarray:
    array = np.asarray(result)
    if array.dtype != ir.DataType(expected.elem_type).numpy():
        raise Refused(f"the reference evaluator returns {array.dtype} for {ir.DataType(expected.elem_type).name}")
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in expected.shape.dim]
    fits = len(dims) == array.ndim and all(d in (None, size) for d, size in zip(dims, array.shape, strict=True))
    if expected.HasField("shape") and not fits:
        raise Refused(f"the reference evaluator returns shape {list(array.shape)}, ONNX infers {dims}")
    return array


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
