"""`optimize`: what is kept, what is rolled back, what is written, and what is told."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import onnx
import pytest

import graphopt as package
from graphopt import io, referee, runtime, target
from graphopt.errors import UserError
from graphopt.latency import Latency

TEXT = """g (float[N,5] image) => (float[N,4] logits)
<float[5,4] w = {1.0,0.0,0.0,0.0, 0.0,1.0,0.0,0.0, 0.0,0.0,1.0,0.0, 0.0,0.0,0.0,1.0, 9.0,9.0,9.0,9.0}> {
    [first] i = Identity(image)
    [second] logits = MatMul(i, w)
}"""
LABELS = np.arange(200) % 4
IMAGES = np.concatenate([np.eye(4, dtype=np.float32)[LABELS], np.ones((200, 1), np.float32)], axis=1)

TIDY = '''
@dataclass(frozen=True)
class Tidy(Pass):
    """Remove the Identity."""

    def call(self, model):
        found = [node for node in model.graph if node.op_type == "Identity"]
        for node in found:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)
        model.graph.inputs[0].metadata_props["graphopt.fact"] = "left for another pass"
        return Result(model, bool(found), {"removed": len(found)})
'''
EVIL = '''
@dataclass(frozen=True)
class Evil(Pass):
    """Claim to be exact, and negate."""

    def call(self, model):
        node = next(node for node in model.graph if node.op_type == "MatMul")
        node.op_type = "Add"
        return Result(model, True)
'''
CONFUSE = '''
@dataclass(frozen=True)
class Confuse(Pass):
    """Get one class of four wrong."""

    contract = LOSSY
    weight: float = param(-0.1, "weight of the class")

    def requires(self, model):
        if "locked" in model.metadata_props:
            raise PreconditionError("the model is locked")

    def call(self, model):
        w = model.graph.initializers["w"]
        array = w.const_value.numpy().copy()
        array[0, 0] = self.weight
        w.const_value = ir.tensor(array, name="w")
        return Result(model, True, {}, [("second", "left <b>alone</b>")])
'''


@pytest.fixture(autouse=True)
def passes(drop_pass):
    drop_pass("tidy", TIDY)
    drop_pass("evil", EVIL)
    drop_pass("confuse", CONFUSE)
    drop_pass("strip-nothing", TIDY.replace("class Tidy", "class StripNothing").replace("found =", "found = [] and"))


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Decide what every latency comparison measures; 1.2 times the speed unless told otherwise."""

    def measured(speedup, low=None, high=None):
        latency = Latency(1, speedup, 1.0, speedup, (low or speedup - 0.01, high or speedup + 0.01))
        monkeypatch.setattr(referee, "compare_latency", lambda *args, **kwargs: latency)

    measured(1.2)
    return measured


@pytest.fixture
def model(model_file):
    return model_file(TEXT)


@pytest.fixture
def recipe(tmp_path):
    def write(*steps):
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({"steps": list(steps)}))
        return path

    return write


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "calibration.npz", image=IMAGES)
    np.savez(tmp_path / "test.npz", image=IMAGES, labels=LABELS)
    return {"data": tmp_path / "calibration.npz", "eval_data": tmp_path / "test.npz"}


def options(**named):
    return [word for key, value in named.items() for word in (f"--{key.replace('_', '-')}", value)]


def statuses(report):
    return [(step["pass"], step["status"]) for step in report["steps"]]


