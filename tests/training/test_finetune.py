"""From an .onnx file to a better .onnx file."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt as library
from graphopt import io, runtime, target
from graphopt.errors import UserError
from graphopt.training.loop import fit
from graphopt.training.settings import Settings


def content(path):
    return {name: value.const_value.numpy() for name, value in io.load(path).graph.initializers.items()}


def structure(path):
    model = onnx.load(path)
    del model.graph.initializer[:], model.metadata_props[:]
    return model


def test_the_command(graphopt, files):
    model, train, held, out = files
    log = out.with_suffix(".csv")
    ran = graphopt(
        "finetune", model, "--data", train, "--eval-data", held, "-o", out, "--epochs", 6, "--learning-rate", 0.1,
        "--batch", 32, "--log", log, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    done = ran.json
    assert done["metric"]["name"] == "accuracy"
    assert done["metric"]["after"] > done["metric"]["before"] + 0.2
    assert done["metric"]["ci95"][1] < 0, "the gain is certain"
    assert done["trained"] == 4
    assert len(done["history"]) == 6
    assert done["best"] == max(done["history"], key=lambda row: row["metric"])["epoch"]
    assert sum(map(sum, done["confusion"]["counts"])) == 200
    assert {row["label"] for row in done["classes"]} == {0, 1, 2}
    assert structure(model) == structure(out), "nodes, names, types and order stay"
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert not out.with_name("out.onnx.checkpoint").exists()
    score = graphopt("validate", out, "--data", held, "--metric", "accuracy", "--json").json
    assert score["score"] == pytest.approx(done["metric"]["after"])


def test_what_it_prints(graphopt, files):
    model, train, held, out = files
    log = out.with_suffix(".json")
    ran = graphopt("finetune", model, "--data", train, "--eval-data", held, "-o", out, "--epochs", 2, "--log", log)
    assert ran.code == 0
    assert "epoch 1: loss" in ran.err
    assert "accuracy 0." in ran.out
    assert "predicted" in ran.out
    assert f"output {out}" in ran.out
    assert [row["epoch"] for row in json.loads(log.read_text())] == [1, 2]


def test_a_picture_of_the_curve(graphopt, files):
    pytest.importorskip("matplotlib")
    model, train, held, out = files
    ran = graphopt(
        "finetune", model, "--data", train, "--eval-data", held, "-o", out, "--plot", out.with_suffix(".png")
    )
    assert ran.code == 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_pass_in_a_pipeline(graphopt, files):
    model, train, held, out = files
    spec = f"finetune{{data={train} eval_data={held} epochs=2 learning_rate=0.1 batch=32}}"
    ran = graphopt("apply", model, "simplify", spec, "-o", out, "--json")
    assert ran.code == 0, ran.err
    (step,) = [s for s in ran.json["steps"] if s["pass"].startswith("finetune")]
    assert step["status"] == "kept"
    assert step["report"]["after"] > step["report"]["before"]


def test_the_result_is_never_worse_than_the_input(files):
    model, train, held, out = files
    done = library.finetune(model, out, data=str(train), eval_data=str(held), learning_rate=1e-12, epochs=1)
    assert done.best == 0
    assert done.metric.drop == 0
    for name, array in content(model).items():
        np.testing.assert_array_equal(array, content(out)[name])


def test_only_weights_change_and_frozen_ones_do_not(files):
    model, train, _, out = files
    library.finetune(model, out, data=str(train), epochs=1, freeze=("v", "c"))
    before, after = content(model), content(out)
    assert (before["w"] != after["w"]).any()
    for name in ("v", "c"):
        np.testing.assert_array_equal(before[name], after[name])


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(files):
    model, train, _, out = files
    made = []
    for seed in (0, 0, 1):
        library.finetune(model, out, data=str(train), epochs=1, seed=seed)
        made.append(out.read_bytes())
    assert made[0] == made[1] != made[2]


def test_zeros_of_pruned_weights_stay(network, samples):
    model = network()
    value = model.graph.initializers["w"]
    pruned = value.const_value.numpy().copy()
    pruned[::2] = 0
    value.const_value = ir.Tensor(pruned, name="w")
    data = library.data.open_data(samples())
    fit(model, Settings(epochs=1, batch=32), data=data)
    trained = value.const_value.numpy()
    assert (trained[::2] == 0).all()
    assert (trained[1::2] != pruned[1::2]).mean() > 0.9
    fit(model, Settings(epochs=1, batch=32, zeros="train"), data=data)
    assert (value.const_value.numpy()[::2] != 0).mean() > 0.9


def test_group_sparsity_empties_whole_channels(network, samples):
    data = library.data.open_data(samples(512))
    empty = []
    for penalty in (0.0, 0.01):
        model = network()
        fit(model, Settings(epochs=20, batch=32, learning_rate=0.05, group_sparsity=penalty), data=data)
        norms = np.linalg.norm(model.graph.initializers["w"].const_value.numpy(), axis=0)
        empty.append(int((norms < 0.1 * norms.max()).sum()))
    assert empty[0] == 0
    assert empty[1] >= 8


@pytest.mark.parametrize("kind", ["batch", "frozen"])
def test_batch_normalization(parse, samples, kind):
    model = parse(
        """g (float[N,8] x) => (float[N,3] y) <float[8] s = {1,1,1,1,1,1,1,1}, float[8] b = {0,0,0,0,0,0,0,0},
        float[8] m = {5,5,5,5,5,5,5,5}, float[8] v = {9,9,9,9,9,9,9,9},
        float[8,3] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}>
        { n = BatchNormalization(x, s, b, m, v)  y = MatMul(n, w) }"""
    )
    fit(model, Settings(epochs=6, batch=32, batchnorm=kind), data=library.data.open_data(samples(512)))
    mean, variance = (model.graph.initializers[n].const_value.numpy() for n in "mv")
    if kind == "frozen":
        assert (mean == 5).all()
        assert (variance == 9).all()
    else:
        assert np.abs(mean).max() < 0.5
        assert np.abs(variance - 1).max() < 0.7


def test_the_file_computes_what_was_trained(files):
    """ONNX Runtime computes with the written weights what torch computes with the trained ones."""
    model, train, _, out = files
    library.finetune(model, out, data=str(train), epochs=1)
    x = np.random.default_rng(3).standard_normal((16, 8)).astype(np.float32)
    one, other = (runtime.open_session(io.load(out), target.find(t)).run({"x": x})["y"] for t in ("cpu", "torch"))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


KILLED = """
import sys
from graphopt.cli import main
sys.argv = ["graphopt", *sys.argv[1:]]
main()
"""


def test_a_killed_training_goes_on_to_the_same_weights(graphopt, files, tmp_path):
    model, train, held, out = files
    unbroken = tmp_path / "unbroken.onnx"
    options = ["finetune", model, "--data", train, "--eval-data", held, "--epochs", 40, "--batch", 8]
    assert graphopt(*options, "-o", unbroken).code == 0
    checkpoint = out.with_name("out.onnx.checkpoint")
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, options), "-o", str(out)])
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert not out.exists(), "nothing half-written"
    ran = graphopt(*options, "-o", out, "--json")
    assert ran.json["resumed"]
    one, other = content(unbroken), content(out)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_a_checkpoint_of_another_training_is_left_aside(graphopt, files):
    model, train, _, out = files
    first = graphopt("finetune", model, "--data", train, "-o", out, "--epochs", 1, "--checkpoint", out.with_name("c"))
    assert first.code == 0
    ran = graphopt("finetune", model, "--data", train, "-o", out, "--epochs", 2, "--json")
    assert not ran.json["resumed"]


def test_a_damaged_checkpoint_says_so(graphopt, files):
    model, train, _, out = files
    out.with_name("out.onnx.checkpoint").write_bytes(b"no state at all")
    ran = graphopt("finetune", model, "--data", train, "-o", out)
    assert ran.code == 1
    assert "not a checkpoint" in ran.error


def test_a_checkpoint_never_takes_the_place_of_an_input(graphopt, files):
    model, train, _, out = files
    before = model.read_bytes()
    for more in ([], ["--no-resume"]):
        ran = graphopt("finetune", model, "--data", train, "-o", out, "--checkpoint", model, *more)
        assert ran.code == 1
        assert "model.onnx" in ran.error
        assert model.read_bytes() == before


def test_cross_validation(files):
    model, train, _, out = files
    done = library.finetune(model, out, data=str(train), epochs=4, batch=32, learning_rate=0.1, folds=4)
    found = done.cross_validation
    assert len(found.scores) == 4
    assert found.mean > 0.7
    assert found.mean == pytest.approx(np.mean(found.scores))


def test_folds_are_stratified(samples):
    from graphopt.training.folds import folds

    data = library.data.open_data(samples(300))
    parts = folds(data, 5, 0)
    assert sorted(np.concatenate(parts)) == list(range(300))
    labels = data.labels()
    shares = [np.bincount(labels[part], minlength=3) for part in parts]
    assert np.ptp(shares, axis=0).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1e30, "clip": 0.0}, "choose a smaller --learning-rate"),
        ({"loss": "mse"}, "do not fit the model's first output"),
        ({"augment": ("flip",)}, "no input has four axes"),
        ({"augment": ("rotate",)}, "unknown augmentation 'rotate'"),
        ({"device": "cuda:7"}, "torch has none of this name"),
        ({"features": ("h=h",)}, "add --teacher"),
        ({"epochs": 0}, "epochs is 0"),
        ({"train": ("nothing",)}, "no weight is called 'nothing'"),
        ({"data": "absent.npz"}, "no such file"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_trained_says_so_and_writes_nothing(files, options, message):
    model, train, _, out = files
    with pytest.raises(UserError, match=message):
        library.finetune(model, out, **{"data": str(train), "epochs": 1, **options})
    assert not out.exists()


def test_unlabelled_data_wants_a_teacher(files, samples, tmp_path):
    model, _, _, out = files
    np.savez(tmp_path / "plain.npz", x=samples()["x"])
    with pytest.raises(UserError, match="has no labels; add them, or --teacher"):
        library.finetune(model, out, data=str(tmp_path / "plain.npz"))
    with pytest.raises(UserError, match="has no labels, which the metric needs"):
        library.finetune(model, out, data=str(files[1]), eval_data=str(tmp_path / "plain.npz"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_trains_to_the_same_weights(network, samples):
    made = []
    for compile in (False, True):
        model = network()
        fit(model, Settings(epochs=1, batch=64, compile=compile), data=library.data.open_data(samples()))
        made.append(model.graph.initializers["w"].const_value.numpy())
    np.testing.assert_allclose(made[0], made[1], rtol=1e-4, atol=1e-5)


def test_mixed_precision(network, samples):
    model = network()
    data = library.data.open_data(samples(512))
    done = fit(model, Settings(epochs=4, batch=32, learning_rate=0.1, precision="bfloat16"), data=data)
    assert done.history[-1].loss < 0.7 * done.history[0].loss
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT


def test_a_model_of_half_precision_keeps_its_type(parse, samples):
    zeros = ",".join("0" * 24)
    model = parse(f"g (float16[N,8] x) => (float16[N,3] y) <float[8,3] w = {{{zeros}}}> {{ y = MatMul(x, w) }}")
    value = model.graph.initializers["w"]
    value.const_value = ir.Tensor(np.random.default_rng(0).standard_normal((8, 3)).astype(np.float16), name="w")
    value.type = ir.TensorType(ir.DataType.FLOAT16)
    drawn = samples()
    drawn["x"] = drawn["x"].astype(np.float16)
    before = model.graph.initializers["w"].const_value.numpy()
    done = fit(model, Settings(epochs=3, batch=32, learning_rate=0.1), data=library.data.open_data(drawn))
    after = model.graph.initializers["w"].const_value.numpy()
    assert done.history[-1].loss < done.history[0].loss
    assert after.dtype == np.float16
    assert (after != before).all()


def test_labels_that_are_text(files, samples, tmp_path):
    np.savez(tmp_path / "text.npz", x=samples()["x"], labels=np.array(["a"] * 256))
    with pytest.raises(UserError, match="labels are text; number the classes from 0"):
        library.finetune(files[0], files[3], data=str(tmp_path / "text.npz"))


def test_a_model_of_a_fixed_batch_trains_at_that_batch_and_says_so(graphopt, files):
    model, train, _, out = files
    fixed = out.with_name("fixed.onnx")
    assert graphopt("set-shape", model, "--axes", "N=4", "-o", fixed).code == 0
    ran = graphopt("finetune", fixed, "--data", train, "-o", out, "--epochs", 1)
    assert ran.code == 0, ran.err
    assert "fixes its batch to 4, in place of 128" in ran.out


def test_an_operator_that_torch_does_not_know(graphopt, model_file, tmp_path, samples):
    np.savez(tmp_path / "train.npz", **samples())
    model = model_file(
        """<ir_version: 9, opset_import: ["": 18, "ai.onnx.ml": 3]>
        g (float[N,8] x) => (float[N,3] y) <float[8,3] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}>
        { a = MatMul(x, w)  y = ai.onnx.ml.Scaler<offset = [0.0], scale = [1.0]>(a) }"""
    )
    ran = graphopt("finetune", model, "--data", tmp_path / "train.npz", "-o", tmp_path / "out.onnx")
    assert ran.code == 1
    assert "Scaler) is not in the operator table" in ran.error


def test_training_in_two_processes_is_training_in_one(files, tmp_path):
    model, train, held, _ = files
    single, double = tmp_path / "single.onnx", tmp_path / "double.onnx"
    options = ["finetune", str(model), "--data", str(train), "--eval-data", str(held), "--epochs", "2", "--batch", "32"]
    script = tmp_path / "train.py"
    script.write_text(KILLED)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command, path in (([sys.executable], single), (launcher, double)):
        ran = subprocess.run(
            [*command, str(script), *options, "-o", str(path)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
    one, other = content(single), content(double)
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-4, atol=1e-6)


def test_a_recipe_trains_and_the_referee_looks_at_the_metric_alone(graphopt, files, tmp_path):
    model, train, held, out = files
    recipe = tmp_path / "recipe.yaml"
    for rate, status in ((0.1, "kept"), (1e-12, "skipped")):
        recipe.write_text(
            f"steps:\n  - pass: finetune\n    data: {train}\n    eval_data: {held}\n    epochs: 2\n"
            f"    batch: 32\n    learning_rate: {rate}\n"
        )
        ran = graphopt("optimize", model, "--recipe", recipe, "--eval-data", held, "-o", out, "--json")
        assert ran.code == 0, ran.err
        (step,) = ran.json["steps"]
        assert step["status"] == status
        assert (ran.json["metric"]["drop"] < 0) == (status == "kept")
