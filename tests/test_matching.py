"""Matching two models: names first, then structure; one to one, through subgraphs and functions."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import io
from graphopt.matching import match

W = "float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}"
CHAIN = (
    "g (float[N,4] x) => (float[N,4] y) <" + W + "> { a = MatMul(x, w)  b = Relu(a)  c = Transpose<perm=[1,0]>(b)"
    "  d = Transpose<perm=[1,0]>(c)  y = Neg(d) }"
)


@pytest.fixture
def pair(parse):
    """Match two models in ONNX text; the answer maps names of the candidate to names of the reference."""

    def run(reference, candidate):
        return Found(*(parse(text) if isinstance(text, str) else text for text in (reference, candidate)))

    return run


class Found:
    def __init__(self, reference, candidate):
        self.reference, self.candidate = reference, candidate
        self.matching = match(reference, candidate)
        assert len(set(self.matching.values.values())) == len(self.matching.values)
        assert len(set(self.matching.nodes.values())) == len(self.matching.nodes)
        assert all(mine.op_type == other.op_type for mine, other in self.matching.nodes.items())

    @property
    def values(self):
        return {mine.name: other.name for mine, other in self.matching.values.items()}

    @property
    def nodes(self):
        return {mine.outputs[0].name: other.outputs[0].name for mine, other in self.matching.nodes.items()}

    def is_complete(self):
        """Tell whether every node of the candidate is matched."""
        return len(self.matching.nodes) == sum(1 for _ in io.nodes(self.candidate))


def renamed(text, suffix="_s", keep=()):
    """Give every value of a model in ONNX text another name."""
    computed = {name for names in re.findall(r"((?:\w+, )*\w+) =(?!=)", text) for name in names.split(", ")}
    declared = set(re.findall(r"(?:float|bool|int64)(?:\[[^]]*\])? (\w+)", text))
    for name in (computed | declared) - set(keep) - {"then_branch", "else_branch", "body"}:
        text = re.sub(rf"\b{name}\b", name + suffix, text)
    return text


def weights(graph, **arrays):
    """Give initializers other contents, by name."""
    for name, array in arrays.items():
        value = graph.initializers[name]
        value.const_value = ir.tensor(np.asarray(array, np.float32), name=name)
        value.shape = ir.Shape(np.shape(array))


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape or (16,)).astype(np.float32)


def given(name, seed):
    return f"float[4,4] {name} = {{{', '.join(map(str, random(seed, 16)))}}}"


def test_a_model_and_itself(pair):
    found = pair(CHAIN, CHAIN)
    assert found.values == {name: name for name in "xwabcdy"}
    assert found.nodes == {name: name for name in "abcdy"}
    assert list(found.matching.graphs) == [found.candidate.graph]


def test_a_model_whose_values_are_all_renamed(pair):
    found = pair(CHAIN, renamed(CHAIN))
    assert found.values == {f"{name}_s": name for name in "xwabcdy"}
    assert found.is_complete()


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("float[N,4] q, float[4] r", {"q": "x", "r": "z"}),
        ("float[?,4] q, float[M] r", {"q": "x", "r": "z"}),
        ("float[N,4] q", {}),
        ("double[N,4] q, float[4] r", {"r": "z"}),
        ("float[N] q, float[4] r", {"r": "z"}),
        ("float[4] z, float[N,4] q", {"z": "z"}),
    ],
    ids=["types agree", "dynamic axes agree", "another number", "another type", "another rank", "name first"],
)
def test_inputs_by_name_else_by_position(pair, inputs, expected):
    found = pair(
        "g (float[N,4] x, float[4] z) => (float[N,4] y) { y = Neg(x) }",
        f"g ({inputs}) => (float y) {{ y = Abs({inputs.split(',')[-1].split()[-1]}) }}",
    )
    assert {mine: other for mine, other in found.values.items() if mine != "y"} == expected


def test_a_name_of_something_inside_is_not_matched_by_position(pair):
    """Preprocessing went into the candidate: its `x` is the normalized one, as in the reference."""
    found = pair(
        "g (float[N] x) => (float[N] y) { y = Neg(x) }", "g (float[N] raw) => (float[N] y) { x = Abs(raw) y = Neg(x) }"
    )
    assert found.values == {"x": "x", "y": "y"}
    assert found.nodes == {"y": "y"}


def test_a_value_keeps_its_identity_when_its_operator_changes(pair):
    found = pair(CHAIN, CHAIN.replace("Relu", "Sigmoid"))
    assert found.values == {name: name for name in "xwabcdy"}
    assert "b" not in found.nodes
    assert len(found.nodes) == 4


def test_quantize_dequantize_around_a_node(pair):
    found = pair(
        "g (float[1,4] x) => (float[1,4] y) <" + W + "> { h = Relu(x)  a = MatMul(h, w)  y = Neg(a) }",
        "g (float[1,4] x) => (float[1,4] y) <" + W.replace("float[4,4] w", "int8[4,4] w_q")
        + ", float s = {0.5}, uint8 z = {3}, int8 w_z = {0}> {"
        " h = Relu(x)  hq = QuantizeLinear(h, s, z)  hd = DequantizeLinear(hq, s, z)"
        " w = DequantizeLinear(w_q, s, w_z)  a = MatMul(hd, w)  y = Neg(a) }",
    )  # fmt: skip
    assert found.values == {name: name for name in ("x", "h", "w", "a", "y")}
    assert found.nodes == {"h": "h", "a": "a", "y": "y"}


NORM = (
    "g (float[N,4] x) => (float[N,4] y) <" + W + ", float[4] one = {1,1,1,1}, float[4] zero = {0,0,0,0}> {"
    " a = Gemm(x, w)  b = BatchNormalization(a, one, zero, zero, one)  y = Relu(b) }"
)


@pytest.mark.parametrize("weight", ["w", "fused"])
def test_a_node_that_took_in_the_next_and_its_name(pair, weight):
    found = pair(
        NORM,
        f"g (float[N,4] x) => (float[N,4] y) <{W.replace(' w ', f' {weight} ').replace('1,', '5,')}> {{ b = Gemm(x, {weight})  y = Relu(b) }}",
    )
    assert found.values == {"x": "x", "b": "b", "y": "y", weight: "w"}
    assert found.nodes == {"b": "a", "y": "y"}


@pytest.mark.parametrize("weight", ["w", "fused"])
def test_a_node_that_took_in_the_next_but_kept_its_own_name(pair, weight):
    """As onnx-simplifier does it: what is called `a` now is the normalized value, as its user shows."""
    found = pair(
        NORM,
        f"g (float[N,4] x) => (float[N,4] y) <{W.replace(' w ', f' {weight} ').replace('1,', '5,')}> {{ a = Gemm(x, {weight})  y = Relu(a) }}",
    )
    assert found.values == {"x": "x", "a": "b", "y": "y", weight: "w"}
    assert found.nodes == {"a": "a", "y": "y"}


def test_a_node_that_took_in_those_before_it_while_the_next_went(pair):
    """`b` is what it was: its operator changed because of what is before it, whatever became of the node behind it."""
    found = pair(
        "g (float[N,4] x) => (float[N,4] y) <" + W + "> { a = MatMul(x, w)  b = Relu(a)  c = Identity(b)  y = Neg(c) }",
        "g (float[N,4] x) => (float[N,4] y) <" + W + "> { b = Gemm(x, w)  y = Neg(b) }",
    )
    assert found.values == {name: name for name in "xwby"}


def test_a_node_that_gave_back_what_it_had_taken_in(pair):
    found = pair(f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ b = Gemm(x, w)  y = Relu(b) }}", NORM)
    assert found.values == {"x": "x", "w": "w", "b": "b", "y": "y"}
    assert found.nodes == {"a": "b", "y": "y"}


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ("a = Gemm(x, w)  b = Sin(a)  y = Relu(b)", "a = Gemm(x, v)  b = Sin(x)  y = Relu(a)  u = Exp(b)"),
        ("a = Gemm(x, w)  b = Sin(x)  y = Relu(b)  u = Exp(a)", "a = Gemm(x, v)  y = Relu(a)"),
        ("a = Gemm(x, w)  b = Sin(a)  y = Relu(b)  u = Relu(a)", "a = Gemm(x, v)  y = Relu(a)  u = Relu(a)"),
    ],
    ids=["the later value is still there", "the other value is not later", "the value itself is used, too"],
)
def test_a_node_whose_weights_changed_and_whose_users_use_it_instead_of_another(pair, reference, candidate):
    """That alone does not make it the other value."""
    text = "g (float[N,4] x) => (float[N,4] y) <{}> {{ {} }}"
    found = pair(text.format(W, reference), text.format(W.replace(" w ", " v ").replace("1,", "5,"), candidate))
    assert found.values["a"] == "a"


def test_an_output_stays_what_it_is_called(pair):
    text = NORM.replace("=> (float[N,4] y)", "=> (float[N,4] y, float[N,4] a)")
    folded = (
        f"g (float[N,4] x) => (float[N,4] y, float[N,4] a) <{W.replace('1,', '5,')}> {{ a = Gemm(x, w)  y = Relu(a) }}"
    )
    assert pair(text, folded).values == {name: name for name in "xway"}


def test_a_node_that_took_in_the_next_behind_one_of_its_kind(pair):
    text = "g (float[N,4] x) => (float[N,4] y) <{}, float[4] one = {{1,1,1,1}}> {{ p = Gemm(x, u)  {} z = Relu(b)  y = Neg(z) }}"
    found = pair(
        text.format(f"{W.replace(' w ', ' u ')}, {W}", "a = Gemm(p, w)  b = BatchNormalization(a, one, one, one, one)"),
        text.format(f"{W.replace(' w ', ' u ')}, {W.replace('1,', '5,')}", "b = Gemm(p, w)"),
    )
    assert found.values == {name: name for name in ("x", "u", "w", "p", "b", "z", "y", "one")}
    assert found.nodes == {"p": "p", "b": "a", "z": "z", "y": "y"}


@pytest.mark.parametrize("operator", ["Sigmoid({})", "MatMul({}, w)"])
def test_names_around_a_node_that_was_inserted(pair, operator):
    """Its neighbours are known to be others now, and what is behind them is unknown, but nothing exchanged them."""
    before = f"a = Relu(x)  c = {operator.format('a')}  y = Exp(c)"
    after = f"h = Neg(x)  a = Relu(h)  i = Cos(a)  c = {operator.format('i')}  u = Tan(c)"
    found = pair(
        f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ {before} }}",
        f"g (float[N,4] x) => (float[N,4] u) <{W}> {{ {after} }}",
    )
    assert {"a": "a", "c": "c"}.items() <= found.values.items()


def test_a_node_is_known_by_its_weight(pair):
    """Its input is another value, and its user another operator."""
    found = pair(
        f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ a = Relu(x)  b = Relu(a)  c = MatMul(a, w)  y = Exp(c) }}",
        f"g (float[N,4] x) => (float[N,4] u) <{W}> {{ a = Relu(x)  b = Relu(a)  c = MatMul(b, w)  u = Tan(c) }}",
    )
    assert found.nodes == {name: name for name in "abc"}


def test_a_node_that_was_taken_out_behind_an_unchanged_one(pair):
    found = pair(NORM, f"g (float[N,4] x) => (float[N,4] y) <{W}> {{ a = Gemm(x, w)  y = Relu(a) }}")
    assert found.values == {"x": "x", "w": "w", "a": "a", "y": "y"}


def stack(product, sum_, activation, *weights):
    """Make a network of blocks, each of a matrix product, a sum and an activation, with numbers for names."""
    lines, value = [], "x"
    for number, weight in enumerate(weights):
        lines.append(f"{product}_{number} = MatMul({value}, {weight})")
        lines.append(f"{sum_}_{number} = Add({product}_{number}, {product}_{number})")
        value = f"v_{number}"
        lines.append(f"{value} = {activation.format(f'{sum_}_{number}')}")
    stored = ", ".join(given(weight, seed=len(weight)) for weight in weights)
    return f"g (float[N,4] x) => (float[N,4] y) <{stored}, float k = {{2}}> {{ {'  '.join(lines)}  y = Neg({value}) }}"


@pytest.mark.parametrize("activation", ["Relu({})", "Mul({}, k)"], ids=["on its own", "with a constant that all use"])
@pytest.mark.parametrize("sum_", ["sum", "other"])
@pytest.mark.parametrize("product", ["mm", "mat"])
@pytest.mark.parametrize("inserted", [("inserted",), ("inserted", "inserted_too")], ids=len)
def test_names_that_moved_because_something_was_inserted(pair, product, sum_, activation, inserted):
    """Blocks were inserted, and the exporter numbered what is behind them anew; the weights' names tell."""
    short = stack("mm", "sum", activation, "first", "second", "third")
    long = stack(product, sum_, activation, "first", *inserted, "second", "third")
    expected = {"y": "y"}
    for old in range(3):
        new = old + len(inserted) if old else 0
        expected |= {f"{product}_{new}": f"mm_{old}", f"{sum_}_{new}": f"sum_{old}", f"v_{new}": f"v_{old}"}
    found = pair(short, long)
    assert found.nodes == expected
    assert {mine: found.values[mine] for mine in expected} == expected
    assert not {f"{product}_1", f"{sum_}_1", "v_1"} & set(found.values)
    assert pair(long, short).nodes == {other: mine for mine, other in expected.items()}


