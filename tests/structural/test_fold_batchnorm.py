import re

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.structural.fold_batchnorm import FoldBatchnorm

RNG = np.random.default_rng(7)


def text(*shape: int, positive: bool = False) -> str:
    values = RNG.uniform(0.5, 2, shape) if positive else RNG.standard_normal(shape)
    return "{" + ", ".join(f"{v:.6f}" for v in values.ravel()) + "}"


def normalization(channels: int, names: str = "sbmv") -> str:
    """Declare the parameters of a BatchNormalization."""
    s, b, m, v = names
    return (
        f"float[{channels}] {s} = {text(channels)}, float[{channels}] {b} = {text(channels)}, "
        f"float[{channels}] {m} = {text(channels)}, float[{channels}] {v} = {text(channels, positive=True)}"
    )


def tensor(name: str, *shape: int) -> str:
    return f"float[{','.join(map(str, shape))}] {name} = {text(*shape)}"


LINEAR = {
    "Conv": ("float[N,4,6,5] x", "l = Conv(x, w)", [tensor("w", 3, 4, 3, 3)], 3),
    "Conv, bias": ("float[N,4,6,5] x", "l = Conv<pads = [1,1,1,1]>(x, w, c)", [tensor("w", 3, 4, 3, 3), tensor("c", 3)], 3),
    "Conv, groups": ("float[N,4,6] x", "l = Conv<group = 2>(x, w, c)", [tensor("w", 6, 2, 3), tensor("c", 6)], 6),
    "ConvTranspose": ("float[N,4,6,5] x", "l = ConvTranspose(x, w)", [tensor("w", 4, 3, 2, 2)], 3),
    "ConvTranspose, groups": (
        "float[N,4,6] x", "l = ConvTranspose<group = 2, strides = [2]>(x, w, c)", [tensor("w", 4, 3, 3), tensor("c", 6)], 6
    ),
    "Gemm": ("float[N,4] x", "l = Gemm(x, w)", [tensor("w", 4, 3)], 3),
    "Gemm, all attributes": (
        "float[4,5] x", "l = Gemm<alpha = 0.5, beta = 3.0, transA = 1, transB = 1>(x, w, c)", [tensor("w", 3, 4), tensor("c", 3)], 3
    ),
    "Gemm, scalar C": ("float[N,4] x", "l = Gemm<beta = 0.25>(x, w, c)", [tensor("w", 4, 3), "float c = {1.5}"], 3),
    "Gemm, C of one column": ("float[2,4] x", "l = Gemm(x, w, c)", [tensor("w", 4, 3), tensor("c", 2, 1)], 3),
    "Gemm, full C": ("float[2,4] x", "l = Gemm<beta = 2.0>(x, w, c)", [tensor("w", 4, 3), tensor("c", 2, 3)], 3),
    "MatMul": ("float[N,4] x", "l = MatMul(x, w)", [tensor("w", 4, 3)], 3),
    "MatMul, Add": ("float[N,4] x", "k = MatMul(x, w) l = Add(k, c)", [tensor("w", 4, 3), tensor("c", 3)], 3),
    "MatMul, Add on the left": ("float[N,4] x", "k = MatMul(x, w) l = Add(c, k)", [tensor("w", 4, 3), tensor("c", 1, 3)], 3),
    "MatMul, Add of a number": ("float[N,4] x", "k = MatMul(x, w) l = Add(k, c)", [tensor("w", 4, 3), "float c = {2}"], 3),
    "MatMul, batched operand": ("float[N,3,2,4] x", "l = MatMul(x, w)", [tensor("w", 3, 4, 5)], 3),
    "MatMul, batched operand, Add": (
        "float[N,3,2,4] x", "k = MatMul(x, w) l = Add(k, c)", [tensor("w", 1, 3, 4, 5), tensor("c", 3, 1, 1)], 3
    ),
    "Conv, Add": ("float[N,4,6,5] x", "k = Conv(x, w) l = Add(k, c)", [tensor("w", 3, 4, 3, 3), tensor("c", 3, 1, 1)], 3),
    "Conv, bias, Add": (
        "float[N,4,6,5] x", "k = Conv(x, w, d) l = Add(k, c)", [tensor("w", 3, 4, 3, 3), tensor("d", 3), tensor("c", 1, 3, 1, 1)], 3
    ),
    "Gemm, Add": (
        "float[N,4] x", "k = Gemm<beta = 2.0>(x, w, d) l = Add(k, c)", [tensor("w", 4, 3), tensor("d", 3), tensor("c", 3)], 3
    ),
    "Constant nodes": (
        "float[N,4] x", f"w = Constant<value = float[4,3] {text(4, 3)}>() l = MatMul(x, w)", [], 3
    ),
}  # fmt: skip


