"""`profile`: what is read from the profiler, what is made of it, where nodes come from, and what is told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import matching, profiling, runtime
from graphopt.errors import UsageError, UserError
from graphopt.profiling import difference as profiling_difference
from graphopt.profiling import nodes as profiling_nodes
from graphopt.profiling import profile
from graphopt.profiling import recording as profiling_recording
from graphopt.profiling.lineage import trace_back
from graphopt.profiling.overhead import Chain, Overhead
from graphopt.profiling.recording import Contender, Recording, record
from graphopt.profiling.trace import Call, Recorder, Run, Tensor, Trace
from graphopt.profiling.words import operator, percent, scale
from graphopt.runtime import Runtime, Session
from graphopt.runtimes import _ort_profile
from graphopt.target import find

CPU = "CPUExecutionProvider"


def convolutions(seed=0):
    """A few convolutions that ONNX Runtime moves into its own layout, with an addition between them."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[N,16,8,8] x) => (float[N,10] y) '
        "{ c = Conv<pads = [1, 1, 1, 1]>(x, w1)  r = Relu(c)  d = Conv<pads = [1, 1, 1, 1]>(r, w2)  s = Add(d, r) "
        "t = Relu(s)  p = GlobalAveragePool(t)  f = Flatten(p)  y = MatMul(f, w3) }"
    )
    for name, shape in (("w1", (16, 16, 3, 3)), ("w2", (16, 16, 3, 3)), ("w3", (16, 10))):
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


LOOP = """g (float[N,4] x) => (float[N,4] y) <int64 n = {7}, bool yes = {1}, float[4,4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}> {
  a = Abs(x)
  y = Loop(n, yes, a) <body = b (int64 i, bool go, float[N,4] s) => (bool go2, float[N,4] s2)
    { go2 = Identity(go)  m = MatMul(s, w)  s2 = Neg(m) }>
}"""


@pytest.fixture
def convolution_file(tmp_path):
    onnx.save_model(convolutions(), tmp_path / "conv.onnx")
    return tmp_path / "conv.onnx"


# What the profiler's file says.


def event(name, ts, dur, *, op="Neg", index=0, thread=1, inputs=(), outputs=(), **more):
    args = {"op_name": op, "node_index": str(index), "provider": CPU, "thread_scheduling_stats": {"main_thread": {}}}
    args |= {"input_type_shape": list(inputs), "output_type_shape": list(outputs), **more}
    return {"cat": "Node", "tid": thread, "ts": ts, "dur": dur, "name": f"{name}_kernel_time", "args": args}


def session(name, ts, dur, thread=1):
    return {"cat": "Session", "tid": thread, "ts": ts, "dur": dur, "name": name, "args": {}}


@pytest.fixture
def read(tmp_path):
    """Write events as ONNX Runtime does, one on each line, and read the runs."""

    def parse(*events):
        text = "[\n" + ",\n".join(json.dumps(one) for one in events) + "\n]\n"
        (tmp_path / "trace.json").write_text(text)
        return _ort_profile.read(tmp_path / "trace.json")

    return parse


def names(calls):
    return [(call.name, names(call.inner)) if call.inner else call.name for call in calls]


def test_runs_hold_what_came_since_the_run_before(read):
    runs = read(
        session("model_loading_uri", 0, 5),
        session("session_initialization", 5, 9),
        event("a", 20, 4),
        event("b", 25, 6, index=1),
        session("SequentialExecutor::Execute", 19, 13),
        session("model_run", 18, 15),
        event("a", 40, 5),
        session("SequentialExecutor::Execute", 39, 7),
        session("model_run", 38, 9),
    )
    assert [(run.us, names(run.calls)) for run in runs] == [(15, ["a", "b"]), (9, ["a"])]
    assert runs[0].calls[1].us == 6


def test_a_body_belongs_to_the_node_that_comes_after_it(read):
    """Even where its neighbour in front started and ended in the same microsecond."""
    (run,) = read(
        event("before", 10, 0, index=5),
        event("x", 12, 1),
        event("y", 14, 2, index=1),
        session("SequentialExecutor::Execute", 12, 5),
        event("x", 20, 1),
        event("deep", 24, 1),
        session("SequentialExecutor::Execute", 23, 3),
        event("if", 22, 5, op="If", index=1),
        session("SequentialExecutor::Execute", 19, 9),
        event("loop", 10, 20, op="Loop"),
        event("after", 31, 0, index=6),
        session("SequentialExecutor::Execute", 9, 24),
        session("model_run", 8, 26),
    )
    assert names(run.calls) == ["before", ("loop", ["x", "y", "x", ("if", ["deep"])]), "after"]


def test_threads_are_kept_apart(read):
    """Nodes that run side by side contain each other in time without being bodies."""
    (run,) = read(
        event("inner", 12, 3, thread=2),
        session("SequentialExecutor::Execute", 11, 5, thread=2),
        event("short", 11, 4, thread=3),
        event("loop", 10, 8, op="Loop", thread=2),
        session("SequentialExecutor::Execute", 5, 30),
        session("model_run", 4, 33),
    )
    assert names(run.calls) == [("loop", ["inner"]), "short"]


def test_types_and_shapes(read):
    (run,) = read(
        event("a", 1, 1, inputs=[{"float": [1, 3]}, {"int64": []}], outputs=[{"uint8": [2]}]),
        {**event("a", 3, 1), "name": "a_fence_before"},
        session("model_run", 0, 5),
    )
    assert run.calls[0].inputs == (Tensor("float", (1, 3)), Tensor("int64", ()))
    assert [str(tensor) for tensor in run.calls[0].outputs] == ["uint8[2]"]
    assert len(run.calls) == 1


@pytest.fixture
def ort():
    place = find("cpu{threads=1}")
    return runtime.find(place), place


