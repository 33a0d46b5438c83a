from graphopt.passes.structural.eliminate_dead_code import EliminateDeadCode


def test_unused_nodes_and_initializers_go(apply, ops, parse):
    model = parse("""
    g (float[2] x, float[2] unused) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
        a = Mul(x, w)
        b = Neg(a)
        y = Abs(x)
    }
    """)
    result = apply(EliminateDeadCode(), model)
    assert result.report == {"nodes": 2, "initializers": 2}
    assert ops(model) == ["Abs"]
    assert [v.name for v in model.graph.inputs] == ["x", "unused"]


def test_nothing_to_do(apply):
    assert not apply(EliminateDeadCode(), "g (float[2] x) => (float[2] y) { y = Abs(x) }").modified


def test_default_of_an_unused_input_stays(apply, parse):
    model = parse("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Abs(x) }")
    assert not apply(EliminateDeadCode(), model).modified
    assert list(model.graph.initializers) == ["w"]


def test_initializer_that_is_an_output_stays(apply):
    text = "g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {1, 2}> { y = Abs(x) }"
    assert not apply(EliminateDeadCode(), text).modified


def test_values_used_only_in_a_removed_subgraph_go_too(apply, ops, parse):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
        a = Mul(x, w)
        b = If(c) <then_branch = t () => (float[2] p) { p = Neg(a) }, else_branch = e () => (float[2] q) { q = Abs(a) }>
        y = Exp(x)
    }
    """)
    assert apply(EliminateDeadCode(), model).report == {"nodes": 4, "initializers": 1}
    assert ops(model) == ["Exp"]


def test_subgraphs_are_cleaned(apply, ops, parse):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y) {
        a = Mul(x, x)
        y = If(c) <
            then_branch = t () => (float[2] p) <float[2] w = {1, 2}> { d = Add(a, w) p = Neg(x) },
            else_branch = e () => (float[2] q) { q = Abs(x) }>
    }
    """)
    assert apply(EliminateDeadCode(), model).report == {"nodes": 2, "initializers": 1}
    assert ops(model) == ["If", "Neg", "Abs"]


def test_loop_keeps_what_its_outputs_need(apply):
    text = """
    g (float[2] x, int64 n, bool c) => (float[2] y) {
        k = Neg(x)
        y, unused = Loop(n, c, x) <body = b (int64 i, bool go, float[2] s) => (bool on, float[2] o, float[2] scan) {
            on = Identity(go)
            o = Add(s, k)
            scan = Mul(o, o)
        }>
    }
    """
    assert not apply(EliminateDeadCode(), text).modified


def test_unused_optional_output_counts_as_a_change(apply, parse):
    model = parse("g (float[1,1,4] x) => (float[1,1,3] y) { y, i = MaxPool<kernel_shape = [2]>(x) }")
    assert apply(EliminateDeadCode(), model).modified
    assert len(model.graph.node(0).outputs) == 1


def test_functions(apply, ops, parse):
    model = parse("""<ir_version: 9, opset_import: ["": 18, "f": 1, "com.microsoft": 1, "ai.onnx.ml": 3]>
    g (float[2] x) => (float[2] y) { y = f.used(x) }
    <domain: "f", opset_import: ["": 18, "f": 1, "ai.onnx.ml": 3]> used (a) => (b) { c = Neg(a) d = Abs(a) b = f.inner(d) }
    <domain: "f", opset_import: ["": 18, "com.microsoft": 1]> inner (a) => (b) { b = com.microsoft.Gelu(a) }
    <domain: "f", opset_import: ["": 18]> unused (a) => (b) { b = Neg(a) }
    """)
    result = apply(EliminateDeadCode(), model)
    assert {name for _, name, _ in model.functions} == {"used", "inner"}
    assert ops(model.functions["f", "used", ""].graph) == ["Abs", "inner"]
    assert model.functions["f", "used", ""].opset_imports == {"": 18, "f": 1}
    assert set(model.opset_imports) == {"", "f", "com.microsoft"}  # a function body needs com.microsoft
    assert result.report == {"nodes": 2, "functions": 1, "opset_imports": 3}


def test_long_name_of_the_default_domain_is_kept(parse):
    model = parse("g (float[2] x) => (float[2] y) { y = Abs(x) }")
    model.graph.opset_imports["ai.onnx"] = model.graph.opset_imports.pop("")
    assert not EliminateDeadCode()(model).modified
    assert model.opset_imports == {"ai.onnx": 18}
