"""`apply` and the generated commands: passes by name, each verified, all or nothing."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import graphopt as package
from graphopt import io

TEXT = "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1.0, 2.0, 3.0}> { [first] a = Mul(x, w) [second] y = Neg(a) }"

SCALE = '''
@dataclass(frozen=True)
class Scale(Pass):
    """Scale the weights, and claim to be exact."""

    factor: float = param(1.0, "by how much")

    def call(self, model):
        w = model.graph.initializers["w"]
        w.const_value = ir.tensor((w.const_value.numpy() * self.factor).astype("float32"), name="w")
        return Result(model, self.factor != 1, {"scaled": 1}, [("second", "has no weights")])
'''


@pytest.fixture(autouse=True)
def passes(drop_pass):
    drop_pass("scale", SCALE)
    drop_pass(
        "coarsen",
        SCALE.replace("class Scale", "class Coarsen").replace("    def call", "    contract = LOSSY\n\n    def call"),
    )
    drop_pass("picky", SCALE.replace("class Scale", "class Picky").replace(
        "    def call", "    def requires(self, model):\n        raise PreconditionError('no ranges; run calibrate')\n\n    def call"))  # fmt: skip


@pytest.fixture
def model(model_file):
    return model_file(TEXT)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.onnx"


def weights(path):
    return io.load(path).graph.initializers["w"].const_value.numpy().tolist()


def test_passes_run_in_order(graphopt, model, out):
    ran = graphopt("apply", model, "scale{factor=1.000001}", "coarsen{factor=1.25}", "scale", "-o", out, "--json")
    assert (ran.code, ran.err) == (0, "")
    report = ran.json
    assert list(report) == ["input", "output", "target", "steps", "nodes", "bytes", "met", "seconds"]
    assert (report["input"], report["output"], report["target"]) == (str(model), str(out), "cpu")
    assert [(s["pass"], s["status"]) for s in report["steps"]] == [
        ("scale{factor=1.000001}", "kept"), ("coarsen{factor=1.25}", "kept"), ("scale", "skipped"),
    ]  # fmt: skip
    assert report["steps"][0]["skipped"] == [["second", "has no weights"]]
    assert report["nodes"] == [2, 2]
    assert report["bytes"] == [model.stat().st_size, out.stat().st_size]
    assert report["met"] is True
    np.testing.assert_allclose(weights(out), [1.25, 2.5, 3.75], rtol=1e-5)


def test_a_pass_that_fails_verification_writes_nothing(graphopt, model, out):
    ran = graphopt("apply", model, "scale{factor=1.001}", "coarsen{factor=1.25}", "-o", out, "--json")
    assert ran.code == 3
    assert [s["status"] for s in ran.json["steps"]] == ["reverted"], "what comes after does not run"
    assert "changed the result: output 'y': largest error" in ran.json["steps"][0]["reason"]
    assert ran.json["steps"][0]["reason"].endswith("first at first (Mul)")
    assert ran.json["output"] is None
    assert ran.json["met"] is False
    assert not out.exists()


def test_a_failure_in_words(graphopt, model, out):
    ran = graphopt("apply", model, "scale{factor=1.001}", "-o", out)
    assert ran.code == 3
    assert "reverted" in ran.out
    assert "verification failed; nothing was written" in ran.out
    assert not ran.err


def test_a_lossy_pass_that_destroys_fails(graphopt, model, out):
    ran = graphopt("apply", model, "coarsen{factor=-1}", "-o", out, "--json")
    assert ran.code == 3
    assert "dB left of its signal, under 3 dB" in ran.json["steps"][0]["reason"]


def test_a_precondition_that_is_not_met_is_the_users(graphopt, model, out):
    ran = graphopt("apply", model, "picky", "-o", out)
    assert (ran.code, ran.error) == (1, "picky: no ranges; run calibrate")
    assert not out.exists()


def test_the_generated_command(graphopt, model, out):
    ran = graphopt("coarsen", model, "-o", out, "--factor", "1.25")
    assert (ran.code, ran.err) == (0, "")
    assert weights(out) == [1.25, 2.5, 3.75]
    for text in ("coarsen{factor=1.25}", "kept", "scaled 1", "left second alone: has no weights", str(out)):
        assert text in ran.out
    assert graphopt("coarsen", model, "-o", out, "--factor", "1.25", "--json").json["steps"][0]["status"] == "kept"


def test_the_same_run_gives_the_same_bytes(graphopt, model, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        assert graphopt("apply", model, "coarsen{factor=1.25}", "-o", tmp_path / name).code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert json.loads(io.load(tmp_path / "a.onnx").metadata_props["graphopt"])["pipeline"] == ["coarsen{factor=1.25}"]
    assert str(tmp_path).encode() not in (tmp_path / "a.onnx").read_bytes()


def test_verified_on_the_users_data(graphopt, model, out, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((9, 3), np.float32))
    assert graphopt("apply", model, "scale{factor=5}", "-o", out).code == 3
    assert graphopt("apply", model, "scale{factor=5}", "-o", out, "--data", tmp_path / "d.npz").code == 0


def test_on_another_target(graphopt, model, out):
    ran = graphopt("apply", model, "coarsen{factor=1.25}", "-o", out, "--target", "reference", "--json")
    assert (ran.code, ran.json["target"]) == (0, "reference")


def test_a_large_model_end_to_end(graphopt, model_file, out, monkeypatch, tmp_path):
    """Everything works above the limit of protobuf, with external data in and out."""
    path = model_file(
        TEXT.replace("float[3]", "float[100]")
        .replace("N,3", "N,100")
        .replace("{1.0, 2.0, 3.0}", "{" + "1.0," * 99 + "1.0}")
    )
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 100)
    ran = graphopt("apply", path, "coarsen{factor=1.25}", "-o", out, "--json")
    assert ran.code == 0, ran.err
    data = tmp_path / "out.onnx.data"
    assert data.exists()
    assert ran.json["bytes"][1] == out.stat().st_size + data.stat().st_size
    ran = graphopt("apply", out, "coarsen{factor=1.25}", "-o", tmp_path / "again.onnx", "--json")
    assert ran.code == 0, ran.err
    assert set(weights(tmp_path / "again.onnx")) == {1.5625}
    assert graphopt("inspect", out, "--json").json["bytes"] == ran.json["bytes"][0]
    ran = graphopt("apply", out, "coarsen{factor=1.25}", "-o", data)
    assert "is also the input" in ran.error


def test_nodes_out_of_order(graphopt, model_file, out):
    path = model_file("g (float[N,3] x) => (float[N,3] y) <float[3] w = {1.0, 2.0, 3.0}> { y = Neg(a) a = Mul(x, w) }")
    ran = graphopt("apply", path, "coarsen{factor=1.25}", "-o", out)
    assert (ran.code, ran.err) == (0, "")
    onnx.checker.check_model(onnx.load(out))


WRONG = {
    "an unknown pass": (["m.onnx", "scael", "-o", "out.onnx"], 2, "unknown pass 'scael'; did you mean 'scale'?"),
    "an unknown field": (
        ["m.onnx", "scale{fcator=2}", "-o", "out.onnx"],
        2,
        "scale: unknown field 'fcator'; did you mean",
    ),
    "a bad value": (["m.onnx", "scale{factor=two}", "-o", "out.onnx"], 2, "scale: factor: 'two' is not a number"),
    "bad syntax": (["m.onnx", "scale{factor=2", "-o", "out.onnx"], 2, "cannot read pass 'scale{factor=2'"),
    "an unknown target": (["m.onnx", "scale", "-o", "out.onnx", "--target", "gpu"], 2, "unknown target 'gpu'"),
    "a missing model": (["none.onnx", "scale", "-o", "out.onnx"], 1, "none.onnx: no such file"),
    "the input as output": (["m.onnx", "scale", "-o", "m.onnx"], 1, "is also the input; write to another file"),
    "the data as output": (["m.onnx", "scale", "-o", "d.npz", "--data", "d.npz"], 1, "is also the input"),
    "missing data": (["m.onnx", "scale", "-o", "out.onnx", "--data", "none.npz"], 1, "none.npz: no such file"),
    "a folder as output": (["m.onnx", "scale", "-o", "."], 1, "is a folder; name a file"),
    "a model that does not load": (["broken.onnx", "scale", "-o", "out.onnx"], 1, "broken.onnx: does not load: "),
    "a model that rolls dice": (["dice.onnx", "scale", "-o", "out.onnx"], 1, "two runs on the same inputs differ"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_fix_is_told_and_nothing_is_written(graphopt, model_file, model, tmp_path, monkeypatch, name):
    args, code, message = WRONG[name]
    model_file(TEXT.replace("Neg", "NoSuchOperator"), "broken.onnx")
    model_file(TEXT.replace("Neg", "RandomNormalLike"), "dice.onnx")
    np.savez(tmp_path / "d.npz", x=np.zeros((9, 3), np.float32))
    monkeypatch.chdir(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    ran = graphopt("apply", *args)
    assert message in ran.error
    assert ran.code == code
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["m.onnx", "-o", "out.onnx", "--factor", "two"], 2, "scale: factor: 'two' is not a number"),
        (["m.onnx", "-o", "out.onnx", "--fcator", "2"], 2, "No such option '--fcator'"),
        (["m.onnx"], 2, "Missing option"),
        (["m.onnx", "-o", "out.onnx", "--seed", "-1"], 2, "--seed"),
    ],
)
def test_wrong_usage_of_the_generated_command(graphopt, model, tmp_path, monkeypatch, args, code, message):
    monkeypatch.chdir(tmp_path)
    ran = graphopt("scale", *args)
    assert ran.code == code
    assert message in ran.err
    assert not ran.out
    assert not (tmp_path / "out.onnx").exists()


def test_as_a_library(model, out):
    from graphopt import spec

    seen = []
    chosen = ["scale", {"pass": "coarsen", "factor": 1.25}, spec.parse("scale")]
    done = package.apply(model, chosen, out, data={"x": np.ones((4, 3), np.float32)}, on_step=seen.append)
    assert done.met
    assert [step.status for step in done.steps] == ["skipped", "kept", "skipped"]
    assert list(done.steps) == seen
    assert done.output == str(out)
