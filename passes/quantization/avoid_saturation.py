"""Keep 8-bit products from saturating on processors without VNNI, where they would

AVX2 and AVX-512 without VNNI add two neighbouring products of uint8 activations and int8 weights in 16 bits, which
saturate (see `graphopt.saturation`); the same file then scores lower there. Every layer is audited with its stored
weights and the range of its activations' integers; only layers that can saturate are changed, and in them only the output
channels that can. Afterwards none can, whatever the data, so the results are the same on every processor.

`7-bit` gives these channels the step, larger by up to two, and the integers that keep the weights best without saturating
(see `_coarse`): as fast as before. `u8u8` stores weights as uint8 around 128: the same numbers to the last bit, for
kernels that are exact everywhere, and with VNNI take two to five times as long. `auto` is 7-bit, and
u8u8 for layers that cannot have a step per channel. Halving the range of activations is not offered: it would cost a bit in
every channel of every layer that reads them, and hold only with a Clip behind every QuantizeLinear. MatMulInteger,
QLinearMatMul and QLinearConv get unsigned weights.

With data, the model is simulated as such a processor runs it, before and after (but for these three operators).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import graphs, runtime, saturation, scopes, target
from graphopt.activations import observe
from graphopt.data import Data, open_data
from graphopt.fidelity import Fidelity
from graphopt.passbase import LOSSY, Pass, Result, param
from graphopt.passes.quantization._coarse import coarsen
from graphopt.passes.quantization._graphs import constant, input_of, is_constant, label
from graphopt.passes.quantization._integer_operators import IntegerOperator, integer_operators
from graphopt.passes.quantization._nodes import Nodes
from graphopt.passes.quantization._quantized import affine
from graphopt.passes.quantization._saturation import Site, sites
from graphopt.passes.quantization._simulation import Simulated, simulate
from graphopt.passes.quantization._twins import Reference, open_reference, twins

_AXIS_OPSET = 13
"""Since when DequantizeLinear has one scale per channel."""
_FUSED = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "DynamicQuantizeLSTM")
_NEAR = 1.5
"""How many steps a weight may be from that of the reference: rounding may be learned, other weights are another layer's."""


@dataclasses.dataclass(frozen=True)
class AvoidSaturation(Pass):
    """Change the layers that can saturate.

    Raises:
        UserError: the data does not fit the model, or the reference has other layers.
    """

    contract = LOSSY

    method: Literal["auto", "7-bit", "u8u8"] = param(
        "auto", "coarser weights, unsigned weights, or whichever is possible"
    )
    any_order: bool = param(False, "also guard against kernels that pair products in another order than ONNX Runtime's")
    reference: Reference = param("", "the float model, to round its weights once", source="model")
    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "inputs on which to simulate such a processor: a .npz file or package.module:factory", source="data"
    )
    samples: int = param(128, "how many samples to simulate at most")
    batch: int = param(16, "samples per run, where the model leaves the choice")
    target: str = param("cpu", "where the simulation runs")

    def call(self, model: ir.Model) -> Result:
        audited = [(graph, site) for graph in scopes.main_and_bodies(model) for site in sites(graph)]
        operators = [operator for graph in scopes.main_and_bodies(model) for operator in integer_operators(graph)]
        layers = [(graph, site) for graph, site in audited if self._channels(site).any()]
        risky = [operator for operator in operators if operator.channels(any_order=self.any_order).any()]
        report: dict[str, Any] = {
            "layers": len(audited) + len(operators),
            "can_saturate": len(layers) + len(risky),
        }
        reference = open_reference(self.reference, self.pass_name()) if self.reference else None
        trial = _Trial(model, reference, self) if layers and not _is_empty(self.data) else None
        if trial:
            report |= trial.before()
        floats = _weights(model, reference) if reference and layers else {}
        skipped = list(_out_of_reach(model))
        fixed = self._fix_layers(model, layers, floats, skipped) + self._fix_operators(model, risky, skipped)
        report["fixed"] = dict(fixed)
        if fused := sum(1 for graph in scopes.main_and_bodies(model) for node in graph if _is_fused(node)):
            report["not_audited"] = fused
        if trial:
            report |= trial.after(model)
        return Result(model, bool(fixed), report, skipped)

    def _fix_layers(
        self,
        model: ir.Model,
        layers: Sequence[tuple[ir.Graph, Site]],
        floats: Mapping[ir.Node, np.ndarray | None],
        skipped: list[tuple[str, str]],
    ) -> Counter[str]:
        """Fix what can be fixed; count how, and add rows about the rest."""
        taken = set(graphs.names(model)) | {node.name for node in model.graph.all_nodes() if node.name}
        fixed: Counter[str] = Counter()
        for graph, site in layers:
            reasons = {way: _obstacle(model, site, way) for way in ("7-bit", "u8u8") if self.method in ("auto", way)}
            way = next((way for way, reason in reasons.items() if reason is None), None)
            if way is None:
                skipped.append((label(site.node), "it can saturate: " + "; ".join(map(str, reasons.values()))))
                continue
            fixed[way] += 1
            fix = _Fix(site, Nodes(graph, taken), taken)
            if way == "u8u8":
                fix.store_unsigned()
            else:
                fix.coarsen(self._channels(site), floats.get(site.node), any_order=self.any_order)
        return fixed

    def _fix_operators(
        self, model: ir.Model, operators: Sequence[IntegerOperator], skipped: list[tuple[str, str]]
    ) -> Counter[str]:
        """Do the same for operators on integers."""
        taken = graphs.names(model)
        fixed: Counter[str] = Counter()
        for operator in operators:
            if operator.obstacle or self.method == "7-bit":
                reason = operator.obstacle or "coarser weights would need other scales; choose u8u8"
                skipped.append((label(operator.node), f"it can saturate: {reason}"))
            else:
                operator.store_unsigned(taken)
                fixed["u8u8"] += 1
        return fixed

    def _channels(self, site: Site) -> np.ndarray:
        return np.asarray(site.suspicious if self.any_order else site.guilty.any(axis=1))