def graph(
    inputs: str, nodes: str, constants: list[str], channels: int, output: str = "float[A,B,C,D] y", norm: str = ""
) -> str:
    rank = inputs.count(",") + 1
    output = output.replace("A,B,C,D", ",".join("ABCD"[:rank]))
    return f"""g ({inputs}) => ({output}) <{", ".join([*constants, normalization(channels)])}> {{
        {nodes}
        n = BatchNormalization{norm}(l, s, b, m, v)
        y = Relu(n)
    }}"""


@pytest.mark.parametrize("case", LINEAR)
def test_folded(apply, ops, parse, case):
    model = parse(graph(*LINEAR[case]))
    result = apply(FoldBatchnorm(), model, rtol=1e-5)
    assert result.report == {"rewritten": 1}
    assert result.skipped == []
    assert "BatchNormalization" not in ops(model)
    assert not {"s", "b", "m", "v"} & set(model.graph.initializers)
    linear = re.findall(r"(?:Conv\w*|Gemm|MatMul)(?=[(<])", LINEAR[case][1])
    bias = ["Add"] if "Add" in case or linear == ["MatMul"] else []
    assert ops(model) == [*linear, *bias, "Relu"]


@pytest.mark.parametrize("epsilon", ["", "<epsilon = 0.1>", "<momentum = 0.5>"])
def test_attributes_of_the_normalization(apply, epsilon):
    assert apply(FoldBatchnorm(), graph(*LINEAR["Conv"], norm=epsilon), rtol=1e-5).modified


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 15])
def test_operator_sets(apply, opset):
    header = f'<ir_version: 8, opset_import: ["": {opset}]>'
    assert apply(FoldBatchnorm(), header + graph(*LINEAR["Conv, bias"]), rtol=1e-5).modified


@pytest.mark.parametrize(
    ("type_", "case"), [(ir.DataType.FLOAT16, "Conv, bias"), (ir.DataType.DOUBLE, "Gemm, scalar C")]
)
def test_other_float_types(apply, parse, type_, case):
    model = parse(graph(*LINEAR[case]))
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.type = ir.TensorType(type_)
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(type_.numpy()), name=value.name)
    assert apply(FoldBatchnorm(), model, rtol=1e-10 if type_ == ir.DataType.DOUBLE else 1e-2).modified
    assert {value.dtype for value in model.graph.initializers.values()} == {type_}


def test_constants_that_would_overflow_are_not_made(parse):
    model = parse(graph(*LINEAR["Conv"]))
    model.graph.initializers["s"].const_value = ir.tensor(np.float32([1, 1e38, 1]), name="s")
    model.graph.initializers["v"].const_value = ir.tensor(np.float32([1, 1e-12, 1]), name="v")
    result = FoldBatchnorm()(model)
    assert not result.modified
    assert result.skipped == [
        ("BatchNormalization of 'n'", "a folded constant is too large for float32 or not a number")
    ]


def test_a_bias_that_is_left_out_by_an_empty_name(apply, parse):
    model = parse(graph(*LINEAR["Conv"]))
    model.graph.node(0).resize_inputs(3)
    assert apply(FoldBatchnorm(), model, rtol=1e-5).modified