def test_the_object_of_json(graphopt, model, recipe, data, tmp_path):
    """DESIGN section 6, key by key: release pipelines script against it, so it only grows."""
    out = tmp_path / "out.onnx"
    ran = graphopt("optimize", model, "-o", out, "--recipe", recipe("tidy", "confuse"), "--max-drop", "0.5", "--json",
                   *options(**data))  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    report = ran.json
    keys = ["input", "output", "target", "steps", "metric", "latency", "bytes", "nodes", "met", "seconds"]
    assert [key for key in report if key in keys] == keys
    assert report["input"] == str(model)
    assert report["output"] == str(out)
    assert report["target"] == "cpu"
    assert report["met"] is True
    assert report["seconds"] > 0
    assert report["nodes"] == [2, 1]
    assert report["bytes"] == [model.stat().st_size, out.stat().st_size]
    assert statuses(report) == [("tidy", "kept"), ("confuse", "kept")]
    tidy, confuse = report["steps"]
    keys = ["pass", "status", "reason", "seconds", "nodes", "bytes", "skipped"]
    assert [key for key in tidy if key in keys] == keys
    assert (tidy["reason"], tidy["nodes"], tidy["skipped"]) == ("verified", [2, 1], [])
    assert tidy["bytes"][0] != tidy["bytes"][1] > 0
    assert confuse["skipped"] == [["second", "left <b>alone</b>"]]
    assert confuse["reason"] == "accuracy 1.0000 to 0.7500, 1.20x the speed (1.19 to 1.21)"
    metric = report["metric"]
    assert list(metric) == ["name", "before", "after", "drop", "ci95", "samples", "p_value"]
    assert (metric["name"], metric["before"], metric["after"], metric["drop"]) == ("accuracy", 1.0, 0.75, 0.25)
    assert metric["ci95"][0] < 0.25 < metric["ci95"][1]
    assert report["latency"] == {"batch": 1, "before_ms": 1.2, "after_ms": 1.0, "speedup": 1.2, "ci95": [1.19, 1.21]}
    assert json.loads((tmp_path / "out.report.json").read_text()) == report


def test_without_data_only_lossless_passes_and_a_hint(graphopt, model, recipe, tmp_path):
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("tidy"), "--json")
    assert ran.code == 0
    assert ran.json["metric"] is None
    assert statuses(ran.json) == [("tidy", "kept")]
    assert ran.json["notes"] == [
        "no calibration data: only lossless passes ran; --data (a few hundred inputs) adds int8 quantization"
    ]


def test_without_labels_fidelity_is_held_to_the_budget(graphopt, model, recipe, data, tmp_path):
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("confuse"), "--json",
                   *options(data=data["data"], max_drop="0.0001"))  # fmt: skip
    assert statuses(ran.json) == [("confuse", "reverted")]
    assert ran.json["metric"]["name"] == "cosine"
    assert "--eval-data with labels adds the task metric" in ran.json["notes"][-1]


def test_a_budget_that_is_too_tight(graphopt, model, recipe, data, tmp_path):
    """The lossy step is rolled back with the reason, and what is lossless is kept."""
    out = tmp_path / "out.onnx"
    ran = graphopt("optimize", model, "-o", out, "--recipe", recipe("tidy", "confuse"), "--json", *options(**data))
    assert ran.code == 0
    assert statuses(ran.json) == [("tidy", "kept"), ("confuse", "reverted")]
    assert ran.json["steps"][1]["reason"] == ("accuracy 1.0000 to 0.7500: a drop of 0.2500 is over the budget of 0.01")
    assert ran.json["metric"]["after"] == 1.0
    assert run(out) == run(model)


def run(path):
    session = runtime.open_session(io.load(path), target.find("cpu"))
    return session.run({"image": IMAGES[:8]})["logits"].tolist()


def test_what_does_not_pay_is_rolled_back(graphopt, model, recipe, data, tmp_path, clock):
    clock(1.0)
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("confuse"), "--max-drop", "0.5",
                   "--json", *options(**data))  # fmt: skip
    assert statuses(ran.json) == [("confuse", "reverted")]
    assert ran.json["steps"][0]["reason"].startswith("does not pay on this target: 1.00x the speed")
    assert ran.code == 0