def test_a_name_for_plainly_different_things(pair):
    """`val_1` is another operator, of another shape, between other neighbours."""
    found = pair(
        "g (float[2,3] x, float[5] z) => (float[2,3] y, float[5] u) <float[2,3] val_1> { p = Neg(x) val_1 = Relu(p) y = Exp(val_1) u = Abs(z) }",
        "g (float[2,3] x, float[5] z) => (float[2,3] y, float[5] u) <float[5] val_1> { p = Neg(x) q = Relu(p) y = Exp(q) val_1 = Sin(z) u = Abs(val_1) }",
    )
    assert "val_1" not in found.values
    assert found.values["q"] == "val_1"
    assert found.nodes == {"p": "p", "q": "val_1", "y": "y", "u": "u"}


def test_a_name_for_plainly_different_things_between_unknown_ones(pair):
    """Nothing around the two has a namesake; that they are other operators of other shapes must do."""
    found = pair(
        "g (float[2,3] x, float[5] z) => (float[2,3] y) <float[2,3] v> { a = Neg(x) v = Relu(a) b = Exp(v) y = Abs(b) }",
        "g (float[2,3] x, float[5] z) => (float[5] w) <float[5] v> { c = Cos(z) v = Sin(c) d = Tan(v) w = Sqrt(d) }",
    )
    assert found.values == {"x": "x", "z": "z"}


