"""The file of ranges: written, read, edited, and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graphopt import io
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization import _ranges
from graphopt.passes.quantization._ranges import OBSERVERS
from graphopt.passes.quantization.calibrate import Calibrate
from graphopt.passes.quantization.quantize_static import QuantizeStatic


@pytest.fixture
def net(build):
    return build(
        "g (float[N,8] x, float[8,8] w1, float[8,4] w2) => (float[N,4] y) { a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2) }",
        w1=(8, 8),
        w2=(8, 4),
    )


@pytest.fixture
def file(net, sample, tmp_path):
    Calibrate(sample(x=[64, 8]), observers=OBSERVERS, save=str(tmp_path / "ranges.json"))(net)
    return tmp_path / "ranges.json"


def test_a_file_holds_what_the_model_holds(net, file):
    document = json.loads(file.read_text())
    assert document["samples"] == 64
    assert document["observers"] == list(OBSERVERS)
    assert len(document["data"]) == 64
    for observer in OBSERVERS:
        recorded = _ranges.read(net, observer)
        assert {name: tuple(r[observer]) for name, r in document["activations"].items()} == recorded
    lines = [line for line in file.read_text().splitlines() if line.startswith("    ")]
    assert len(lines) == len(document["activations"]), "one line for each activation"


def test_the_same_data_gives_the_same_file(net, file, sample, tmp_path):
    Calibrate(sample(x=[64, 8]), observers=OBSERVERS, save=str(tmp_path / "again.json"))(net)
    assert (tmp_path / "again.json").read_bytes() == file.read_bytes()


def test_a_round_trip_changes_nothing(net, file):
    before = _ranges.snapshot(net)
    result = Calibrate(ranges=str(file))(net)
    assert not result.modified
    assert _ranges.snapshot(net) == before
    _ranges.erase(net)
    assert Calibrate(ranges=str(file))(net).modified
    assert _ranges.snapshot(net) == before


def test_ranges_can_be_edited(net, file):
    document = json.loads(file.read_text())
    document["activations"] = {"r": {"min-max": [0, 1.5]}, "x": document["activations"]["x"]}
    file.write_text(json.dumps(document))
    result = Calibrate(ranges=str(file))(net)
    assert result.report == {"ranges": 2}
    assert _ranges.read(net)["r"] == (0, 1.5)
    assert set(_ranges.read(net, "mse")) == {"x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("\udcff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "holds no ranges"),
        ('{"activations": []}', "holds no ranges"),
        ('{"activations": {}}', "holds no ranges"),
        ('{"activations": {"q": {"min-max": [0, 1]}}}', "no activation 'q'"),
        ('{"activations": {"": {"min-max": [0, 1]}}}', "no activation ''"),
        ('{"activations": {"r": {"min-mx": [0, 1]}}}', "no observer 'min-mx'; did you mean 'min-max'"),
        ('{"activations": {"r": {"min-max": [2, 1]}}}', "begins at 2, above its end 1; swap them"),
        ('{"activations": {"r": {"min-max": [0, Infinity]}}}', "two finite float32 numbers"),
        ('{"activations": {"r": {"min-max": [NaN, 1]}}}', "two finite float32 numbers"),
        ('{"activations": {"r": {"min-max": [0, 1e39]}}}', "two finite float32 numbers"),
        ('{"activations": {"r": {"min-max": [0, 1' + "0" * 400 + "]}}}", "two finite float32 numbers"),
        ('{"activations": {"r": {"min-max": [true, 1]}}}', "two finite float32 numbers"),
        ('{"activations": {"r": {"min-max": [1]}}}', "two finite float32 numbers"),
        ('{"activations": {"r": {"min-max": 1}}}', "two finite float32 numbers"),
        ('{"activations": {"r": {}}}', "must be an object"),
        ('{"activations": {"r": [0, 1]}}', "must be an object"),
    ],
)
def test_bad_files(net, tmp_path, graphopt, text, message):
    (tmp_path / "ranges.json").write_bytes(text.encode(errors="surrogateescape"))
    io.save(net, tmp_path / "m.onnx")
    done = graphopt("calibrate", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--ranges", tmp_path / "ranges.json")
    assert done.code == 1
    assert message in done.error
    assert not (tmp_path / "o.onnx").exists()


def test_a_missing_file(net, tmp_path):
    with pytest.raises(UserError, match="cannot read the ranges: No such file"):
        Calibrate(ranges=str(tmp_path / "no.json"))(net)


def test_a_bad_file_leaves_the_ranges_as_they_were(net, file):
    before = _ranges.snapshot(net)
    file.write_text('{"activations": {"r": {"min-max": [0, 1]}, "q": {"min-max": [0, 1]}}}')
    with pytest.raises(UserError, match="no activation 'q'"):
        Calibrate(ranges=str(file))(net)
    assert _ranges.snapshot(net) == before


def test_nothing_is_written_without_success(build, tmp_path):
    model = build(
        "g (float[N,4] x, int64[2] s) => (float[A,B] y) { r = Reshape(x, s) y = Mul(r, r) }", s=np.array([5, 5])
    )
    with pytest.raises(UserError, match="does not run"):
        Calibrate({"x": np.zeros((2, 4), np.float32)}, save=str(tmp_path / "r.json"))(model)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_refused_first(net, sample, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Calibrate(sample(x=[4, 8]), save=str(tmp_path / "nowhere" / "r.json"))(net)
    np.savez(tmp_path / "d.npz", **sample(x=[4, 8]))
    with pytest.raises(UserError, match="is also the input"):
        Calibrate(tmp_path / "d.npz", save=str(tmp_path / "d.npz"))(net)
    assert _ranges.read(net) == {}


def test_values_of_one_name_share_a_range(parse):
    model = parse(
        """
        g (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}> {
          y = If(c) <then_branch = t () => (float[N,4] p) { p = MatMul(x, w) },
                     else_branch = e () => (float[N,4] p) { p = MatMul(x, w) }>
        }
        """
    )
    branches = [body.outputs[0] for body in model.graph.subgraphs()]
    for value, range_ in zip(branches, [(-1.0, 2.0), (-5.0, 1.0)], strict=True):
        _ranges.write(value, {"min-max": range_})
    assert _ranges.read(model) == {"p": (-5, 2)}


def test_an_observer_that_was_not_asked_for(net, sample):
    Calibrate(sample(x=[64, 8]))(net)
    assert _ranges.read(net, "mse") == {}
    with pytest.raises(PreconditionError, match="no ranges by mse, but by min-max"):
        QuantizeStatic(observer="mse")(net)


def test_files_take_no_part_in_provenance(net, sample, tmp_path, graphopt):
    io.save(net, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **sample(x=[4, 8]))
    for name in ("one", "two"):
        options = ("--data", tmp_path / "d.npz", "--save", tmp_path / f"{name}.json")
        assert graphopt("calibrate", tmp_path / "m.onnx", "-o", tmp_path / f"{name}.onnx", *options).code == 0
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
