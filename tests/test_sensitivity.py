"""What quantizing one layer at a time costs."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import compare, io, pipeline, runtime, sensitivity, spec, target
from graphopt.data import open_data
from graphopt.errors import UsageError, UserError
from graphopt.fidelity import Fidelity
from graphopt.sensitivity import layers, noise, preparing
from graphopt.sensitivity.sources import Source, Sources

EXACTLY = target.find("cpu{level=none}", 1)
CPU = target.find("cpu", 1)
WIDTH = 16


def filled(model, **arrays):
    """Turn graph inputs into initializers."""
    for value in list(model.graph.inputs):
        if value.name in arrays:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(np.asarray(arrays[value.name], np.float32), name=value.name)
            model.graph.register_initializer(value)
    return model


@pytest.fixture
def fragile(parse):
    """Five products, of which the result of `third` has one channel 300 times as large as the others.

    On the grid that covers it the others keep a few steps; the next product makes it small again.
    """
    steps = "\n".join(
        f"[{name}] h{i} = Gemm(a{i}, w{i}, b{i}) [relu{i}] a{i + 1} = Relu(h{i})"
        for i, name in enumerate(("first", "second", "third", "fourth"))
    )
    declared = ", ".join(f"float[{WIDTH},{WIDTH}] w{i}, float[{WIDTH}] b{i}" for i in range(5))
    text = f"g (float[N,{WIDTH}] a0, {declared}) => (float[N,{WIDTH}] y) {{ {steps} [last] y = Gemm(a4, w4, b4) }}"
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)) for i in range(5)}
    arrays |= {f"b{i}": rng.normal(0, 0.1, WIDTH) for i in range(5)}
    arrays["w2"][:, 0] *= 300
    arrays["w3"][0] /= 300
    return filled(parse(text), **arrays)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(96, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "d.npz", a0=x, labels=rng.integers(0, WIDTH, len(x)))
    return tmp_path / "d.npz"


@pytest.fixture
def file(fragile, tmp_path):
    io.save(fragile, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def measuring(model, feeds, place=CPU):
    """Return a model with named nodes, what static quantization makes of it, its sources and a meter of them."""
    source = open_data(feeds)
    named = preparing.calibrated(model, source)
    made, _ = preparing.quantized(named, spec.build("quantize-static", {}))
    found = Sources(named, made)
    fidelity = Fidelity(runtime.open_session(named, place), source, runtime.model_inputs(named), samples=64)
    return named, made, found, noise.Meter(found, fidelity, place), fidelity


def test_the_fragile_layer_comes_first(file, data):
    done = sensitivity.analyse(file, data, seconds=0)
    worst = done.layers[0]
    assert worst.name == "third"
    assert worst.operator == "Gemm"
    assert worst.share > 0.8
    assert worst.activation_sqnr < 20 < worst.weights_sqnr, "its weights have scales per channel"
    assert worst.without > worst.sqnr + 6
    assert worst.weight_bytes == 4 * (WIDTH * WIDTH + WIDTH)
    assert [layer.sqnr for layer in done.layers] == sorted(layer.sqnr for layer in done.layers)
    assert sum(layer.share for layer in done.layers) == pytest.approx(1)
    assert {layer.operator for layer in done.layers} == {"Gemm", "input"}


def test_noise_adds_up(file, data):
    done = sensitivity.analyse(file, data, seconds=0)
    assert done.outputs[0].predicted == pytest.approx(done.outputs[0].measured, abs=1.0)


def test_the_same_twice(file, data):
    first, second = (sensitivity.analyse(file, data, seconds=0) for _ in range(2))
    assert first.layers == second.layers
    assert first.outputs == second.outputs


def test_one_layer_alone_is_what_quantizing_it_alone_measures(fragile, data):
    """Against quantize-static itself with all other nodes excluded."""
    named, _, found, meter, fidelity = measuring(fragile, data)
    names = [node.name for node in named.graph if node.op_type == "Gemm"]
    for name in names:
        alone = pipeline.duplicate(named)
        spec.build("quantize-static", {"exclude": tuple(other for other in names if other != name)})(alone)
        node = next(node for node in named.graph if node.name == name)
        around = {node.inputs[0].name, *(f"h{i}" for i in range(4) if node.outputs[0].name == f"h{i}")}
        touched = [s for s in found if s == Source("weights", name) or (s.kind == "activation" and s.name in around)]
        # What feeds it is rounded before the Relu that the grid stands for, so it is known by another name.
        before = node.inputs[0].producer()
        touched += [s for s in found if before is not None and s == Source("activation", before.inputs[0].name)]
        expected = fidelity.worst(runtime.open_session(alone, CPU))
        assert noise.worst(meter.together(touched)) == pytest.approx(expected, abs=0.3), name


EXACT = {
    "convolutions": """g (float[N,4,8,8] x, float[8,4,3,3] w, float[8] b, float[4,8,1,1] v) => (float[N,4,4,4] y) {
        a = Conv<pads = [1,1,1,1]>(x, w, b)
        r = Relu(a)
        m = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r)
        y = Conv(m, v)
    }""",
    "concatenation on one grid": """g (float[N,4,6,6] x, float[4,4,1,1] w, float[4,4,1,1] v, float[4,8,1,1] u) => (float[N,4,6,6] y) {
        a = Conv(x, w)
        b = Conv(x, v)
        c = Concat<axis = 1>(a, b)
        y = Conv(c, u)
    }""",
    "a residual that is an output, too": """g (float[N,4,6,6] x, float[4,4,1,1] w, float[4,4,1,1] v) => (float[N,4,6,6] s, float[N,4,6,6] y) {
        a = Conv(x, w)
        s = Add(a, x)
        y = Conv(s, v)
    }""",
    "read as float, too": """g (float[N,4,6,6] x, float[4,4,1,1] w, float[4,4,1,1] v) => (float[N,4,6,6] y, float[N,4,6,6] z) {
        e = Exp(x)
        z = Softplus(e)
        a = Conv(e, w)
        y = Conv(a, v)
    }""",
    "constants that scale and shift": """g (float[N,6] x, float[6,8] w, float[8] b, float[8,6] v) => (float[N,6] y) {
        a = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)
        t = Mul(a, b)
        y = MatMul(t, v)
    }""",
    "shared weights, nodes without names": """g (float[N,6] x, float[6,6] w, float[6] b) => (float[N,6] y) {
        a = MatMul(x, w)
        s = Add(a, b)
        r = Relu(s)
        y = MatMul(r, w)
    }""",
    "inside a branch": """g (float[8,6] x, float[6,6] w, float[6,6] v) => (float[8,6] y) <float zero = {0.0}> {
        a = MatMul(x, w)
        s = Mul(x, x)
        n = ReduceSum<keepdims = 0>(s)
        c = Greater(n, zero)
        y = If (c) <
            then_branch = t () => (float[8,6] u) { m = MatMul(a, v)  r = Relu(m)  u = MatMul(r, v) },
            else_branch = e () => (float[8,6] q) { q = Identity(a) }
        >
    }""",
    "reshaped on the way": """g (float[2,4,6] x, float[6,6] w, float[24,6] v) => (float[2,6] y) <int64[2] shape = {2, 24}> {
        a = MatMul(x, w)
        t = Transpose<perm = [0,2,1]>(a)
        r = Reshape(t, shape)
        y = MatMul(r, v)
    }""",
}


@pytest.mark.parametrize("text", EXACT.values(), ids=EXACT)
def test_all_sources_together_are_the_quantized_model(parse, text):
    """Without the runtime's own rewriting, nothing is left that the float model with roundings does not compute."""
    model, rng = parse(text), np.random.default_rng(2)
    ports = {v.name: [d if isinstance(d, int) else 8 for d in v.shape] for v in model.graph.inputs}
    feeds = {"x": rng.normal(size=ports.pop("x")).astype(np.float32)}
    filled(model, **{name: rng.normal(0, 0.3, shape) for name, shape in ports.items()})
    named, made, found, _, _ = measuring(model, feeds, EXACTLY)
    assert not found.unmatched
    assert len(found) == len(list(found)) > 2
    rounded = runtime.open_session(found.apply(found), EXACTLY).run(feeds)
    expected = runtime.open_session(made, EXACTLY).run(feeds)
    reference = runtime.open_session(named, EXACTLY).run(feeds)
    for name, array in expected.items():
        lost = compare.sqnr(reference[name], array)
        assert compare.sqnr(array, rounded[name]) >= lost + 25, (
            "the two differ far less than either from the float model"
        )
    untouched = runtime.open_session(found.apply([]), EXACTLY).run(feeds)
    assert all(np.array_equal(reference[name], untouched[name]) for name in reference)