def test_onnx_runtime_records_every_node(parse, ort, tmp_path, monkeypatch):
    """And nothing is left behind, not even after an error."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found, place = ort
    model = parse(LOOP)
    with found.recorder(model, place) as recorder:
        recorder.session.run({"x": np.ones((2, 4), np.float32)})
        recorder.session.run({"x": np.ones((3, 4), np.float32)})
        trace = recorder.finish()
        runs = trace.read()
        assert trace.events == len(json.loads(trace.file.read_bytes()))
    assert [[call.op for call in run.calls] for run in runs] == [["Abs", "Loop"]] * 2
    loop = runs[1].calls[1]
    assert [call.op for call in loop.inner].count("MatMul") == 7
    assert loop.us >= sum(call.us for call in loop.inner)
    assert loop.outputs == (Tensor("float", (3, 4)),)
    assert recorder.most_events == 1_000_000
    with contextlib.suppress(ZeroDivisionError), found.recorder(model, place) as recorder:
        recorder.session.run({"x": np.ones((2, 4), np.float32)})
        raise ZeroDivisionError
    del recorder
    assert not list(tmp_path.iterdir())


def test_a_runtime_without_a_profiler_says_so(parse):
    place = find("reference")
    with pytest.raises(UserError, match="target 'reference' has no profiler; choose"):
        runtime.find(place).recorder(parse(LOOP), place)


def test_a_captured_graph_has_no_nodes(parse):
    place = find("cuda{enable_cuda_graph=1}")
    with pytest.raises(UserError, match="without enable_cuda_graph"):
        runtime.find(place).recorder(parse(LOOP), place)


# Where executed nodes come from.


def lineage_of(parse, text, made):
    """Return what went into each executed node, by names; "+" for one that was added."""
    model, executed = parse(text), parse(made)
    for node in model.graph.all_nodes():
        node.name = node.name or node.outputs[0].name
    found = trace_back(model, executed)
    rows = {
        node.name or node.outputs[0].name: "+" if node in found.added else " ".join(s.name for s in found.sources[node])
        for node in executed.graph.all_nodes()
        if node in found.sources
    }
    return rows, [node.name for node in found.gone]


MS = '<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1, "com.microsoft.nchwc": 1]>\n'
CNN = (
    "g (float[1,4,8,8] x) => (float[1,4,8,8] y) <float[4,4,1,1] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, float[4] b = {1, 1, 1, 1}> { "
    "c1 = Conv(x, w, b)  r1 = Relu(c1)  c2 = Conv(r1, w, b)  s = Add(c2, r1)  r2 = Relu(s)  y = MaxPool"
    "<kernel_shape = [1, 1]>(r2) }"
)


def test_between_values_that_both_graphs_have(parse):
    rows, gone = lineage_of(
        parse,
        CNN,
        f"{MS}g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{ "
        "r1 = com.microsoft.FusedConv(x, w, b)  r2 = com.microsoft.FusedConv(r1, w, b, r1) "
        "y = MaxPool<kernel_shape = [1, 1]>(r2) }",
    )
    assert rows == {"r1": "c1 r1", "r2": "c2 s r2", "y": "y"}
    assert gone == []


def test_in_another_layout_names_of_nodes_tell(parse):
    """A node named after a convolution has an addition and the activation in it, too, if its inputs say so."""
    rows, _ = lineage_of(
        parse,
        CNN,
        f"{MS}g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{ "
        "[ReorderInput] t0 = com.microsoft.nchwc.ReorderInput(x) "
        '[c1_nchwc] t1 = com.microsoft.nchwc.Conv<activation = "Relu">(t0, w, b) '
        '[c2_nchwc] t2 = com.microsoft.nchwc.Conv<activation = "Relu">(t1, w, b, t1) '
        "[y_nchwc] t3 = com.microsoft.nchwc.MaxPool(t2) "
        "[ReorderOutput_token_1] y = com.microsoft.nchwc.ReorderOutput(t3) }",
    )
    assert rows == {
        "ReorderInput": "+",
        "c1_nchwc": "c1 r1",
        "c2_nchwc": "c2 s r2",
        "y_nchwc": "y",
        "ReorderOutput_token_1": "+",
    }


def test_an_activation_that_was_not_taken_in_stays_on_its_own(parse):
    rows, _ = lineage_of(
        parse,
        CNN,
        f"{MS}g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{ "
        "[c1_nchwc] t1 = com.microsoft.nchwc.Conv(x, w, b)  [r1_nchwc] t2 = Relu(t1) "
        "[c2_nchwc] t3 = com.microsoft.nchwc.Conv(t2, w, b)  [s] t4 = Add(t3, t2)  [r2] t5 = Relu(t4) "
        "y = com.microsoft.nchwc.ReorderOutput(t5)}",
    )
    assert rows == {"c1_nchwc": "c1", "r1_nchwc": "r1", "c2_nchwc": "c2", "s": "s", "r2": "r2 y", "y": "+"}


QDQ = """g (float[1,1,2,2] x) => (float[1,1,2,2] y) <float s = {0.5}, uint8 z = {0}, int8[1,1,1,1] w = {1}, float ws = {1}, int8 wz = {0}> {
  q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  wd = DequantizeLinear(w, ws, wz)  c = Conv(d, wd)
  q2 = QuantizeLinear(c, s, z)  d2 = DequantizeLinear(q2, s, z)  c2 = Conv(d2, wd)
  q3 = QuantizeLinear(c2, s, z)  y = DequantizeLinear(q3, s, z)
}"""


def test_quantized_operators(parse):
    """What dequantizes a stored weight went into the operator that reads the stored one."""
    rows, gone = lineage_of(
        parse,
        QDQ,
        f"{MS}g (float[1,1,2,2] x) => (float[1,1,2,2] y) {{ [q] q = QuantizeLinear(x, s, z) "
        "[Transpose] t = Transpose(q)  [c_token_1] u = com.microsoft.QLinearConv(t, s, z, w, ws, wz, s, z) "
        "[c2_token_2] v = com.microsoft.QLinearConv(u, s, z, w, ws, wz, s, z) "
        "[Transpose_token_3] q3 = Transpose(v)  [y] y = DequantizeLinear(q3, s, z) }",
    )
    assert rows == {
        "q": "q",
        "Transpose": "+",
        "c_token_1": "d wd c q2",
        "c2_token_2": "wd d2 c2 q3",
        "Transpose_token_3": "+",
        "y": "y",
    }
    assert gone == []


def test_what_is_computed_while_loading_is_gone(parse):
    rows, gone = lineage_of(
        parse,
        "g (float[N,2] x) => (float[N,2] y) <float[2] a = {1, 2}> { k = Constant<value = float[2] {1, 1}>() "
        "b = Add(a, k)  c = Neg(b)  i = Identity(x)  m = Mul(i, c)  y = Dropout(m) }",
        "g (float[N,2] x) => (float[N,2] y) <float[2] c = {-2, -3}> { y = Mul(x, c) }",
    )
    assert rows == {"y": "m"}
    assert gone == ["b", "c", "i", "y"]


def test_what_does_nothing_is_told_where_it_runs(parse):
    rows, gone = lineage_of(
        parse,
        "g (float[N,2] x) => (float[N,2] y) { a = Neg(x)  y = Identity(a) }",
        "g (float[N,2] x) => (float[N,2] y) { a = Neg(x)  y = Identity(a) }",
    )
    assert (rows, gone) == ({"a": "a", "y": "y"}, [])


def test_moves_between_devices_and_types(parse):
    rows, _ = lineage_of(
        parse,
        "g (float16[N,2] x) => (float16[N,2] y) { a = Neg(x)  b = Abs(a)  y = Relu(b) }",
        "g (float16[N,2] x) => (float16[N,2] y) { [InsertedPrecisionFreeCast_x] i = Cast(x)  [a] j = Neg(i) "
        "[InsertedPrecisionFreeCast_a] a = Cast(j)  [Memcpy] a_cpu = MemcpyToHost(a)  b = Abs(a_cpu) "
        "[Memcpy_token_1] b_cuda = MemcpyFromHost(b)  y = Relu(b_cuda) }",
    )
    added = {"InsertedPrecisionFreeCast_x": "+", "InsertedPrecisionFreeCast_a": "+", "Memcpy": "+"}
    assert rows == {**added, "Memcpy_token_1": "+", "a": "a", "b": "b", "y": "y"}


def test_what_the_file_itself_moves_was_not_added(parse):
    text = "g (float[N,2] x) => (float[2,N] y) { a = Cast<to = 1>(x)  b = Transpose(a)  y = Neg(b) }"
    assert lineage_of(parse, text, text) == ({"a": "a", "b": "b", "y": "y"}, [])
    flat = "g (float[N,2] x) => (float[N,2] y) { y = Flatten(x) }"
    rows, _ = lineage_of(parse, flat, "g (float[N,2] x) => (float[N,2] y) <int64[2] k = {0, -1}> { y = Reshape(x, k) }")
    assert rows == {"y": "y"}


def test_bodies_are_traced_too(parse):
    text = (
        "g (float[N] x, bool c) => (float[N] y) { y = If(c) <then_branch = t () => (float[N] p) "
        "{ a = Neg(x)  b = Identity(a)  p = Relu(b) }, else_branch = e () => (float[N] q) { q = Abs(x) }> }"
    )
    made = (
        "g (float[N] x, bool c) => (float[N] y) { y = If(c) <else_branch = e () => (float[N] q) { q = Abs(x) }, "
        "then_branch = t () => (float[N] p) { a = Neg(x)  p = Relu(a) }> }"
    )
    rows, gone = lineage_of(parse, text, made)
    assert rows == {"y": "y", "a": "a", "p": "p", "q": "q"}
    assert gone == ["b"]


def test_a_node_whose_result_another_one_completes(parse):
    """The shape of a transposed tensor: Shape of the tensor, then Gather."""
    rows, _ = lineage_of(
        parse,
        "g (float[2,N] x) => (int64[2] s) { t = Transpose(x)  [shape] s = Shape(t) }",
        "g (float[2,N] x) => (int64[2] s) <int64[2] p = {1, 0}> { [shape] s0 = Shape(x)  [Gather] s = Gather(s0, p) }",
    )
    assert rows == {"shape": "t shape", "Gather": "t shape"}


def test_a_function_without_counterpart_is_unknown(parse):
    rows, _ = lineage_of(
        parse,
        "g (float[N] x) => (float[N] y) { y = Relu(x) }",
        "g (float[N] x) => (float[N] y) { [odd] a = Neg(x)  y = Abs(a) }",
    )
    assert rows == {"odd": "", "y": "y"}


@pytest.mark.parametrize("level", ["all", "extended", "basic", "none"])
@pytest.mark.parametrize("text", [CNN, QDQ, LOOP])
def test_every_node_of_a_file_is_in_an_executed_one_or_gone(parse, level, text):
    place = find(f"cpu{{level={level}}}")
    model = parse(text)
    for node in model.graph.all_nodes():
        node.name = node.outputs[0].name
    executed = runtime.find(place).optimized(model, place)
    found = trace_back(model, executed)
    nodes = set(executed.graph.all_nodes())
    assert set(found.sources) == nodes
    assert {source for sources in found.sources.values() for source in sources} | set(found.gone) == set(
        model.graph.all_nodes()
    )
    assert all(bool(found.sources[node]) != (node in found.added) for node in nodes)


# How long nodes take.


def call(name, us, *inner, op="Neg", index=0, provider=CPU):
    return Call(name, op, index, provider, us, (), (Tensor("float", (1,)),), inner)


def recording(runs, plain=1.0, recorded=1.0):
    """Make a recording of runs whose calls take no time beyond the run itself."""
    seconds = np.array([run.us * 1e-6 for run in runs])
    return Recording(runs, np.array([plain * 1e-6] * 3), np.array([recorded * 1e-6] * 3), seconds, b"")


FREE = Chain(Overhead(0.0, 0.0), 0.0)
"""A profiler that adds nothing (and rounds down nevertheless)."""


def test_medians_over_runs():
    runs = [Run(us + 40, (call("a", us), call("b", 20, index=1))) for us in (9, 10, 10, 11, 500)]
    timing = profiling_nodes.measure(recording(runs, plain=1000, recorded=1000), FREE, None, None)
    assert [node.name for node in timing.nodes] == ["b", "a"]
    assert [node.us for node in timing.nodes] == pytest.approx([20.5, 10.5], abs=0.5)
    assert timing.run_us == pytest.approx(sum(node.us for node in timing.nodes) + timing.outside_us)
    assert timing.outside_us == pytest.approx(20, abs=1.5)
    assert sum(node.share for node in timing.nodes) == pytest.approx(1 - timing.outside_us / timing.run_us)


def test_what_is_rounded_down_is_put_back():
    """Many calls of 1.5 microseconds each are recorded as 1."""
    runs = [Run(160, tuple(call("a", 1, index=number) for number in range(100)))] * 5
    timing = profiling_nodes.measure(recording(runs, plain=1000, recorded=1000), FREE, None, None)
    assert sum(node.us for node in timing.nodes) == pytest.approx(150)


def test_bodies_are_not_counted_twice():
    body = [call("m", 10, op="MatMul"), call("n", 5, index=1)]
    runs = [Run(100, (call("loop", 50, *body, *body, op="Loop"), call("m", 30, op="MatMul")))] * 3
    timing = profiling_nodes.measure(recording(runs, plain=1000, recorded=1000), FREE, None, None)
    found = {(node.name, node.inside): node for node in timing.nodes}
    assert set(found) == {("loop", ()), ("m", ()), ("m", ("loop",)), ("n", ("loop",))}
    assert found["m", ("loop",)].us == pytest.approx(20, abs=1.1)
    assert found["loop", ()].us == pytest.approx(20, abs=2.1)
    assert [found[key].calls for key in sorted(found)] == [1, 1, 2, 2]
    assert timing.run_us == pytest.approx(100, abs=1)


def test_a_node_that_runs_in_half_of_the_runs():
    runs = [Run(20, (call("a", 10),)), Run(20, (call("a", 10), call("b", 4, index=1)))] * 3
    timing = profiling_nodes.measure(recording(runs, plain=1000, recorded=1000), FREE, None, None)
    assert {node.name: node.calls for node in timing.nodes} == {"a": 1, "b": 0.5}


def test_what_the_profiler_adds_is_taken_off():
    """Ten calls: 2 microseconds within each, 3 after each, 10 in the nodes and 5 outside."""
    chain = Chain(Overhead(2.0, 3.0), 0.2)
    calls = tuple(call(f"n{number}", 2, index=number) for number in range(9))  # 2 to 3
    runs = [Run(22 + 1 + 9 + 30 + 5, (*calls, call("big", 12, index=9)))] * 5
    timing = profiling_nodes.measure(recording(runs, plain=1000, recorded=1050), chain, None, None)
    assert timing.nodes[0].name == "big"
    assert timing.nodes[0].us == pytest.approx(10.2, abs=0.5)
    assert all(0.1 < node.us < 0.6 for node in timing.nodes[1:])
    assert 0 < timing.outside_us < 8
    assert timing.profiler_us + timing.run_us == pytest.approx(67.5)


def test_in_a_loop_what_comes_after_a_node_is_not_the_loop():
    chain = Chain(Overhead(2.0, 3.0), 0.2)
    body = tuple(call("n", 4) for _ in range(20))
    runs = [Run(170, (call("loop", 20 * 4 + 20 * 3 + 12, *body, op="Loop"),))] * 5
    timing = profiling_nodes.measure(recording(runs, plain=1000, recorded=1105), chain, None, None)
    found = {node.name: node.us for node in timing.nodes}
    assert found["n"] == pytest.approx(20 * 2.5, abs=1)
    assert found["loop"] < 5


def test_a_loop_that_takes_nothing_is_not_the_shortest_node():
    """Otherwise nothing would be left that the profiler could add within nodes."""
    chain = Chain(Overhead(2.0, 0.0), 0.2)
    runs = [Run(90, (call("loop", 80, *(call("n", 4) for _ in range(20)), op="Loop"),))] * 5
    timing = profiling_nodes.measure(recording(runs, plain=1000, recorded=1042), chain, None, None)
    assert {node.name: node.us for node in timing.nodes}["n"] == pytest.approx(20 * 2.5, abs=1)


def test_times_are_scaled_to_runs_without_the_profiler():
    runs = [Run(100, (call("a", 60), call("b", 30, index=1)))] * 3
    slow = profiling_nodes.measure(recording(runs, plain=1000, recorded=1000), FREE, None, None)
    timing = profiling_nodes.measure(recording(runs, plain=80, recorded=100), FREE, None, None)
    assert timing.run_us == pytest.approx(80, abs=1)
    assert timing.nodes[0].share == pytest.approx(slow.nodes[0].share, abs=0.05)
    noisy = profiling_nodes.measure(recording(runs, plain=1, recorded=100), FREE, None, None)
    assert noisy.run_us == pytest.approx(slow.run_us / 2, rel=0.1)


def test_no_nodes_at_all():
    timing = profiling_nodes.measure(recording([Run(7, ())] * 3, plain=9, recorded=9), FREE, None, None)
    assert timing.nodes == []
    assert timing.run_us == pytest.approx(7.5, abs=0.6)


@pytest.mark.parametrize(
    ("extra", "shortest", "gap", "expected"),
    [
        (5.5, 9.0, 9.0, (2.5, 3.0)),  # what is measured
        (-50.0, 9.0, 9.0, (2.0, 3.0)),  # noise: what the chain says
        (90.0, 9.0, 9.0, (3.5, 4.5)),  # noise: no more than 1.5 beyond it
        (5.5, 2.4, 9.0, (2.2, 3.3)),  # no node takes less than one of the chain
        (5.5, 9.0, 1.0, (2.5, 1.0)),  # and nothing less than nothing
        (5.5, 0.1, 0.0, (0.0, 0.0)),
    ],
)
def test_bounds_of_the_overhead(extra, shortest, gap, expected):
    found = Chain(Overhead(2.0, 3.0), 0.2).overhead_in(extra, shortest, gap)
    assert (found.within_us, found.after_us) == pytest.approx(expected)


def test_the_chain_is_executed_as_it_is(ort):
    """Or it would not tell what recording a node adds."""
    from graphopt.profiling import overhead as profiling_overhead

    found, place = ort
    chain = profiling_overhead._chain()
    executed = found.optimized(chain, place)
    assert len(list(executed.graph)) == profiling_overhead._NODES
    measured = profiling_overhead.measure_chain(found, place)
    assert measured.node_us > 0
    assert measured.overhead.within_us >= 0
    assert measured.overhead.after_us >= 0


# Recording, on a runtime that only counts.


class Counting(Runtime):
    """A runtime whose runs are written down in `log`: the model's name, in capitals if recorded."""

    def __init__(self, events=3, most=1000, lost=0):
        self.log, self.events, self.most, self.lost = [], events, most, lost

    def open(self, model, target):
        raise NotImplementedError

    def open_file(self, path, target):
        return Logging(self.log, path)

    @contextlib.contextmanager
    def recorder(self, model, target):
        session = Logging(self.log, model.upper())
        yield Recorder(session, lambda: self.trace(session), self.most)

    def trace(self, session):
        runs = [Run(number, ()) for number in range(session.count - self.lost)]
        return Trace(Path(__file__), min(self.most, session.count * self.events), lambda: runs)


