import onnx_ir as ir

from graphopt.passes.structural.strip_metadata import StripMetadata

GRAPH = """
g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
    a = Mul(x, w)
    y = If(c) <
        then_branch = t () => (float[2] p) { p = Neg(a) },
        else_branch = e () => (float[2] q) { q = Abs(a) }>
}
"""
FUNCTION = """<ir_version: 9, opset_import: ["": 18, "f": 1]>
g (float[2] x) => (float[2] y) { y = f.f(x) }
<domain: "f", opset_import: ["": 18]> f (a) => (b) { b = Neg(a) }
"""


def document(model: ir.Model, graph: ir.Graph) -> None:
    for thing in (graph, *graph, *graph.inputs, *(v for node in graph for v in node.outputs)):
        thing.doc_string = "File /home/someone/model.py, line 3"
        thing.metadata_props["pkg.torch.onnx.stack_trace"] = "line 3"
        thing.metadata_props["graphopt.range"] = "0 1"


def test_everything_is_cleared_in_all_graphs(parse, apply):
    model = parse(GRAPH)
    graphs = list(model.graphs())
    for graph in graphs:
        document(model, graph)
    model.graph.initializers["w"].metadata_props["pkg.torch.onnx.original_parameter_name"] = "w"
    result = apply(StripMetadata(), model)
    assert b"someone" not in ir.to_proto(model).SerializeToString()
    assert b"pkg.torch" not in ir.to_proto(model).SerializeToString()
    documented = 3 + 4 + 2 + 4  # graphs, nodes, inputs, node outputs
    assert result.report == {"doc_strings": documented, "metadata_entries": documented + 1}


def test_functions_are_cleared(parse, apply):
    model = parse(FUNCTION)
    function = next(iter(model.functions.values()))
    document(model, function.graph)
    assert apply(StripMetadata(), model).modified
    assert b"someone" not in ir.to_proto(model).SerializeToString()


def test_facts_between_passes_stay(parse, apply):
    model = parse(GRAPH)
    document(model, model.graph)
    apply(StripMetadata(), model)
    assert model.graph.node(0).outputs[0].metadata_props == {"graphopt.range": "0 1"}
    assert model.graph.node(0).metadata_props == {"graphopt.range": "0 1"}


def test_what_belongs_to_the_model_stays(parse, apply):
    model = parse(GRAPH)
    model.metadata_props["labels"] = "cat,dog"
    model.doc_string = "a network"
    result = apply(StripMetadata(), model)
    assert not result.modified
    assert result.report == {"doc_strings": 0, "metadata_entries": 0}
    assert model.metadata_props == {"labels": "cat,dog"}
    assert model.doc_string == "a network"


LONG = """
g (float[2] input, bool c) => (float[2] output) <float[2] weight = {1, 2}> {
    [some_node] first_hidden = Mul(input, weight)
    [other_node] output = If(c) <
        then_branch = t () => (float[2] then_result) { [n] then_result = Neg(first_hidden) },
        else_branch = e () => (float[2] else_result) { [n] inner = Abs(first_hidden) else_result = Mul(inner, weight) }>
}
"""


def tensor_names(model):
    return [value.name for graph in model.graphs() for node in graph for value in node.outputs]


def test_names_are_shortened_on_demand(parse, apply):
    model = parse(LONG)
    result = apply(StripMetadata(names=True), model)
    assert result.report["names"] == 5 + 4, "of tensors and of nodes"
    assert [value.name for value in model.graph.inputs] == ["input", "c"]
    assert tensor_names(model) == ["b", "output", "d", "e", "f"]
    assert list(model.graph.initializers) == ["a"], "c is taken"
    assert not any(node.name for node in model.graph.all_nodes())


def test_names_stay_by_default(parse, apply):
    assert not apply(StripMetadata(), parse(LONG)).modified


def test_names_inside_functions(parse, apply):
    text = """<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x) => (float[2] y) { y = f.f(x) }
    <domain: "f", opset_import: ["": 18]> f (first) => (last) { middle = Neg(first) last = Exp(middle) }"""
    model = parse(text)
    assert apply(StripMetadata(names=True), model).modified
    function = next(iter(model.functions.values()))
    assert [value.name for value in (*function.inputs, *function.outputs)] == ["a", "c"]


def test_many_names(parse, apply):
    chain = " ".join(f"value_{i + 1} = Neg(value_{i})" for i in range(60))
    model = parse(f"g (float[2] value_0) => (float[2] value_60) {{ {chain} }}")
    apply(StripMetadata(names=True), model)
    assert tensor_names(model)[50:54] == ["Y", "Z", "aa", "ab"]


def test_order_of_weights_and_annotations(parse, apply):
    model = parse("""g (float[2] x) => (float[2] y) <float[2] a = {1,2}, float[2] wb = {3,4}, float[2] c = {5,6}> {
        m = Mul(x, a)  n = Mul(m, wb)  y = Mul(n, c)
    }""")
    model.graph.node(0).outputs[0].meta["quant_parameter_tensor_names"] = {"SCALE_TENSOR": "wb"}
    apply(StripMetadata(names=True), model)
    assert list(model.graph.initializers) == ["a", "b", "c"]
    assert ir.to_proto(model).graph.quantization_annotation[0].quant_parameter_tensor_names[0].value == "b"


def test_what_an_operator_may_match_by_name_stays(parse):
    model = parse("""<ir_version: 9, opset_import: ["": 18, "other": 1]>
    g (float[2] x) => (float[2] y) {
        y = other.Search(x) <decoder = d (float[2] input_ids) => (float[2] logits) {
            hidden = Neg(input_ids)
            logits = Exp(hidden)
        }>
    }""")
    StripMetadata(names=True)(model)
    assert tensor_names(model) == ["y", "a", "logits"]