@pytest.mark.parametrize("known", [True, False], ids=["shapes known", "shapes unknown"])
def test_one_thing_in_common_is_enough_for_a_name(pair, known):
    """Another operator and another shape, but the same user: the name stands."""
    old, new = ("float[2,3] v", "float[3,2] v") if known else ("", "")
    found = pair(
        f"g (float[2,3] x) => (float[3,2] y) <{old}> {{ p = Neg(x) v = Relu(p) y = Transpose(v) }}",
        f"g (float[2,3] x) => (float[3,2] y) <{new}> {{ q = Exp(x) r = Abs(q) v = Transpose(r) y = Transpose(v) }}",
    )
    assert found.values["v"] == "v"


def test_two_names_that_changed_places(pair):
    found = pair(
        "g (float[N] x) => (float[N] y) { a = Neg(x)  b = Abs(a)  c = Exp(b)  d = Sin(c)  e = Cos(d)  y = Add(c, e) }",
        "g (float[N] x) => (float[N] y) { a = Neg(x)  b = Abs(a)  e = Exp(b)  d = Sin(e)  c = Cos(d)  y = Add(e, c) }",
    )
    assert found.nodes["d"] == "d"
    assert found.nodes["y"] == "y"


def test_a_rewired_node_is_still_itself(pair):
    """All its inputs are other values, but what uses it is the same."""
    text = "g (float[N] x) => (float[N] y) {{ a = Neg(x)  b = Abs(x)  c = Exp({})  d = Sin(c)  y = Add(d, {}) }}"
    found = pair(text.format("a", "b"), text.format("b", "a"))
    assert found.nodes == {name: name for name in "abcdy"}