def test_the_output_is_never_slower(graphopt, model, recipe, tmp_path, clock):
    """Measured slower as a whole: everything is undone, the output is the input, and that is no failure."""
    clock(0.8)
    out = tmp_path / "out.onnx"
    ran = graphopt("optimize", model, "-o", out, "--recipe", recipe("tidy"), "--json")
    assert statuses(ran.json) == [("tidy", "reverted")]
    assert ran.json["steps"][0]["reason"] == "the whole model measured 0.80x the speed of the input"
    assert ran.json["nodes"] == [2, 2]
    assert "nothing helped: the output is the input, verified" in ran.json["notes"]
    assert [node.op_type for node in io.load(out).graph] == ["Identity", "MatMul"]
    assert ran.json["met"] is True
    assert ran.code == 0


def test_lossy_steps_go_first_when_the_whole_is_slower(graphopt, model, recipe, data, tmp_path, monkeypatch):
    speeds = iter([(1.5, 1.4, 1.6), (0.9, 0.8, 0.95), (0.9, 0.8, 0.95), (1.1, 1.0, 1.2)])
    # the step, the whole, the whole once more to be sure, the lossless part
    monkeypatch.setattr(referee, "compare_latency", lambda *a, **k: Latency(1, 1.0, 1.0, (s := next(speeds))[0], s[1:]))
    out = tmp_path / "out.onnx"
    ran = graphopt("optimize", model, "-o", out, "--recipe", recipe("tidy", "confuse"), "--max-drop", "0.5", "--json",
                   *options(**data))  # fmt: skip
    assert statuses(ran.json) == [("tidy", "kept"), ("confuse", "reverted")]
    assert ran.json["latency"]["speedup"] == 1.1
    assert ran.json["metric"]["after"] == 1.0
    assert run(out) == run(model)
    assert ran.code == 0


def test_a_broken_pass_is_rolled_back_and_named(graphopt, model, recipe, tmp_path):
    out = tmp_path / "out.onnx"
    ran = graphopt("optimize", model, "-o", out, "--recipe", recipe("evil", "tidy"), "--json")
    assert statuses(ran.json) == [("evil", "reverted"), ("tidy", "kept")]
    assert "changed the result" in ran.json["steps"][0]["reason"] or "run" in ran.json["steps"][0]["reason"]
    assert run(out) == run(model)
    assert ran.code == 0


def test_the_same_run_gives_the_same_bytes(graphopt, model, recipe, data, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        ran = graphopt("optimize", model, "-o", tmp_path / name, "--recipe", recipe("tidy", "confuse"),
                       *options(**data, max_drop="0.5"))  # fmt: skip
        assert ran.code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_provenance_travels_in_the_model(graphopt, model, recipe, data, tmp_path):
    out = tmp_path / "out.onnx"
    graphopt("optimize", model, "-o", out, "--recipe", recipe("tidy", "confuse{weight=-0.2}", "evil"), "--seed", "7",
             *options(**data, max_drop="0.5"))  # fmt: skip
    record = graphopt("inspect", out, "--json").json["provenance"]
    assert record["pipeline"] == ["tidy", "confuse{weight=-0.2}"]
    assert record["seed"] == 7
    assert sorted(record["sha256"]) == ["data", "model"]
    assert str(tmp_path).encode() not in out.read_bytes()


def test_facts_between_passes_do_not_reach_the_output(graphopt, model, recipe, tmp_path):
    out = tmp_path / "out.onnx"
    graphopt("optimize", model, "-o", out, "--recipe", recipe("tidy"))
    assert b"left for another pass" not in out.read_bytes()
    assert "graphopt" in io.load(out).metadata_props, "but provenance does"
    graphopt("apply", model, "tidy", "-o", tmp_path / "applied.onnx")
    assert b"left for another pass" in (tmp_path / "applied.onnx").read_bytes()


def test_a_precondition_that_is_not_met_skips_the_step(graphopt, model, recipe, data, tmp_path):
    proto = onnx.load(model)
    proto.metadata_props.add(key="locked", value="yes")
    onnx.save(proto, model)
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("confuse"), "--json",
                   *options(**data))  # fmt: skip
    assert [(s["status"], s["reason"]) for s in ran.json["steps"]] == [("skipped", "the model is locked")]
    assert ran.code == 0


