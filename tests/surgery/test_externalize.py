import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import io, optimizer
from graphopt.errors import UserError
from graphopt.passes.surgery.embed import Embed
from graphopt.passes.surgery.externalize import Externalize


@pytest.fixture
def weighty(model_file):
    """A file with weights of 4096 and 64 bytes, one of them in a body, and 2 kB of text."""
    path = model_file("""
    g (float[N,32] x, bool c) => (float[N,32] y) {
        a = MatMul(x, w)
        b = Add(a, k)
        y = If(c) < then_branch = t () => (float[N,32] p) { p = MatMul(b, v) },
                    else_branch = e () => (float[N,32] q) { q = Neg(b) }>
    }""")
    rng = np.random.default_rng(0)
    proto = onnx.load(path)
    then = next(a.g for a in proto.graph.node[2].attribute if a.name == "then_branch")
    square = [onnx.numpy_helper.from_array(rng.random((32, 32), np.float32), name) for name in "wv"]
    proto.graph.initializer.append(square[0])
    then.initializer.append(square[1])
    proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.random(32, np.float32), "k"))
    text = onnx.helper.make_tensor("text", onnx.TensorProto.STRING, [2], [b"x" * 1024, b"y" * 1024])
    proto.graph.initializer.append(text)
    onnx.save(proto, path)
    return path


def contents(path):
    return {tensor.name: tensor.numpy().tobytes() for tensor in io.tensors(io.load(path)) if tensor.name != "text"}


def where(path):
    """Return the names of tensors outside and inside the file."""
    proto = onnx.load(path, load_external_data=False)
    found = [*proto.graph.initializer]
    found += [t for n in proto.graph.node for a in n.attribute if a.HasField("g") for t in a.g.initializer]
    outside = {t.name for t in found if t.data_location == onnx.TensorProto.EXTERNAL}
    return outside, {t.name for t in found} - outside


def test_there_and_back(graphopt, weighty, tmp_path):
    (tmp_path / "out").mkdir()
    apart, whole = tmp_path / "out" / "apart.onnx", tmp_path / "whole.onnx"
    ran = graphopt("externalize", weighty, "-o", apart, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["steps"][0]["report"] == {"tensors": 2, "bytes": 8192}
    assert where(apart) == ({"w", "v"}, {"k", "text"})
    data = tmp_path / "out" / "apart.onnx.data"
    assert data.stat().st_size == 8192
    assert ran.json["bytes"] == [weighty.stat().st_size, apart.stat().st_size + 8192]
    assert contents(apart) == contents(weighty)
    ran = graphopt("embed", apart, "-o", whole, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["steps"][0]["report"] == {"tensors": 2, "bytes": 8192}
    assert ran.json["bytes"] == [apart.stat().st_size + 8192, whole.stat().st_size]
    assert where(whole)[0] == set()
    assert not (tmp_path / "whole.onnx.data").exists()
    assert contents(whole) == contents(weighty)


def test_smaller_tensors_too(graphopt, weighty, tmp_path):
    assert graphopt("externalize", weighty, "--min-size", 128, "-o", tmp_path / "o.onnx").code == 0
    assert where(tmp_path / "o.onnx") == ({"w", "v", "k"}, {"text"})


def test_the_wish_survives_later_passes(graphopt, weighty, tmp_path):
    out = tmp_path / "o.onnx"
    assert graphopt("apply", weighty, "externalize", "rename{names=x=image}", "-o", out).code == 0
    assert where(out) == ({"w", "v"}, {"k", "text"})


def test_optimize_keeps_the_wish(parse):
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.meta[io.EXTERNAL] = 7
    assert optimizer._without_facts(model).meta[io.EXTERNAL] == 7


def test_again(graphopt, weighty, tmp_path):
    """A file that is apart already is written apart again, elsewhere."""
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    assert graphopt("externalize", weighty, "--min-size", 64, "-o", one).code == 0
    assert graphopt("externalize", one, "-o", two).code == 0
    assert where(two) == ({"w", "v"}, {"k", "text"})
    assert contents(two) == contents(weighty)
    ran = graphopt("externalize", one, "-o", one)
    assert (ran.code, ran.error) == (1, f"{one}: is also the input; write to another file")


def test_the_same_bytes_each_time(graphopt, weighty, tmp_path):
    made = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert graphopt("externalize", weighty, "-o", tmp_path / folder / "o.onnx").code == 0
        made.append([(file.name, file.read_bytes()) for file in sorted((tmp_path / folder).iterdir())])
    assert made[0] == made[1]


def test_nothing_that_large(operate):
    _, step = operate(Externalize(), "g (float[2] x) => (float[2] y) <float[2] w = {1,2}> { y = Mul(x, w) }", "skipped")
    assert step.report == {"tensors": 0, "bytes": 0}


def test_attributes_stay(operate):
    values = ", ".join(["1.5"] * 300)
    _, step = operate(
        Externalize(), f"g (float[300] x) => (float[300] y) {{ w = Constant<value = float[300] {{{values}}}>()  y = Mul(x, w) }}",
        "skipped",
    )  # fmt: skip
    assert step.skipped[0][0] == "Constant of 'w'"
    assert "fold-constants" in step.skipped[0][1]


@pytest.mark.parametrize(("size", "text"), [(0, "min-size 0 is not at least 1"), (10**6, None)])
def test_sizes(parse, monkeypatch, size, text):
    model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1,2}> { y = Mul(x, w) }")
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 7)
    with pytest.raises(UserError, match=text or "min-size 1,000,000 leaves 8 bytes in the file"):
        Externalize(size)(model)


def test_what_fails_leaves_nothing(graphopt, weighty, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir.external_data, "convert_tensors_to_external", full)
    ran = graphopt("externalize", weighty, "-o", out / "o.onnx")
    assert ran.code == 1
    assert "No space left" in ran.error
    assert not list(out.iterdir())


def test_embedding_what_is_whole(operate, weighty):
    operate(Embed(), io.load(weighty), "skipped")


def test_embedding_takes_the_wish_back(graphopt, weighty, tmp_path):
    assert graphopt("apply", weighty, "externalize", "embed", "-o", tmp_path / "o.onnx").code == 0
    assert where(tmp_path / "o.onnx")[0] == set()


def test_too_large_to_embed(graphopt, weighty, tmp_path, monkeypatch):
    assert graphopt("externalize", weighty, "-o", tmp_path / "one.onnx").code == 0
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 1000)
    ran = graphopt("embed", tmp_path / "one.onnx", "-o", tmp_path / "two.onnx")
    assert ran.code == 1
    assert ran.error.startswith("embed: the weights take 10,")
    assert not (tmp_path / "two.onnx").exists()


def test_attributes_that_lie_outside_are_read(graphopt, tmp_path, model_file):
    path = model_file(
        "g (float[4] x) => (float[4] y) { w = Constant<value = float[4] {1,2,3,4}>()  y = Mul(x, w) }", "src.onnx"
    )
    proto = onnx.load(path)
    onnx.external_data_helper.convert_model_to_external_data(
        proto, location="w.bin", size_threshold=0, convert_attribute=True
    )
    (tmp_path / "in").mkdir()
    onnx.save(proto, tmp_path / "in" / "m.onnx")
    for name in ("embed", "repair"):
        out = tmp_path / f"{name}.onnx"
        ran = graphopt(name, tmp_path / "in" / "m.onnx", "-o", out)
        assert ran.code == 0, ran.err
        assert (
            onnx.load(out, load_external_data=False).graph.node[0].attribute[0].t.data_location
            == onnx.TensorProto.DEFAULT
        )
