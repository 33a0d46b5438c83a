import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import io
from graphopt.passes.structural.repair import Repair
from graphopt.runtime import ExecutionError

X = {"x": np.float32([1, 2])}


def raw(text: str) -> ir.Model:
    """Build a model that need not be valid."""
    return ir.from_proto(onnx.parser.parse_model(text if text.strip().startswith("<") else HEADER + text))


HEADER = '<ir_version: 9, opset_import: ["": 18]>\n'


def repair(model: ir.Model, **report: int) -> list[tuple[str, str]]:
    """Repair; compare the report; check that the result is valid, and that a second run finds nothing."""
    result = Repair()(model)
    assert result.report == report
    assert result.modified == bool(report)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert not Repair()(model).modified
    return result.skipped


def test_a_valid_model_is_left_alone(apply):
    text = """
    g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
        [a] a = Mul(x, w)
        y = If(c) <then_branch = t () => (float[2] p) { p = Neg(a) }, else_branch = e () => (float[2] q) { q = Abs(a) }>
    }
    """
    result = apply(Repair(), text)
    assert (result.modified, result.report, result.skipped) == (False, {}, [])


def test_redeclared_values_are_reported_once(tmp_path, run):
    proto = onnx.parser.parse_model(HEADER + "g (float[2] x) => (float[2] y) { y = Neg(x) y = Abs(y) }")
    onnx.save_model(proto, tmp_path / "m.onnx")
    model = io.load(tmp_path / "m.onnx")
    repair(model, redeclared_values=1)
    assert run(model, X)["y"].tolist() == [1, 2]


def test_what_load_had_to_sort_is_reported_once(tmp_path):
    proto = onnx.parser.parse_model(HEADER + "g (float[2] x) => (float[2] y) { y = Neg(a) a = Abs(x) }")
    onnx.save_model(proto, tmp_path / "m.onnx")
    repair(io.load(tmp_path / "m.onnx"), unsorted_graphs=1)


def test_nodes_are_sorted_in_all_graphs(ops, run):
    model = raw("""
    g (float[2] x, bool c) => (float[2] y) {
        y = If(c) <
            then_branch = t () => (float[2] p) { p = Neg(d) d = Mul(a, a) },
            else_branch = e () => (float[2] q) { q = Abs(a) }>
        a = Exp(x)
    }
    """)
    repair(model, unsorted_graphs=2)
    assert ops(model) == ["Exp", "If", "Mul", "Neg", "Abs"]
    assert np.allclose(run(model, {**X, "c": np.array(True)})["y"], -(np.exp(X["x"]) ** 2))


def test_a_cycle_is_reported():
    model = raw("g (float[2] x) => (float[2] y) { a = Add(x, b) b = Neg(a) y = Abs(a) }")
    result = Repair()(model)
    assert not result.modified
    assert "cycle" in result.skipped[0][1]


def test_functions_are_sorted(run):
    model = raw("""<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x) => (float[2] y) { y = f.f(x) }
    <domain: "f", opset_import: ["": 18]> f (a) => (b) { b = Neg(c) c = Exp(a) }
    """)
    repair(model, unsorted_graphs=1)
    assert np.allclose(run(model, X)["y"], -np.exp(X["x"]))


BRANCH_OF_AN_OUTER_VALUE = """
g (float[2] x, bool c) => (float[2] y) {
    a = Exp(x)
    y = If(c) <then_branch = t () => (float[2] a) { }, else_branch = e () => (float[2] q) { q = Abs(a) }>
}
"""


def test_a_branch_that_returns_an_outer_value(run):
    model = raw(BRANCH_OF_AN_OUTER_VALUE)
    with pytest.raises(ExecutionError):
        run(model, {**X, "c": np.array(True)})
    repair(model, subgraph_outputs=1)
    assert np.allclose(run(model, {**X, "c": np.array(True)})["y"], np.exp(X["x"]))


def test_a_branch_that_returns_a_value_twice(run):
    model = raw("""
    g (float[2] x, bool c) => (float[2] y, float[2] z) {
        y, z = If(c) <
            then_branch = t () => (float[2] p, float[2] p) { p = Neg(x) },
            else_branch = e () => (float[2] q, float[2] r) { q = Abs(x) r = Exp(x) }>
    }
    """)
    repair(model, subgraph_outputs=1)
    got = run(model, {**X, "c": np.array(True)})
    assert got["y"].tolist() == got["z"].tolist() == [-1, -2]


