"""`bench`: rows with verdicts, a gate, a picture, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import graphopt as package
from graphopt import footprint, hardware, inputs, io, runtime, target, timing
from graphopt.errors import UserError
from graphopt.timing import Block, Opening

TEXT = "g (float[N,8] x) => (float[N,8] y) { a = Neg(x) y = Abs(a) }"
KEYS = [
    "model",
    "batch",
    "median_ms",
    "p90_ms",
    "per_second",
    "speedup",
    "ci95",
    "target",
    "axes",
    "clients",
    "p99_ms",
    "runs",
    "load_ms",
    "peak_bytes",
    "verdict",
]


@pytest.fixture
def models(model_file):
    return model_file(TEXT), model_file(TEXT.replace("Abs", "Relu"), "two[b].onnx")


@pytest.fixture
def clock(monkeypatch):
    """Decide how many times as fast the second contender is in each of ten rounds."""

    def measured(*speedups):
        rounds = [[Block(np.array([0.002]), 0.002), Block(np.array([0.002 / s]), 0.002 / s)] for s in speedups]
        monkeypatch.setattr(timing, "race", lambda *args, **kwargs: [Opening([0.01, 0.02], rounds)])

    return measured


def test_the_object_of_json(graphopt, models):
    ran = graphopt("bench", *models, "--batch", "1,4", "--runs", "3", "--json", "--no-memory")
    assert (ran.code, ran.err) == (0, "")
    assert list(ran.json) == ["target", "rows", "warnings", "failures", "met"]
    assert ran.json["target"] == "cpu"
    rows = ran.json["rows"]
    assert [(row["model"], row["batch"]) for row in rows] == [(str(m), b) for b in (1, 4) for m in models]
    assert list(rows[0]) == KEYS
    assert [row["verdict"] for row in rows[::2]] == ["baseline", "baseline"]


def test_the_table(graphopt, models):
    ran = graphopt("bench", *models, "--runs", "2", "--target", "reference", "--threads", "1", "--no-memory")
    assert (ran.code, ran.err) == (0, "")
    assert "median ms" in ran.out
    assert "1.00x" in ran.out
    assert "peak memory" not in ran.out
    assert "peak memory" in graphopt("bench", models[0], "--runs", "2").out, "also where there is one row only"
    assert str(models[1]) in ran.out.replace("\n", "")


def test_rows(models):
    done = package.benchmark(models, batch=[1, 4], runs=3, memory=False)
    assert done.met
    for row in done.rows:
        assert 0 < row.median_ms <= row.p90_ms <= row.p99_ms
        assert row.load_ms > 0
        assert row.runs >= 3
        assert row.ci95[0] <= row.speedup <= row.ci95[1]
        assert row.peak_bytes is None
    assert [row.speedup for row in done.rows[::2]] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("speedups", "verdict", "slower_by"),
    [
        ([1.2] * 10, "faster", None),
        ([1.01] * 10, "faster", None),
        ([1 / 1.2] * 10, "slower", 20.0),
        ([1 / 1.04] * 10, "slower", 4.0),
        ([1.005, 1.005, 0.995, 0.995] * 5, "equal", None),
        ([1.2, 1.2, 0.8, 0.8] * 5, "undecided", None),
    ],
)
def test_verdicts_and_the_gate(clock, graphopt, models, speedups, verdict, slower_by):
    clock(*speedups)
    ran = graphopt("bench", *models, "--no-memory", "--fail-if-slower", "5%", "--json")
    first, second = ran.json["rows"]
    assert (first["verdict"], second["verdict"]) == ("baseline", verdict)
    assert second["speedup"] == pytest.approx(np.median(speedups), rel=0.05)
    assert second["ci95"][0] <= second["speedup"] <= second["ci95"][1]
    assert (ran.code, ran.json["met"]) == ((3, False) if (slower_by or 0) > 5 else (0, True))
    warned = any("too noisy to decide" in warning for warning in ran.json["warnings"])
    assert warned is (verdict == "undecided")
    if ran.code:
        assert ran.json["failures"] == [f"{models[1]} at batch 1 takes {slower_by:.1f} % more time; 5 % is allowed"]
        assert "gate not met: " in graphopt("bench", *models, "--no-memory", "--fail-if-slower", "5").out


def test_axes_clients_and_targets(model_file):
    path = model_file("g (float[B,S,4] x, float[B,S] m) => (float[B,S,4] y) { y = Neg(x) z = Abs(m) }")
    done = package.benchmark(
        [path], target=["cpu", "cpu{threads=1}"], axes={"S": [3, 5]}, clients=[1, 2], runs=2, memory=False
    )
    assert [(r.target, r.axes["S"], r.clients) for r in done.rows] == [
        (t, s, c) for s in (3, 5) for c in (1, 2) for t in ("cpu", "cpu{threads=1}")
    ]


def test_columns_in_which_rows_differ_are_shown(graphopt, model_file):
    path = model_file(TEXT)
    args = ("bench", path, "--target", "cpu", "--target", "cpu{level=none}", "--clients", "1,2", "--runs", "2")
    out = graphopt(*args, "--no-memory").out
    assert "cpu{level=none}" in out
    assert "clients" in out


def test_nameless_axes_have_a_name(model_file):
    path = model_file(TEXT)
    model = io.load(path)
    model.graph.inputs[0].shape = None
    session = runtime.open_session(model, target.find("cpu"))
    assert inputs.of_batch(model, session, 2, 0)["x"].shape[0] == 2
    ports = (runtime.Port("x", None, ("N", None)),)
    inputs.check_axes(ports, ["N", "x:1"])
    with pytest.raises(UserError, match="no dynamic axis 'x:2'"):
        inputs.check_axes(ports, ["x:2"])


def test_data_is_run_on(models, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((6, 8), np.float32))
    done = package.benchmark(models, batch=[4], data=tmp_path / "d.npz", runs=2, memory=False)
    assert {row.batch for row in done.rows} == {4}


def test_peak_memory_is_that_of_the_model(model_file):
    """A model with 40 MB of inner values takes 40 MB more than a small one."""
    small = model_file("g (float[N,8] x) => (float[N,8] y) { y = Neg(x) }", "small.onnx")
    large = model_file(
        "g (float[N,8] x) => (float[N,8] y) <int64[1] many = {10000000}, int64[2] keep = {0, 1}, int64[1] z = {0}, "
        "int64[1] one = {1}> { a = ReduceSum<keepdims = 0>(x) b = Reshape(a, one) e = Expand(b, many) "
        "f = Exp(e) s = ReduceSum(f, z) y = Add(x, s) }",
        "large.onnx",
    )
    one, two = (row.peak_bytes for row in package.benchmark([small, large], runs=2).rows)
    assert 0 <= one < 20e6
    assert one + 35e6 < two < one + 200e6


def test_memory_that_cannot_be_measured_is_a_warning(model_file, models, monkeypatch):
    def refuse(*args):
        raise footprint.Unmeasurable("it is shy")

    monkeypatch.setattr(footprint, "peak_bytes", refuse)
    done = package.benchmark(models, runs=2)
    assert done.rows[0].peak_bytes is None
    assert any("peak memory was not measured: it is shy" in warning for warning in done.warnings)


def test_the_measuring_process_tells_why_it_fails(model_file):
    feeds = [{"wrong": np.zeros(3, np.float32)}]
    with pytest.raises(footprint.Unmeasurable, match="Required inputs"):
        footprint.peak_bytes(model_file(TEXT), target.find("cpu"), feeds)
    with pytest.raises(footprint.Unmeasurable, match="plain numbers"):
        footprint.peak_bytes(model_file(TEXT), target.find("cpu"), [{"x": np.array(["a"], object)}])


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_picture(clock, graphopt, models, tmp_path, form):
    pytest.importorskip("matplotlib")
    clock(*[1.2] * 10)
    drawn = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{form}"
        assert graphopt("bench", *models, "--batch", "1,4", "--no-memory", "--plot", path).code == 0
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1], "the same numbers give the same bytes"
    assert drawn[0].startswith(b"\x89PNG" if form == "png" else b"<?xml")
    if form == "svg":
        assert b"two[b].onnx" in drawn[0].replace(b"&#91;", b"[") or b"<path" in drawn[0]


def test_a_fixed_batch_is_told_as_it_is(model_file):
    (row,) = package.benchmark([model_file(TEXT.replace("[N,", "[5,"))], batch=[1], runs=2, memory=False).rows
    assert row.batch == 5


@pytest.mark.parametrize(
    "text",
    [
        "g (float[] x) => (float[] y) { y = GlobalAveragePool(x) }",  # of unknown rank, but must be an image
        "g (float[A,B] x, float[B,C] w) => (float[A,C] y) { y = MatMul(x, w) }",
        "g () => (float[2] y) { y = Constant<value = float[2] {1.0, 2.0}>() }",
        "g (int64[N] i) => (float[N] y) <float[2] k = {1.0, 2.0}> { y = Gather(k, i) }",
        "g (float x) => (float y) { y = Neg(x) }",
    ],
)
def test_inputs_are_found_for_whatever_can_be_verified(model_file, text):
    """What `generate` can feed for verification, `of_batch` must be able to feed for timing."""
    path = model_file(text)
    session = runtime.open_session(io.load(path), target.find("cpu"))
    assert inputs.generate(io.load(path), session, 0)
    assert package.benchmark([path], runs=2, memory=False).rows


def test_inputs_are_seeded(model_file):
    path = model_file(TEXT)
    session = runtime.open_session(io.load(path), target.find("cpu"))
    one, two, other = (inputs.of_batch(io.load(path), session, 2, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["x"], two["x"])
    assert not np.array_equal(one["x"], other["x"])


def test_a_busy_machine_is_told(monkeypatch, models):
    idle = dataclasses.replace(hardware.machine(), load=(0.0, 0.0, 0.0))
    busy = dataclasses.replace(idle, load=(99.0, 0.0, 0.0))
    for machine in (idle, busy):
        monkeypatch.setattr(hardware, "machine", lambda found=machine: found)
        warnings = package.benchmark(models, runs=2, memory=False).warnings
        assert any("measurements will be noisy" in warning for warning in warnings) is (machine is busy)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["none.onnx"], 1, "none.onnx: no such file"),
        (["m.onnx", "--target", "gpu"], 2, "unknown target 'gpu'"),
        (["m.onnx", "--target", "cpu{level=top}"], 2, "'top' is not one of"),
        (["m.onnx", "--batch", "1,x"], 2, "'1,x' is not a list of sizes such as 1,32"),
        (["m.onnx", "--batch", "0"], 2, "sizes start at 1"),
        (["m.onnx", "--clients", "0"], 2, "sizes start at 1"),
        (["m.onnx", "--axis", "S"], 2, "'S' is not of the form NAME=16,128"),
        (["m.onnx", "--axis", "S=4"], 2, "the model has no dynamic axis 'S'"),
        (["m.onnx", "--runs", "1"], 2, "--runs"),
        (["m.onnx", "--seconds", "0"], 2, "--seconds"),
        (["m.onnx", "--seed", "-1", "--runs", "2"], 2, "--seed"),
        (["m.onnx", "--fail-if-slower", "much"], 2, "'much' is not a percentage such as 5%"),
        (["m.onnx", "--plot", "p.pdf"], 1, "p.pdf: is neither a .png nor a .svg"),
        (["m.onnx", "--plot", "none/p.png"], 1, "folder none does not exist"),
        (["m.onnx", "--data", "none.npz"], 1, "none.npz: no such file"),
        (["m.onnx", "z.onnx"], 1, "z.onnx: does not run on inputs of m.onnx"),
        (["bad.onnx"], 1, "repair it with: graphopt apply MODEL repair -o OUT"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_the_user_can_fix(graphopt, models, model_file, tmp_path, monkeypatch, args, code, message):
    model_file(TEXT.replace("x", "z"), "z.onnx")
    model_file(TEXT.replace("Abs", "NoSuch"), "bad.onnx")
    monkeypatch.chdir(tmp_path)
    ran = graphopt("bench", *args)
    assert message in ran.err
    assert ran.code == code
    assert not ran.out
