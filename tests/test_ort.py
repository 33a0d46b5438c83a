"""ONNX Runtime's settings reach its sessions; device sessions compute what ordinary ones do."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
from graphopt.runtime import ExecutionError
from graphopt.runtimes import _ort_device, _ort_session, ort

onnxruntime = pytest.importorskip("onnxruntime")

TEXT = "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { a = Neg(x) b = Neg(a) y = Relu(b) z = Exp(x) }"
X = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]], np.float32)


def options(text):
    return ort._options(target.find(text))


def test_settings_reach_the_session():
    made = options("cpu{threads=3 inter_threads=2 level=basic session.disable_prepacking=1}")
    assert made.intra_op_num_threads == 3
    assert made.inter_op_num_threads == 2
    assert made.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert made.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert made.get_session_config_entry("session.disable_prepacking") == "1"
    assert options("cpu").execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


def test_workers_stop_spinning_unless_told_otherwise():
    key = "session.force_spinning_stop"
    assert options("cpu").get_session_config_entry(key) == "1"
    assert options(f"cpu{{{key}=0}}").get_session_config_entry(key) == "0"


@pytest.mark.parametrize("level", ["all", "layout", "extended", "basic", "none"])
def test_every_level_runs(parse, level):
    found = runtime.open_session(parse(TEXT), target.find(f"cpu{{level={level}}}")).run({"x": X})
    np.testing.assert_allclose(found["y"], np.maximum(X, 0))


def test_levels_differ_in_what_they_rewrite(parse):
    place = target.find("cpu")
    count = {
        level: runtime.find(place).optimized(parse(TEXT), target.find(f"cpu{{level={level}}}")).graph.num_nodes()
        for level in ("all", "none")
    }
    assert count == {"all": count["all"], "none": 4}


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino"])
def test_a_provider_that_is_not_installed(parse, name):
    place = target.find(name)
    if place.provider in onnxruntime.get_available_providers():
        pytest.skip(f"{place.provider} is installed here")
    with pytest.raises(
        UserError, match=f"target '{name}' needs {place.provider}, but this onnxruntime offers .*install"
    ):
        runtime.open_session(parse(TEXT), place)


def test_a_provider_that_does_not_load_is_not_replaced_in_silence(parse, monkeypatch):
    place = target.find("cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [place.provider, "CPUExecutionProvider"])
    monkeypatch.setattr(ort._ort_health, "preload", lambda library: None)
    plain = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda source, options, providers: plain(source, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(
        UserError, match="is installed but does not load; graphopt doctor says which library is missing"
    ):
        runtime.open_session(parse(TEXT), place)


@pytest.fixture
def on_device(parse):
    """A session as for a device with memory of its own, on the processor's."""

    def opened(text=TEXT, graphs=False):
        plain = runtime.open_session(parse(text), target.find("cpu"))
        return _ort_device.DeviceSession(plain._session, "cpu", 0, graphs=graphs)

    return opened


@pytest.mark.parametrize("graphs", [False, True])
def test_bound_runs_compute_what_ordinary_ones_do(on_device, graphs, monkeypatch):
    session = on_device(graphs=graphs)
    expected = session.run({"x": X})
    bindings = []
    bind = _ort_device.DeviceSession._bind
    monkeypatch.setattr(
        _ort_device.DeviceSession, "_bind", lambda self, feeds: bindings.append(bind(self, feeds)) or bindings[-1]
    )
    once, other = session.prepare({"x": X}), session.prepare({"x": X[:1] * 2})
    once()
    other()
    once()
    first, second = (dict(zip(("y", "z"), b.copy_outputs_to_cpu(), strict=True)) for b in bindings)
    for name, array in expected.items():
        np.testing.assert_array_equal(first[name], array)
    np.testing.assert_allclose(second["y"], np.maximum(X[:1] * 2, 0))


def test_every_captured_run_has_an_id_of_its_own(on_device, monkeypatch):
    ids = []
    make = _ort_device._run_options
    monkeypatch.setattr(_ort_device, "_run_options", lambda graph: ids.append(graph) or make(graph))
    session = on_device(graphs=True)
    session.prepare({"x": X})()
    session.prepare({"x": X})()
    assert ids == ["-1", "1", "2"]


def test_text_cannot_be_bound_and_is_copied(on_device):
    session = on_device("g (string[N] s) => (string[N] y) { y = Identity(s) }")
    session.prepare({"s": np.array(["a", "b"], object)})()


def test_what_onnxruntime_refuses_when_bound_is_an_execution_error(on_device):
    with pytest.raises(ExecutionError, match="Failed to find input name in the mapping: none"):
        on_device().prepare({"none": X})()


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match="ONNX Runtime is not installed; run pip install"):
        _ort_session.library()
