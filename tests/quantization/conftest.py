"""Models of ONNX text with random weights, and what comes of quantizing them for ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import compare, runtime, target
from graphopt.passbase import Result
from graphopt.passes.quantization.calibrate import Calibrate
from graphopt.passes.quantization.quantize_static import QuantizeStatic
from graphopt.pipeline import duplicate

CPU = target.find("cpu", 1)


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A model after calibration and quantization.

    Attributes:
        model: the quantized model.
        result: what the pass reported.
        kernels: operators of the graph as ONNX Runtime optimized it, in order.
        islands: what the pass's audit found there.
        sqnr: signal-to-noise ratio of every float output, dB.
        outputs: its outputs on the calibration data.
        reference: those of the float model.
    """

    model: ir.Model
    result: Result
    kernels: list[str]
    islands: list[tuple[str, str]]
    sqnr: dict[str, float]
    outputs: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]

    @property
    def reasons(self) -> dict[str, str]:
        """Why nodes stay in float, by name."""
        return dict(self.result.skipped)

    def nodes(self, op: str) -> list[ir.Node]:
        """The nodes of one operator type in the model, in order."""
        return [node for node in self.model.graph if node.op_type == op]

    def constant(self, name: str) -> np.ndarray:
        """The array of an initializer."""
        tensor = self.model.graph.initializers[name].const_value
        assert tensor is not None
        return tensor.numpy()


@pytest.fixture(scope="session")
def build(parse: Callable[[str], ir.Model]) -> Callable[..., ir.Model]:
    """Make a model of ONNX text in which some inputs are initializers: arrays, or shapes to fill at random."""

    def make(text: str, **weights: Any) -> ir.Model:
        model = parse(text)
        rng = np.random.default_rng(0)
        for value in list(model.graph.inputs):
            if value.name in weights:
                given = weights[value.name]
                drawn = isinstance(given, (tuple, list))
                array = rng.normal(0, 0.2, given).astype(np.float32) if drawn else np.asarray(given)
                model.graph.inputs.remove(value)
                value.const_value = ir.tensor(array, name=value.name)
                value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
                model.graph.register_initializer(value)
        return model

    return make


@pytest.fixture(scope="session")
def sample() -> Callable[..., dict[str, np.ndarray]]:
    """Draw standard normal inputs: `sample(x=[4, 3, 8, 8])`."""

    def draw(**shapes: Any) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(1)
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    return draw


@pytest.fixture(scope="session")
def quantize() -> Callable[..., Quantized]:
    """Calibrate and quantize a model, and run it."""

    def run(model: ir.Model, feeds: Mapping[str, np.ndarray], **fields: Any) -> Quantized:
        reference = runtime.open_session(model, CPU).run(feeds)
        Calibrate(dict(feeds), threads=1)(model)
        pass_ = QuantizeStatic(**fields)
        result = pass_(model)
        assert isinstance(result, Result)
        optimized = runtime.find(CPU).optimized(model, CPU)
        assert optimized is not None
        outputs = runtime.open_session(model, CPU).run(feeds)
        floats = [name for name, array in reference.items() if compare.is_float(array.dtype)]
        return Quantized(
            model,
            result,
            [node.op_type for node in optimized.graph],
            pass_.audit(optimized),
            {name: compare.sqnr(reference[name], outputs[name]) for name in floats},
            outputs,
            reference,
        )

    return run


@pytest.fixture(scope="session")
def narrowed(build: Callable[..., ir.Model]) -> Callable[..., tuple[ir.Model, ir.Model]]:
    """Make a float model of one input x, and the same in integers with 4-bit weights."""

    def make(text: str, arrays: Mapping[str, Any], data: np.ndarray, **fields: Any) -> tuple[ir.Model, ir.Model]:
        reference = build(text, **arrays)
        model = duplicate(reference)
        Calibrate({"x": data}, threads=1)(model)
        QuantizeStatic(**{"weights": "int4", **fields})(model)
        return reference, model

    return make