def test_weights_that_differ_keep_their_names(pair, parse):
    other = parse(CHAIN)
    weights(other.graph, w=random(0, 4, 4))
    found = pair(CHAIN, other)
    assert found.values["w"] == "w"
    assert found.is_complete()


def test_weights_of_another_shape_and_type_keep_their_names(pair):
    found = pair(CHAIN, CHAIN.replace(W, "float16[4,2] w = {1,2,3,4,5,6,7,8}"))
    assert found.values["w"] == "w"
    assert found.is_complete()


TWO = "g (float[N,4] x) => (float[N,4] y) <{}> {{ a = MatMul(x, {})  b = Relu(a)  y = MatMul(b, {}) }}"


def test_numbered_weights_that_moved(pair):
    """`c_2` is the first weight in one model and the second in the other: contents tell, not the number."""
    found = pair(
        TWO.format(f"{given('c_1', 1)}, {given('c_2', 2)}", "c_1", "c_2"),
        TWO.format(f"{given('c_2', 1)}, {given('c_3', 2)}", "c_2", "c_3"),
    )
    assert found.values == {"x": "x", "a": "a", "b": "b", "y": "y", "c_2": "c_1", "c_3": "c_2"}


def test_renamed_weights_that_differ_follow_the_nodes_that_use_them(pair):
    found = pair(
        TWO.format(f"{given('p', 1)}, {given('q', 2)}", "p", "q"),
        TWO.format(f"{given('r', 3)}, {given('s', 4)}", "r", "s"),
    )
    assert found.values == {"x": "x", "a": "a", "b": "b", "y": "y", "r": "p", "s": "q"}


