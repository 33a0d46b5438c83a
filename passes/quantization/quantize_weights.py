"""Keep constant weights in 8, 4 or 2 bits, in blocks that share a scale, and compute in floats

For networks whose time goes into reading weights, language models above all, and for smaller files. Weights are encoded
one at a time when the model is written, so memory does not grow with the model.

`form=dequantize` writes standard DequantizeLinear nodes, with blocks since ONNX opset 21. In front of a MatMul, ONNX
Runtime turns them into MatMulNBits, which multiplies packed weights as they are; elsewhere it computes the floats anew at
every run. `form=matmulnbits` writes that operator, and GatherBlockQuantized for embeddings, itself. `form=fold` writes
Cast and Mul, which ONNX Runtime carries out once, when it loads the model: a small file, and the speed and memory of
floats.

Ternary weights (-s, 0, s) after Li et al. 2016 (arXiv:1605.04711) and binary ones (-s, s) after Rastegari et al. 2016
(arXiv:1603.05279) have the scales of least squared error, and are kept in int2 (opset 25).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt import graphs, io, runtime, scopes, spec, target
from graphopt.data import Data, open_data
from graphopt.errors import UsageError, did_you_mean
from graphopt.passbase import LOSSY, Pass, PreconditionError, Result, param
from graphopt.passes.quantization._block_gptq import products
from graphopt.passes.quantization._block_kinds import KINDS
from graphopt.passes.quantization._block_layout import Layout
from graphopt.passes.quantization._block_store import Store, is_finite
from graphopt.passes.quantization._block_writer import Dequantize, Fold, NBits, Site, Writer

_LEAST_BLOCK = 16
"""What ONNX Runtime's operators take: powers of two from here on."""
_LARGE = 1024
"""Bytes from which weights are written beside a model whose weights lay there."""
_OPS = ("MatMul", "Gemm", "Gather", "Conv")
_WRITERS: dict[str, type[Writer]] = {"dequantize": Dequantize, "matmulnbits": NBits, "fold": Fold}
_BLOCKS = 21
"""The version of ONNX since which DequantizeLinear knows blocks."""


