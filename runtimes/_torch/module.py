"""A model as a torch module, whose parameters are the model's initializers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import Tensor, nn

from graphopt.runtime import ExecutionError
from graphopt.runtimes._torch import table, values
from graphopt.runtimes._torch.program import Compiler, Program
from graphopt.runtimes._torch.quantizers import quantization_of

_SMALL = 1024
"""Whole numbers up to this many stay on the processor, where sizes and indices are computed."""


def unsupported(model: ir.Model) -> list[tuple[str, str]]:
    """Return `(node, reason)` for everything in a model that the torch runtime cannot execute.

    Args:
        model: never changed.
    """
    model = _inlined(model)
    compiler = Compiler(model.opset_imports, table.Mode(), {})
    opset = compiler.opset("")
    if not table.FIRST <= opset <= table.LAST:
        return [
            ("the model", f"is of opset {opset}, outside {table.FIRST} to {table.LAST}; use graphopt convert-opset")
        ]
    found = []
    for node in model.graph.all_nodes():
        objection = compiler.objection(node)
        if objection:
            found.append((f"{node.name or node.outputs[0].name} ({node.op_type})", objection))
    return found


class OnnxModule(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """A graph that torch executes, and can differentiate.

    Attributes:
        mode: how batch normalization works; changed at any time.
        scales: names of the scales among the parameters.
        refused: `(initializer, reason)` of weights that were to be trained and cannot.
    """

    def __init__(self, model: ir.Model, trainable: Collection[str] = (), *, learn_scales: bool = False) -> None:
        """Compile a model.

        Args:
            model: never changed.
            trainable: names of initializers of the main graph that become parameters; quantized ones, which
                DequantizeLinear reads, are trained as floats and rounded in the end.
            learn_scales: whether the scales of quantized tensors become parameters as well.

        Raises:
            ExecutionError: the runtime cannot execute the model; the message lists everything that is missing.
        """
        super().__init__()
        missing = unsupported(model)
        if missing:
            raise ExecutionError("torch: " + "; ".join(f"{node} {why}" for node, why in missing))
        model = _inlined(model)
        self.mode = table.Mode()
        self._quantization = quantization_of(model, trainable, learn_scales=learn_scales)
        self.refused = self._quantization.refused
        self.scales = self._quantization.scales
        compiler = Compiler(model.opset_imports, self.mode, self._quantization.overrides)
        graph = model.graph
        self._inputs = {value.name or "": compiler.slots[value] for value in graph.inputs}
        self._outputs = {value.name or "": compiler.slots[value] for value in graph.outputs}
        self._attributes: dict[str, str] = {}
        self._types: dict[str, ir.DataType] = {}
        self._slots: dict[str, int] = {}
        self._here: dict[int, Any] = {}
        wanted = {*trainable, *self._quantization.scales} - {name for name, _ in self.refused}
        for index, (name, value) in enumerate(graph.initializers.items()):
            self._adopt(index, name, value, compiler.slots[value], name in wanted)
        self._program = Program(graph, compiler)

    def forward(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph: values by input name -> values by output name, tensors as a rule."""
        environment = dict(self._here)
        for name, slot in self._slots.items():
            environment[slot] = self._buffer(name)
        for name, value in feeds.items():
            environment[self._inputs[name]] = value
        self._program.run(environment)
        return {name: environment[slot] for name, slot in self._outputs.items()}

    def compiled(self) -> Any:
        """Return the module compiled by torch.compile."""
        self._program.show_compiler()
        return torch.compile(self)

    def weights(self) -> dict[str, nn.Parameter]:
        """Return what can be trained, by the name of its initializer."""
        return {n: p for n, a in self._attributes.items() if isinstance(p := getattr(self, a), nn.Parameter)}

    def statistics(self) -> dict[str, Tensor]:
        """Return running statistics and other state that is not trained but may move, by name."""
        return {n: b for n, a in self._attributes.items() if not isinstance(b := getattr(self, a), nn.Parameter)}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what the initializers of the graph hold now, in their own element types; quantized ones rounded."""
        with torch.no_grad():
            held = {name: getattr(self, attribute) for name, attribute in self._attributes.items()}
            held |= self._quantization.finished(held)
            return {name: values.to_numpy(tensor).astype(self._types[name].numpy()) for name, tensor in held.items()}

    def _adopt(self, index: int, name: str, value: ir.Value, slot: int, trainable: bool) -> None:
        """Make an initializer a parameter, a buffer, or a value that stays on the processor."""
        tensor = values.constant(value)
        stored = self._quantization.stored.get(name)
        if not isinstance(tensor, Tensor) or (
            not tensor.dtype.is_floating_point and tensor.numel() <= _SMALL and not stored
        ):
            self._here[slot] = tensor
            return
        assert value.const_value is not None
        self._types[name], self._slots[name] = value.const_value.dtype, slot
        self._attributes[name] = attribute = f"_{index}"
        if trainable and stored:
            tensor = stored.master(tensor)
        if trainable:
            tensor = tensor.to(torch.float32) if tensor.dtype.itemsize < 4 else tensor
            self.register_parameter(attribute, nn.Parameter(tensor))
        else:
            self.register_buffer(attribute, tensor)

    def _buffer(self, name: str) -> Tensor:
        """Return what an initializer is in a run: half-precision weights train as float32."""
        tensor = getattr(self, self._attributes[name])
        if name in self._quantization.stored:
            return tensor
        dtype = values.TYPES[self._types[name]]
        return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _inlined(model: ir.Model) -> ir.Model:
    """Return a model without functions; the same one if it has none."""
    if not model.functions:
        return model
    copy = model.clone()
    InlinePass()(copy)
    return copy