def test_an_empty_recipe_writes_the_input(graphopt, model, recipe, tmp_path):
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe(), "--json")
    assert ran.json["steps"] == []
    assert run(tmp_path / "out.onnx") == run(model)


def test_a_model_that_cannot_be_verified_is_written_as_it_was(graphopt, model_file, recipe, tmp_path):
    model = model_file("g (float[N,4] x) => (float[N,4] y) { i = Identity(x) r = RandomNormalLike(i) y = Add(x, r) }")
    out = tmp_path / "out.onnx"
    ran = graphopt("optimize", model, "-o", out, "--recipe", recipe("tidy"), "--json")
    assert ran.code == 0
    assert statuses(ran.json) == [("tidy", "skipped")]
    assert ran.json["latency"] is None
    assert "two runs on the same inputs differ; no pass is kept unverified" in ran.json["notes"][0]
    assert [node.op_type for node in io.load(out).graph] == ["Identity", "RandomNormalLike", "Add"]
    report = graphopt("optimize", model, "-o", out, "--recipe", recipe("tidy"), "--report", tmp_path / "r")
    assert report.code == 0


def test_a_model_that_needs_data_to_run(graphopt, model_file, recipe, tmp_path):
    text = "g (int64[2] s) => (float[A,B] y) <float[7] k = {1.0,1.0,1.0,1.0,1.0,1.0,1.0}> { i = Identity(s) y = Reshape(k, i) }"
    ran = graphopt("optimize", model_file(text), "-o", tmp_path / "out.onnx", "--recipe", recipe("tidy"), "--json")
    assert ran.code == 0
    assert "does not run on generated inputs" in ran.json["notes"][0]


def test_a_model_that_fixes_its_batch(graphopt, model_file, recipe, data, tmp_path):
    """200 samples are 28 batches of 7 and four that no batch has room for."""
    model = model_file(TEXT.replace("[N,", "[7,"))
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("tidy", "confuse"), "--json",
                   *options(**data, max_drop="0.5"))  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    assert statuses(ran.json) == [("tidy", "kept"), ("confuse", "kept")]
    assert ran.json["latency"]["batch"] in (1, 7)


def test_a_scalar_output_is_no_bug(graphopt, model_file, recipe, data, tmp_path):
    model = model_file(TEXT.replace("logits = MatMul(i, w)", "m = MatMul(i, w) logits = ReduceSum<keepdims = 0>(m)")
                       .replace("(float[N,4] logits)", "(float logits)"))  # fmt: skip
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("tidy"),
                   *options(data=data["data"]))  # fmt: skip
    assert ran.code == 1
    assert "first output" in ran.error


def test_the_html_report(graphopt, model, recipe, data, tmp_path):
    pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
    folder = tmp_path / "deep" / "report"
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("tidy", "confuse", "evil"),
                   "--report", folder, *options(**data))  # fmt: skip
    assert ran.code == 0
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "report.json"]
    html = (folder / "report.html").read_text()
    for text in ("kept", "reverted", "accuracy", "tidy", "left &lt;b&gt;alone&lt;/b&gt;", "1.20&times; the speed"):
        assert text in html
    assert "<b>alone</b>" not in html
    assert statuses(json.loads((folder / "report.json").read_text()))[0] == ("tidy", "kept")
    assert not (tmp_path / "out.report.json").exists()


def test_the_report_in_words(graphopt, model, recipe, data, tmp_path):
    ran = graphopt("optimize", model, "-o", tmp_path / "out[old].onnx", "--recipe", recipe("tidy", "confuse"),
                   *options(**data))  # fmt: skip
    assert ran.code == 0
    assert ran.err == "", "no progress where stderr is not a terminal"
    for text in ("tidy", "kept", "reverted", "over the budget of 0.01", "1.20 times the speed", "2 -> 1", "left alone"):
        assert text in ran.out.replace("left second alone", "left alone"), text
    assert str(tmp_path / "out[old].onnx") in ran.out, "brackets in a path are no markup"