def test_an_old_model(parse):
    model = parse(
        '<ir_version: 4, opset_import: ["": 9]> g (float[N,6] x, float[6,6] w, float[6] b) => (float[N,6] y) '
        "{ a = Gemm(x, w, b)  r = Relu(a)  y = Gemm(r, w, b) }"
    )
    rng = np.random.default_rng(0)
    filled(model, w=rng.normal(size=(6, 6)), b=rng.normal(size=6))
    named, _, found, meter, _ = measuring(model, {"x": rng.normal(size=(8, 6)).astype(np.float32)})
    assert named.opset_imports[""] >= 11
    assert all(0 < power < 1 for parts in meter.each().values() for power in parts.values())
    assert model.opset_imports[""] == 9, "what was given is never changed"
    assert len(found) == 4


def test_deep_networks_are_measured_in_stretches(fragile, data, monkeypatch):
    _, _, found, meter, _ = measuring(fragile, data)
    alone = meter.each()
    monkeypatch.setattr(noise, "_MOST", 2)
    before = meter.runs
    together = meter.each()
    assert meter.runs - before < 2 * len(found)
    assert together.keys() == alone.keys()
    worst = max(alone, key=lambda source: alone[source]["y"])
    assert worst == Source("activation", "h2")
    assert together[worst] == alone[worst]
    names = ["y"]
    assert noise.worst(noise.total(together.values(), names)) == pytest.approx(
        noise.worst(noise.total(alone.values(), names)), abs=0.5
    )