def test_main_outputs_that_are_inputs_or_repeated_keep_their_names(run):
    model = raw("g (float[2] x) => (float[2] x, float[2] y, float[2] y) { y = Neg(x) }")
    assert not Repair()(model).modified
    assert run(model, X)["x"].tolist() == [1, 2]


SHADOW = """
g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 1}> {
    a = Add(x, w)
    y = If(c) <
        then_branch = t () => (float[2] p) <float[2] w = {5, 5}> { a = Mul(x, w) p = Neg(a) },
        else_branch = e () => (float[2] q) { q = Abs(a) }>
}
"""


@pytest.mark.parametrize(("condition", "expected"), [(True, [-5, -10]), (False, [2, 3])])
def test_shadowing_values_get_their_own_names(run, condition, expected):
    model = raw(SHADOW)
    with pytest.raises(ExecutionError):
        run(model, {**X, "c": np.array(condition)})
    repair(model, shadowing_values=2)
    assert [v.name for v in model.graph.inputs] == ["x", "c"]
    assert run(model, {**X, "c": np.array(condition)})["y"].tolist() == expected


def test_shadows_two_levels_down():
    model = raw("""
    g (float[2] x, bool c) => (float[2] y) {
        a = Exp(x)
        y = If(c) <
            then_branch = t () => (float[2] p) {
                p = If(c) <
                    then_branch = tt () => (float[2] r) { b = Neg(a) r = Abs(b) },
                    else_branch = ee () => (float[2] s) { s = Exp(a) }>
            },
            else_branch = e () => (float[2] q) { q = Abs(a) }>
    }
    """)
    values = {v.name: v for node in model.graph.all_nodes() for v in node.outputs}
    values["b"].name = "a"
    repair(model, shadowing_values=1)


def test_inputs_of_a_loop_body_may_be_renamed(run):
    model = raw("""
    g (float[2] x, int64 n, bool c) => (float[2] y) {
        y = Loop(n, c, x) <body = b (int64 i, bool go, float[2] x) => (bool on, float[2] o) { on = Identity(go) o = Add(x, x) }>
    }
    """)
    repair(model, shadowing_values=1)
    assert run(model, {**X, "n": np.array(3), "c": np.array(True)})["y"].tolist() == [8, 16]


def test_subgraphs_that_are_not_control_flow_keep_their_names():
    model = raw("""<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
    g (float[2] x) => (float[2] y) {
        y = com.microsoft.BeamSearch(x) <decoder = d (float[2] x) => (float[2] o, float[2] o) { o = Neg(x) }>
    }
    """)
    assert not Repair()(model).modified


def test_node_names_become_unique(run):
    model = raw(
        "g (float[2] x) => (float[2] y) { [n] a = Exp(x) [n] b = Neg(a) [n_1] y = Abs(b) d = Exp(x) e = Exp(x) }"
    )
    with pytest.raises(ExecutionError):
        run(model, X)
    repair(model, duplicate_node_names=1)
    assert [node.name for node in model.graph] == ["n", "n_2", "n_1", "", ""]
    assert np.allclose(run(model, X)["y"], np.exp(X["x"]))


@pytest.mark.parametrize(
    ("imports", "op", "domain", "version"),
    [
        ('"": 15', "com.microsoft.Gelu", "com.microsoft", 1),
        ('"": 15', "ai.onnx.ml.Normalizer", "ai.onnx.ml", 2),
        ('"": 18', "ai.onnx.ml.Normalizer", "ai.onnx.ml", 3),
        ('"com.microsoft": 1', "Softmax", "", 18),
    ],
)
def test_missing_opset_imports(imports, op, domain, version):
    model = raw(f"<ir_version: 8, opset_import: [{imports}]> g (float[2,3] x) => (float[2,3] y) {{ y = {op}(x) }}")
    assert Repair()(model).report == {"opset_imports": 1}
    assert model.opset_imports[domain] == version
    assert not Repair()(model).modified


