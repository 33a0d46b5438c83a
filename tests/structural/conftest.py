"""One way to check an exact pass on a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import compare, runtime, target
from graphopt.passbase import Pass, Result


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return runtime.open_session(model, target.find("cpu")).run(feeds)


def random_feeds(model: ir.Model) -> dict[str, np.ndarray]:
    """Return standard normal floats, true, and ones; dynamic axes are 3 long."""
    rng = np.random.default_rng(0)
    feeds = {}
    for port in runtime.model_inputs(model):
        assert port.dtype is not None
        shape = [dim if isinstance(dim, int) else 3 for dim in port.shape or ()]
        values = rng.standard_normal(shape) if port.dtype.is_floating_point() else np.ones(shape)
        feeds[port.name] = np.asarray(values).astype(port.dtype.numpy())
    return feeds


def apply(pass_: Pass, model: ir.Model, feeds: Mapping[str, np.ndarray] | None = None, rtol: float = 1e-6) -> Result:
    """Apply a pass, and check everything that must hold of any exact pass.

    The model before and after computes the same, is valid, and keeps its inputs and outputs; `modified` tells
    whether a byte changed; a second run changes nothing.
    """
    feeds = random_feeds(model) if feeds is None else feeds
    expected = run(model, feeds)
    interface = runtime.ports(model.graph.inputs), runtime.ports(model.graph.outputs)
    before = _bytes(model)
    result = pass_(model)
    assert isinstance(result, Result)
    assert result.modified == (_bytes(model) != before), result.report
    assert (runtime.ports(model.graph.inputs), runtime.ports(model.graph.outputs)) == interface
    onnx.checker.check_model(ir.to_proto(model))
    reason = compare.first_mismatch(expected, run(model, feeds), rtol)
    assert reason is None, reason
    before = _bytes(model)
    assert not pass_(model).modified
    assert _bytes(model) == before
    return result


def ops(graph: ir.Model | ir.Graph) -> list[str]:
    """Return the operators of a graph, subgraphs included, in order."""
    return [node.op_type for node in (graph.graph if isinstance(graph, ir.Model) else graph).all_nodes()]


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.fixture(name="apply")
def apply_fixture(parse: Callable[[str], ir.Model]) -> Callable[..., Result]:
    """Apply a pass to a model, or to ONNX text, and check it; see `apply`."""
    return lambda pass_, model, *args, **named: apply(
        pass_, parse(model) if isinstance(model, str) else model, *args, **named
    )


@pytest.fixture(name="run")
def run_fixture() -> Callable[..., dict[str, np.ndarray]]:
    return run


@pytest.fixture(name="ops")
def ops_fixture() -> Callable[..., list[str]]:
    return ops