def _obstacle(model: ir.Model, site: Site, way: str) -> str | None:
    """Return why a layer cannot be fixed in one way."""
    weight = site.layer.weight
    if way == "u8u8":
        if site.offset:
            return "u8u8 needs unsigned activations"
        return None
    if np.any(weight.zero_point):
        return "7-bit needs weights without a zero point"
    if weight.axis is None and site.node.op_type == "MatMul" and weight.integers.ndim != 2:
        return "7-bit needs a step per channel, and the weights are a batch of matrices"
    if weight.axis is None and model.opset_imports.get("", _AXIS_OPSET) < _AXIS_OPSET:
        return f"7-bit needs a step per channel, which needs opset {_AXIS_OPSET}"
    if weight.axis is not None and weight.axis != site.layer.channel_axis:
        return "its steps are not per output channel"
    bias = input_of(site.node, 2)
    if bias is not None and site.node.op_type != "MatMul" and site.layer.bias is None and affine(bias) is not None:
        return "its bias is computed"
    return None


class _Fix:
    """Gives a layer other integer weights, under the names of the old ones where nothing else uses these."""

    def __init__(self, site: Site, new: Nodes, taken: set[str]) -> None:
        self._site, self._new, self._taken = site, new, taken

    def store_unsigned(self) -> None:
        """Store the weights as uint8: the same numbers, around another zero point."""
        weight = self._site.layer.weight
        integers, zeros = ((array + 128).astype(np.uint8) for array in (weight.integers, weight.zero_point))
        self._replace(1, integers, weight.scale, zeros, weight.axis)

    def coarsen(self, chosen: np.ndarray, floats: np.ndarray | None, *, any_order: bool) -> None:
        """Give the chosen channels, bool [C], larger steps.

        Args:
            chosen: the channels.
            floats: the weights as they were in float, if known.
            any_order: whether any two weights may meet.
        """
        site, weight = self._site, self._site.layer.weight
        rows = site.rows(weight.integers)
        scales = np.broadcast_to(weight.scale.reshape(-1), (len(rows),)).astype(np.float32)
        wanted: np.ndarray = rows.astype(np.float32)
        if floats is not None and floats.shape == weight.integers.shape:
            exact = site.rows(floats) / scales[:, None]
            wanted = exact if np.abs(exact - rows).max(initial=0) <= _NEAR else wanted
        made = rows.copy()
        largest = saturation.largest_sum(site.high)
        made[chosen], factors = coarsen(wanted[chosen], largest, any_order=any_order)
        steps = scales.copy()
        steps[chosen] *= factors
        axis = site.layer.channel_axis
        integers = site.unrows(made, weight.integers.shape).astype(np.int8)
        self._replace(1, integers, steps, np.zeros(len(steps), np.int8), axis)
        self._requantize_bias(steps)

    def _requantize_bias(self, steps: np.ndarray) -> None:
        """Put the bias on the grid of the products, on which kernels take it to be."""
        site, bias = self._site, self._site.layer.bias
        if bias is None or site.node.op_type == "MatMul":
            return
        grid = steps.astype(np.float64) * float(site.activation.scale.reshape(()))
        floats = np.broadcast_to(bias.floats().astype(np.float64), (*bias.integers.shape[:-1], len(steps)))
        integers = np.clip(np.rint(floats / grid), -(2**31), 2**31 - 1).astype(np.int32)
        self._replace(2, integers, grid.astype(np.float32), None, integers.ndim - 1)

    def _replace(
        self, index: int, integers: np.ndarray, scale: np.ndarray, zeros: np.ndarray | None, axis: int | None
    ) -> None:
        node = self._site.node
        old = node.inputs[index]
        part = affine(old)
        assert old is not None
        assert part is not None
        names = [value.name or "" for value in (old, *part.node.inputs) if value is not None]
        node.replace_input_with(index, None)
        graphs.discard(old)
        kept = {value.name for value in graphs.definitions(self._graph)}
        self._taken.difference_update(name for name in names if name not in kept)
        stem = (part.source.name or "weight").removesuffix("_q")
        node.replace_input_with(index, self._new.dequantize_constant(integers, scale, zeros, stem, axis, node))

    @property
    def _graph(self) -> ir.Graph:
        graph = self._site.node.graph
        assert isinstance(graph, ir.Graph)
        return graph