def test_a_gate_that_is_not_met_still_writes_and_describes(graphopt, model, recipe, data, tmp_path, monkeypatch):
    """A lossy step that was within the budget alone, but the whole is not: the exit code says so."""
    from graphopt.metrics import Change

    answers = iter([True])
    monkeypatch.setattr(Change, "within", lambda self, budget: next(answers, False))
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("confuse"), "--json",
                   *options(**data))  # fmt: skip
    assert statuses(ran.json) == [("confuse", "kept")]
    assert ran.code == 3
    assert ran.json["met"] is False
    assert (tmp_path / "out.onnx").exists()


def test_as_a_library(model, recipe, tmp_path):
    seen = []
    report = package.optimize(
        model, tmp_path / "out.onnx", data={"image": IMAGES}, eval_data={"image": IMAGES, "labels": LABELS},
        max_drop=0.5, recipe=str(recipe("tidy", "confuse")), on_step=seen.append,
    )  # fmt: skip
    assert report.met
    assert [step.spec for step in seen] == ["tidy", "confuse"]
    assert report.metric.drop == 0.25
    with pytest.raises(UserError, match="no such file"):
        package.optimize(tmp_path / "none.onnx", tmp_path / "out.onnx")


def test_a_custom_metric(graphopt, model, recipe, data, tmp_path, monkeypatch):
    (tmp_path / "my_score.py").write_text(
        "def score(predict, data):\n"
        "    return sum(float((predict(f)['logits'].argmax(1) == y).sum()) for f, y in data.batches(50)) / 200\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = graphopt("optimize", model, "-o", "out.onnx", "--recipe", recipe("confuse"), "--metric", "my_score:score",
                   "--max-drop", "0.2", "--json", *options(**data))  # fmt: skip
    assert statuses(ran.json) == [("confuse", "reverted")]
    assert (
        "my_score:score 1.0000 to 0.7500: a drop of 0.2500 is over the budget of 0.2" in ran.json["steps"][0]["reason"]
    )
    assert ran.json["metric"]["ci95"] is None
    del sys.modules["my_score"]


def test_a_model_that_the_first_pass_makes_load(graphopt, model_file, recipe, drop_pass, tmp_path):
    drop_pass("mend", TIDY.replace("class Tidy", "class Mend").replace('== "Identity"', '== "Broken"').replace(
        "model.graph.remove(node, safe=True)", "node.op_type = 'Identity'"))  # fmt: skip
    path = model_file(TEXT.replace("Identity", "Broken"))
    ran = graphopt("optimize", path, "-o", tmp_path / "out.onnx", "--recipe", recipe("mend", "tidy"), "--json")
    assert (ran.code, ran.err) == (0, "")
    assert statuses(ran.json) == [("mend", "kept"), ("tidy", "kept")]
    assert ran.json["steps"][0]["reason"].startswith(f"the model did not load before: {path}: does not load: ")
    ran = graphopt("optimize", path, "-o", tmp_path / "out.onnx", "--recipe", recipe("tidy", "mend"))
    assert ran.code == 1
    assert f"{path}: does not load: " in ran.error


def test_data_from_a_function(graphopt, model, recipe, tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    for label in range(4):\n"
        "        x = np.ones((50, 5), np.float32)\n"
        "        x[:, :4] = np.eye(4)[label]\n"
        "        yield {'image': x}, np.full(50, label)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = graphopt("optimize", model, "-o", "out.onnx", "--recipe", recipe("confuse"), "--max-drop", "0.5", "--json",
                   *options(data="my_data:batches", eval_data="my_data:batches"))  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["metric"]["drop"] == 0.25
    del sys.modules["my_data"]


def test_an_output_called_anything(graphopt, model, recipe, tmp_path):
    ran = graphopt("optimize", model, "-o", tmp_path / "out", "--recipe", recipe("tidy"), "--json")
    assert ran.code == 0
    assert run(tmp_path / "out") == run(model)
    assert ran.json["bytes"][1] == (tmp_path / "out").stat().st_size