class Logging(Session):
    def __init__(self, log, name):
        self.log, self.name, self.count = log, name, 0

    def run(self, feeds, outputs=None):
        self.count += 1
        self.log.append(self.name)
        return {}


def recorded(found, names="a", **options):
    contenders = [Contender(name, name, found.open_file(name, None)) for name in names]
    return record(contenders, {}, found, None, **{"runs": None, "seconds": 1.0, "seed": 0, "keep": False, **options})


def test_as_many_runs_as_asked_for():
    found = recorded(Counting(most=100_000), "ab", runs=17)
    assert [len(one.runs) for one in found] == [17, 17]
    for one in found:
        assert len(one.call_seconds) == 17
        assert len(one.plain_seconds) == len(one.recorded_seconds) > 0
        assert one.content == b""


def test_what_is_written_is_kept_on_demand():
    assert recorded(Counting(most=100_000), runs=5, keep=True)[0].content == Path(__file__).read_bytes()


def test_the_first_run_of_a_block_and_the_warm_up_do_not_count():
    (one,) = recorded(Counting(most=100_000), runs=5)
    assert [run.us for run in one.runs] == list(range(one.runs[0].us, one.runs[0].us + 5))  # one block of fast runs
    assert one.runs[0].us == profiling_recording._MOST_WARMUPS + 1