def test_a_weight_that_is_a_graph_output_keeps_its_value(apply, parse):
    text = graph(*LINEAR["Conv"])
    assert apply(FoldBatchnorm(), text.replace(" y)", " y, float[3,4,3,3] w)"), rtol=1e-5).modified


def test_two_in_a_row(apply, ops, parse):
    model = parse(f"""g (float[N,4,6,5] x) => (float[N,3,4,3] y) <{tensor("w", 3, 4, 3, 3)}, {normalization(3)}, {normalization(3, "tcnu")}> {{
        l = Conv(x, w)
        n1 = BatchNormalization(l, s, b, m, v)
        y = BatchNormalization(n1, t, c, n, u)
    }}""")
    assert apply(FoldBatchnorm(), model, rtol=1e-5).report == {"rewritten": 2}
    assert ops(model) == ["Conv"]
    assert set(model.graph.initializers) == {"w", "w_bias"}


def test_shared_weights_are_copied(apply, ops, parse):
    constants = ", ".join([tensor("w", 3, 4, 3, 3), tensor("d", 3), tensor("t", 3), normalization(3)])
    model = parse(f"""
    g (float[N,4,6,5] x) => (float[N,3,4,3] y, float[N,3,4,3] z) <{constants}> {{
        l = Conv(x, w, d)
        y = BatchNormalization(l, s, b, m, v)
        k = Conv(x, w, d)
        q = BatchNormalization(k, t, b, m, v)
        r = Conv(x, w, d)
        z = Add(q, r)
    }}""")
    original = model.graph.initializers["w"].const_value.numpy().copy()
    assert apply(FoldBatchnorm(), model, rtol=1e-5).report == {"rewritten": 2}
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), original)
    assert sum(name.startswith("w") for name in model.graph.initializers) == 3


def test_shared_parameters_stay_while_in_use(apply, parse):
    model = parse(f"""g (float[N,4,6,5] x) => (float[N,3,4,3] y, float[3] k) <{tensor("w", 3, 4, 3, 3)}, {normalization(3)}> {{
        l = Conv(x, w)
        y = BatchNormalization(l, s, b, m, v)
        k = Neg(s)
    }}""")
    apply(FoldBatchnorm(), model, rtol=1e-5)
    assert "s" in model.graph.initializers
    assert "m" not in model.graph.initializers