def test_contents_that_many_weights_could_have_are_no_evidence(pair, parse):
    """One bias was zero before training, another is after; both are still themselves."""
    text = (
        "g (float[N,16] x) => (float[N,16] y) <float[1] b1 = {0}, float[1] b2 = {0}> { a = Add(x, b1)  y = Mul(a, b2) }"
    )
    models = parse(text), parse(text)
    weights(models[0].graph, b1=np.zeros(16), b2=random(1))
    weights(models[1].graph, b1=random(2), b2=np.zeros(16))
    assert pair(*models).values == {name: name for name in ("x", "b1", "b2", "a", "y")}


def test_weights_of_another_shape_in_the_same_place_keep_their_names(pair):
    """Rows were pruned, and everything but the weights has another name: only these tell one product from the other."""
    text = "g (float[N,4] x) => (float[N,N] y) <{}> {{ {} }}"
    stored = f"{W}, {W.replace(' w ', ' v ')}"
    pruned = stored.replace("float[4,4]", "float[4,3]").replace(",13,14,15,16", "")
    found = pair(
        text.format(stored, "a = MatMul(x, v)  b = MatMul(x, w)  y = Add(a, b)"),
        text.format(pruned, "c = MatMul(x, w)  d = MatMul(x, v)  y = Add(c, d)"),
    )
    assert found.values == {"x": "x", "v": "v", "w": "w", "c": "b", "d": "a", "y": "y"}


def test_a_weight_of_another_shape_and_use_with_the_same_result_keeps_its_name(pair):
    found = pair(
        "g (float[N,4] x) => (float[N,4] y) <" + W + "> { a = MatMul(x, w)  y = Relu(a) }",
        "g (float[N,4] x) => (float[N,4] y) <float[4] w = {1,2,3,4}> { a = Add(w, x)  y = Relu(a) }",
    )
    assert found.values == {name: name for name in "xway"}


def test_numbered_constants_that_moved(pair):
    """What is called `c1` is a number in one model and an axis in the other."""
    found = pair(
        "g (float[2,3] x) => (float[2,1] y) { c1 = Constant<value = int64[1] {1}>()  y = ReduceSum(x, c1) }",
        "g (float[2,3] x) => (float[2,1] y) { c1 = Constant<value = float {2}>()  c2 = Constant<value = int64[1] {1}>()"
        " z = Mul(x, c1)  y = ReduceSum(z, c2) }",
    )
    assert found.values == {"x": "x", "y": "y", "c2": "c1"}