def test_models_take_turns():
    found = Counting(most=100_000)
    recorded(found, "ab", runs=5)
    kinds = [name for name, before in zip(found.log, [None, *found.log], strict=False) if name != before]
    assert set(kinds) == {"a", "A", "b", "B"}
    assert sorted(kinds[-4:]) == ["A", "B", "a", "b"]


def test_by_default_no_more_events_than_can_be_read():
    (one,) = recorded(Counting(events=1000, most=1_000_000), seconds=1e6)
    assert len(one.runs) == profiling_recording._USUAL_EVENTS // 1000


def test_five_runs_at_least():
    (one,) = recorded(Counting(events=100, most=1_000_000), seconds=1e-9)
    assert len(one.runs) == 5


def test_too_many_runs_for_the_profiler():
    with pytest.raises(UsageError, match=r"a: a run makes 100 events, and the profiler keeps 1,000,000; .* --runs \d+"):
        recorded(Counting(events=100, most=1_000_000), runs=10_000)


def test_too_many_events_for_the_profiler():
    with pytest.raises(UserError, match=r"a: a run makes 1,000 events or more, too many .* smaller inputs"):
        recorded(Counting(events=5000, most=1000))


def test_a_lost_run_is_noticed():
    with pytest.raises(UserError, match="lost events"):
        recorded(Counting(most=100_000, lost=1), runs=5)


