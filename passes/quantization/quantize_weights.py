"""Keep the weights of matrix products in 4 or 8 bits, in blocks that share a scale, and compute in floats

For networks whose time goes into reading weights, language models above all. `form=dequantize` writes standard
DequantizeLinear nodes with blocks (ONNX opset 21), `form=matmulnbits` ONNX Runtime's MatMulNBits, which multiplies packed
weights as they are. Weights are encoded one at a time when the model is written, so memory does not grow with the model.
Also ternary and binary weights (2 bits, opset 25), and float8, which have a scale for each output channel.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt import graphs, io, spec
from graphopt.errors import UsageError, did_you_mean
from graphopt.passbase import LOSSY, Pass, Result, param
from graphopt.passes.quantization import _blocks
from graphopt.passes.quantization._weights import number, quantize_weight, weight_scales

_MICROSOFT = "com.microsoft"
_LEAST_BLOCK = 16
"""What MatMulNBits takes: powers of two from here on."""
_LARGE = 1024
"""Bytes from which weights are written beside a model whose weights lay there."""

_SAFE_BITS = 4
"""Narrower weights pass through a Cast to int8: ONNX Runtime 1.31 computes something else of int2 in front of MatMul."""

Encoded = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Quantize the constant weights of MatMul and Gemm; activations stay as they are.

    Raises:
        PreconditionError: the opset is too old and cannot be raised.
        UsageError: `exclude` names a node that does not exist.
        ValueError: these fields do not go together.
    """

    contract = LOSSY

    weights: Literal["int4", "uint4", "int8", "uint8", "ternary", "binary", "float8"] = param(
        "int4", "what weights are kept in; unsigned ones have a zero point for each block"
    )
    block: int = param(32, "weights that share a scale; 0 gives each output channel one scale")
    form: Literal["dequantize", "matmulnbits"] = param("dequantize", "standard ONNX, or ONNX Runtime's operator")
    method: Literal["nearest", "search"] = param("nearest", "how scales are found: search errs less and takes longer")
    accuracy_level: int = param(
        0, "of MatMulNBits: 4 lets ONNX Runtime multiply in int8, 1 in float32, 0 lets it choose"
    )
    min_size: int = param(4096, "weights of fewer elements stay as they are")
    exclude: tuple[str, ...] = param((), "names of nodes that stay as they are")

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(f"block is {self.block}; it must be at least 0")
        if self.weights not in _blocks.KINDS and (self.block or self.form != "dequantize"):
            raise ValueError(f"{self.weights} weights have a scale for each channel; give block=0 form=dequantize")
        if self.form == "matmulnbits" and (self.block < _LEAST_BLOCK or self.block & (self.block - 1)):
            raise ValueError(f"block is {self.block}; MatMulNBits takes powers of two from {_LEAST_BLOCK} on")

    def call(self, model: ir.Model) -> Result:
        self._check_names(model)
        sites = list(self._sites(model))
        skipped = [(graphs.label(node), reason) for node, reason in sites if isinstance(reason, str)]
        chosen = [(node, weight) for node, weight in sites if isinstance(weight, ir.Value)]
        if not chosen:
            return Result(model, False, {"quantized": {}}, skipped)
        opset = self._opset()
        if model.opset_imports.get("", opset) < opset:
            spec.build("convert-opset", {"to": opset})(model)
            chosen = [(node, weight) for node, weight in self._sites(model) if isinstance(weight, ir.Value)]
        before = sum(
            weight.const_value.nbytes for weight in {w: None for _, w in chosen} if weight.const_value is not None
        )
        if any(isinstance(weight.const_value, ir.ExternalTensor) for _, weight in chosen):
            model.meta.setdefault(io.EXTERNAL, _LARGE)
        writer = _Writer(self, model)
        counts = Counter(node.op_type for node, _ in chosen)
        for node, weight in chosen:
            writer.write(node, weight)
        if self.form == "matmulnbits":
            model.opset_imports.setdefault(_MICROSOFT, 1)
        report = {"quantized": dict(sorted(counts.items())), "bytes": [before, writer.bytes]}
        return Result(model, True, report, skipped)

    def _check_names(self, model: ir.Model) -> None:
        names = {node.name for node in model.graph.all_nodes() if node.name}
        for name in self.exclude:
            if name not in names:
                raise UsageError(f"quantize-weights: exclude: no node is called '{name}'{did_you_mean(name, names)}")

    def _opset(self) -> int:
        if self.form == "matmulnbits":
            return 0
        least = 21 if self.weights == "uint4" else number(self.weights).opset
        return max(least, 21 if self.block else 13)

    def _sites(self, model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value | str]]:
        """Yield every matrix product with the weight to quantize, or why it stays as it is."""
        inside = {graph for function in model.functions.values() for graph in (function.graph, *function.subgraphs())}
        for graph in (model.graph, *model.graph.subgraphs()):
            if graph in inside:
                continue
            for node in graph:
                if node.domain == "" and node.op_type in ("MatMul", "Gemm"):
                    yield node, self._weight(node)

    def _weight(self, node: ir.Node) -> ir.Value | str:
        weight = node.inputs[1]
        tensor = graphs.constant(weight)
        if node.name in self.exclude:
            return "excluded"
        if weight is None or tensor is None:
            return "multiplies two activations, or its weight can be overridden"
        if not weight.is_initializer():
            return "its weight is a Constant node; run fold-constants first"
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or len(tensor.shape) != 2:
            return f"its weight is {tensor.dtype.name.lower()}{list(tensor.shape.numpy())}, not a float matrix"
        if tensor.size < self.min_size:
            return f"its weight has {tensor.size} elements only"
        if node.op_type == "Gemm" and self.form == "matmulnbits":
            plain = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
            if not plain or node.attributes.get_int("transA", 0):
                return "MatMulNBits has no alpha, beta or transA"
        return weight