REFUSED = {
    "training": ("l = Conv(x, w)", "n, rm, rv = BatchNormalization<training_mode = 1>(l, s, b, m, v)", "it runs in training mode"),
    "used elsewhere": ("l = Conv(x, w) z = Neg(l)", "", "Neg of 'z' uses 'l' before it"),
    "a graph output": ("z = Conv(x, w)", "n = BatchNormalization(z, s, b, m, v)", "'z' before it is a graph output"),
    "another operator": ("k = Conv(x, w) l = Tanh(k)", "", "it follows Tanh, not Conv, ConvTranspose, Gemm, MatMul"),
    "a graph input": ("", "n = BatchNormalization(x, s, b, m, v)", "nothing in its graph computes its input"),
    "scale that varies": ("l = Conv(x, w) sx = Neg(s)", "n = BatchNormalization(l, sx, b, m, v)", "the scale is not constant"),
    "overridable mean": ("l = Conv(x, w)", "n = BatchNormalization(l, s, b, o, v)", "callers may override the mean"),
    "overridable weight": ("l = Conv(x, ow)", "", "callers may override the weight of Conv before it"),
    "weight that varies": ("wx = Neg(w) l = Conv(x, wx)", "", "the weight of Conv before it is not constant"),
    "bias that varies": ("bx = Neg(b) l = Conv(x, w, bx)", "", "the bias of Conv before it is not constant"),
    "addend per pixel": ("k = Conv(x, w) l = Add(k, px)", "", "it follows an Add of a constant that is not one number per channel"),
    "an addition of two": ("k = Conv(x, w) j = Conv(x, w) l = Add(k, j)", "", "it follows an Add of two values that vary"),
    "an addition of another": ("k = Tanh(x) l = Add(k, b4)", "", "it follows Tanh, not Conv, ConvTranspose, Gemm, MatMul"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(apply, case):
    nodes, norm, reason = REFUSED[case]
    outputs = "float[A,B,C,D] y" + (", float[E,F,G,H] z" if " z = " in f" {nodes}" else "")
    constants = [
        tensor("w", 3, 3, 1, 1),
        tensor("ow", 3, 3, 1, 1),
        tensor("o", 3),
        tensor("b4", 3, 1, 1),
        tensor("px", 3, 3),
        normalization(3),
    ]
    result = apply(
        FoldBatchnorm(),
        f"""g (float[N,3,3,3] x, float[3] o, float[3,3,1,1] ow) => ({outputs}) <{", ".join(constants)}> {{
            {nodes}
            {norm or "n = BatchNormalization(l, s, b, m, v)"}
            y = Relu(n)
        }}""",
    )
    assert not result.modified
    assert result.skipped == [("BatchNormalization of 'n'", reason)]


@pytest.mark.parametrize(
    ("opset", "norm"),
    [
        (18, "n = BatchNormalization<training_mode = 1>(l, s, b, m, v)"),
        (13, "n, rm, rv, sm, sv = BatchNormalization(l, s, b, m, v)"),
    ],
)
def test_training_is_refused_by_attribute_or_number_of_outputs(parse, opset, norm):
    text = graph(*LINEAR["Conv"]).replace("n = BatchNormalization(l, s, b, m, v)", norm)
    result = FoldBatchnorm()(parse(f'<ir_version: 8, opset_import: ["": {opset}]>' + text))
    assert result.skipped == [("BatchNormalization of 'n'", "it runs in training mode")]


def test_an_addition_that_changes_the_rank_is_refused(apply):
    constants = [tensor("w", 3, 4, 1, 1), tensor("c", 2, 1, 3, 1, 1)]
    text = graph("float[3,4,1,1] x", "k = Conv(x, w) l = Add(k, c)", constants, 3, output="float[A,B,C,D] y")
    result = apply(FoldBatchnorm(), text.replace("[A,B,C,D] y", "[A,B,C,D,E] y"))
    assert result.skipped == [
        ("BatchNormalization of 'n'", "it follows an Add of a constant that is not one number per channel")
    ]


def test_another_number_of_channels_is_refused(parse):
    model = parse(graph("float[N,4,6] x", "l = ConvTranspose(x, w)", [tensor("w", 4, 3, 3)], 6))
    assert FoldBatchnorm()(model).skipped == [
        ("BatchNormalization of 'n'", "ConvTranspose before it has 3 channels, not 6")
    ]


def test_statistics_per_element_are_refused(parse):
    model = parse('<ir_version: 8, opset_import: ["": 8]>' + graph(*LINEAR["Conv"], norm="<spatial = 0>"))
    assert FoldBatchnorm()(model).skipped == [
        ("BatchNormalization of 'n'", "it has statistics per element (spatial=0), not per channel")
    ]


def test_old_operator_sets_are_refused(parse):
    model = parse('<ir_version: 3, opset_import: ["": 6]>' + graph(*LINEAR["Conv"], norm="<is_test = 1>"))
    assert FoldBatchnorm()(model).skipped == [("BatchNormalization of 'n'", "opset 6 is below 7")]


@pytest.mark.parametrize(
    ("inputs", "weight", "reason"),
    [
        ("float[N,3,4] x", (4, 5), "the channels of the rank 3 MatMul before it do not lie in its constant operand"),
        ("float[N,3,2,4] x", (4, 5), "the channels of the rank 4 MatMul before it do not lie in its constant operand"),
        ("float[N,3,2,4] x", (1, 4, 5), "MatMul before it has 1 channels, not 3"),
    ],
)
def test_matmul_whose_channels_are_elsewhere(apply, inputs, weight, reason):
    result = apply(FoldBatchnorm(), graph(inputs, "l = MatMul(x, w)", [tensor("w", *weight)], 3))
    assert result.skipped == [("BatchNormalization of 'n'", reason)]


def test_matmul_of_unknown_rank(parse):
    model = parse(graph("float[N,4] x", "l = MatMul(x, w)", [tensor("w", 4, 3)], 3))
    model.graph.inputs[0].shape = None
    assert "rank of MatMul before it is unknown" in FoldBatchnorm()(model).skipped[0][1]


@pytest.mark.parametrize("condition", [True, False])
def test_subgraphs(apply, ops, parse, condition):
    constants = ", ".join([tensor("w", 3, 3, 1, 1), normalization(3)])
    inner = ", ".join([tensor("w2", 3, 3, 1, 1), normalization(3, "tcnu")])
    model = parse(f"""
    g (float[N,3,2,2] x, bool k) => (float[N,3,2,2] y) <{constants}> {{
        l = Conv(x, w)
        y = If(k) <
            then_branch = tb () => (float[N,3,2,2] p) <{inner}> {{
                l1 = Conv(x, w2)
                n1 = BatchNormalization(l1, t, c, n, u)
                l2 = Conv(n1, w)
                p = BatchNormalization(l2, s, b, m, v)
            }},
            else_branch = eb () => (float[N,3,2,2] q) {{ q = BatchNormalization(l, s, b, m, v) }}>
    }}""")
    feeds = {"x": np.float32(RNG.standard_normal((2, 3, 2, 2))), "k": np.array(condition)}
    result = apply(FoldBatchnorm(), model, feeds, rtol=1e-5)
    assert result.report == {"rewritten": 2}
    assert result.skipped == [("BatchNormalization of 'q'", "nothing in its graph computes its input")]
    assert ops(model) == ["Conv", "If", "Conv", "Conv", "BatchNormalization"]


def test_new_initializers_get_names_of_their_own(apply, parse):
    model = parse(f"""
    g (float[N,3,2,2] x) => (float[N,3,2,2] y) <{tensor("w", 3, 3, 1, 1)}, {tensor("w_bias", 1)}, {normalization(3)}> {{
        w_bias_1 = Mul(x, w_bias)
        l = Conv(w_bias_1, w)
        n = BatchNormalization(l, s, b, m, v)
        y = Mul(n, w_bias)
    }}""")
    assert apply(FoldBatchnorm(), model, rtol=1e-5).modified


def test_functions_are_refused(apply):
    result = apply(
        FoldBatchnorm(),
        f"""<ir_version: 9, opset_import: ["": 18, "f": 1]>
        g (float[N,3,2,2] x) => (float[N,3,2,2] y) <{tensor("w", 3, 3, 1, 1)}, {normalization(3)}> {{
            y = f.f(x, w, s, b, m, v)
        }}
        <domain: "f", opset_import: ["": 18]>
        f (x, w, s, b, m, v) => (y) {{ l = Conv(x, w) y = BatchNormalization(l, s, b, m, v) }}""",
    )
    assert result.skipped == [("BatchNormalization of 'y'", "it is inside a function, which cannot hold initializers")]


def test_outputs_keep_names_and_declarations(apply, parse):
    model = parse(graph(*LINEAR["MatMul"]).replace("y = Relu(n)", "").replace("n = Batch", "y = Batch"))
    assert apply(FoldBatchnorm(), model, rtol=1e-5).modified
    assert [(v.name, str(v.shape)) for v in model.graph.outputs] == [("y", "[A,B]")]


@pytest.mark.parametrize("case", ["Conv", "MatMul"])
def test_facts_of_the_normalized_value_replace_those_of_the_product(parse, case):
    model = parse(graph(*LINEAR[case]))
    values = {v.name: v for node in model.graph for v in node.outputs}
    values["l"].metadata_props["graphopt.range"] = "before"
    values["n"].metadata_props["graphopt.range"] = "after"
    FoldBatchnorm()(model)
    facts = [v.metadata_props.get("graphopt.range") for node in model.graph for v in node.outputs]
    assert facts == (["after", None] if case == "Conv" else [None, "after", None])
