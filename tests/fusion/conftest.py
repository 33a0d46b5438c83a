"""One way to check a fusion on a graph."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt import compare, runtime, target
from graphopt.passbase import Result
from graphopt.passes.fusion.fuse import Fuse

HEADER = '<ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1]>\n'


def draw(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Return normal noise that depends on the name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return np.asarray(rng.standard_normal(shape) * scale, np.float32)


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return runtime.open_session(model, target.find("cpu")).run(feeds)


@pytest.fixture(name="graph")
def graph_fixture() -> Callable[..., ir.Model]:
    """Make a model of ONNX text; of the constants, given as arrays, it gets those that it uses."""

    def make(text: str, opset: int = 18, **constants: Any) -> ir.Model:
        proto = onnx.parser.parse_model(HEADER.format(opset=opset) + text)
        used = {name for graph in _graphs(proto.graph) for node in graph.node for name in node.input}
        for name in sorted(used & set(constants)):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(constants[name]), name))
        return ir.from_proto(proto)

    return make


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


@pytest.fixture(name="fuse")
def fuse_fixture() -> Callable[..., Result]:
    """Fuse a model in place and check what must hold of it.

    The same numbers on all feeds, a valid model, the same inputs and outputs, a truthful `modified`, and nothing left to do.
    """

    def apply(model: ir.Model, *feeds: Mapping[str, np.ndarray], rtol: float = 1e-5, **fields: Any) -> Result:
        expected = [run(model, f) for f in feeds]
        interface = runtime.ports(model.graph.inputs), runtime.ports(model.graph.outputs)
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        result = Fuse(**fields)(model)
        after = ir.to_proto(model)
        assert isinstance(result, Result)
        assert result.modified == (after.SerializeToString(deterministic=True) != before), result.report
        assert (runtime.ports(model.graph.inputs), runtime.ports(model.graph.outputs)) == interface
        onnx.checker.check_model(after)
        for f, wanted in zip(feeds, expected, strict=True):
            reason = compare.first_mismatch(wanted, run(model, f), rtol)
            assert reason is None, reason
        assert not Fuse(**fields)(model).modified
        return result

    return apply


@pytest.fixture(name="ops")
def ops_fixture() -> Callable[[ir.Model], list[str]]:
    """Return the operators of a model, subgraphs included, in order."""
    return lambda model: [node.op_type for node in model.graph.all_nodes()]


@pytest.fixture(name="draw")
def draw_fixture() -> Callable[..., np.ndarray]:
    return draw


@pytest.fixture(name="run_model")
def run_model_fixture() -> Callable[..., dict[str, np.ndarray]]:
    return run
