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