# Two models.


def timing(*nodes, outside=0.0):
    total = sum(node.us for node, _ in nodes) + outside
    return profiling_nodes.Timing(total, outside, 0.0, total, [n for n, _ in nodes], [tuple(s) for _, s in nodes])


def node_time(name, op, us, *sources, added=False):
    fused = tuple(profiling_nodes.Origin(source.name, source.op_type) for source in sources)
    node = profiling_nodes.NodeTime(
        fused[0].node if fused else name, name, op, us, 0.0, 1.0, CPU, (), (), fused, added, ()
    )
    return node, sources


def named(model):
    for node in model.graph.all_nodes():
        node.name = node.outputs[0].name
    return {node.name: node for node in model.graph.all_nodes()}


def differ(before, after, models, plain=(100.0, 50.0)):
    pair = [dataclasses.replace(recording([Run(1, ())]), plain_seconds=np.full(8, us * 1e-6)) for us in plain]
    return profiling_difference.differ(("A", "B"), tuple(pair), (before, after), matching.match(*models))


def test_where_the_difference_comes_from(parse):
    """Matched nodes of the files join what was made of them; the rest is told by operator."""
    text = "g (float[N,2] x) => (float[N,2] y) { a = Neg(x)  b = Relu(a)  c = Abs(b)  y = Exp(c) }"
    models = parse(text), parse(text.replace("c = Abs(b)  y = Exp(c)", "c = Abs(b)  d = Floor(c)  y = Exp(d)"))
    old, new = map(named, models)
    before = timing(
        node_time("ab", "acme::Fused", 60.0, old["a"], old["b"]),
        node_time("c", "Abs", 20.0, old["c"]),
        node_time("y", "Exp", 10.0, old["y"]),
        node_time("move", "Transpose", 4.0, added=True),
        node_time("move2", "Transpose", 6.0, added=True),
    )
    after = timing(
        node_time("a", "Neg", 10.0, new["a"]),
        node_time("b", "Relu", 15.0, new["b"]),
        node_time("c", "Abs", 21.0, new["c"]),
        node_time("y", "Exp", 10.0, new["y"]),
        node_time("d", "Floor", 2.0, new["d"]),
        outside=1.0,
    )
    found = differ(before, after, models)
    rows = {(row.node, row.before, row.after): row.difference_us for row in found.nodes}
    assert rows == {
        ("a", ("acme::Fused",), ("Neg", "Relu")): -35.0,
        ("", ("Transpose", "Transpose"), ()): -10.0,
        ("d", (), ("Floor",)): 2.0,
        ("c", ("Abs",), ("Abs",)): 1.0,
        ("y", ("Exp",), ("Exp",)): 0.0,
    }
    assert [abs(row.difference_us) for row in found.nodes] == sorted(map(abs, rows.values()), reverse=True)
    assert found.difference_us == pytest.approx(sum(rows.values()) + found.outside_us) == pytest.approx(-41)
    assert sum(row.difference_us for row in found.operators) == pytest.approx(-42)
    by_operator = {row.operator: (row.nodes, row.before_us, row.after_us) for row in found.operators}
    assert by_operator["Transpose"] == ((2, 0), 10.0, 0.0)
    assert found.summary == ("B takes 41 us less per run than A (59 instead of 100): Neg -35, Transpose -10, Floor +2")
    assert found.ci95 == pytest.approx((-50.0, -50.0))