def test_missing_imports_of_functions(run):
    model = raw("""<ir_version: 9, opset_import: ["": 18]>
    g (float[2] x) => (float[2] y) { y = f.f(x) }
    <domain: "f", opset_import: ["": 18]> f (a) => (b) { b = com.microsoft.Gelu(a) }
    """)
    with pytest.raises(ExecutionError):
        run(model, X)
    repair(model, opset_imports=2)
    assert run(model, X)["y"].shape == (2,)


def test_functions_import_what_the_model_imports():
    model = raw("""<ir_version: 9, opset_import: ["": 18, "ai.onnx.ml": 1, "f": 1]>
    g (float[2,2] x) => (float[2,2] y) { y = f.f(x) }
    <domain: "f", opset_import: ["": 18]> f (a) => (b) { b = ai.onnx.ml.Normalizer(a) }
    """)
    assert Repair()(model).report == {"opset_imports": 1}
    assert model.functions["f", "f", ""].opset_imports["ai.onnx.ml"] == 1


def test_the_long_name_of_the_default_domain_becomes_the_short_one():
    model = raw("g (float[2] x) => (float[2] y) { y = Abs(x) }")
    model.graph.opset_imports["ai.onnx"] = model.graph.opset_imports.pop("")
    repair(model, opset_imports=1)
    assert model.opset_imports == {"": 18}


def test_below_ir_version_4_initializers_leave_the_inputs(run):
    model = raw("""<ir_version: 3, opset_import: ["": 9]>
    g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }
    """)
    assert repair(model, inputs_made_constant=1, ir_version=1) == []
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    assert run(model, X)["y"].tolist() == [1, 4]


def test_initializers_that_are_not_inputs_need_ir_version_4(run):
    model = raw(
        '<ir_version: 3, opset_import: ["": 9]> g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }'
    )
    repair(model, ir_version=1)
    assert model.ir_version == 4


def test_ir_version_3_without_initializers_is_fine():
    model = raw('<ir_version: 3, opset_import: ["": 9]> g (float[2] x) => (float[2] y) { y = Neg(x) }')
    repair(model)


@pytest.mark.parametrize("version", [0, 2])
def test_missing_and_ancient_ir_versions(version):
    model = raw(f'<ir_version: {version}, opset_import: ["": 9]> g (float[2] x) => (float[2] y) {{ y = Neg(x) }}')
    repair(model, ir_version=1)
    assert model.ir_version == 4


def test_defaults_that_callers_may_override_stay(apply, parse):
    model = parse("g (float[2] x, float[N] w) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }")
    result = apply(Repair(), model)
    assert not result.modified
    assert result.skipped == [
        (
            "w",
            "is a default that callers may override, so it is never folded; take it off the graph inputs to make it constant",
        )
    ]


def test_stale_element_types_are_corrected(run):
    model = raw("g (float[N] x) => (int64[N] y) <int32[N] a> { a = Exp(x) y = Neg(a) }")
    with pytest.raises(ExecutionError):
        run(model, X)
    repair(model, stale_types=2)
    assert run(model, X)["y"].dtype == np.float32


def test_stale_shapes_of_inner_values_are_corrected():
    model = raw("""
    g (float[N, 4] x) => (float[7, 4] y) <float[7, 4] traced, float[4] rank, float[M, 4] fine> {
        traced = Exp(x)
        rank = Neg(traced)
        fine = Abs(rank)
        y = Relu(fine)
    }
    """)
    assert Repair()(model).report == {"stale_types": 2}
    shapes = {node.outputs[0].name: str(node.outputs[0].shape) for node in model.graph}
    assert shapes == {"traced": "[N,4]", "rank": "[N,4]", "fine": "[M,4]", "y": "[7,4]"}


def test_stale_declarations_of_initializers_are_corrected():
    model = raw("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }")
    value = model.graph.initializers["w"]
    value.type, value.shape = ir.TensorType(ir.DataType.DOUBLE), ir.Shape([5])
    repair(model, stale_types=1)
    assert (value.dtype, value.shape) == (ir.DataType.FLOAT, ir.Shape([2]))


def test_sequences_are_not_mistaken_for_tensors(apply):
    text = "g (float[2] x) => (float[2] y) { s = SequenceConstruct(x, x) i = Constant<value_int = 1>() y = SequenceAt(s, i) }"
    assert not apply(Repair(), text).modified