def test_an_initializer_name_for_plainly_different_things(pair):
    found = pair(
        "g (float[2,3] x) => (float[3] y) <int64[1] c = {0}> { y = ReduceSum<keepdims=0>(x, c) }",
        "g (float[2,3] x) => (float[3] y) <int64[1] k = {0}, float[2,3] c = {1,2,3,4,5,6}> { z = Add(c, x)  y = ReduceSum<keepdims=0>(z, k) }",
    )
    assert found.values == {"x": "x", "y": "y", "k": "c"}


def test_a_constant_node_that_became_an_initializer(pair):
    found = pair(
        "g (float[2] x) => (float[2] y) { c = Constant<value = float[2] {1,2}>()  y = Add(x, c) }",
        "g (float[2] x) => (float[2] y) <float[2] c = {1,2}> { y = Add(x, c) }",
    )
    assert found.values == {"x": "x", "c": "c", "y": "y"}
    assert found.nodes == {"y": "y"}


def test_values_of_constants_stand_for_each_other(pair):
    """Three equal constants became one, and everything else was renamed."""
    found = pair(
        "g (float[2] x) => (float[2] y) <float[2] p = {1,2}, float[2] q = {1,2}, float[2] r = {1,2}> { a = Add(x, p) b = Mul(a, q) y = Sub(b, r) }",
        "g (float[2] x) => (float[2] y) <float[2] k = {1,2}> { d = Add(x, k) e = Mul(d, k) y = Sub(e, k) }",
    )
    assert found.nodes == {"d": "a", "e": "b", "y": "y"}
    assert found.values["k"] in ("p", "q", "r")


def test_attributes_tell_nodes_with_the_same_inputs_apart(pair):
    text = "g (float[N,N] x) => (float[N,N] y) {{ {} y = Sub(Q, P) }}"
    found = pair(
        text.format("P = ReduceSum<keepdims=1>(x)  Q = ReduceSum<keepdims=0>(x)"),
        text.replace("Q, P", "R, S").format("R = ReduceSum<keepdims=0>(x)  S = ReduceSum<keepdims=1>(x)"),
    )
    assert found.values["R"] == "Q"
    assert found.values["S"] == "P"


def test_equal_nodes_are_matched_in_order(pair):
    text = "g (float[N] x) => (float[N] y) { a = Neg(x)  b = Neg(x)  c = Neg(x)  d = Sum(a, b, c)  y = Abs(d) }"
    assert pair(text, renamed(text)).values == {f"{name}_s": name for name in "xabcdy"}


@pytest.mark.parametrize(
    ("old", "new"),
    [("Softmax<axis = 0>(a)", "Softmax<axis = 1>(a)"), ("Add(a, x)", "Add(x, a)"), ("Clip(a, , )", "Clip(a)")],
    ids=["another attribute", "inputs changed places", "inputs left out in another way"],
)
def test_what_does_not_stop_the_walk_from_the_inputs(pair, old, new):
    """All names are others, and the end differs, so it must be walked to from the start."""
    text = "g (float[N,4] x) => (float[N,4] y) {{ a = Neg(x)  b = {}  c = Exp(b)  y = {}(c) }}"
    found = pair(text.format(old, "Sin"), renamed(text.format(new, "Cos"), keep="xy"))
    assert found.nodes == {"a_s": "a", "b_s": "b", "c_s": "c"}


def test_the_number_of_outputs_tells_nodes_apart(pair):
    found = pair(
        "g (float[N] x) => (float[N] y) { a = Dropout(x)  b, m = Dropout(x)  y = Sub(a, b) }",
        "g (float[N] x) => (float[N] y) { d, n = Dropout(x)  c = Dropout(x)  y = Sub(c, d) }",
    )
    assert found.values == {"x": "x", "y": "y", "n": "m", "c": "a", "d": "b"}


def test_inputs_that_changed_places_on_the_way_back(pair):
    """`p` and its constant are found through the sum behind them, whose terms changed places."""
    found = pair(
        "g (float[4] x) => (float[4] y) <float[4] k = {1,2,3,4}> { q = Sin(x)  d = Tan(x)  e = Mul(d, k)  p = Exp(e)  y = Add(p, q) }",
        "g (float[4] x) => (float[4] y) <float[4] l = {5,6,7,8}> { r = Sin(x)  f = Cos(x)  h = Mul(l, f)  s = Exp(h)  y = Add(r, s) }",
    )
    assert found.values == {"x": "x", "y": "y", "r": "q", "s": "p", "h": "e", "l": "k"}


