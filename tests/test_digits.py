"""The trained sample end to end, as README runs it: in a process of its own, with the real clock."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

from graphopt import data, io, metrics, registry, runtime, target


@pytest.fixture(scope="module")
def optimized(digits, tmp_path_factory):
    """Run the default recipe with data on the sample; return the finished process and its folder."""
    folder = tmp_path_factory.mktemp("digits")
    args = ["optimize", digits / "digits.onnx", "-o", "out.onnx", "--data", digits / "calibration.npz"]
    args += ["--eval-data", digits / "test.npz", "--json"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "graphopt", *args], cwd=folder, capture_output=True, text=True
    )
    return done, folder


def test_it_ends_well(optimized):
    done, folder = optimized
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert sorted(file.name for file in folder.iterdir()) == ["out.onnx", "out.report.json"]


def test_every_step_is_kept_or_says_why_not(optimized):
    steps = json.loads(optimized[0].stdout)["steps"]
    names = [step["pass"].partition("{")[0] for step in steps]
    recipe = registry.entry("recipe", "default").path.read_text()
    assert names == [line.split("- ")[1].split("{")[0].strip() for line in recipe.splitlines() if "- " in line]
    for step in steps:
        assert step["status"] in ("kept", "skipped", "reverted")
        assert step["reason"]
        assert "bug" not in step["reason"]
        assert "0x" not in step["pass"], "no address of an object in a specification"
    assert [step["status"] for step in steps].count("kept") >= 2
    lossless = [step for step in steps if not step["pass"].startswith("quantize")]
    assert "reverted" not in {step["status"] for step in lossless}


def test_the_output_holds_its_promises(optimized, digits):
    """Not slower, not worse, standard operators, provenance without a path."""
    done, folder = optimized
    report = json.loads(done.stdout)
    assert report["met"] is True
    assert report["latency"]["ci95"][1] >= 1
    assert report["metric"]["name"] == "accuracy"
    assert report["metric"]["ci95"][1] <= 0.01
    out = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(out, full_check=True)
    assert {node.domain for node in out.graph.node} <= {"", "com.microsoft"}
    provenance = json.loads(io.load(folder / "out.onnx").metadata_props["graphopt"])
    assert provenance["pipeline"] == [s["pass"].partition("{")[0] for s in report["steps"] if s["status"] == "kept"]
    assert str(digits) not in json.dumps(provenance)
    assert not [name for name in (*registry.entries("pass"),) if f"graphopt.{name}" in str(out)]


def test_the_reported_score_is_the_real_one(optimized, digits):
    """Scored again here, from the file."""
    _, folder = optimized
    session = runtime.open_session(io.load(folder / "out.onnx"), target.find("cpu"))
    ports = runtime.model_inputs(io.load(folder / "out.onnx"))
    score = metrics.evaluate(metrics.find("accuracy"), session, data.open_data(digits / "test.npz"), ports)
    assert score.value == json.loads(optimized[0].stdout)["metric"]["after"]
    with np.load(digits / "test.npz") as arrays:
        predicted = session.run({"image": arrays["image"]})["logits"].argmax(1)
        assert score.value == pytest.approx(np.mean(predicted == arrays["labels"]))


def test_validate_agrees(optimized, digits):
    _, folder = optimized
    args = ["validate", "out.onnx", "--reference", digits / "digits.onnx", "--data", digits / "test.npz"]
    args += ["--metric", "accuracy", "--max-drop", "0.01", "--min-sqnr", "15", "--json"]
    done = subprocess.run([sys.executable, "-m", "graphopt", *args], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert json.loads(done.stdout)["met"] is True


def test_the_input_is_untouched(digits):
    onnx.checker.check_model(onnx.load(digits / "digits.onnx"), full_check=True)
    assert len(io.sha256([digits / "digits.onnx"])) == 64


def test_without_data_the_output_is_lossless(digits, graphopt, tmp_path):
    ran = graphopt("optimize", digits / "digits.onnx", "-o", tmp_path / "out.onnx", "--json")
    assert ran.code == 0, ran.out
    assert ran.json["metric"] is None
    assert ran.json["nodes"][1] < ran.json["nodes"][0]
    assert {s["pass"]: s["status"] for s in ran.json["steps"]}["quantize"] == "skipped"
    assert graphopt("validate", tmp_path / "out.onnx", "--reference", digits / "digits.onnx").code == 0


def test_the_same_steps_give_the_same_bytes(digits, graphopt, tmp_path):
    steps = ["repair", "fold-constants", f"calibrate{{data={digits / 'calibration.npz'}}}", "quantize-static"]
    for name in ("a.onnx", "b.onnx"):
        ran = graphopt("apply", digits / "digits.onnx", *steps, "-o", tmp_path / name)
        assert ran.code == 0, ran.out + ran.err
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
