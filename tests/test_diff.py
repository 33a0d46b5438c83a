"""`diff`: what differs between two models, in records, in words and in JSON."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import compare
from graphopt.application import apply
from graphopt.difference import diff
from graphopt.difference.nodes import Input
from graphopt.errors import UserError
from graphopt.inspection import inspect
from graphopt.matching import tensors

TEXT = """<ir_version: 9, opset_import: ["": 18, "local": 1], producer_name: "pytorch">
g (float[N,4] x, bool c) => (float[N,4] y, float[N,4] z)
<float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[4] b = {1,2,3,4}> {
    [first] a = Gemm<transB = 1>(x, w, b)
    [second] r = Relu(a)
    [third] s = Sub(r, x)
    [branch] y = If(c) <then_branch = t () => (float[N,4] p) <float[1] k = {2}> { m = Mul(s, k)  p = Exp(m) },
                        else_branch = e () => (float[N,4] q) { q = Abs(s) }>
    [call] z = local.f(s)
}
<domain: "local", opset_import: ["": 18]> f (i) => (o) { j = Neg(i)  o = Sin(j) }
"""


@pytest.fixture
def differ(model_file):
    """Compare two models in ONNX text."""

    def run(before, after, same=None):
        found = diff(model_file(before, "before.onnx"), model_file(after, "after.onnx"))
        if same is not None:
            assert found.same is same, found.summary
        return found

    return run


@pytest.fixture
def edited(model_file):
    """Compare TEXT with a copy whose protobuf was edited."""

    def run(edit, text=TEXT, same=None):
        before, after = model_file(text, "before.onnx"), model_file(text, "after.onnx")
        model = onnx.load(after)
        edit(model)
        onnx.save(model, after)
        found = diff(before, after)
        if same is not None:
            assert found.same is same, found.summary
        return found

    return run


def replaced(old, new):
    assert old in TEXT
    return TEXT.replace(old, new)


def initializer(**arrays):
    """Return an edit that gives initializers of the main graph other contents."""

    def edit(model):
        for tensor in model.graph.initializer:
            if tensor.name in arrays:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(arrays[tensor.name]), tensor.name))

    return edit


def rows(found):
    """Return what was rewritten as (before, after, kept, at)."""
    return [(one.before, one.after, one.kept, one.at) for one in found.nodes.rewritten]


def test_a_model_and_itself(differ, graphopt, model_file):
    found = differ(TEXT, TEXT, same=True)
    assert found.summary == "the models are the same"
    path = model_file(TEXT)
    ran = graphopt("diff", path, path)
    assert (ran.code, ran.out, ran.err) == (0, "the models are the same\n", "")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("transB = 1", "transB = 0"),
        ("transB = 1", "transB = 1, alpha = 2.0"),
        ("r = Relu(a)", "r = Sigmoid(a)"),
        ("Sub(r, x)", "Sub(x, r)"),
        ("Sub(r, x)", "Sub(a, x)"),
        ("Gemm<transB = 1>(x, w, b)", "Gemm<transB = 1>(x, w)"),
        ("1,2,3,4,5,", "1,2,3,4,6,"),
        ("float[4] b = {1,2,3,4}", "float[1] b = {1}"),
        ("float[1] k = {2}", "float[1] k = {3}"),
        ("m = Mul(s, k)", "m = Add(s, k)"),
        ("p = Exp(m)", "p = Exp(s)"),
        ("p = Exp(m) }", "p = Exp(m) l = Cos(p) }"),
        ("q = Abs(s)", "q = Abs(x)"),
        ("{ q = Abs(s) }", "<float[1] q = {1}> { }"),
        ("j = Neg(i)", "j = Cos(i)"),
        ("Sin(j)", "Sin(i)"),
        ("o = Sin(j)", "o = Sin(j)  n = Cos(j)"),
        ("local.f(s)", "local.f(r)"),
        ("(float[N,4] x, bool c)", "(double[N,4] x, bool c)"),
        ("(float[N,4] x, bool c)", "(float[3,4] x, bool c)"),
        ("(float[N,4] x, bool c)", "(bool c, float[N,4] x)"),
        ("(float[N,4] x, bool c)", "(float[N,4] x, bool c, float extra)"),
        ("(float[N,4] y, float[N,4] z)", "(float[N,4] z, float[N,4] y)"),
        ("(float[N,4] y, float[N,4] z)", "(float[N,4] y)"),
        ('"": 18, "local": 1]', '"": 17, "local": 1]'),
        ('opset_import: ["": 18]> f', 'opset_import: ["": 17]> f'),
    ],
)
def test_no_change_goes_unnoticed(differ, old, new):
    dead = "l = Cos" in new or "n = Cos" in new
    for before, after in ((TEXT, replaced(old, new)), (replaced(old, new), TEXT)):
        found = differ(before, after, same=dead)
        assert found.summary != "the models are the same"
        assert found.summary.startswith("the same computation: ") is dead


def test_outputs_of_a_branch_that_changed_places(differ):
    text = """g (float[N] x, bool c) => (float[N] y, float[N] z) {
        y, z = If(c) <then_branch = t () => (float[N] p, float[N] q) { p = Neg(x) q = Abs(x) },
                      else_branch = e () => (float[N] r, float[N] s) { r = Exp(x) s = Sin(x) }>
    }"""
    found = differ(text, text.replace("(float[N] p, float[N] q)", "(float[N] q, float[N] p)"), same=False)
    (change,) = found.nodes.changed
    (attribute,) = change.attributes
    assert (attribute.name, attribute.before, attribute.after) == ("then_branch", "() -> (p, q)", "() -> (q, p)")


def test_attributes_with_old_and_new_value(differ):
    found = differ(TEXT, replaced("transB = 1", "alpha = 0.5"))
    (change,) = found.nodes.changed
    assert (change.node, change.operator, change.where, change.used) == ("first", ("Gemm", "Gemm"), "", True)
    assert [(a.name, a.before, a.after) for a in change.attributes] == [("transB", 1, 0), ("alpha", 1.0, 0.5)]
    assert found.summary == "1 of 10 nodes changed, same inputs and outputs"


def test_a_default_that_is_written_out_is_no_change(differ):
    assert (
        differ(TEXT, replaced("transB = 1", "transB = 1, beta = 1.0"), same=True).summary == "the models are the same"
    )


def test_tensors_in_attributes(differ):
    text = "g (int64[1] x) => (float[N] y) {{ y = ConstantOfShape<value = float[1] {{{}}}>(x) }}"
    (change,) = differ(text.format(1), text.format(2), same=False).nodes.changed
    (attribute,) = change.attributes
    assert (attribute.before, attribute.after) == ("FLOAT [1] [1.0]", "FLOAT [1] [2.0]")
    differ(text.format(1), text.format(1), same=True)


def test_inputs_that_were_rewired(differ):
    (change,) = differ(TEXT, replaced("Sub(r, x)", "Sub(a, x)")).nodes.changed
    assert (change.node, change.inputs) == ("third", (Input(0, "r", "a"),))
    (change,) = differ(TEXT, replaced("(x, w, b)", "(x, w)")).nodes.changed
    assert change.inputs == (Input(2, "b", None),)


def test_an_operator_that_changed(differ):
    (change,) = differ(TEXT, replaced("Relu(a)", "local.f(a)")).nodes.changed
    assert (change.node, change.operator) == ("second", ("Relu", "local::f"))


def test_inputs_that_may_change_places(differ):
    text = "g (float[N] x) => (float[N] y) { a = Neg(x)  b = Abs(x)  y = Add(a, b) }"
    assert differ(text, text.replace("Add(a, b)", "Add(b, a)"), same=True).nodes.changed == ()


def test_where_a_change_is(differ):
    (change,) = differ(TEXT, replaced("p = Exp(m)", "p = Tan(m)")).nodes.changed
    assert change.where == "then_branch of branch"
    (change,) = differ(TEXT, replaced("j = Neg(i)", "j = Cos(i)")).nodes.changed
    assert change.where == "function local::f"
    (tensor,) = differ(TEXT, replaced("float[1] k = {2}", "float[1] k = {3}")).initializers.changed
    assert (tensor.name, tensor.where, tensor.values) == ("k", "then_branch of branch", ([2.0], [3.0]))


NORM = """g (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[4] one = {1,1,1,1}, float[4] zero = {0,0,0,0}> {
    a = Gemm(x, w)  n = BatchNormalization(a, one, zero, zero, one)  y = Relu(n)
}"""
FOLDED = """g (float[N,4] x) => (float[N,4] y)
<float[4,4] v = {2,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[4] bias = {1,1,1,2}> {
    NAME = Gemm(x, v, bias)  y = Relu(NAME)
}"""


@pytest.mark.parametrize("name", ["n", "a"])
def test_what_was_fused_is_one_change(differ, name):
    found = differ(NORM, FOLDED.replace("NAME", name), same=False)
    assert rows(found) == [(("Gemm", "BatchNormalization"), ("Gemm",), (), ("n",))]
    assert found.nodes.changed == ()
    assert found.summary == (
        "2 of 3 nodes replaced by 1, 1 initializer changed, 2 initializers removed, 1 initializer added, "
        "same inputs and outputs"
    )


def test_what_was_inserted_and_removed(differ):
    found = differ(NORM, NORM.replace("y = Relu(n)", "i = Identity(n)  y = Relu(i)"), same=False)
    assert rows(found) == [((), ("Identity",), ("Relu",), ("y",))]
    assert found.summary == "1 node added, same inputs and outputs"
    found = differ(NORM.replace("y = Relu(n)", "i = Identity(n)  y = Relu(i)"), NORM)
    assert rows(found) == [(("Identity",), (), ("Relu",), ("y",))]
    assert found.summary == "1 of 4 nodes removed, same inputs and outputs"


def test_what_is_computed_no_more_but_stored(differ):
    before = "g (float[2] x) => (float[2] y) <float[2] k = {1,2}> { a = Neg(k)  b = Abs(a)  y = Add(x, b) }"
    found = differ(before, "g (float[2] x) => (float[2] y) <float[2] b = {1,2}> { y = Add(x, b) }", same=False)
    assert rows(found) == [(("Neg", "Abs"), ("constant",), (), ("b",))]
    assert found.summary.startswith("2 of 3 nodes removed, ")


def test_attributes_of_nodes_that_stay(differ):
    before = "g (float[1,1,4] x) => (float y) <int64[6] p = {0,0,1,0,0,1}, float[1,1,3] w = {1,2,3}> { a = Pad(x, p)  y = Conv<pads = [0,0]>(a, w) }"
    found = differ(
        before, "g (float[1,1,4] x) => (float y) <float[1,1,3] w = {1,2,3}> { y = Conv<pads = [1,1]>(x, w) }"
    )
    (rewrite,) = found.nodes.rewritten
    assert (rewrite.before, rewrite.after, rewrite.kept) == (("Pad",), (), ("Conv",))
    assert [(a.name, a.before, a.after) for a in rewrite.attributes] == [("pads", [0, 0], [1, 1])]


def test_bodies_go_with_the_node_that_holds_them(differ):
    found = differ(TEXT, TEXT[: TEXT.index("    [branch]")] + "    y = Abs(s)\n" + TEXT[TEXT.index("    [call]") :])
    (rewrite,) = found.nodes.rewritten
    assert (rewrite.before, rewrite.after, rewrite.at) == (("If", "Mul", "Exp", "Abs"), ("Abs",), ("y",))


def test_nodes_that_nothing_depends_on(differ):
    found = differ(TEXT, replaced("[call]", "dead = Cos(s)  [call]"), same=True)
    (rewrite,) = found.nodes.rewritten
    assert (rewrite.after, rewrite.at, rewrite.used) == (("Cos",), ("dead",), False)


def test_a_change_that_nothing_depends_on(differ):
    text = replaced("[call]", "dead = Cos(s)  [call]")
    found = differ(text, text.replace("Cos(s)", "Cos(r)"), same=True)
    (change,) = found.nodes.changed
    assert (change.node, change.inputs, change.used) == ("dead", (Input(0, "s", "r"),), False)
    assert found.summary == "the same computation: 1 of 11 nodes changed, same inputs and outputs"


def test_renamed_nodes_and_values_are_counted(differ):
    found = differ(
        TEXT,
        replaced("[second] r", "[other] r").replace("(r,", "(t,").replace(" r ", " t ").replace("third", "fourth"),
        same=True,
    )
    assert found.nodes.renamed == 2
    assert (found.nodes.changed, found.nodes.rewritten) == ((), ())
    assert found.summary == "the same computation: 2 nodes renamed, same inputs and outputs"


@pytest.mark.parametrize("names", [("", "", ""), ("n", "n", "n")], ids=["empty", "all the same"])
def test_node_names_that_tell_nothing(differ, names):
    text = TEXT
    for old, new in zip(("[first]", "[second]", "[third]"), names, strict=True):
        text = text.replace(old, f"[{new}]" if new else "")
    assert differ(text, text, same=True).summary == "the models are the same"
    (change,) = differ(text, text.replace("Relu(a)", "Sin(a)"), same=False).nodes.changed
    assert change.node == (names[1] or "r")


def test_nodes_without_outputs(model_file):
    path = model_file(TEXT)
    model = onnx.load(path)
    model.graph.node.add(op_type="Neg", input=["s"])
    onnx.save(model, path)
    assert diff(path, path).summary == "the models are the same"


def test_operators_are_counted(differ):
    found = differ(TEXT, replaced("r = Relu(a)", "h = Neg(a)  r = Relu(h)"))
    assert found.operators["Neg"] == (1, 2)
    assert found.operators["Relu"] == (1, 1)
    assert found.nodes.counts == (10, 11)


# Initializers


def test_how_far_a_weight_is(edited):
    before = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    after = before.copy()
    after[0] = 0, 2, 3, 4.5
    found = edited(initializer(w=after), same=False)
    (change,) = found.initializers.changed
    assert (change.name, change.renamed, change.dtype, change.values) == ("w", None, ("FLOAT", "FLOAT"), None)
    far = change.distance
    assert far.changed == 2 / 16
    assert far.zeros == (0.0, 1 / 16)
    assert far.largest == 1.0
    assert far.relative == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))
    assert far.sqnr == pytest.approx(compare.sqnr(before, after))
    assert found.summary == "1 initializer changed, same inputs and outputs"


def test_a_weight_of_another_type_or_shape(edited):
    (change,) = edited(initializer(b=np.array([1, 2, 3, 4], np.float16)), same=False).initializers.changed
    assert (change.dtype, change.distance) == (("FLOAT", "FLOAT16"), None)
    (change,) = edited(initializer(b=np.array([1, 2, 3, 4.5], np.float16)), same=False).initializers.changed
    assert change.distance.largest == 0.5
    (change,) = edited(initializer(b=np.array([1, 2, 3], np.float32)), same=False).initializers.changed
    assert (change.shape, change.distance) == (((4,), (3,)), None)
    assert change.values == ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    (change,) = edited(initializer(b=np.array([1, 2, 3, 100], np.int8)), same=False).initializers.changed
    assert (change.distance.changed, change.distance.largest, change.distance.sqnr) == (0.25, None, None)


def test_weights_that_were_only_renamed(differ):
    found = differ(TEXT, replaced("w = {", "v = {").replace("(x, w, b)", "(x, v, b)"), same=True)
    assert found.initializers.renamed == (("w", "v"),)
    assert found.initializers.changed == ()
    assert found.summary == "the same computation: 1 initializer renamed, same inputs and outputs"


def test_equal_weights_that_became_one(differ):
    text = "g (float[2] x) => (float[2] y) <float[2] p = {1,2}, float[2] q = {1,2}> { a = Add(x, p)  y = Mul(a, q) }"
    merged = "g (float[2] x) => (float[2] y) <float[2] p = {1,2}> { a = Add(x, p)  y = Mul(a, p) }"
    found = differ(text, merged, same=True)
    (gone,) = found.initializers.removed
    assert (gone.name, gone.equal, gone.user, gone.bytes, gone.dtype, gone.shape) == ("q", "p", "Mul", 8, "FLOAT", (2,))
    (new,) = differ(merged, text, same=True).initializers.added
    assert (new.name, new.equal) == ("q", "p")


def test_weights_that_nothing_uses(differ):
    found = differ(TEXT, replaced("float[4] b =", "float[2] unused = {1,2}, float[4] b ="), same=True)
    (new,) = found.initializers.added
    assert (new.name, new.user, new.equal) == ("unused", "", None)
    assert found.initializers.counts == (3, 4)


def test_constants_count_like_initializers(differ):
    text = "g (float[2] x) => (float[2] y) {{ k = Constant<{}>()  y = Add(x, k) }}"
    one, other = text.format("value = float[2] {1,2}"), text.format("value = float[2] {1,3}")
    found = differ(one, other, same=False)
    (change,) = found.initializers.changed
    assert (change.name, change.values) == ("k", ([1.0, 2.0], [1.0, 3.0]))
    assert (found.nodes.changed, found.nodes.rewritten) == ((), ())
    differ(one, text.format("value_floats = [1.0, 2.0]"), same=True)
    differ(one, "g (float[2] x) => (float[2] y) <float[2] k = {1,2}> { y = Add(x, k) }", same=True)
    differ(one, text.format("value_ints = [1, 2]"), same=False)


def test_strings(differ):
    text = 'g (string[N] x) => (bool[N] y) {{ k = Constant<value_strings = ["a", "{}"]>()  y = Equal(x, k) }}'
    text = text.replace('"": 18', '"": 19')
    (change,) = differ(text.format("b"), text.format("c"), same=False).initializers.changed
    assert change.values == (["a", "b"], ["a", "c"])
    assert (change.distance.changed, change.distance.zeros, change.distance.largest) == (0.5, None, None)
    differ(text.format("b"), text.format("b"), same=True)


@pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, np.int64, np.uint8, np.bool_],
    ids=lambda dtype: dtype.__name__,
)
def test_every_kind_of_number(dtype):
    before, after = (ir.tensor(np.array(values).astype(dtype)) for values in ([0, 1, 1, 1], [0, 1, 0, 1]))
    far = tensors.distance(before, after)
    assert (far.changed, far.zeros, far.largest) == (0.25, (0.25, 0.5), 1.0)
    assert far.sqnr == pytest.approx(10 * math.log10(3))
    assert tensors.distance(before, before) is None
    assert tensors.equal(before, before)
    assert not tensors.equal(before, after)
    json.dumps(tensors.values(after))


@pytest.mark.parametrize("after", [[1, math.nan, math.inf, 3], [math.nan] * 3 + [2], [1, 5, math.inf, 2]])
def test_numbers_that_are_not_finite(after):
    before = np.array([1, math.nan, math.inf, 2], np.float32)
    assert tensors.distance(ir.tensor(before), ir.tensor(before.copy())) is None
    far = tensors.distance(ir.tensor(before), ir.tensor(np.array(after, np.float32)))
    assert far.changed == np.mean([a != b and not (a != a and b != b) for a, b in zip(before, after, strict=True)])
    assert far.largest == (1 if after[3] == 3 else math.inf)


def test_tensors_are_read_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    before = rng.normal(size=(7, 9)).astype(np.float32)
    after = np.where(rng.random((7, 9)) < 0.3, 0, before).astype(np.float32)
    pair = ir.tensor(before), ir.tensor(after)
    whole, digests = tensors.distance(*pair), [tensors.digest(tensor) for tensor in pair]
    monkeypatch.setattr(tensors, "_PIECE", 4)
    pieces = tensors.distance(*pair)
    assert pieces.sqnr == pytest.approx(whole.sqnr)
    assert pieces.relative == pytest.approx(whole.relative)
    assert (pieces.changed, pieces.zeros, pieces.largest) == (whole.changed, whole.zeros, whole.largest)
    assert [tensors.digest(tensor) for tensor in pair] == digests
    assert digests[0] != digests[1]
    assert not tensors.is_uniform(pair[0])
    assert tensors.is_uniform(ir.tensor(np.ones(9)))


@pytest.fixture
def external(model_file, tmp_path):
    """Write TEXT with its weights in a file beside it."""

    def write(name, **arrays):
        path = model_file(TEXT, f"{name}.onnx")
        model = onnx.load(path)
        raw = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        initializer(**{**raw, **arrays})(model)
        onnx.save(model, path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
        return path

    return write


def test_external_data_is_let_go(external, monkeypatch):
    released = []
    release = ir.ExternalTensor.release
    monkeypatch.setattr(ir.ExternalTensor, "release", lambda self: (released.append(self), release(self)))
    before, after = external("before"), external("after", w=np.full((4, 4), 3, np.float32))
    found = diff(before, after)
    assert [change.name for change in found.initializers.changed] == ["w"]
    assert {tensor.name for tensor in released} == {"w", "b"}
    assert all(tensor.raw is None for tensor in released)
    assert found.sizes.files[0] == sum(path.stat().st_size for path in (before, before.with_suffix(".data")))


def test_an_array_that_somebody_still_holds(external):
    from graphopt import io

    tensor = io.load(external("before")).graph.initializers["w"].const_value
    array = tensor.numpy()
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensors.equal(tensor, tensor)
    assert array[0, 0] == 1


def test_where_a_tensor_is_stored_does_not_matter(external, model_file):
    found = diff(model_file(TEXT), external("after"))
    assert found.same
    assert found.summary == "the models are the same"


def test_a_tensor_that_does_not_fit_its_shape(graphopt, model_file):
    paths = model_file(TEXT, "a.onnx"), model_file(TEXT, "b.onnx")
    model = onnx.load(paths[1])
    model.graph.initializer[0].raw_data = b"\0" * 12
    model.graph.initializer[0].ClearField("float_data")
    onnx.save(model, paths[1])
    ran = graphopt("diff", *paths)
    assert ran.code == 1
    assert ran.error.startswith("tensor 'w' cannot be read: ")
    assert ran.error.endswith("; export the model again")


# Interface, declarations, sizes


def test_ports_that_changed(differ):
    found = differ(
        TEXT,
        replaced("(float[N,4] x, bool c)", "(float[M,4] x, bool d, int64[?] extra)")
        .replace("If(c)", "If(d)")
        .replace("(float[N,4] y, float[N,4] z)", "(float[N,4] y, float z, seq(float[N,4]) all)")
        .replace("    [call]", "    all = SequenceConstruct(s)\n    [call]"),
        same=False,
    )
    ports = [
        tuple(one and (one.name, one.dtype, one.shape) for one in (change.before, change.after))
        for change in (*found.inputs.changed, *found.outputs.changed)
    ]
    assert ports == [
        (("x", "FLOAT", ("N", 4)), ("x", "FLOAT", ("M", 4))),
        (("c", "BOOL", ()), None),
        (None, ("d", "BOOL", ())),
        (None, ("extra", "INT64", (None,))),
        (("z", "FLOAT", ("N", 4)), ("z", "FLOAT", ())),
        (None, ("all", "SEQUENCE of FLOAT", ("N", 4))),
    ]
    assert found.summary.endswith("other inputs and outputs")


def test_a_port_that_was_renamed(differ):
    (change,) = differ(TEXT, replaced("bool c)", "bool d)").replace("If(c)", "If(d)"), same=False).inputs.changed
    assert (change.before.name, change.after.name) == ("c", "d")


def test_the_name_of_an_axis_does_not_matter(differ):
    found = differ(TEXT, TEXT.replace("N,4", "M,4"), same=True)
    assert found.summary == "the same computation: other inputs and outputs"
    assert len(found.inputs.changed) == 1


def test_an_input_with_a_default_is_an_initializer(differ):
    found = differ(TEXT, replaced("bool c) =>", "bool c, float[4] b) =>"), same=True)
    assert found.inputs.changed == ()
    assert found.facts.defaults == (0, 1)


def test_defaults_that_are_equal_are_not_the_same(differ):
    """Callers may override either."""
    text = "g (float[2] x, float[2] p, float[2] q) => (float[2] y) <float[2] p = {1,2}, float[2] q = {1,2}> { y = Add(x, p) }"
    (change,) = differ(text, text.replace("Add(x, p)", "Add(x, q)"), same=False).nodes.changed
    assert change.inputs == (Input(1, "p", "q"),)


def test_functions(differ):
    found = differ(TEXT, replaced("f (i) => (o) {", "f (i, k) => (o) {").replace("f(s)", "f(s, s)"), same=False)
    (function,) = found.facts.functions
    assert (function.name, function.matters) == ("local::f", True)
    assert (function.before, function.after) == ("(i) -> (o), ai.onnx 18", "(i, k) -> (o), ai.onnx 18")
    found = differ(TEXT, TEXT.replace("local.f", "local.h").replace(" f (i)", " h (i)"), same=False)
    assert [(one.name, one.before is None) for one in found.facts.functions] == [
        ("local::f", False),
        ("local::h", True),
    ]
    renamed = replaced("f (i) => (o) { j = Neg(i)", "f (u) => (o) { j = Neg(u)")
    assert differ(TEXT, renamed, same=True).facts.functions[0].matters is False


def test_declarations_and_metadata(edited):
    def edit(model):
        model.ir_version = 10
        model.producer_name = "other"
        model.metadata_props.add(key="licence", value="none")
        model.metadata_props.add(key="graphopt", value='{"pipeline": ["fold-batchnorm"], "seed": 0}')
        model.graph.node[0].metadata_props.add(key="scope", value="a")
        model.graph.node[1].doc_string = "line 3"
        model.graph.value_info.append(onnx.helper.make_tensor_value_info("r", 1, ["N", 4]))
        model.opset_import.append(onnx.helper.make_opsetid("unused", 3))

    facts = edited(edit, same=True).facts
    assert facts.ir_version == (9, 10)
    assert facts.producer == ("pytorch", "other")
    assert facts.metadata == {"licence": (None, "none")}
    assert facts.provenance == (None, {"pipeline": ["fold-batchnorm"], "seed": 0})
    assert facts.opsets == {"unused": (None, 3)}
    counts = {key: (one.before, one.after, one.changed) for key, one in facts.annotations.items()}
    assert counts["scope"] == (0, 1, 0)
    assert counts["documentation"] == (0, 1, 0)
    assert counts["declared types"][1] == counts["declared types"][0] + 1
    assert edited(edit).summary == "the same computation: same inputs and outputs, other opsets, other metadata"


def test_metadata_that_changed(model_file):
    paths = model_file(TEXT, "a.onnx"), model_file(TEXT, "b.onnx")
    for number, path in enumerate(paths):
        model = onnx.load(path)
        model.graph.node[0].metadata_props.add(key="graphopt.range", value=str(number))
        onnx.save(model, path)
    found = diff(*paths)
    (one,) = found.facts.annotations.values()
    assert (one.before, one.after, one.changed) == (1, 1, 1)
    assert found.same
    assert found.summary != "the models are the same"


@pytest.mark.parametrize("text", ["junk", "[1]", ""])
def test_provenance_of_somebody_else(edited, graphopt, tmp_path, text):
    assert edited(lambda model: model.metadata_props.add(key="graphopt", value=text), same=True).facts.provenance
    assert graphopt("diff", tmp_path / "before.onnx", tmp_path / "after.onnx").code == 0


def test_sizes(edited):
    found = edited(initializer(w=np.zeros((4, 4), np.float16)))
    assert found.sizes.types == {"FLOAT": (84, 20), "FLOAT16": (0, 32)}
    assert found.sizes.users == {"Gemm": (80, 48), "Mul": (4, 4)}
    assert found.sizes.files[0] > found.sizes.files[1] > 0


def test_sizes_look_through_dequantization(differ):
    before = "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }"
    after = "g (float[N,2] x) => (float[N,2] y) <int8[2,2] q = {1,2,3,4}, float s = {1}> { w = DequantizeLinear(q, s)  y = MatMul(x, w) }"
    assert differ(before, after).sizes.users == {"MatMul": (16, 8)}


# Command line


def test_the_object_of_json(graphopt, model_file):
    paths = model_file(NORM, "a.onnx"), model_file(FOLDED.replace("NAME", "n"), "b.onnx")
    ran = graphopt("diff", *paths, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = ran.json
    assert list(found) == [
        "same", "summary", "before", "after", "inputs", "outputs", "nodes", "operators", "initializers", "facts", "sizes",
    ]  # fmt: skip
    assert (found["same"], found["before"], found["after"]) == (False, *map(str, paths))
    assert found["nodes"]["rewritten"] == [
        {
            "before": ["Gemm", "BatchNormalization"], "after": ["Gemm"], "kept": [], "at": ["n"], "where": "",
            "attributes": [], "used": True,
        }
    ]  # fmt: skip
    assert found["nodes"]["counts"] == [3, 2]
    (change,) = found["initializers"]["changed"]
    assert (change["name"], change["renamed"], change["distance"]["changed"]) == ("w", "v", 1 / 16)
    assert found["sizes"]["files"] == [path.stat().st_size for path in paths]


def test_in_words(graphopt, model_file, edited, tmp_path):
    ran = graphopt("diff", model_file(NORM, "a.onnx"), model_file(FOLDED.replace("NAME", "n"), "b.onnx"))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0].startswith("2 of 3 nodes replaced by 1, 1 initializer changed, ")
    for text in (
        "Gemm + BatchNormalization -> Gemm, at n", "BatchNormalization: 1 -> 0", "w -> v", "6.2%",
        "removed  2 used by BatchNormalization, 32 B: one float [4], zero float [4]",
        "added    1 used by Gemm, 16 B: bias float [4]", "used by BatchNormalization: 32 B -> 0 B",
    ):  # fmt: skip
        assert text in ran.out, text
    edited(lambda model: model.metadata_props.add(key="a", value="[bold]b[/bold]"))
    assert (
        "metadata a: none -> [bold]b[/bold]" in graphopt("diff", tmp_path / "before.onnx", tmp_path / "after.onnx").out
    )


def test_every_section_in_words(graphopt, model_file):
    after = (
        replaced("(float[N,4] x, bool c)", "(float[3,4] x, bool d)").replace("If(c)", "If(d)")
        .replace("(float[N,4] y, float[N,4] z)", "(float[N,4] z, float[N,4] y)")
        .replace("Sub(r, x)", "Sub(a, x)").replace("transB = 1", "transA = 0").replace("k = {2}", "k = {3}")
        .replace("p = Exp(m)", "p = Exp(m) l = Cos(p)").replace('"": 18, "local"', '"": 17, "local"')
        .replace("1,2,3,4,5", "1,2,3,4,9").replace("float[4] b = {1,2,3,4}", "float[1] b = {1}")
    )  # fmt: skip
    out = graphopt("diff", model_file(TEXT, "a.onnx"), model_file(after, "b.onnx")).out
    for text in (
        "changed  x float [N, 4] -> x float [3, 4]", "renamed  c -> d", "in another order",
        "Gemm, transB 1 -> 0, at first", "Sub, input 0 r -> a, at third",
        "Cos added (in then_branch of branch), which no output depends on, at l",
        "k (in then_branch of branch)", "[1]: [2.0] -> [3.0]", "[4] -> [1]", "opset ai.onnx: 18 -> 17",
    ):  # fmt: skip
        assert text in out, text


def test_rows_per_section(graphopt, model_file):
    names = "abcdefgh"
    chain = "".join(f"  {new} = Neg({old})" for old, new in zip("x" + names, names, strict=False))
    text = f"g (float[N] x) => (float[N] y) {{ {chain}  y = Abs(h) }}"
    # every operator changes into another one, so that no two rows are alike
    after = text
    for name, operator in zip(names, ("Exp", "Sin", "Cos", "Tan", "Sqrt", "Floor", "Ceil", "Round"), strict=True):
        after = after.replace(f"{name} = Neg", f"{name} = {operator}")
    paths = model_file(text, "a.onnx"), model_file(after, "b.onnx")
    assert "Neg -> Round, at h" in graphopt("diff", *paths).out
    short = graphopt("diff", *paths, "--top", "3").out
    assert "Neg -> Cos, at c" in short
    assert "Neg -> Tan" not in short
    assert "5 more; --top or --json show them" in short
    assert len(graphopt("diff", *paths, "--top", "3", "--json").json["nodes"]["changed"]) == 8
    assert graphopt("diff", *paths, "--top", "0").code == 2


def test_changes_that_are_alike_share_a_row(graphopt, model_file):
    text = "g (float[N] x) => (float[N] y) { a = Neg(x) b = Neg(a) c = Neg(b) d = Neg(c) e = Neg(d) y = Abs(e) }"
    out = graphopt("diff", model_file(text, "a.onnx"), model_file(text.replace("Neg", "Exp"), "b.onnx")).out
    assert "5 x Neg -> Exp, at a, b, c and 2 more" in out


def test_what_the_user_can_fix(graphopt, model_file, tmp_path):
    path = model_file(TEXT)
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:200])
    for bad, why in (("none.onnx", "no such file"), ("empty.onnx", "holds no graph"), ("half.onnx", "truncated")):
        for pair in ((path, tmp_path / bad), (tmp_path / bad, path)):
            ran = graphopt("diff", *pair)
            assert ran.code == 1
            assert why in ran.error
    with pytest.raises(UserError, match="no such file"):
        diff(path, "none.onnx")
    assert graphopt("diff", path).code == 2


def test_a_pass_told_as_what_it_did(digits, tmp_path):
    """The whole way: what fold-batchnorm makes of a trained network."""
    out = tmp_path / "folded.onnx"
    apply(digits / "digits.onnx", ["fold-batchnorm"], out)
    found = diff(digits / "digits.onnx", out)
    assert not found.same
    assert [(one.before, one.after) for one in found.nodes.rewritten] == [
        (("Conv", "BatchNormalization"), ("Conv",))
    ] * 4
    assert found.nodes.changed == ()
    assert {one.user for one in found.initializers.removed} == {"BatchNormalization"}
    assert found.facts.provenance[1]["pipeline"] == ["fold-batchnorm"]
    assert found.nodes.counts == (inspect(digits / "digits.onnx").nodes, inspect(out).nodes)