def test_backward_from_the_outputs(pair):
    """The start differs and all names but the interface's do, so only the end tells."""
    start = "g (float[N] x) => (float[N] y) {{ {}  d = Sin({})  e = Cos(d)  f = Exp(e)  y = Neg(f) }}"
    found = pair(start.format("a = Tan(x)", "a"), renamed(start.format("b = Abs(x) c = Exp(b)", "c"), keep="xy"))
    assert found.nodes == {"d_s": "d", "e_s": "e", "f_s": "f", "y": "y"}
    assert "b_s" not in found.values


def test_outputs_by_position(pair):
    text = "g (float[N] x) => (float[N] p, float[N] q) { a = Neg(x)  p = Abs(a)  q = Exp(a) }"
    other = "g (float[N] x) => (float[N] r, float[N] s) { b = Tan(x)  r = Abs(b)  s = Exp(b) }"
    assert pair(text, other).values == {"x": "x", "r": "p", "s": "q"}
    assert pair(text, other).nodes == {"r": "p", "s": "q"}


def test_outputs_of_another_type_are_not_matched_by_position(pair):
    found = pair(
        "g (float[N] x) => (float[N] p) { p = Abs(x) }",
        "g (float[N] x) => (int64[N] q) { q = Cast<to=7>(x) }",
    )
    assert found.values == {"x": "x"}


def test_omitted_inputs_and_outputs(pair):
    text = "g (float[N] x) => (float[N] y) <float hi = {6}> { a = Clip(x, , hi)  b, m = Dropout(a)  y = Neg(b) }"
    assert pair(text, renamed(text)).is_complete()
    other = text.replace("b, m", "b").replace("Clip(x, , hi)", "Clip(x, hi)")
    found = pair(text, other)
    assert found.nodes["b"] == "b"
    assert "m" not in found.values


def test_nodes_with_several_outputs(pair):
    text = "g (float[4] x) => (float[2] y) { a, b = Split<num_outputs=2>(x)  c = Sub(b, a)  y = Neg(c) }"
    found = pair(text, renamed(text))
    assert found.values == {f"{name}_s": name for name in "xabcy"}
    crossed = pair(text, "g (float[4] x) => (float[2] y) { b, a = Split<num_outputs=2>(x)  c = Sub(a, b)  y = Neg(c) }")
    assert crossed.nodes["c"] == "c"


BRANCHES = """g (float[N] x, bool c) => (float[N] y) <float[1] w = {2}> {
    v = Neg(x)
    y = If(c) <then_branch = t () => (float[N] p) {
                   h = Add(v, w)
                   p = If(c) <then_branch = tt () => (float[N] r) { k = Exp(h) r = Mul(k, w) },
                              else_branch = ee () => (float[N] u) { u = Abs(v) }>
               },
               else_branch = e () => (float[N] q) <float[1] z = {3}> { q = Sub(v, z) }>
}"""


@pytest.mark.parametrize("other", [BRANCHES, renamed(BRANCHES)], ids=["same", "renamed"])
def test_subgraphs_through_the_nodes_that_hold_them(pair, other):
    found = pair(BRANCHES, other)
    assert found.is_complete()
    assert len(found.matching.graphs) == 5
    assert {mine.removesuffix("_s"): other for mine, other in found.values.items()} == {
        name: name for name in ("x", "c", "w", "v", "y", "h", "p", "k", "r", "u", "q", "z")
    }


def test_a_name_means_another_value_in_each_branch(pair):
    text = BRANCHES.replace(" u ", " r ").replace("u = Abs", "r = Abs")
    found = pair(text, text)
    assert found.is_complete()
    assert all(
        mine.producer().op_type == other.producer().op_type
        for mine, other in found.matching.values.items()
        if mine.producer()
    )