def test_times_are_told_where_there_is_a_profiler(file, data):
    done = sensitivity.analyse(file, data, samples=8, seconds=0.1)
    gemms = [layer for layer in done.layers if layer.operator == "Gemm"]
    assert all(layer.float_ms is not None and layer.quantized_ms is not None for layer in gemms)
    assert all(layer.float_ms is None for layer in done.layers if layer.operator == "input")


def test_a_metric_of_every_layer(file, data):
    done = sensitivity.analyse(file, data, samples=8, metric="cosine", seconds=0)
    assert done.metric.before == 1
    assert done.metric.after < 1
    assert max(done.layers, key=lambda layer: layer.drop).name == "third"
    assert min(layer.drop for layer in done.layers) > 0


def test_a_metric_on_other_data(file, data, tmp_path):
    x, truth = np.load(data)["a0"], runtime.open_session(io.load(file), CPU)
    np.savez(tmp_path / "e.npz", a0=x, labels=truth.run({"a0": x})["y"].argmax(1))
    done = sensitivity.analyse(file, data, samples=8, metric="accuracy", eval_data=tmp_path / "e.npz", seconds=0)
    assert done.metric.before == 1, "the labels are what the float model says"
    assert max(done.layers, key=lambda layer: layer.drop).name == "third"


def test_the_command(graphopt, file, data):
    ran = graphopt("sensitivity", file, "--data", data, "--seconds", "0", "--samples", "16")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1].split()[:2] == ["third", "Gemm"]
    assert "dB with everything quantized" in ran.out
    ran = graphopt("sensitivity", file, "--data", data, "--seconds", "0", "--sort", "graph", "--top", "2")
    assert "more; --top or --json show them" in ran.out