@dataclasses.dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Quantize constant weights; activations stay as they are.

    Raises:
        PreconditionError: the opset is too old and cannot be raised.
        UsageError: `exclude` names a node that does not exist, `ops` an operator that has no weights here.
        ValueError: these fields do not go together.
    """

    contract = LOSSY

    weights: Literal["int4", "uint4", "int8", "uint8", "ternary", "binary", "float8"] = param(
        "int4", "what weights are kept in; unsigned ones have a zero point for each block"
    )
    block: int = param(32, "weights that share a scale; 0 gives each output channel one scale")
    form: Literal["dequantize", "matmulnbits", "fold"] = param(
        "dequantize", "standard ONNX, ONNX Runtime's operators, or standard ONNX that becomes floats when it loads"
    )
    method: Literal["nearest", "search", "gptq"] = param(
        "nearest",
        "how numbers are found: search tries more scales; gptq rounds by the output of matrix products, and needs data",
    )
    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "for gptq, representative inputs: a .npz file or package.module:factory", source="data"
    )
    samples: int = param(128, "how many samples to use at most")
    batch: int = param(32, "samples per run, where the model leaves the choice")
    threads: int = param(0, "threads of the runtime; 0 lets it decide")
    accuracy_level: int = param(
        4, "of MatMulNBits: 4 multiplies in int8, as ONNX Runtime does for form=dequantize; 1 in float32, slower"
    )
    ops: tuple[str, ...] = param(("MatMul", "Gemm"), f"operators whose weights to quantize, of {', '.join(_OPS)}")
    min_size: int = param(4096, "weights of fewer elements stay as they are")
    exclude: tuple[str, ...] = param((), "names of nodes that stay as they are")

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(f"block is {self.block}; it must be at least 0")
        if self.form == "matmulnbits":
            if not KINDS[self.weights].uniform:
                raise ValueError(f"MatMulNBits knows no {self.weights} weights; give form=dequantize or form=fold")
            if self.block < _LEAST_BLOCK or self.block & (self.block - 1):
                raise ValueError(f"block is {self.block}; MatMulNBits takes powers of two from {_LEAST_BLOCK} on")
        if not 0 <= self.accuracy_level <= 4:
            raise ValueError(f"accuracy_level is {self.accuracy_level}; it goes from 0 to 4")
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.method == "gptq" and not KINDS[self.weights].uniform:
            raise ValueError(f"gptq rounds to integers, not to {self.weights}; choose method=search")

    def requires(self, model: ir.Model) -> None:
        """Refuse gptq without data."""
        if self.method == "gptq":
            if isinstance(self.data, str) and not self.data:
                raise PreconditionError("gptq needs data; name some with data=FILE.npz, a hundred typical inputs")
            open_data(self.data).check(runtime.model_inputs(model))

    def call(self, model: ir.Model) -> Result:
        self._check_names(model)
        skipped, stores = self._plan(model)
        if not stores:
            return Result(model, False, {"quantized": {}}, skipped)
        opset = max(map(self._opset, stores))
        if model.opset_imports.get("", opset) < opset:
            spec.build("convert-opset", {"to": opset})(model)
            skipped, stores = self._plan(model)
        weights = {site.weight: site.tensor for site in stores}
        before = sum(tensor.nbytes for tensor in weights.values())
        if any(isinstance(tensor, ir.ExternalTensor) for tensor in weights.values()):
            model.meta.setdefault(io.EXTERNAL, _LARGE)
        counts = Counter(site.node.op_type for site in stores)
        if self.method == "gptq":
            skipped += self._round_by_output(model, stores)
        writer = self._writer(model, stores)
        for site, store in stores.items():
            writer.write(site, store)
            graphs.discard(site.weight)
        after = sum(store.nbytes for store in dict.fromkeys(stores.values()))
        return Result(model, True, {"quantized": dict(sorted(counts.items())), "bytes": [before, after]}, skipped)

    def _round_by_output(self, model: ir.Model, stores: Mapping[Site, Store]) -> Iterator[tuple[str, str]]:
        """Choose the integers of matrix products by their outputs; yield a row for each that keeps those of the search."""
        read: dict[ir.Value, dict[Store, ir.Node]] = {}
        for site, store in stores.items():
            value = site.node.inputs[0]
            if site.index == 1 and site.node.op_type in ("MatMul", "Gemm") and site.graph is model.graph and value:
                read.setdefault(value, {})[store] = site.node
            else:
                yield graphs.label(site.node), "gptq is for products from the right in the main graph; searched instead"
        place = target.find("cpu", self.threads)
        for value, moments in products(model, list(read), open_data(self.data), place, self.samples, self.batch):
            for store, node in read[value].items():
                if moments is None or moments.shape[0] != store.layout.rows:
                    yield graphs.label(node), "what it reads is not finite, or transposed; searched instead"
                else:
                    store.round_by(moments)

    def _check_names(self, model: ir.Model) -> None:
        names = {node.name for node in model.graph.all_nodes() if node.name}
        for name in self.exclude:
            if name not in names:
                raise UsageError(f"quantize-weights: exclude: no node is called '{name}'{did_you_mean(name, names)}")
        for op in self.ops:
            if op not in _OPS:
                raise UsageError(f"quantize-weights: ops: {op} has no weights here{did_you_mean(op, _OPS)}")

    def _writer(self, model: ir.Model, stores: Mapping[Site, Store]) -> Writer:
        if self.form == "matmulnbits":
            return NBits(model, self.accuracy_level)
        return Dequantize(model, stores) if self.form == "dequantize" else Fold(model)

    def _opset(self, site: Site) -> int:
        """Return the version of ONNX that a weight needs."""
        kind = KINDS[self.weights]
        if self.form == "matmulnbits":
            return 0
        blocked = self.form == "dequantize" and "block_size" in site.layout.attributes
        return max(kind.opset, _BLOCKS if blocked else 0)

    def _plan(self, model: ir.Model) -> tuple[list[tuple[str, str]], dict[Site, Store]]:
        """Return why nodes are skipped, and how the weights of the others are stored; shared weights share a store."""
        rows = [row for graph in scopes.main_and_bodies(model) for node in graph for row in self._row(node)]
        rows += [
            (node, "it belongs to a function; run simplify first, which inlines functions")
            for _, node in scopes.function_nodes(model)
            if graphs.is_op(node, *self.ops)
        ]
        chosen = {(row.node, row.index) for _, row in rows if isinstance(row, Site)}
        made: dict[tuple[ir.Value, Layout, str], Store | str] = {}
        skipped: list[tuple[str, str]] = []
        stores: dict[Site, Store] = {}
        for node, row in rows:
            found = row if isinstance(row, str) else _other_use(row.weight, chosen) or self._store(row, made)
            if isinstance(row, Site) and isinstance(found, Store):
                stores[row] = found
            else:
                skipped.append((graphs.label(node), str(found)))
        for weight, sites in _by_weight(stores).items():
            if sum(store.nbytes for store in {stores[site] for site in sites}) >= sites[0].tensor.nbytes:
                reason = f"'{weight.name}' is needed in several layouts, which together would not be smaller"
                skipped += [(graphs.label(site.node), reason) for site in sites]
                stores = {site: store for site, store in stores.items() if site not in sites}
        return skipped, stores

    def _row(self, node: ir.Node) -> Iterator[tuple[ir.Node, Site | str]]:
        """Yield a node with its weight, or with why it stays as it is; nothing for operators that were not asked for."""
        if not graphs.is_op(node, *self.ops):
            return
        index = _index(node)
        weight = node.inputs[index]
        tensor = graphs.constant(weight)
        if node.name in self.exclude:
            yield node, "excluded"
        elif weight is not None and weight.is_graph_input() and weight.is_initializer():
            yield node, "its weight is a default that callers may override; run freeze-defaults first"
        elif weight is None or tensor is None:
            yield node, "it has no constant weight"
        else:
            layout = _layout(node, index, tuple(tensor.shape.numpy()), self.block)
            if (
                layout is not None
                and self.form == "dequantize"
                and node.op_type == "Gemm"
                and layout.axis == index == 1
            ):
                layout = layout.turned  # ONNX Runtime makes MatMulNBits of Gemm without transB only
            reason = self._refusal(node, index, tensor, layout)
            yield node, Site(node, index, weight, layout) if layout is not None and reason is None else str(reason)

    def _store(self, site: Site, made: dict[tuple[ir.Value, Layout, str], Store | str]) -> Store | str:
        """Return how a weight is stored, or why it stays as it is; what was found before is in `made`."""
        shelf = _WRITERS[self.form].shelf(site.node)
        key = site.weight, site.layout, shelf
        if key not in made:
            store = Store(site.tensor, site.layout, KINDS[self.weights], shelf, search=self.method != "nearest")
            if store.nbytes >= site.tensor.nbytes:
                made[key] = f"its weight {list(site.layout.shape)} would not get smaller"
            elif not is_finite(site.tensor):
                made[key] = "its weight holds infinity or NaN"
            else:
                made[key] = store
        return made[key]

    def _refusal(self, node: ir.Node, index: int, tensor: ir.TensorProtocol, layout: Layout | None) -> str | None:
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return f"its weight is {tensor.dtype.name.lower()}"
        if layout is None:
            return f"its weight has the shape {list(tensor.shape.numpy())} or an axis that is not handled"
        if tensor.size < max(self.min_size, 1):
            return f"its weight has {tensor.size} elements only"
        if node.op_type == "Gather":
            if self.form == "dequantize" and self.weights == "float8":
                return "Gather knows no float8; give form=fold"
            return None
        return self._refusal_of_nbits(node, index, layout) if self.form == "matmulnbits" else None

    def _refusal_of_nbits(self, node: ir.Node, index: int, layout: Layout) -> str | None:
        if node.op_type == "Conv":
            return "ONNX Runtime has no convolution of packed weights; give form=fold"
        if index == 0 or len(layout.shape) != 2:
            return "MatMulNBits takes a matrix on the right only"
        if node.op_type == "Gemm":
            plain = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
            if not plain or node.attributes.get_int("transA", 0) != 0:
                return "MatMulNBits has no alpha, beta or transA"
        return None


def _index(node: ir.Node) -> int:
    """Return which input of a node is its weight."""
    if node.op_type == "Gather":
        return 0
    left = node.op_type in ("MatMul", "Gemm") and graphs.constant(node.inputs[1]) is None
    return 0 if left and graphs.constant(node.inputs[0]) is not None else 1


def _layout(node: ir.Node, index: int, shape: tuple[int, ...], block: int) -> Layout | None:
    """Return how to cut a node's weight, or None if its shape is not handled."""
    rank = len(shape)
    if node.op_type == "Gather":
        looked_up = node.attributes.get_int("axis", 0) in (0, -rank)
        return Layout(shape, 1, block, None) if rank == 2 and looked_up else None
    if node.op_type == "Conv":
        return Layout(shape, 1, block, None if block else 0) if rank >= 3 else None
    if rank == 0:
        return None
    if node.op_type == "Gemm":
        turned = node.attributes.get_int("transB" if index else "transA", 0) != 0
        axis = int(turned) if index else 1 - int(turned)
    else:
        axis = max(rank - 2, 0) if index else rank - 1
    return Layout(shape, axis, block, None if block or rank != 2 else 1 - axis)


def _by_weight(sites: Iterable[Site]) -> dict[ir.Value, list[Site]]:
    found: dict[ir.Value, list[Site]] = {}
    for site in sites:
        found.setdefault(site.weight, []).append(site)
    return found


def _other_use(weight: ir.Value, chosen: Set[tuple[ir.Node, int]]) -> str | None:
    """Return what else needs a weight in floats, which would then be kept twice."""
    if weight.is_graph_output():
        return "its weight is an output of the model"
    other = next((use.node for use in weight.uses() if (use.node, use.idx) not in chosen), None)
    return None if other is None else f"its weight is also used by {graphs.label(other)} ({other.op_type}), in floats"