def test_html_without_its_library(graphopt, model, recipe, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "jinja2" else real(name, *rest)
    )
    ran = graphopt(
        "optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("tidy"), "--report", tmp_path / "r"
    )
    assert (ran.code, ran.error) == (1, "--report needs jinja2 for its HTML; run pip install 'graphopt[report]'")
    assert not (tmp_path / "out.onnx").exists()


# --- what the user can fix


WRONG = {
    "a missing model": (["none.onnx", "-o", "out.onnx"], 1, "none.onnx: no such file; check the path"),
    "a missing folder": (["m.onnx", "-o", "none/out.onnx"], 1, "cannot write: folder none does not exist; create it"),
    "the input as output": (["m.onnx", "-o", "m.onnx"], 1, "m.onnx: is also the input; write to another file"),
    "a folder as output": (["m.onnx", "-o", "."], 1, "is a folder; name a file"),
    "the data as output": (
        ["m.onnx", "-o", "test.npz", "--data", "calibration.npz", "--eval-data", "test.npz"],
        1,
        "test.npz: is also the input",
    ),
    "an unknown target": (["m.onnx", "-o", "out.onnx", "--target", "gpu"], 2, "unknown target 'gpu'; "),
    "an unknown recipe": (["m.onnx", "-o", "out.onnx", "--recipe", "fast"], 2, "unknown recipe 'fast'; known: "),
    "a missing recipe": (["m.onnx", "-o", "out.onnx", "--recipe", "fast.yaml"], 1, "cannot read the recipe: No such"),
    "an unknown metric": (
        ["m.onnx", "-o", "out.onnx", "--data", "test.npz", "--metric", "acuracy"],
        2,
        "unknown metric 'acuracy'; did you mean 'accuracy'?",
    ),
    "a metric without data": (["m.onnx", "-o", "out.onnx", "--metric", "accuracy"], 1, "needs data; add --eval-data"),
    "a budget that is none": (
        ["m.onnx", "-o", "out.onnx", "--data", "calibration.npz", "--max-drop", "low"],
        2,
        "--max-drop: 'low' is neither a number",
    ),
    "a budget that is none, without data": (["m.onnx", "-o", "out.onnx", "--max-drop", "low"], 2, "--max-drop: 'low'"),
    "missing data": (["m.onnx", "-o", "out.onnx", "--data", "none.npz"], 1, "none.npz: no such file; check the path"),
    "data of another model": (
        ["m.onnx", "-o", "out.onnx", "--data", "other.npz"],
        1,
        "other.npz: the model has no input 'picture'; known: image",
    ),
    "no labels": (
        ["m.onnx", "-o", "out.onnx", "--eval-data", "calibration.npz"],
        1,
        "calibration.npz: has no 'labels' array, which the metric needs",
    ),
    "labels of another shape": (["m.onnx", "-o", "out.onnx", "--eval-data", "odd.npz"], 1, "labels have shape [64, 2]"),
    "text as a model": (["recipe.yaml", "-o", "out.onnx"], 1, "recipe.yaml: not an ONNX model"),
    "a report that is a file": (
        ["m.onnx", "-o", "out.onnx", "--report", "m.onnx"],
        1,
        "m.onnx: cannot be a folder, since m.onnx is a file",
    ),
    "a report below a file": (["m.onnx", "-o", "out.onnx", "--report", "m.onnx/report"], 1, "m.onnx/report: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_fix_is_told_and_nothing_is_written(
    graphopt, model, data, recipe, tmp_path, monkeypatch, name
):
    args, code, message = WRONG[name]
    recipe("tidy")
    np.savez(tmp_path / "other.npz", picture=IMAGES)
    np.savez(tmp_path / "odd.npz", image=IMAGES, labels=np.stack([LABELS, LABELS], axis=1))
    monkeypatch.chdir(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    if "--recipe" not in args:
        args = [*args, "--recipe", "recipe.yaml"]
    ran = graphopt("optimize", *args)
    assert message in ran.error
    assert ran.code == code
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".graphopt")]


