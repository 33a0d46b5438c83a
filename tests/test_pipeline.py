"""The pipeline keeps what it has verified, rolls back everything else, and names the culprit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import inputs, pipeline, target
from graphopt.data import ArrayData
from graphopt.errors import UserError
from graphopt.passbase import EXACT, FASTER, LOSSY, Contract, Pass, PreconditionError, Result
from graphopt.pipeline import Pipeline, Unverifiable, Verdict, begin, feeds_for

CPU = target.find("cpu")
TEXT = """g (float[N,3] x, float[N,3] w) => (float[N,3] y, float[N,3] z) <float[3] k = {1.0, 2.0, 3.0}> {
    [first] a = Mul(x, k)
    [second] b = Sub(a, w)
    [third] c = Abs(b)
    y = Neg(c)
    z = Sigmoid(b)
}"""


@dataclasses.dataclass(frozen=True)
class Edit(Pass):
    """A pass that does to the model what a function says, and claims to be exact."""

    edit: Callable[[ir.Model], object] = dataclasses.field(default=lambda model: None)
    modified: bool = True
    contract = EXACT

    def call(self, model):
        self.edit(model)
        return Result(model, self.modified, {"edited": 1}, [("first", "left alone")])


class LossyEdit(Edit):
    contract = LOSSY


def open_pipeline(model, data=None):
    start = begin(model, CPU, (), "m.onnx")
    return Pipeline(start, CPU, feeds_for(start, data, 0, "m.onnx"))


@pytest.fixture
def pipe(parse):
    return open_pipeline(parse(TEXT))


def node(model, index):
    return model.graph.node(index)


def replace_type(index, op_type):
    def edit(model):
        node(model, index).op_type = op_type

    return edit


def swap_inputs(model):
    sub = node(model, 1)
    a, w = sub.inputs
    sub.replace_input_with(0, w)
    sub.replace_input_with(1, a)


def scale_weights(factor):
    def edit(model):
        value = model.graph.initializers["k"]
        value.const_value = ir.tensor((value.const_value.numpy() * factor).astype(np.float32), name="k")

    return edit


def insert_identity(model):
    """Change the graph, but no number."""
    c = node(model, 2).outputs[0]
    copy = ir.node("Identity", [c])
    model.graph.insert_after(node(model, 2), copy)
    node(model, 4).replace_input_with(0, copy.outputs[0])


def rename_output(model):
    model.graph.outputs[0].name = "renamed"


def drop_output(model):
    del model.graph.outputs[1]


def swap_outputs(model):
    model.graph.outputs.reverse()


def drop_input(model):
    sub = node(model, 1)
    sub.replace_input_with(1, sub.inputs[0])
    del model.graph.inputs[1]


def add_input(model):
    model.graph.inputs.append(ir.Value(name="extra", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1])))


def use_undefined(model):
    node(model, 2).replace_input_with(0, ir.Value(name="nowhere"))


def use_before_definition(model):
    first = node(model, 0)
    model.graph.remove(first)
    model.graph.append(first)


def define_twice(model):
    node(model, 1).outputs[0].name = "a"


def private_operator(model):
    model.opset_imports["acme"] = 1
    node(model, 2).domain = "acme"


def missing_import(model):
    node(model, 2).domain = "com.microsoft"


def unknown_operator(model):
    node(model, 2).op_type = "NoSuchOperator"


def fail(model):
    node(model, 0).op_type = "Broken"
    raise KeyError("half-way")


def transpose(model):
    output = model.graph.outputs[0]
    turned = ir.node("Transpose", [output], attributes={"perm": [1, 0]})
    turned.outputs[0].name, turned.outputs[0].type = "t", output.type
    model.graph.append(turned)
    model.graph.outputs[0] = turned.outputs[0]
    output.name, turned.outputs[0].name = "was_y", "y"


def cast_output(model):
    output = model.graph.outputs[0]
    cast = ir.node("Cast", [output], attributes={"to": ir.DataType.DOUBLE.value})
    model.graph.append(cast)
    model.graph.outputs[0] = cast.outputs[0]
    output.name, cast.outputs[0].name = "was_y", "y"
    cast.outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)


def make_nan(model):
    node(model, 2).op_type = "Log"


EVIL = {
    "wrong numbers": (replace_type(1, "Add"), "changed the result: output 'y': .*; first at second .Add."),
    "swapped inputs": (swap_inputs, r"changed the result: .*; first at second \(Sub\)"),
    "an output scaled by 1.001": (scale_weights(1.001), r"changed the result: output '.': .*; first at first \(Mul\)"),
    "an output scaled by 10": (scale_weights(10), r"first at first \(Mul\)"),
    "another operator at the end": (replace_type(3, "Abs"), r"changed the result: output 'y': largest error"),
    "NaN": (make_nan, "changed the result: output 'y': NaN or infinity in other places"),
    "a renamed output": (rename_output, r"broke the graph: outputs changed from \['y:FLOAT', .* to \['renamed:FLOAT'"),
    "a dropped output": (drop_output, "broke the graph: outputs changed"),
    "swapped outputs": (swap_outputs, "broke the graph: outputs changed"),
    "a dropped input": (drop_input, r"broke the graph: inputs changed from \['x:FLOAT', 'w:FLOAT'\] to \['x:FLOAT'\]"),
    "an added input": (add_input, "broke the graph: inputs changed"),
    "an undefined value": (use_undefined, "broke the graph: node 'third' uses 'nowhere' before it is defined"),
    "a use before the definition": (use_before_definition, "broke the graph: node 'second' uses 'a' before"),
    "a value defined twice": (define_twice, "broke the graph: value 'a' is defined twice"),
    "a private operator": (private_operator, "broke the graph: operators of private domain 'acme' appeared"),
    "a domain without an import": (missing_import, "broke the graph: node 'third' is of domain 'com.microsoft'"),
    "an operator that does not exist": (unknown_operator, "the result does not run: .*NoSuchOperator"),
    "an exception": (fail, "bug in this pass, please report it: KeyError: 'half-way'"),
    "a transposed output": (transpose, r"changed the result: output 'y': shape \[3, 2\] instead of \[2, 3\]"),
    "another element type": (cast_output, r"broke the graph: outputs changed from \['y:FLOAT', .* to \['y:DOUBLE'"),
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_passes_are_rolled_back_and_named(pipe, name):
    edit, reason = EVIL[name]
    before, bytes_before = pipe.model, ir.to_proto(pipe.model).SerializeToString(deterministic=True)
    step = pipe.run(Edit(edit))
    assert step.status == "reverted"
    assert re.search(reason, step.reason), step.reason
    assert "\n" not in step.reason
    assert pipe.model is before
    assert ir.to_proto(pipe.model).SerializeToString(deterministic=True) == bytes_before
    assert pipe.kept == []
    assert pipe.steps == [step]
    assert pipe.run(Edit(insert_identity)).status == "kept", "what comes after is not affected"


def test_an_exact_pass_is_kept(pipe):
    step = pipe.run(Edit(insert_identity))
    assert (step.status, step.reason) == ("kept", "verified")
    assert step.nodes == (5, 6)
    assert step.bytes[1] > step.bytes[0]
    assert step.report == {"edited": 1}
    assert step.skipped == (("first", "left alone"),)
    assert step.seconds > 0
    assert len(list(pipe.model.graph)) == 6
    assert len(pipe.kept) == 1


def test_a_pass_that_does_nothing_is_skipped(pipe):
    step = pipe.run(Edit(modified=False))
    assert (step.status, step.reason) == ("skipped", "nothing to do")
    assert step.skipped == (("first", "left alone"),)
    assert step.nodes == (5, 5)
    assert pipe.kept == []


def test_a_pass_that_hides_what_it_did_changes_nothing(pipe):
    before = pipe.model
    assert pipe.run(Edit(replace_type(1, "Add"), modified=False)).status == "skipped"
    assert pipe.model is before


def test_rounding_is_no_change(pipe):
    assert pipe.run(Edit(scale_weights(1 + 1e-6))).status == "kept"


def test_tolerance_is_the_contracts(pipe):
    class Loose(Edit):
        contract = Contract("exact", rtol=0.01)

    assert pipe.run(Loose(scale_weights(1.001))).status == "kept"


def test_errors_do_not_add_up(parse):
    """Every exact pass is compared with the input model, not with the one before it."""
    pipe = open_pipeline(parse(TEXT))
    statuses = [pipe.run(Edit(scale_weights(1 + 5e-5))).status for _ in range(8)]
    assert statuses[0] == "kept"
    assert "reverted" in statuses


STEEP = "g (float[N,3] x) => (float[N,3] y) <float k = {3e3}> { a = Mul(x, k)  y = Sin(a) }"


@pytest.mark.parametrize(("factor", "status"), [(1 + 2**-23, "kept"), (1.01, "reverted")])
def test_rounding_that_the_network_amplifies_is_no_error(parse, factor, status):
    """The last bit of x moves the sine by far more than the contract allows; one per cent is still too much."""
    pipe = open_pipeline(parse(STEEP))

    def scale(model):
        value = model.graph.initializers["k"]
        value.const_value = ir.tensor(np.float32(value.const_value.numpy() * factor), name="k")

    step = pipe.run(Edit(scale))
    assert step.status == status, step.reason


def test_a_wrong_result_on_one_input_set_is_enough(parse):
    """The batch of one agrees; the others do not."""
    pipe = open_pipeline(parse("g (float[N] x) => (float[M] y) { y = Identity(x) }"))

    def first_only(model):
        zero, one = (ir.tensor(np.array([i]), name=f"c{i}") for i in (0, 1))
        values = []
        for tensor in (zero, one):
            value = ir.Value(name=tensor.name, const_value=tensor)
            model.graph.register_initializer(value)
            values.append(value)
        identity = node(model, 0)
        cut = ir.node("Slice", [model.graph.inputs[0], *values])
        model.graph.insert_before(identity, cut)
        identity.replace_input_with(0, cut.outputs[0])

    assert "changed the result: output 'y': shape [1] instead of [" in pipe.run(Edit(first_only)).reason


@dataclasses.dataclass(frozen=True)
class Picky(Pass):
    """A pass with a precondition."""

    error: Exception = dataclasses.field(default=PreconditionError("no ranges; run calibrate first"))

    def requires(self, model):
        raise self.error

    def call(self, model):
        raise AssertionError("not reached")


def test_an_unmet_precondition_skips_the_pass(pipe):
    step = pipe.run(Picky())
    assert (step.status, step.reason) == ("skipped", "no ranges; run calibrate first")


def test_an_unmet_precondition_is_an_error_when_strict(pipe):
    with pytest.raises(UserError, match="test-pipeline: no ranges; run calibrate first"):
        pipe.run(Picky(), strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_a_user_error_is_the_users_to_see(pipe, strict):
    def complain(model):
        raise UserError("data.npz: no such file")

    for pass_ in (Edit(complain), Picky(UserError("data.npz: no such file"))):
        with pytest.raises(UserError, match=r"^data\.npz: no such file$"):
            pipe.run(pass_, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_a_bug_in_a_precondition_is_a_bug(pipe, strict):
    step = pipe.run(Picky(ZeroDivisionError("oops")), strict=strict)
    assert (step.status, step.reason) == ("reverted", "bug in this pass, please report it: ZeroDivisionError: oops")


def test_a_postcondition_that_fails_reverts(pipe):
    class Sworn(Edit):
        def ensures(self, model):
            raise AssertionError("not what I promised")

    step = pipe.run(Sworn(insert_identity))
    assert step.status == "reverted"
    assert "bug in this pass" in step.reason


# --- lossy passes


def noise(db):
    """Multiply the weights so that the outputs keep about `db` decibels."""
    return scale_weights(1 + 10 ** (-db / 20))


def test_a_lossy_pass_is_kept_unless_it_destroys(pipe):
    assert pipe.run(LossyEdit(noise(30))).status == "kept"
    assert pipe.run(LossyEdit(scale_weights(-1))).reason.endswith("dB left of its signal, under 3 dB")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (make_nan, "output 'y' became NaN or infinite"),
        (transpose, r"output 'y' became float32\[3, 2\] from float32\[2, 3\]"),
        (cast_output, "broke the graph: outputs changed"),
        (drop_output, "broke the graph: outputs changed"),
        (scale_weights(0), "output 'y' has -?[0-9.]+ dB left of its signal, under 3 dB"),
        (fail, "bug in this pass"),
    ],
)
def test_a_lossy_pass_that_destroys_is_rolled_back(pipe, edit, reason):
    before = pipe.model
    step = pipe.run(LossyEdit(edit))
    assert step.status == "reverted"
    assert re.search(reason, step.reason), step.reason
    assert pipe.model is before


def test_the_floor_is_the_contracts(pipe):
    class Careful(Edit):
        contract = Contract("lossy", min_sqnr=40.0)

    assert "under 40 dB" in pipe.run(Careful(noise(30))).reason
    assert pipe.run(Careful(noise(60))).status == "kept"


def test_the_judge_decides_about_lossy_passes(pipe):
    asked = []

    def judge(candidate, session):
        asked.append(session.run({"x": np.ones((1, 3), np.float32), "w": np.zeros((1, 3), np.float32)})["y"])
        return Verdict(False, "does not pay")

    step = pipe.run(LossyEdit(noise(30)), judge)
    assert (step.status, step.reason) == ("reverted", "does not pay")
    assert len(asked) == 1
    assert pipe.run(LossyEdit(noise(30)), lambda *_: Verdict(True, "1.5x the speed")).reason == "1.5x the speed"


def test_the_judge_is_not_asked_about_exact_or_broken_passes(pipe):
    def judge(candidate, session):
        raise AssertionError("not reached")

    assert pipe.run(Edit(insert_identity), judge).status == "kept"
    assert pipe.run(LossyEdit(make_nan), judge).status == "reverted"
    assert pipe.run(LossyEdit(modified=False), judge).status == "skipped"


def test_after_a_lossy_pass_exact_ones_are_held_to_its_result(pipe):
    assert pipe.run(LossyEdit(noise(30))).status == "kept"
    assert pipe.run(Edit(insert_identity)).status == "kept"
    assert pipe.run(Edit(scale_weights(1.001))).status == "reverted"


def test_rollback_returns_to_the_mark(pipe):
    pipe.run(Edit(insert_identity))
    mark, model = pipe.mark(), pipe.model
    pipe.run(Edit(modified=False))
    pipe.run(LossyEdit(noise(30)))
    pipe.rollback(mark, "slower")
    assert pipe.model is model
    assert [(step.status, step.reason) for step in pipe.steps] == [
        ("kept", "verified"),
        ("skipped", "nothing to do"),
        ("reverted", "slower"),
    ]
    assert len(pipe.kept) == 1
    assert pipe.run(Edit(insert_identity)).nodes == (6, 7)


def test_after_a_rollback_the_old_numbers_count(pipe):
    mark = pipe.mark()
    pipe.run(LossyEdit(noise(10)))
    pipe.rollback(mark, "slower")
    assert pipe.run(Edit(insert_identity)).status == "kept"


def test_steps_in_json(pipe):
    record = pipe.run(Edit(insert_identity)).to_json()
    assert list(record) == ["pass", "status", "reason", "seconds", "nodes", "bytes", "skipped", "report"]
    assert record["nodes"] == (5, 6)


def test_audits_add_rows(pipe):
    seen = []

    class Audited(Edit):
        def audit(self, optimized):
            seen.append([node.op_type for node in optimized.graph])
            return [("second", "runs in float")]

    step = pipe.run(Audited(insert_identity))
    assert step.skipped == (("first", "left alone"), ("second", "runs in float"))
    assert seen
    assert "Identity" not in seen[0], "the audit sees what the runtime made of the model"
    pipe.run(Audited(make_nan))
    assert len(seen) == 1, "only a pass that succeeded is audited"


# --- models that are hard to verify

RANDOM = "g (float[N,3] x) => (float[N,3] y) { r = RandomNormalLike(x) y = Add(x, r) }"


def test_a_model_that_rolls_dice_cannot_be_verified(parse):
    with pytest.raises(Unverifiable, match="not deterministic: two runs on the same inputs differ"):
        open_pipeline(parse(RANDOM))


def test_a_model_that_runs_on_nothing_generated_cannot_be_verified(parse):
    model = parse(
        "g (int64[2] shape) => (float[N] y) <float[7] k = {1.0,1.0,1.0,1.0,1.0,1.0,1.0}> { y = Reshape(k, shape) }"
    )
    start = begin(model, CPU, (), "m.onnx")
    with pytest.raises(Unverifiable, match=r"m\.onnx: does not run on generated inputs \(.*\); give it data"):
        feeds_for(start, None, 0, "m.onnx")


def test_data_on_which_the_model_does_not_run_is_the_users(parse):
    model = parse("g (int64[N] i) => (float[N] y) <float[3] k = {1.0, 2.0, 3.0}> { y = Gather(k, i) }")
    start = begin(model, CPU, (), "m.onnx")
    with pytest.raises(UserError, match=r"arrays: the model does not run on this data: .*Gather"):
        feeds_for(start, ArrayData("arrays", {"i": np.array([7, 8])}), 0, "m.onnx")


def test_verifying_on_the_users_data(parse):
    """Random inputs would not tell these two apart; the data does."""
    text = "g (float[N] x) => (float[N] y) <float limit = {50.0}> { y = Min(x, limit) }"
    data = ArrayData("arrays", {"x": np.linspace(0, 100, 16, dtype=np.float32)})

    def drop_limit(model):
        node(model, 0).op_type = "Identity"
        node(model, 0).resize_inputs(1)

    assert open_pipeline(parse(text)).run(Edit(drop_limit)).status == "kept"
    assert open_pipeline(parse(text), data).run(Edit(drop_limit)).status == "reverted"


BROKEN = "g (float[N,3] x) => (float[N,3] y) { y = NoSuchOperator(x) }"


def mend(model):
    node(model, 0).op_type = "Relu"


def test_the_first_pass_may_make_a_model_load(parse):
    model = parse(BROKEN)
    start = begin(model, CPU, (Edit(mend),), "m.onnx")
    assert [step.status for step in start.steps] == ["kept"]
    assert start.steps[0].reason.startswith("the model did not load before: m.onnx: does not load: ONNX Runtime error")
    assert node(model, 0).op_type == "NoSuchOperator", "the input is never changed"
    pipe = Pipeline(start, CPU, feeds_for(start, None, 0, "m.onnx"))
    assert len(pipe.kept) == 1
    assert pipe.run(Edit(insert_relu)).status == "kept"
    assert len(pipe.steps) == 2


def insert_relu(model):
    relu = ir.node("Relu", [model.graph.inputs[0]])
    model.graph.insert_before(node(model, 0), relu)
    node(model, 1).replace_input_with(0, relu.outputs[0])


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ((), "m.onnx: does not load: .*NoSuchOperator.*; try: graphopt apply MODEL repair"),
        ((Edit(modified=False), Edit(mend)), "; try: graphopt apply MODEL repair"),
        ((Edit(replace_type(0, "NorThisOne")),), "; after test-pipeline: .*NorThisOne"),
        ((Picky(),), "does not load: .*"),
    ],
)
def test_a_model_that_does_not_load(parse, passes, message):
    with pytest.raises(UserError, match=message):
        begin(parse(BROKEN), CPU, passes, "m.onnx")


def test_measure_counts_everything(parse):
    nodes, size = pipeline.measure(parse(TEXT))
    assert nodes == 5
    assert size == ir.to_proto(parse(TEXT)).ByteSize()


def test_generated_inputs_are_seeded_and_vary_in_shape(parse):
    start = begin(parse(TEXT), CPU, (), "m.onnx")
    one, two, other = (inputs.generate(start.model, start.session, seed) for seed in (0, 0, 1))
    assert len(one) == 3
    assert len({feeds["x"].shape for feeds in one}) > 1
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
    assert not np.array_equal(one[0]["x"], other[0]["x"])


def test_a_pass_that_sets_types_leaves_the_model_it_replaces_alone(parse):
    """Values of an onnx_ir clone share their types, in which a dtype is set."""
    pipe = open_pipeline(parse("g (float[N,3] x) => (float[N,3] y) <float[3] k = {1.0, 2.0, 3.0}> { y = Mul(x, k) }"))

    def retype(model):
        for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
            value.dtype = ir.DataType.DOUBLE

    pipe.run(Edit(retype))
    graph = pipe.model.graph
    values = (*graph.inputs, *graph.outputs, *graph.initializers.values())
    assert {value.dtype for value in values} == {ir.DataType.FLOAT}


class TimedEdit(Edit):
    contract = FASTER


def test_the_judge_decides_about_exact_passes_that_are_there_for_speed(pipe):
    """Once they are verified; where nobody judges, that is enough."""
    slow, fast = (lambda *_, keep=keep: Verdict(keep, "measured") for keep in (False, True))
    assert pipe.run(TimedEdit(insert_identity), slow).status == "reverted"
    assert pipe.run(TimedEdit(insert_identity), fast).reason == "measured"
    assert pipe.run(TimedEdit(scale_weights(2)), fast).reason.startswith("changed the result")
    assert pipe.run(TimedEdit(insert_identity)).reason == "verified"


def test_parts_are_told_of_what_was_rolled_back(pipe):
    class Whole(TimedEdit):
        def call(self, model):
            self.edit(model)
            return Result(model, True, parts=[TimedEdit(insert_identity)])

    assert pipe.run(Whole(insert_identity)).parts == ()
    step = pipe.run(Whole(scale_weights(2)))
    assert (step.status, step.parts) == ("reverted", (TimedEdit(insert_identity),))
    assert "parts" not in step.to_json()
