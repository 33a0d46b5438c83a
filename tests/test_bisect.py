"""`bisect` names the node that was tampered with, inside bodies too, and no other."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt as package
from graphopt import bisection, tapping, target
from graphopt.errors import UserError

CPU = target.find("cpu")
CHAIN = """g (float[N] x, float[N] w) => (float[N] y) {
    a = Relu(x)
    b = %s
    c = Abs(b)
    y = Neg(c)
}"""
FEEDS = {"x": np.array([1, 2, 3], np.float32), "w": np.array([3, 1, 1], np.float32)}

LOOP = """g (float[2] x) => (float[2] y, float[M,2] all) <float[2] k = {1.0, 2.0}> {
    n = Constant<value = int64 {4}>()
    t = Constant<value = bool {1}>()
    y, all = Loop(n, t, x) <body = b (int64 i, bool go, float[2] h) => (bool on, float[2] next, float[2] seen) {
        on = Identity(go)
        c = Cast<to = 1>(i)
        r = Relu(h)
        s = %s
        next = %s
        seen = Identity(r)
    }>
}"""

IF = """g (float[2] x, bool c) => (float[2] y) {
    a = Abs(x)
    y = If(c) <
        then_branch = t () => (float[2] p) { q = %s p = Neg(q) },
        else_branch = e () => (float[2] u) { v = %s u = Abs(v) }>
}"""

SCAN = """g (float[2] s, float[3,2] x) => (float[2] last, float[3,2] all) {
    last, all = Scan<num_scan_inputs = 1, body = b (float[2] h, float[2] e) => (float[2] next, float[2] out) {
        m = %s
        next = Tanh(m)
        out = Neg(next)
    }>(s, x)
}"""


def find(parse, reference, candidate, feeds, place=CPU):
    return bisection.first_divergence(parse(reference), parse(candidate), feeds, place, 1e-4)


@pytest.mark.parametrize("runtime", ["cpu", "reference"])
@pytest.mark.parametrize("wrong", ["Add(a, w)", "Mul(a, w)", "Sub(w, a)"])
def test_names_the_node(parse, wrong, runtime):
    """Of swapped inputs every name and shape agrees; only the numbers tell."""
    found = find(parse, CHAIN % "Sub(a, w)", CHAIN % wrong, FEEDS, target.find(runtime))
    assert (found.output, found.op) == ("b", wrong[:3])
    assert str(found) == f"{found.node} ({wrong[:3]})"
    assert found.reference.endswith("(Sub)")
    told = {"a": "agrees", "w": "agrees"}
    if wrong == "Sub(w, a)":
        told = {"w": "agrees, where the reference has 'a'", "a": "agrees, where the reference has 'w'"}
    assert dict(found.inputs) == told
    assert found.error.startswith("largest error")


def test_equal_models(parse):
    assert find(parse, CHAIN % "Sub(a, w)", CHAIN % "Sub(a, w)", FEEDS) is None


def test_names_need_not_be_the_same(parse):
    renamed = CHAIN.replace("a = ", "p = ").replace("b = ", "q = ").replace("Abs(b)", "Abs(q)").replace("c", "r")
    found = find(parse, CHAIN % "Sub(a, w)", renamed % "Sub(w, p)", FEEDS)
    assert (found.output, found.op) == ("q", "Sub")


def test_deep_in_a_long_chain(parse):
    """More values than are read in one run."""

    def chain(at):
        nodes = "\n".join(f"v{i + 1} = {'Neg' if i == at else 'Identity'}(v{i})" for i in range(150))
        return f"g (float[N] v0) => (float[N] y) {{ {nodes}\n y = Abs(v150) }}"

    assert str(find(parse, chain(None), chain(140), {"v0": FEEDS["x"]})) == "v141 (Neg)"


def test_values_are_read_within_the_memory_given(parse, monkeypatch):
    nodes = "\n".join(f"v{i + 1} = Neg(v{i})" for i in range(200))
    model = parse(f"g (float[N] v0) => (float[N] y) {{ {nodes}\n y = Abs(v200) }}")
    groups = []
    tap = tapping.tap
    monkeypatch.setattr(tapping, "tap", lambda model, values: groups.append(len(values)) or tap(model, values))
    feeds = {"v0": np.ones(1000, np.float32)}
    search = bisection.Search(model, CPU, model.clone(), CPU, feeds, lambda a, b: None, memory=40_000)
    assert search.first() is None
    assert search.compared == 201
    assert max(groups[2:]) == 10, "ten values of 4,000 bytes"


def test_a_constant_that_differs_is_told(parse):
    text = "g (float[2] x) => (float[2] y) <float[2] w = {1.0, %s}, float[2] v = {1.0, 1.0}> { a = Add(x, v) y = Mul(a, w) }"
    found = find(parse, text % "2.0", text % "2.5", {"x": FEEDS["x"][:2]})
    assert dict(found.inputs) == {"a": "agrees", "w": "constant differs"}
    found = find(parse, text % "2.0", (text % "2.0").replace("Mul(a, w)", "Div(a, w)"), {"x": FEEDS["x"][:2]})
    assert dict(found.inputs) == {"a": "agrees", "w": "constant agrees"}


def test_nodes_without_a_counterpart_are_suspects(parse):
    two = CHAIN.replace("b = %s", "d = Exp(a) f = Log(d) b = %s")
    found = find(parse, CHAIN % "Sub(a, w)", two % "Sub(w, f)", FEEDS)
    assert found.output == "b"
    assert len(found.before) == 2
    assert dict(found.inputs) == {"w": "agrees, where the reference has 'a'", "f": "unknown"}


@pytest.mark.parametrize(
    ("one", "two", "output", "iteration"),
    [
        ("Add(r, c)", "Sub(r, c)", "s", (1,)),  # in the first iteration, c is 0
        ("Add(r, c)", "Sub(c, r)", "s", (0,)),
        ("Mul(s, k)", "Add(s, k)", "next", (0,)),  # what differs next is r, in the second iteration
    ],
)
def test_inside_a_loop_the_earliest_iteration_counts(parse, one, two, output, iteration):
    body = ("Add(r, c)", "Mul(s, k)")
    other = tuple(two if part == one else part for part in body)
    found = find(parse, LOOP % body, LOOP % other, {"x": FEEDS["x"][:2]})
    assert found.output == output
    assert found.iteration == iteration
    assert len(found.inside) == 1
    assert str(found).endswith(f"inside {found.inside[0]}")


def test_a_loop_that_differs_itself(parse):
    """Its count is wrong, which the body shows too: the body is not to blame."""
    text = LOOP % ("Add(r, c)", "Mul(s, k)")
    found = find(parse, text, text.replace("int64 {4}", "int64 {3}"), {"x": FEEDS["x"][:2]})
    assert (found.op, found.output) == ("Constant", "n")
    text = text.replace("n = Constant<value = int64 {4}>()", "").replace("float[2] k =", "int64 n = {4}, float[2] k =")
    found = find(parse, text, text.replace("n = {4}", "n = {3}"), {"x": FEEDS["x"][:2]})
    assert found.op == "Loop"
    assert found.inside == []
    assert ("n", "constant differs") in found.inputs


@pytest.mark.parametrize("taken", [True, False])
def test_inside_the_branch_that_is_taken(parse, taken):
    fine = ("Exp(a)", "Sqrt(a)")
    wrong = ("Sin(a)", "Sqrt(a)") if taken else ("Exp(a)", "Sin(a)")
    feeds = {"x": FEEDS["x"][:2], "c": np.array(taken)}
    found = find(parse, IF % fine, IF % wrong, feeds)
    assert (found.output, found.op) == ("q" if taken else "v", "Sin")
    assert find(parse, IF % fine, IF % wrong, feeds | {"c": np.array(not taken)}) is None


def test_inside_a_scan(parse):
    feeds = {"s": np.zeros(2, np.float32), "x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    found = find(parse, SCAN % "Sub(e, h)", SCAN % "Add(h, e)", feeds)
    assert (found.output, found.iteration) == ("m", (1,)), "in the first iteration, the state is 0"


def test_inside_a_function(parse):
    text = (
        '<ir_version: 9, opset_import: ["": 18, "local": 1]> g (float[N] x) => (float[N] y) { a = Abs(x) y = local.f(a) } '
        '<domain: "local", opset_import: ["": 18]> f (x) => (y) { z = %s(x)  y = Neg(z) }'
    )
    assert find(parse, text % "Exp", text % "Sin", {"x": FEEDS["x"]}).op == "Sin"


def test_values_of_another_shape_each_iteration_are_left_out(parse):
    """They cannot be stacked; the others are compared all the same."""
    text = LOOP.replace("seen = Identity(r)", "seen = Identity(r) z = Unsqueeze(i, k0) f = Expand(c, z)").replace(
        "float[2] k =", "int64[1] k0 = {0}, float[2] k ="
    )
    found = find(parse, text % ("Add(r, c)", "Mul(s, k)"), text % ("Add(r, c)", "Div(s, k)"), {"x": FEEDS["x"][:2]})
    assert found.output == "next"


def test_tapping_leaves_the_model_alone(parse):
    model = parse(CHAIN % "Sub(a, w)")
    values = {value.name: value for node in model.graph for value in node.outputs}
    tapped = tapping.tap(model, [values[name] for name in ("b", "y", "b", "a")])
    assert tapped.names == ["b", "y", "b", "a"]
    assert [v.name for v in tapped.model.graph.outputs] == ["y", "b", "a"]
    assert [v.name for v in model.graph.outputs] == ["y"]


# the verb


@pytest.fixture
def models(model_file):
    return model_file(CHAIN % "Sub(a, w)", "one.onnx"), model_file(CHAIN % "Sub(w, a)", "two.onnx")


def test_the_object_of_json(graphopt, models):
    ran = graphopt("bisect", *models, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert list(ran.json) == ["reference", "candidate", "first", "outputs", "compared", "unmatched", "diverge"]
    assert ran.json["diverge"] is True
    assert ran.json["first"]["output"] == "b"
    assert ran.json["outputs"] == [], "its sign is lost in Abs"
    same = graphopt("bisect", models[0], models[0], "--json").json
    assert (same["diverge"], same["first"], same["compared"]) == (False, None, 4)


def test_in_words(graphopt, models):
    ran = graphopt("bisect", *models)
    assert (ran.code, ran.err) == (0, "")
    assert "first divergence: " in ran.out
    assert "(Sub)" in ran.out
    assert "4 inner values compared: all agree" in graphopt("bisect", models[0], models[0]).out


def test_a_noisy_candidate_is_held_to_a_signal_to_noise_ratio(model_file):
    one = model_file("g (float[N,4] x) => (float[N,4] y) { a = Abs(x) b = Exp(a) y = Neg(b) }", "one.onnx")
    two = model_file(
        "g (float[N,4] x) => (float[N,4] y) <float k = {1.001}, float j = {1.5}> "
        "{ p = Abs(x) a = Mul(p, k) q = Exp(a) b = Mul(q, j) y = Neg(b) }",
        "two.onnx",
    )
    assert package.bisect(one, two).first.output == "a"
    assert package.bisect(one, two, min_sqnr=20).first.output == "b"
    assert package.bisect(one, two, min_sqnr=3).first is None


def test_one_file_on_two_targets(model_file):
    path = model_file(CHAIN % "Sub(a, w)")
    done = package.bisect(path, path, target="cpu{level=none}", reference_target="reference")
    assert (done.first, done.compared) == (None, 4)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["none.onnx", "one.onnx"], 1, "none.onnx: no such file"),
        (["one.onnx", "other.onnx"], 1, "the models do not take the same inputs"),
        (["one.onnx", "two.onnx", "--target", "gpu"], 2, "unknown target 'gpu'"),
        (["one.onnx", "two.onnx", "--data", "none.npz"], 1, "none.npz: no such file"),
        (["one.onnx", "two.onnx", "--rtol", "-1"], 2, "--rtol"),
        (["one.onnx"], 2, "Missing argument"),
    ],
)
def test_what_the_user_can_fix(graphopt, models, model_file, tmp_path, monkeypatch, args, code, message):
    model_file("g (float[N,9] z) => (float[N,9] y) { y = Neg(z) }", "other.onnx")
    monkeypatch.chdir(tmp_path)
    ran = graphopt("bisect", *args)
    assert message in ran.err
    assert ran.code == code
    assert not ran.out


def test_other_inputs_are_an_error_for_the_library_too(model_file, models):
    with pytest.raises(UserError, match="do not take the same inputs"):
        package.bisect(models[0], model_file("g (float[N] z) => (float[N] y) { y = Neg(z) }", "o.onnx"))