class _Writer:
    """Rewrites matrix products of one model."""

    def __init__(self, asked: QuantizeWeights, model: ir.Model) -> None:
        self._asked = asked
        self._taken = graphs.names(model)
        self._made: dict[tuple[int, bool], list[ir.Value]] = {}
        self.bytes = 0
        """Of the quantized weights, with scales and zero points."""

    def write(self, node: ir.Node, weight: ir.Value) -> None:
        """Give a matrix product its quantized weight."""
        transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
        if self._asked.form == "matmulnbits":
            self._multiply(node, weight, transposed=transposed)
        else:
            self._dequantize(node, weight, transposed=transposed)
        graphs.discard(weight)

    def _dequantize(self, node: ir.Node, weight: ir.Value, *, transposed: bool) -> None:
        asked = self._asked
        inputs = self._stored(weight, transposed=transposed, packed=False)
        attributes = (
            {"axis": int(transposed), "block_size": asked.block} if asked.block else {"axis": 1 - int(transposed)}
        )
        assert inputs[0].dtype is not None
        if inputs[0].dtype.bitwidth < _SAFE_BITS:
            inputs = [
                self._before(node, "Cast", [value], {"to": ir.DataType.INT8}) if value is not inputs[1] else value
                for value in inputs
            ]
        node.replace_input_with(1, self._before(node, "DequantizeLinear", inputs, attributes))

    def _before(self, node: ir.Node, op: str, inputs: list[ir.Value], attributes: dict[str, int]) -> ir.Value:
        """Return the output of a new node in front of another."""
        made = ir.node(op, inputs, attributes, name=graphs.fresh(f"{inputs[0].name}_{op.lower()}", self._taken))
        made.outputs[0].name = made.name
        assert isinstance(node.graph, ir.Graph)
        node.graph.insert_before(node, made)
        return made.outputs[0]

    def _multiply(self, node: ir.Node, weight: ir.Value, *, transposed: bool) -> None:
        asked = self._asked
        assert weight.const_value is not None
        rows, columns = weight.const_value.shape.numpy()
        if transposed:
            rows, columns = columns, rows
        bits = 4 if asked.weights.endswith("4") else 8
        attributes = {"K": rows, "N": columns, "bits": bits, "block_size": asked.block}
        if asked.accuracy_level:
            attributes["accuracy_level"] = asked.accuracy_level
        inputs = [node.inputs[0], *self._stored(weight, transposed=transposed, packed=True)]
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        name = graphs.fresh(f"{node.outputs[0].name}_nbits", self._taken)
        made = ir.node("MatMulNBits", inputs, attributes, domain=_MICROSOFT, name=name)
        assert isinstance(node.graph, ir.Graph)
        node.graph.insert_before(node, made)
        made.outputs[0].type, made.outputs[0].name = node.outputs[0].type, name
        if bias is None:
            node.op_type, node.domain = "Identity", ""
            node.attributes.clear()
            node.resize_inputs(1)
            node.replace_input_with(0, made.outputs[0])
            reason = graphs.redirect(node.outputs[0], made.outputs[0], self._taken)
            if reason is None:
                node.graph.remove(node, safe=True)
        else:
            node.op_type = "Add"
            node.attributes.clear()
            node.resize_inputs(2)
            node.replace_input_with(0, made.outputs[0])
            node.replace_input_with(1, bias)

    def _stored(self, weight: ir.Value, *, transposed: bool, packed: bool) -> list[ir.Value]:
        """Return initializers that hold a weight: integers, scales, and zero points where there are any."""
        tensor = weight.const_value
        assert tensor is not None
        key = (id(weight), transposed)
        if key not in self._made:
            lazy = _Lazy(tensor, self._asked, transposed=transposed)
            graph = weight.graph
            assert isinstance(graph, ir.Graph)
            self._made[key] = []
            for suffix, dtype, shape, make in lazy.parts(packed=packed):
                name = graphs.fresh(f"{weight.name}_{suffix}", self._taken)
                stored = ir.LazyTensor(make, dtype, ir.Shape(shape), name=name)
                value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=stored)
                graph.register_initializer(value)
                self._made[key].append(value)
                self.bytes += stored.nbytes
        return self._made[key]


