import numpy as np
import onnx
import onnx_ir as ir

from graphopt.passes.structural.infer_shapes import InferShapes


def info(model: ir.Model) -> dict[str, str]:
    """The type and shape of every node output, in subgraphs too."""
    return {v.name: f"{v.dtype} {v.shape}" for node in model.graph.all_nodes() for v in node.outputs}


def test_inner_values_get_types_and_shapes(apply, parse):
    model = parse("""
    g (float[N,4] x, bool c) => (float[N,2] y) <float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
        a = MatMul(x, w)
        i = Cast<to = 7>(a)
        y = If(c) <
            then_branch = t () => (float[N,2] p) { d = Neg(a) p = Neg(d) },
            else_branch = e () => (float[N,2] q) { q = Abs(a) }>
    }
    """)
    assert apply(InferShapes(), model).report == {"values": 3, "corrected": 0}
    assert info(model) == dict.fromkeys("aypdq", "FLOAT [N,2]") | {"i": "INT64 [N,2]"}


def test_shapes_that_depend_on_values(apply, parse):
    model = parse("""
    g (float[N,4,6] x) => (float[M,K] y) <int64[1] zero = {0}, int64[1] rest = {24}> {
        s = Shape(x)
        n = Gather(s, zero)
        t = Concat<axis = 0>(n, rest)
        r = Reshape(x, t)
        y = Neg(r)
    }
    """)
    apply(InferShapes(), model)
    assert info(model)["r"] == "FLOAT [N,24]"


def test_declared_outputs_and_inputs_stay(apply, parse):
    model = parse("g (float[2,N] x) => (float[A,B] y) { y = Neg(x) }")
    assert not apply(InferShapes(), model).modified


def test_an_output_receives_what_it_lacks(parse):
    model = parse("g (float[2,N] x) => (float[A,B] y) { y = Neg(x) }")
    model.graph.outputs[0].shape = model.graph.outputs[0].type = None
    assert InferShapes()(model).modified
    assert info(model) == {"y": "FLOAT [2,N]"}
    onnx.checker.check_model(ir.to_proto(model))
    assert not InferShapes()(model).modified


def test_better_declarations_stay(apply, parse):
    model = parse("""
    g (float[2,3] x) => (float[K] y) <int64[2,6] nz, float[6] g6> {
        nz = NonZero(x)
        f = Cast<to = 1>(nz)
        one = Constant<value_int = 0>()
        g6 = Gather(f, one)
        y = Neg(g6)
    }
    """)
    apply(InferShapes(), model)
    assert info(model)["nz"] == "INT64 [2,6]"
    assert info(model)["f"] == "FLOAT [2,None]"


def test_stale_declarations_are_corrected(apply, parse):
    model = parse(
        "g (float[N,4] x) => (float[N,4] y) <float[1,4] traced, float[4] rank> { traced = Neg(x) rank = Abs(traced) y = Exp(rank) }"
    )
    assert apply(InferShapes(), model).report == {"values": 2, "corrected": 2}
    assert info(model)["traced"] == info(model)["rank"] == "FLOAT [N,4]"


def test_unknown_operators_and_missing_imports(parse):
    text = """
    g (float[2] x) => (float[2] y) <double[2] told> {
        a = Neg(x)
        b = c.Op(a)
        told = c.Op(b)
        d = Neg(b)
        y = c.Op(x)
    }
    """
    known = parse('<ir_version: 9, opset_import: ["": 18, "c": 1]>' + text)
    assert InferShapes()(known).report["values"] == 1
    assert info(known) == {
        "a": "FLOAT [2]",
        "b": "None None",
        "told": "DOUBLE [2]",
        "d": "None None",
        "y": "FLOAT [2]",
    }
    unimported = parse('<ir_version: 9, opset_import: ["": 18]>' + text)
    assert InferShapes()(unimported).report["values"] == 1
    assert info(unimported) == info(known)


def test_functions(apply, parse):
    model = parse("""<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x) => (float[2] y) { a = f.f(x) y = Neg(a) }
    <domain: "f", opset_import: ["": 18]> f (a) => (b) { c = Neg(a) b = Abs(c) }
    """)
    assert apply(InferShapes(), model).report["values"] == 1
    assert info(model)["a"] == "FLOAT [2]"
    assert all(v.shape is None for node in model.functions["f", "f", ""] for v in node.outputs)


def test_sequences(apply, parse):
    model = parse(
        "g (float[2] x) => (float[2] y) { s = SequenceConstruct(x, x) i = Constant<value_int = 1>() y = SequenceAt(s, i) }"
    )
    apply(InferShapes(), model)
    assert isinstance(model.graph.node(0).outputs[0].type, ir.SequenceType)


def test_loops(apply, parse):
    model = parse("""
    g (float[2] x) => (float[2] y, float[3,2] z) <int64 n = {3}, bool c = {1}> {
        y, z = Loop(n, c, x) <body = b (int64 i, bool go, float[2] s) => (bool on, float[2] o, float[2] scan) {
            on = Identity(go)
            t = Neg(s)
            o = Add(t, x)
            scan = Neg(o)
        }>
    }
    """)
    apply(InferShapes(), model)
    assert info(model)["o"] == "FLOAT [2]"


def test_stale_declarations_of_loop_bodies_are_not_believed(parse):
    model = parse("""
    g (float[2] x, int64 n) => (float[2] y) <bool c = {1}> {
        y = Loop(n, c, x) <body = b (int64 i, bool go, float[7] s) => (bool on, float[M] o) {
            on = Identity(go)
            t = Neg(s)
            o = Abs(t)
        }>
    }
    """)
    InferShapes()(model)
    assert "7" not in info(model)["t"]


class Unreadable(ir.Tensor):
    def numpy(self):
        raise AssertionError("weights are read")

    tobytes = numpy


def test_weights_are_not_read_and_keep_their_order(parse):
    model = parse(
        "g (float[4000] x) => (float[4000] y) <float[2] w = {1, 2}, float[1] v = {3}> { a = Mul(x, w) y = Add(a, v) }"
    )
    model.graph.initializers["w"].const_value = Unreadable(np.ones(4000, np.float32), name="w")
    before = [(name, value.const_value) for name, value in model.graph.initializers.items()]
    assert InferShapes()(model).modified
    assert [(name, value.const_value) for name, value in model.graph.initializers.items()] == before


def test_long_vectors_are_not_propagated(parse):
    model = parse("g (float[1000000000] x) => (float[N] y) { a = Concat<axis = 0>(x, x) y = Neg(a) }")
    InferShapes()(model)
    assert info(model)["a"] == "FLOAT [2000000000]"