def test_json(graphopt, file, data):
    ran = graphopt(
        "sensitivity", file, "--data", data, "--samples", "16", "--seconds", "0", "--metric", "agreement", "--json"
    )
    assert ran.code == 0
    found = ran.json
    assert set(found) == {
        "model", "scheme", "target", "samples", "runs", "layers", "outputs", "metric", "unmatched", "skipped", "seconds",
    }  # fmt: skip
    assert found["samples"] == 16
    assert found["scheme"] == "quantize-static"
    assert set(found["layers"][0]) == {
        "name", "operator", "sqnr", "mean_sqnr", "weights_sqnr", "activation_sqnr", "share", "without", "outputs",
        "weight_bytes", "float_ms", "quantized_ms", "drop",
    }  # fmt: skip
    assert set(found["metric"]) == {"name", "before", "after"}
    assert found["layers"][0]["outputs"] == {"y": found["layers"][0]["sqnr"]}


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the extra 'report'")
def test_the_plot_is_written_whole_or_not_at_all(graphopt, file, data, tmp_path, monkeypatch):
    args = ("sensitivity", file, "--data", data, "--samples", "8", "--seconds", "0", "--plot")
    assert graphopt(*args, tmp_path / "p.svg").code == 0
    drawn = (tmp_path / "p.svg").read_bytes()
    assert b"third (Gemm)" in drawn or b"third" in drawn
    assert graphopt(*args, tmp_path / "q.svg").code == 0
    assert (tmp_path / "q.svg").read_bytes() == drawn
    before = sorted(tmp_path.iterdir())
    assert "neither a .png nor a .svg" in graphopt(*args, tmp_path / "p.txt").error
    assert graphopt("sensitivity", file, "--data", tmp_path / "no.npz", "--plot", tmp_path / "n.svg").code == 1
    assert sorted(tmp_path.iterdir()) == before


def test_errors_are_one_line(graphopt, file, data, tmp_path, model_file):
    def error(*args, code=1):
        ran = graphopt("sensitivity", *args)
        assert ran.code == code
        return ran.error

    assert "no such file" in error(file, "--data", tmp_path / "no.npz")
    assert "unknown metric 'acuracy'; did you mean 'accuracy'?" in error(
        file, "--data", data, "--metric", "acuracy", code=2
    )
    assert "--metric accuracy" in error(file, "--data", data, "--eval-data", data, code=2)
    assert "unknown pass 'quantize-statik'" in error(file, "--data", data, "--scheme", "quantize-statik", code=2)
    np.savez(tmp_path / "unlabelled.npz", a0=np.ones((4, WIDTH), np.float32))
    unlabelled = tmp_path / "unlabelled.npz"
    assert "has no 'labels' array" in error(file, "--data", unlabelled, "--metric", "accuracy")
    np.savez(tmp_path / "other.npz", a0=np.ones((4, 3), np.float32))
    assert "other.npz" in error(file, "--data", tmp_path / "other.npz")
    plain = model_file("g (float[N,4] x) => (float[N,4] y) { y = Exp(x) }", "exp.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((4, 4), np.float32))
    assert "nothing to quantize" in error(plain, "--data", tmp_path / "x.npz")


def test_evaluation_data_without_a_metric(file, data):
    with pytest.raises(UsageError, match="is for a metric"):
        sensitivity.analyse(file, data, eval_data=data)


def test_a_pass_that_does_not_quantize(file, data):
    with pytest.raises(UserError, match="nothing to quantize"):
        sensitivity.analyse(file, data, scheme="eliminate-identity", seconds=0)


def test_layers_of_equal_names_are_told_apart(parse):
    model = filled(
        parse("g (float[N,6] x, float[6,6] w) => (float[N,6] y) { [same] a = MatMul(x, w) [same] y = MatMul(a, w) }"),
        w=np.random.default_rng(0).normal(size=(6, 6)),
    )
    named, _, found, _, _ = measuring(model, {"x": np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)})
    assert [node.name for node in named.graph] == ["same", "same_1"]
    assert {"same", "same_1"} <= set(layers.group(named, found))