def test_the_branch_is_found_by_its_attribute(pair):
    """Both branches have the same structure; which is which is known."""
    text = """g (float[N] x, bool c) => (float[N] y) {
        y = If(c) <then_branch = t () => (float[N] p) { p = Neg(x) }, else_branch = e () => (float[N] q) { q = Neg(x) }>
    }"""
    assert pair(text, renamed(text)).values == {"x_s": "x", "c_s": "c", "y_s": "y", "p_s": "p", "q_s": "q"}


LOOP = """g (float[N] x) => (float[N] y) <int64 n = {3}, bool yes = {1}> {
    v = Neg(x)
    s = Loop(n, yes, x) <body = b (int64 i, bool go, float[N] acc) => (bool on, float[N] o) {
        on = Identity(go)
        m = Mul(acc, v)
        o = Add(m, v)
    }>
    y = Abs(s)
}"""


def test_a_loop_body(pair):
    found = pair(LOOP, renamed(LOOP))
    assert found.is_complete()
    assert found.values["acc_s"] == "acc"
    assert found.values["i_s"] == "i"


def test_bodies_of_unmatched_nodes_are_not_matched(pair):
    found = pair(
        LOOP,
        """g (float[N] x) => (float[N] y) <bool yes = {1}> {
            v = Neg(x)
            s = If(yes) <then_branch = t () => (float[N] o) { m = Mul(v, v) o = Add(m, v) },
                         else_branch = e () => (float[N] q) { q = Identity(v) }>
            y = Abs(s)
        }""",
    )
    assert found.values == {"x": "x", "yes": "yes", "v": "v", "s": "s", "y": "y"}
    assert found.nodes == {"v": "v", "y": "y"}
    assert len(found.matching.graphs) == 1


FUNCTION = """<ir_version: 9, opset_import: ["": 18, "local": 1]>
g (float[N] x) => (float[N] y) { a = local.f(x)  y = local.h(a) }
<domain: "local", opset_import: ["": 18]> f (i) => (o) { j = Relu(i)  o = Abs(j) }
<domain: "local", opset_import: ["": 18]> h (i) => (o) { o = Neg(i) }
"""


def test_functions_by_domain_and_name(pair):
    found = pair(
        FUNCTION,
        FUNCTION.replace("f (i) => (o) { j = Relu(i)  o = Abs(j) }", "f (ii) => (o) { k = Relu(ii)  o = Abs(k) }"),
    )
    assert found.is_complete()
    assert len(found.matching.graphs) == 3
    assert found.values["k"] == "j"
    assert found.values["ii"] == "i"
    gone = pair(FUNCTION, FUNCTION.replace("h (", "hh (").replace("local.h", "local.hh"))
    assert len(gone.matching.graphs) == 2


def test_models_that_have_nothing_in_common(pair):
    found = pair(CHAIN, "g (double[2] p) => (int64 q) { q = Size(p) }")
    assert not found.matching.values
    assert not found.matching.nodes


def test_the_same_models_give_the_same_matching(parse):
    texts = CHAIN, renamed(CHAIN.replace("Relu", "Sin"), keep="x"), BRANCHES, NORM
    for first in texts:
        for second in texts:
            runs = [Found(parse(first), parse(second)) for _ in range(2)]
            assert list(runs[0].values.items()) == list(runs[1].values.items())
            assert runs[0].nodes == runs[1].nodes


def test_the_models_are_left_alone(parse):
    models = parse(BRANCHES), parse(renamed(BRANCHES))
    before = [ir.to_proto(model).SerializeToString(deterministic=True) for model in models]
    match(*models)
    assert [ir.to_proto(model).SerializeToString(deterministic=True) for model in models] == before


@pytest.mark.parametrize("suffix", ["", "_s"], ids=["same names", "renamed"])
def test_a_long_chain(suffix):
    """Nothing recurses per node."""

    def chain(mark):
        value = start = ir.val(f"x{mark}", ir.DataType.FLOAT, [4])
        nodes = []
        for number in range(3000):
            nodes.append(ir.node(("Neg", "Abs", "Exp")[number % 3], [value]))
            (value,) = nodes[-1].outputs
            value.name = f"v{number}{mark}"
        return ir.Model(ir.Graph([start], [value], nodes=nodes, opset_imports={"": 18}), ir_version=9)

    assert len(match(chain(""), chain(suffix)).nodes) == 3000