class _Trial:
    """Simulates the model as a processor without VNNI runs it."""

    def __init__(self, model: ir.Model, reference: ir.Model | None, asked: AvoidSaturation) -> None:
        """Run what to compare with: the float model if it is known, else the model without saturation."""
        self._place = target.find(asked.target)
        self._data, self._asked = open_data(asked.data), asked
        ports = runtime.model_inputs(model)
        self._data.check(ports)
        self._model = model
        exact = simulate(model, exact=True).model
        session = runtime.open_session(reference or exact, self._place)
        self._fidelity = Fidelity(session, self._data, ports, samples=asked.samples, batch=asked.batch)
        self._exact = self._sqnr(exact) if reference else None

    def before(self) -> dict[str, Any]:
        """Return what saturation does to the model, and where."""
        simulated = simulate(self._model)
        report = {"saturated": self._saturated(simulated), "sqnr_before": self._sqnr(simulated.model)}
        return report if self._exact is None else {**report, "sqnr_exact": self._exact}

    def after(self, model: ir.Model) -> dict[str, Any]:
        """Return what it does after the change."""
        return {"sqnr_after": self._sqnr(simulate(model).model)}

    def _sqnr(self, model: ir.Model) -> float:
        return round(self._fidelity.worst(runtime.open_session(model, self._place)), 2)

    def _saturated(self, simulated: Simulated) -> int:
        """Count the layers in which a pair saturates on this data."""
        found = {value: name for name, value in simulated.changes.items()}
        seen: set[str] = set()
        asked = self._asked
        for arrays, _ in observe(
            simulated.model, list(found), self._data, place=self._place, samples=asked.samples, batch=asked.batch
        ):
            seen.update(found[value] for value, array in arrays.items() if np.any(array))
        return len(seen)


def _weights(model: ir.Model, reference: ir.Model) -> dict[ir.Node, np.ndarray | None]:
    """Return the float weights of layers, where the reference has them."""
    found, _ = twins(model, reference, AvoidSaturation.pass_name())
    return {twin.layer.node: twin.weight for twin in found}


def _out_of_reach(model: ir.Model) -> Iterator[tuple[str, str]]:
    """Yield a row for everything that may saturate and is not audited."""
    for function in model.functions.values():
        for graph in (function.graph, *function.subgraphs()):
            for site in sites(graph):
                yield label(site.node), f"it is part of function {function.name}; inline functions"
    for graph in scopes.main_and_bodies(model):
        for node in graph:
            if _is_fused(node):
                yield label(node), f"{node.op_type} is not audited; run avoid-saturation before fuse"
            if node.op_type != "MatMul" or is_constant(input_of(node, 1)):
                continue
            one, two = affine(node.inputs[0]), affine(input_of(node, 1))
            if one and two and not is_constant(two.source) and two.dtype == ir.DataType.INT8:
                yield label(node), "it multiplies by activations of int8, which saturate; quantize them to uint8"


def _is_fused(node: ir.Node) -> bool:
    """Tell whether an operator of ONNX Runtime multiplies by signed 8-bit weights, which may saturate in it."""
    stored = (constant(value) for value in node.inputs)
    return node.op_type in _FUSED and any(array is not None and array.dtype == np.int8 for array in stored)


def _is_empty(data: object) -> bool:
    return isinstance(data, str) and not data