class _Lazy:
    """A weight that is encoded when it is asked for; the last part to be read lets go of the result."""

    def __init__(self, tensor: ir.TensorProtocol, asked: QuantizeWeights, *, transposed: bool) -> None:
        self._tensor, self._asked, self._transposed = tensor, asked, transposed
        self._encoded: Encoded | None = None
        self._waiting: set[str] = set()

    def parts(self, *, packed: bool) -> Iterator[tuple[str, ir.DataType, tuple[int, ...], Callable[[], ir.Tensor]]]:
        """Yield name, type, shape and maker of each tensor."""
        asked = self._asked
        rows, columns = self._tensor.shape.numpy()
        if self._transposed:
            rows, columns = columns, rows
        blocks = -(-rows // asked.block) if asked.block else 1
        kind = _blocks.KINDS.get(asked.weights)
        bits = 4 if asked.weights.endswith("4") else 8
        if packed:
            bytes_ = asked.block * bits // 8
            yield self._part(
                "q",
                ir.DataType.UINT8,
                (columns, blocks, bytes_),
                lambda found: _pack(found[0], asked.block, bits, signed=kind is not None and kind.symmetric),
            )
            yield self._part(
                "s", self._tensor.dtype, (columns * blocks,), lambda found: np.ascontiguousarray(found[1].T).reshape(-1)
            )
            if kind is not None and not kind.symmetric:
                yield self._part(
                    "z",
                    ir.DataType.UINT8,
                    (columns * -(-blocks * bits // 8),),
                    lambda found: _pack_zeros(found[2], bits),
                )
            return
        dtype = ir.DataType[asked.weights.upper()] if kind is not None else number(asked.weights).dtype
        turn = (lambda array: array.T) if self._transposed else (lambda array: array)
        shape = (columns, rows) if self._transposed else (rows, columns)
        scales = (columns,) if not asked.block else ((columns, blocks) if self._transposed else (blocks, columns))
        yield self._part("q", dtype, shape, lambda found: turn(found[0]))
        yield self._part("s", self._tensor.dtype, scales, lambda found: turn(found[1]).reshape(scales))
        if kind is None or not kind.symmetric:
            yield self._part(
                "z",
                dtype,
                scales,
                lambda found: np.zeros(scales) if found[2] is None else turn(found[2]).reshape(scales),
            )

    def _part(
        self, suffix: str, dtype: ir.DataType, shape: tuple[int, ...], pick: Callable[[Encoded], np.ndarray]
    ) -> tuple[str, ir.DataType, tuple[int, ...], Callable[[], ir.Tensor]]:
        self._waiting.add(suffix)

        def make() -> ir.Tensor:
            if self._encoded is None:
                self._encoded = self._encode()
                self._left = set(self._waiting)
            array = np.ascontiguousarray(pick(self._encoded).astype(dtype.numpy()))
            self._left.discard(suffix)
            if not self._left:
                self._encoded = None
            return ir.Tensor(array, dtype)

        return suffix, dtype, shape, make

    def _encode(self) -> Encoded:
        try:
            return self._encoded_of(self._tensor.numpy())
        finally:
            if isinstance(self._tensor, ir.ExternalTensor):
                self._tensor.release()  # what was read of the file would stay in memory

    def _encoded_of(self, weight: np.ndarray) -> Encoded:
        asked = self._asked
        if self._transposed:
            weight = weight.T
        kind = _blocks.KINDS.get(asked.weights)
        if kind is not None:
            size = asked.block or len(weight)
            return _blocks.encode(weight, size, kind, weight.dtype, search=asked.method == "search")
        wide = np.ascontiguousarray(weight, np.float32)
        scales = weight_scales(wide, 1, None, 1.0, asked.weights)
        return quantize_weight(wide, scales, 1, asked.weights), scales[None].astype(weight.dtype), None


def _pack(integers: np.ndarray, block: int, bits: int, *, signed: bool) -> np.ndarray:
    """Return integers [K, N] as MatMulNBits takes them, uint8 [N, blocks, block * bits / 8]: offset by half the range."""
    rows, columns = integers.shape
    half = 1 << (bits - 1)
    full = -(-rows // block) * block
    moved = integers.view(np.uint8) + np.uint8(half) if signed else integers  # modulo 256
    if full > rows:
        moved = np.concatenate([moved, np.full((full - rows, columns), half if signed else 0, np.uint8)])
    if bits == 4:
        moved = moved[0::2] | (moved[1::2] << 4)
    return np.ascontiguousarray(moved.T).reshape(columns, full // block, block * bits // 8)


def _pack_zeros(zeros: np.ndarray | None, bits: int) -> np.ndarray:
    """Return zero points [blocks, N] packed along the blocks of a column, uint8."""
    assert zeros is not None
    across = np.ascontiguousarray(zeros.T)
    if bits == 8:
        return across.reshape(-1)
    if across.shape[1] % 2:
        across = np.pad(across, ((0, 0), (0, 1)))
    return (across[:, 0::2] | (across[:, 1::2] << 4)).reshape(-1)
