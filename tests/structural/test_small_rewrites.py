"""Gemm from MatMul and Add, initial states of zero, Split from Slices and from sequences, defaults that become constants."""

from __future__ import annotations

import pytest

from graphopt.passes.structural.drop_initial_states import DropInitialStates
from graphopt.passes.structural.eliminate_dead_code import EliminateDeadCode
from graphopt.passes.structural.freeze_defaults import FreezeDefaults
from graphopt.passes.structural.fuse_gemm import FuseGemm
from graphopt.passes.structural.split_sequences import SplitSequences
from graphopt.passes.structural.split_slices import SplitSlices

MATRICES = "float[3,2] w = {1,2,3,4,5,6}, float[2] row = {1,-1}, float[2,1] column = {1,2}, float[1,1,2] deep = {1,2}"


@pytest.mark.parametrize(
    "body",
    [
        "t = MatMul(x, w)  y = Add(t, row)",
        "t = MatMul(x, w)  y = Add(row, t)",
        "t = Gemm<alpha = 2.0>(x, w)  y = Add(t, row)",
    ],
)
def test_gemm(apply, parse, ops, body):
    model = parse(f"g (float[N,3] x) => (float[N,2] y) <{MATRICES}> {{ {body} }}")
    assert apply(FuseGemm(), model).report == {"fused": 1}
    assert ops(model) == ["Gemm"]


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        ("t = MatMul(x, w)  y = Add(t, deep)", "float[N,3] x", "float[1,N,2] y"),
        ("t = MatMul(x, w)  y = Add(t, z)", "float[1,3] x, float[4,2] z", "float[4,2] y"),
        ("t = MatMul(x, w)  y = Add(t, row)", "float[N,4,3] x", "float[N,4,2] y"),
        ("t = MatMul(x, w)  y = Add(t, t)", "float[N,3] x", "float[N,2] y"),
        ("t = MatMul(x, w)  y = Add(t, row)  u = Neg(t)", "float[N,3] x", "float[N,2] y, float[N,2] u"),
    ],
    ids=["adds an axis", "enlarges", "rank 3", "added to itself", "used elsewhere"],
)
def test_no_gemm(apply, parse, body, inputs, outputs):
    assert not apply(FuseGemm(), parse(f"g ({inputs}) => ({outputs}) <{MATRICES}> {{ {body} }}")).modified


LSTM = """g (float[T,N,2] x) => (float[T,1,N,2] y)
    <float[1,8,2] w = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}, float[1,8,2] r = {1,0,0,1,1,0,0,1,1,0,0,1,1,0,0,1},
     int64[1] one = {1}, int64[1] two = {2}, float z = {FILL}> {
    s = Shape<start = 1, end = 2>(x)  c = Concat<axis = 0>(one, s, two)  h = Expand(z, c)
    y, yh, yc = LSTM<hidden_size = 2>(x, w, r, , , h, h)
}"""


def test_a_state_of_zeros_goes(apply, parse, ops):
    model = parse(LSTM.replace("FILL", "0"))
    assert apply(DropInitialStates(), model).report == {"dropped": 2}
    assert ops(model) == ["LSTM"]


def test_another_state_stays(apply, parse):
    assert not apply(DropInitialStates(), parse(LSTM.replace("FILL", "0.5"))).modified


BOUNDS = "int64[1] i0 = {0}, int64[1] i2 = {2}, int64[1] i4 = {4}, int64[1] i6 = {6}, int64[1] end = {9223372036854775807}, int64[1] ax = {1}"


def slices(body, outputs="float[N,A] y, float[N,B] z, float[N,C] u"):
    return f"g (float[N,6] x) => ({outputs}) <{BOUNDS}> {{ {body} }}"


def test_slices_end_to_end_are_one_split(apply, parse, ops):
    model = parse(slices("u = Slice(x, i4, end, ax)  y = Slice(x, i0, i2, ax)  z = Slice(x, i2, i4, ax)"))
    assert apply(SplitSlices(), model).report == {"slices": 3, "splits": 1}
    assert ops(model) == ["Split"]


def test_slices_of_a_slice(apply, parse, ops):
    model = parse(slices(
        "y = Slice(x, i0, i2, ax)  t = Slice(x, i2, end, ax)  z = Slice(t, i0, i2, ax)  u = Slice(t, i2, end, ax)"
    ))  # fmt: skip
    apply(SplitSlices(), model)
    assert ops(model) == ["Split", "Split"]


@pytest.mark.parametrize(
    "body",
    [
        "y = Slice(x, i0, i2, ax)  z = Slice(x, i2, i4, ax)  u = Slice(x, i2, end, ax)  ",
        "y = Slice(x, i0, i2, ax)  z = Slice(x, i0, i4, ax)  u = Neg(x)",
    ],
)
def test_slices_with_gaps_or_overlaps(apply, parse, ops, body):
    model = parse(slices(body))
    result = apply(SplitSlices(), model)
    assert ops(model).count("Slice") >= 1
    assert result.report["slices"] in (0, 2)


def test_a_sequence_of_parts_is_a_split(apply, parse, ops):
    model = parse("""g (float[N,6] x) => (float[N,A] y, float[N,B] z) <int64 four = {4}, int64 i = {0}, int64 j = {-1}> {
        s = SplitToSequence<axis = 1>(x, four)  y = SequenceAt(s, i)  z = SequenceAt(s, j)
    }""")
    assert apply(SplitSequences(), model).report == {"sequences": 1}
    assert ops(model) == ["Split"]


def test_a_sequence_that_something_else_needs_stays(apply, parse):
    model = parse("""g (float[N,6] x) => (float[N,A] y, int64 n) <int64 four = {4}, int64 i = {0}> {
        s = SplitToSequence<axis = 1>(x, four)  y = SequenceAt(s, i)  n = SequenceLength(s)
    }""")
    assert not apply(SplitSequences(), model).modified


DEFAULTS = "g (float[N,2] x, float[2] w) => (float[N,2] y) <float[2] w = {1,2}{MORE}> { y = Add(x, w) }"


def test_defaults_become_constants(parse):
    model = parse(DEFAULTS.replace("{MORE}", ", float[2] v = {3,4}"))
    assert not FreezeDefaults(habit=True)(model).modified
    assert FreezeDefaults()(model).report == {"frozen": 1}
    assert [value.name for value in model.graph.inputs] == ["x"]
    EliminateDeadCode()(model)
    assert list(model.graph.initializers) == ["w"]


def test_listing_all_of_them_is_a_habit(parse):
    model = parse(DEFAULTS.replace("{MORE}", ""))
    assert FreezeDefaults(habit=True)(model).report == {"frozen": 1}


def test_the_command_says_what_it_does_to_inputs(graphopt, model_file, tmp_path):
    ran = graphopt("freeze-defaults", model_file(DEFAULTS.replace("{MORE}", "")), "-o", tmp_path / "o.onnx", "--json")
    assert ran.json["steps"][0]["status"] == "kept"