def test_a_difference_that_may_be_noise_is_not_told_as_one(parse):
    text = "g (float[N] x) => (float[N] y) { y = Neg(x) }"
    models = parse(text), parse(text)
    old, new = map(named, models)
    sides = timing(node_time("y", "Neg", 2000.0, old["y"])), timing(node_time("y", "Neg", 2010.0, new["y"]))
    unsure = differ(*sides, models, plain=(2000.0, 2000.0)).summary
    assert unsure.startswith("B takes as long as A, as far as can be told (2.01 instead of 2.00 ms per run;")
    contrary = differ(*sides, models, plain=(2000.0, 1990.0)).summary
    assert "as far as can be told" in contrary
    assert differ(*sides, models, plain=(2000.0, 2010.0)).summary.startswith("B takes 0.01 ms more per run than A")


def test_what_went_into_two_nodes_joins_nothing(parse):
    """A shared node of the file would make one of all that uses it."""
    text = "g (float[N] x) => (float[N] y, float[N] z) { a = Neg(x)  y = Relu(a)  z = Abs(a) }"
    models = parse(text), parse(text)
    sides = [
        timing(
            node_time("y", "Relu", 5.0, nodes["y"], nodes["a"]),
            node_time("z", "Abs", 3.0, nodes["z"], nodes["a"]),
        )
        for nodes in map(named, models)
    ]
    assert sorted(row.node for row in differ(*sides, models).nodes) == ["y", "z"]


def test_another_operator_for_the_same_value(parse):
    models = (
        parse("g (float[N,2] x) => (float[N,1] y) { m = ReduceMean(x)  y = Neg(m) }"),
        parse("g (float[N,2] x) => (float[N,1] y) { m = ReduceMax(x)  y = Neg(m) }"),
    )
    sides = [
        timing(node_time("m", n["m"].op_type, 5.0, n["m"]), node_time("y", "Neg", 1.0, n["y"]))
        for n in map(named, models)
    ]
    rows = {row.node: (row.before, row.after) for row in differ(*sides, models).nodes}
    assert rows == {"m": (("ReduceMean",), ("ReduceMax",)), "y": (("Neg",), ("Neg",))}


# All of it.


def test_a_convolutional_network(convolution_file):
    done = profile(convolution_file, runs=5, batch=2)
    (found,) = done.models
    assert (found.model, found.runs, done.batch, done.target) == (str(convolution_file), 5, 2, "cpu")
    assert done.difference is None
    nodes = {node.node: node for node in found.nodes}
    convolution = nodes["d"]
    assert convolution.operator in ("com.microsoft.nchwc::Conv", "com.microsoft::FusedConv", "Conv")
    assert convolution.provider == CPU
    assert convolution.outputs[0] == Tensor("float", (2, 16, 8, 8))
    assert convolution.inputs[1].shape[0] == 16
    assert convolution.calls == 1
    everything = {origin.node for node in found.nodes for origin in node.fused}
    assert everything == {"c", "r", "d", "s", "t", "p", "f", "y"}
    assert found.folded == 0
    assert found.run_us == pytest.approx(sum(node.us for node in found.nodes) + found.outside_us)
    assert sum(row.us for row in found.operators) == pytest.approx(sum(node.us for node in found.nodes))
    assert [row.us for row in found.operators] == sorted((row.us for row in found.operators), reverse=True)
    added = [node for node in found.nodes if node.added]
    assert found.copies.nodes == len(added)
    assert bool(added) == any("added by the runtime" in note for note in found.notes)
    assert found.elsewhere == {}


def test_a_loop(model_file):
    (found,) = profile(model_file(LOOP), runs=5).models
    nodes = {node.node: node for node in found.nodes}
    assert (nodes["m"].calls, nodes["m"].inside) == (7, ("y",))
    assert (nodes["y"].calls, nodes["y"].operator, nodes["y"].inside) == (1, "Loop", ())
    rows = {row.operator: (row.nodes, row.calls) for row in found.operators}
    assert rows["MatMul"] == (1, 7)


def test_only_the_branch_that_runs(model_file):
    text = (
        "g (float[N,3] x, bool c) => (float[N,3] y) { y = If(c) <then_branch = t () => (float[N,3] p) "
        "{ p = Neg(x) }, else_branch = e () => (float[N,3] q) { q = Abs(x) }> }"
    )
    for value, expected in ((True, "p"), (False, "q")):
        path = model_file(text.replace(", bool c)", ")").replace("{ y = If", f"<bool c = {{{int(value)}}}> {{ y = If"))
        (found,) = profile(path, target="cpu{level=none}", runs=5).models
        assert {node.node: node.inside for node in found.nodes} == {"y": (), expected: ("y",)}


def test_functions_are_looked_into(model_file):
    path = model_file(
        '<ir_version: 9, opset_import: ["": 18, "local": 1]> g (float[N,3] x) => (float[N,3] y) '
        '{ a = local.f(x)  y = local.f(a) } <domain: "local", opset_import: ["": 18]> '
        "f (x) => (y) { z = Softmax(x)  y = Neg(z) }"
    )
    (found,) = profile(path, runs=5).models
    rows = {row.operator: row.nodes for row in found.operators}
    assert rows == {"Softmax": 2, "Neg": 2}
    assert len({node.name for node in found.nodes}) == 4
    assert all(node.fused for node in found.nodes)