@pytest.mark.parametrize(
    "args", [["--batch", "0"], ["--batch", "-2"], ["--seed", "-1"], ["--threads", "-1"], ["--batch", "two"]]
)
def test_numbers_out_of_range_are_wrong_usage(graphopt, model, data, recipe, tmp_path, args):
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("tidy"), *options(**data), *args)
    assert ran.code == 2
    assert args[0] in ran.err
    assert not (tmp_path / "out.onnx").exists()


HASTE = '''
from graphopt.passbase import FASTER

@dataclass(frozen=True)
class Haste(Pass):
    """Remove the Identity for speed, and do wrong unless told to be careful."""

    careful: bool = param(False, "do only the part that is right")
    target: str = param("cpu", "where")
    contract = FASTER

    def call(self, model):
        found = [node for node in model.graph if node.op_type == "Identity"]
        for node in found:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)
        if not self.careful:
            next(node for node in model.graph if node.op_type == "MatMul").op_type = "Add"
        return Result(model, bool(found), {"at": self.target}, parts=[Haste(careful=True, target=self.target)])
'''


def test_what_is_there_for_speed_must_be_faster(graphopt, model, recipe, tmp_path, drop_pass, clock):
    drop_pass("haste", HASTE)
    command = ("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("haste{careful=true}"), "--json")
    step = graphopt(*command).json["steps"][0]
    assert (step["status"], step["reason"]) == ("kept", "verified, 1.20x the speed (1.19 to 1.21)")
    clock(1.0)
    step = graphopt(*command).json["steps"][0]
    assert (step["status"], step["reason"]) == (
        "reverted",
        "does not pay on this target: 1.00x the speed (0.99 to 1.01)",
    )


def test_parts_are_tried_in_place_of_a_whole_that_is_rolled_back(graphopt, model, recipe, tmp_path, drop_pass):
    drop_pass("haste", HASTE)
    ran = graphopt("optimize", model, "-o", tmp_path / "out.onnx", "--recipe", recipe("haste", "tidy"), "--json")
    assert ran.code == 0, ran.err
    assert statuses(ran.json) == [("haste", "reverted"), ("haste{careful=true}", "kept"), ("tidy", "skipped")]
    assert ran.json["met"]


def test_a_pass_is_told_where_the_model_will_run(graphopt, model, recipe, tmp_path, drop_pass):
    drop_pass("haste", HASTE)
    command = ("optimize", model, "-o", tmp_path / "out.onnx", "--json", "--target", "reference", "--recipe")
    assert graphopt(*command, recipe("haste{careful=true}")).json["steps"][0]["report"] == {"at": "reference"}
    named = graphopt(*command, recipe("haste{careful=true target=cuda}")).json["steps"][0]
    assert named["report"] == {"at": "cuda"}


PORTABLE = '''
@dataclass(frozen=True)
class Ferry(Pass):
    """Say whether it was asked to be portable."""

    portable: bool = param(False, "the same everywhere")

    def call(self, model):
        model.metadata_props["ferried"] = "yes"
        return Result(model, True, {"portable": "carried over"} if self.portable else {})
'''


def test_the_wish_to_be_portable_is_handed_on_and_answered(graphopt, model, recipe, tmp_path, drop_pass):
    drop_pass("ferry", PORTABLE)
    command = ("optimize", model, "-o", tmp_path / "out.onnx", "--json", "--recipe")
    assert "portable: carried over" in graphopt(*command, recipe("ferry"), "--portable").json["notes"]
    assert not any("portable" in note for note in graphopt(*command, recipe("ferry")).json["notes"])
    nothing = graphopt(*command, recipe("repair"), "--portable").json["notes"]
    assert "portable: nothing was quantized, so there is nothing to saturate" in nothing