def test_nodes_of_the_same_name_are_told_apart(model_file):
    """Names need not differ between a graph and its bodies, nor from those of values."""
    path = model_file(
        "g (float[N,3] x) => (float[N,3] y) <int64 n = {2}, bool yes = {1}> { [same] a = Neg(x)  b = Abs(a)  [b] c = Exp(b) "
        "y = Loop(n, yes, c) <body = l (int64 i, bool go, float[N,3] s) => (bool go2, float[N,3] s2) "
        "{ go2 = Identity(go)  [same] s2 = Tanh(s) }> }"
    )
    (found,) = profile(path, runs=5).models
    nodes = {node.operator: node for node in found.nodes}
    assert set(nodes) == {"Neg", "Abs", "Exp", "Loop", "Tanh", "Identity"}
    assert (nodes["Neg"].node, nodes["Exp"].node) == ("same", "b")
    assert len({node.node for node in found.nodes}) == 6
    assert all(len(node.fused) == 1 for node in found.nodes)


def test_names_that_break_the_profilers_file(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[N,3] x) => (float[N,3] y) { a = Neg(x)  y = Abs(a) }'
    )
    model.graph.node[0].name = 'say "hello"\n'
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = 'a\\"\t'
    onnx.save_model(model, tmp_path / "odd.onnx")
    (found,) = profile(tmp_path / "odd.onnx", runs=5).models
    assert {node.node for node in found.nodes} == {"say _hello__", "y"}


def test_nodes_that_run_elsewhere(model_file, monkeypatch):
    """As on a target whose provider does not know an operator."""
    path = model_file("g (float[N,3] x) => (float[N,3] y) { a = Neg(x)  y = Abs(a) }")
    place = find("cpu")
    measured = profiling.measure

    def moved(*args):
        found = measured(*args)
        nodes = [dataclasses.replace(n, provider="Moon" if n.operator == "Neg" else CPU) for n in found.nodes]
        return dataclasses.replace(found, nodes=nodes)

    monkeypatch.setattr(profiling, "measure", moved)
    (found,) = profile(path, target=place, runs=5).models
    assert list(found.elsewhere) == ["Moon"]
    assert found.elsewhere["Moon"].nodes == 1
    (note,) = (note for note in found.notes if "Moon" in note)
    assert note.startswith("1 node, ")
    assert note.endswith(f"ran on Moon instead of {CPU}: 1 Neg")


def test_a_runtime_that_does_not_tell_what_it_made(model_file, monkeypatch):
    from graphopt.runtimes.ort import OrtRuntime

    def refused(self, model, target):
        raise runtime.ExecutionError("compiled nodes cannot be written")

    monkeypatch.setattr(OrtRuntime, "optimized", refused)
    (found,) = profile(model_file(LOOP), runs=5).models
    assert {node.operator for node in found.nodes} >= {"Abs", "Loop", "MatMul", "Neg"}
    assert not any(node.fused or node.added for node in found.nodes)
    assert any("does not tell" in note for note in found.notes)


def test_times_of_launching_are_called_so():
    place = dataclasses.replace(find("cpu"), provider="MoonExecutionProvider")
    node, _ = node_time("a", "Neg", 1.0)
    one = timing((dataclasses.replace(node, provider="MoonExecutionProvider"), ()))
    notes = profiling._notes(one, None, [], {}, place)
    assert any("launching" in note for note in notes)
    assert not any("launching" in note for note in profiling._notes(one, None, [], {}, find("cpu")))


def test_disturbed_runs_are_called_so():
    one = dataclasses.replace(timing(node_time("a", "Neg", 1000.0)), plain_us=5000.0)
    assert any("5000 us, not the 1000" in note for note in profiling._notes(one, None, [], {}, find("cpu")))
    near = dataclasses.replace(one, plain_us=1100.0)
    assert not any("other programs" in note for note in profiling._notes(near, None, [], {}, find("cpu")))


# The command.


def test_the_object_of_json(graphopt, convolution_file):
    ran = graphopt("profile", convolution_file, "--runs", "5", "--axis", "x=3", "--json")
    assert (ran.code, ran.out) == (2, "")
    assert "no dynamic axis 'x'" in ran.err
    ran = graphopt("profile", convolution_file, "--runs", "5", "--batch", "3", "--threads", "1", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert list(ran.json) == ["target", "batch", "axes", "models", "difference"]
    assert (ran.json["target"], ran.json["batch"], ran.json["axes"]) == ("cpu{threads=1}", 3, {})
    (found,) = ran.json["models"]
    assert list(found) == [
        "model", "runs", "run_us", "outside_us", "profiler_us", "plain_us", "operators", "nodes", "copies",
        "elsewhere", "folded", "notes",
    ]  # fmt: skip
    assert list(found["operators"][0]) == ["operator", "nodes", "calls", "us", "share"]
    assert list(found["nodes"][0]) == [
        "node", "name", "operator", "us", "share", "calls", "provider", "inputs", "outputs", "fused", "added", "inside",
    ]  # fmt: skip
    (convolution,) = (node for node in found["nodes"] if node["node"] == "d")
    assert convolution["outputs"] == [{"dtype": "float", "shape": [3, 16, 8, 8]}]
    assert {"node": "d", "operator": "Conv"} in convolution["fused"]


def test_the_table(graphopt, convolution_file):
    ran = graphopt("profile", convolution_file, "--runs", "5", "--top", "2")
    assert (ran.code, ran.err) == (0, "")
    first, second, *_ = ran.out.splitlines()
    assert first.startswith(f"{convolution_file} on cpu, batch 1: ")
    assert "per run" in first
    assert "median of 5 runs" in second
    assert "outside nodes" in ran.out
    assert "more; --top or --json show them" in ran.out
    whole = graphopt("profile", convolution_file, "--runs", "5", "--top", "99")
    assert "more; --top" not in whole.out
    assert "Conv + Relu" in whole.out


def test_two_models(graphopt, convolution_file, tmp_path):
    smaller = convolutions(1)
    del smaller.graph.node[4]  # t
    smaller.graph.node[4].input[0] = "s"
    onnx.save_model(smaller, tmp_path / "smaller.onnx")
    options = (convolution_file, tmp_path / "smaller.onnx", "--runs", "6", "--target", "cpu{level=none}")
    ran = graphopt("profile", *options)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0].startswith("smaller.onnx takes ")
    assert "difference" in ran.out
    found = graphopt("profile", *options, "--json").json
    assert [one["model"] for one in found["models"]] == [str(path) for path in options[:2]]
    difference = found["difference"]
    assert list(difference) == ["summary", "difference_us", "ci95", "outside_us", "operators", "nodes"]
    rows = {row["node"]: row for row in difference["nodes"]}
    assert (rows["t"]["before"], rows["t"]["after"], rows["t"]["operator"]) == (["Relu"], [], "Relu")
    assert (rows["c"]["before"], rows["c"]["after"]) == (["Conv"], ["Conv"])
    one, two = found["models"]
    assert difference["difference_us"] == pytest.approx(two["run_us"] - one["run_us"])
    assert sum(row["difference_us"] for row in difference["nodes"]) == pytest.approx(
        difference["difference_us"] - difference["outside_us"]
    )


def test_the_profilers_own_file_on_demand(graphopt, model_file, tmp_path, monkeypatch):
    path = model_file(LOOP)
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.chdir(tmp_path)
    ran = graphopt("profile", path, "--runs", "5", "--trace", "kept.json", "--json")
    assert (ran.code, ran.err) == (0, "")
    events = json.loads((tmp_path / "kept.json").read_text())
    assert sum(event["name"] == "model_run" for event in events) >= 5
    assert graphopt("profile", path, "--runs", "5").code == 0
    assert not list(elsewhere.iterdir())
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "kept.json", "temporary"}


def test_data_to_run_on(graphopt, model_file, tmp_path):
    path = model_file(LOOP)
    np.savez(tmp_path / "d.npz", x=np.ones((9, 4), np.float32))
    ran = graphopt("profile", path, "--data", tmp_path / "d.npz", "--batch", "4", "--runs", "5", "--json")
    assert ran.json["batch"] == 4
    assert ran.json["models"][0]["nodes"][0]["inputs"]
    np.savez(tmp_path / "wrong.npz", x=np.ones((9, 5), np.float32))
    assert "d.npz" not in graphopt("profile", path, "--data", tmp_path / "wrong.npz").error


def test_a_dynamic_axis(graphopt, model_file):
    path = model_file("g (float[N,S] x) => (float[N,S] y) { y = Neg(x) }")
    ran = graphopt("profile", path, "--axis", "S=5", "--runs", "5", "--json")
    assert ran.json["axes"] == {"S": 5}
    assert ran.json["models"][0]["nodes"][0]["outputs"][0]["shape"] == [1, 5]
    assert ", S 5: " in graphopt("profile", path, "--axis", "S=5", "--runs", "5").out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["none.onnx"], 1, "none.onnx: no such file"),
        (["m.onnx", "none.onnx"], 1, "none.onnx: no such file"),
        (["m.onnx", "--target", "reference"], 1, "target 'reference' has no profiler"),
        (["m.onnx", "--target", "gpu"], 2, "unknown target 'gpu'"),
        (["m.onnx", "--axis", "M=2"], 2, "no dynamic axis 'M'"),
        (["m.onnx", "--axis", "N=2,3"], 2, "'N' has 2 sizes; a profile is of one"),
        (["m.onnx", "--axis", "N"], 2, "'N' is not of the form"),
        (["m.onnx", "--batch", "0"], 2, "--batch"),
        (["m.onnx", "--runs", "0"], 2, "--runs"),
        (["m.onnx", "--runs", "1000000"], 2, "profile it with at most --runs"),
        (["m.onnx", "--seconds", "0"], 2, "--seconds"),
        (["m.onnx", "--top", "0"], 2, "--top"),
        (["m.onnx", "m.onnx", "--trace", "t.json"], 2, "a trace is of one model"),
        (["m.onnx", "--trace", "no/t.json"], 1, "no/t.json: cannot write"),
        (["m.onnx", "--trace", "m.onnx"], 1, "m.onnx: is also the input"),
        (["m.onnx", "other.onnx"], 1, "other.onnx: does not run on inputs of m.onnx"),
        (["strange.onnx"], 1, "strange.onnx: "),
        (["broken.onnx"], 1, "broken.onnx: not an ONNX model"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_the_user_can_fix(graphopt, model_file, tmp_path, monkeypatch, args, code, message):
    model_file("g (float[N,3] x) => (float[N,3] y) { y = Neg(x) }")
    model_file("g (float[N,5] z) => (float[N,5] y) { y = Neg(z) }", "other.onnx")
    model_file("g (float[N,3] x) => (float[N,3] y) { y = NoSuchOperator(x) }", "strange.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    monkeypatch.chdir(tmp_path)
    ran = graphopt("profile", *args)
    assert message in ran.err
    assert ran.code == code
    assert not ran.out
    assert not (tmp_path / "t.json").exists()


# Words.


@pytest.mark.parametrize(
    ("us", "expected"),
    [
        (123456, "123 ms"),
        (12345, "12.3 ms"),
        (1234.5, "1.23 ms"),
        (123.4, "123 us"),
        (12.34, "12.3 us"),
        (0.5, "0.500 us"),
    ],
)
def test_three_digits(us, expected):
    time = scale(us)
    assert f"{time(us)} {time.unit}" == expected
    assert time.signed(us).startswith("+")
    assert time.signed(-us).startswith("-")


def test_operators_and_shares_in_words():
    assert operator("com.microsoft.nchwc::Conv") == "nchwc::Conv"
    assert operator("com.microsoft::FusedConv") == "FusedConv"
    assert operator("Conv") == "Conv"
    assert (percent(0.414), percent(0.0123), percent(0.0), percent(1.0)) == ("41 %", "1.2 %", "0 %", "100 %")
