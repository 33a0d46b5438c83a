"""Reading refuses what is broken and says why; writing is atomic; sizes and hashes count external data."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt import io, runtime, target
from graphopt.errors import UserError

COUNT = np.arange(4, dtype=np.float32).tobytes()
TEXT = "g (float[N,4] x) => (float[N,4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> { y = Mul(x, w) }"


@pytest.fixture
def external(model_file):
    """Write a model whose only tensor lies in another file, at a location of one's choice."""

    def write(location="w.bin", content=COUNT, offset=0, length=16) -> Path:
        path = model_file(TEXT)
        proto = onnx.load(path)
        tensor = proto.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": offset, "length": length}.items():
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))
        path.write_bytes(proto.SerializeToString())
        if content is not None:
            (path.parent / location).write_bytes(content)
        return path

    return write


def files(folder):
    return sorted(file.name for file in folder.iterdir())


def content_hash(path):
    return io.sha256(io.load(path).meta[io.FILES])


def run(model):
    session = runtime.open_session(model, target.find("cpu"))
    return session.run({"x": np.ones((2, 4), np.float32)})["y"][0].tolist()


# --- reading


def test_what_is_read_is_what_was_written(model_file, tmp_path):
    model = io.load(model_file(TEXT))
    assert run(model) == [1, 2, 3, 4]
    assert model.meta[io.RENAMED] == []
    io.save(model, tmp_path / "copy.onnx")
    assert run(io.load(tmp_path / "copy.onnx")) == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:The onnxtxt format is experimental")
def test_files_that_are_no_models(model_file, tmp_path):
    whole = model_file(TEXT).read_bytes()
    contents = {
        "cut.onnx": whole[: len(whole) * 2 // 3],
        "empty.onnx": b"",
        "text.onnx": b"this is a letter, not a model\n",
        "page.onnx": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pointer.onnx": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "zip.onnx": b"PK\x03\x04" + bytes(100),
        "zeros.onnx": bytes(100),
        "model.json": b"{ not json",
        "model.textproto": b"not a text proto {",
        "model.onnxtxt": b"not ONNX text",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not an ONNX model") as error:
            io.load(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:The onnxtxt format is experimental")
def test_a_model_in_text_loads(tmp_path):
    (tmp_path / "m.onnxtxt").write_text('<ir_version: 9, opset_import: ["": 18]>' + TEXT)
    assert run(io.load(tmp_path / "m.onnxtxt")) == [1, 2, 3, 4]


def test_nodes_out_of_order_are_sorted(model_file):
    """ONNX Runtime loads such a file; onnx_ir cannot clone what it reads from it."""
    path = model_file(
        """g (float[N,4] x, bool c) => (float[N,4] y) {
            y = If(c) <then_branch = t () => (float[N,4] p) { p = Add(s, b)  s = Neg(b) },
                       else_branch = e () => (float[N,4] q) { q = Mul(b, a) }>
            b = Mul(a, a)
            a = Exp(x)
        }"""
    )
    model = io.load(path)
    assert [node.op_type for node in model.graph] == ["Exp", "Mul", "If"]
    assert io.to_proto(model.clone()) == io.to_proto(model)
    feeds = {"x": np.zeros((1, 4), np.float32), "c": np.array(False)}
    result = runtime.open_session(model, target.find("cpu")).run(feeds)
    assert result["y"].tolist() == [[1, 1, 1, 1]]


def test_order_that_is_valid_is_kept(model_file):
    text = "g (float[N,4] x) => (float[N,4] y) { b = Neg(x)  a = Abs(x)  d = Exp(a)  c = Exp(b)  y = Add(c, d) }"
    assert [node.outputs[0].name for node in io.load(model_file(text)).graph] == ["b", "a", "d", "c", "y"]


def test_a_cycle_is_told(model_file):
    with pytest.raises(UserError, match=r"malformed model: .*cycle"):
        io.load(model_file("g (float[N,4] x) => (float[N,4] y) { a = Add(x, b)  b = Neg(a)  y = Abs(b) }"))


def test_paths_that_cannot_be_read(tmp_path, model_file):
    with pytest.raises(UserError, match="no such file; check the path"):
        io.load(tmp_path / "missing.onnx")
    with pytest.raises(UserError, match="directory; check the path"):
        io.load(tmp_path)
    with pytest.raises(UserError, match="check the path"):
        io.load(model_file(TEXT) / "below.onnx")


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_bytes_never_are_a_bug(model_file, tmp_path, data):
    """Whatever happened to a file, loading either works or is the user's error."""
    content = bytearray(model_file(TEXT.replace("y = ", "c = Constant<value = float[1] {2.0}>()\nt = Add(x, c)\ny = "))
                        .read_bytes())  # fmt: skip
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged.onnx").write_bytes(content)
    try:
        model = io.load(tmp_path / "damaged.onnx")
        io.total_bytes(model)
    except UserError as error:
        assert str(tmp_path / "damaged.onnx") in str(error)  # noqa: PT017  # any other exception is a failure


# --- external data


def test_external_data_is_found_beside_the_model(external):
    path = external()
    model = io.load(path)
    assert run(model) == [0, 1, 2, 3]
    assert io.file_bytes(model) == path.stat().st_size + 16
    assert model.meta[io.FILES] == [path, (path.parent / "w.bin").resolve()]


def test_external_data_in_a_folder_below(external, tmp_path):
    (tmp_path / "sub").mkdir()
    assert run(io.load(external("sub/w.bin"))) == [0, 1, 2, 3]


def test_external_data_at_an_offset(external):
    path = external(content=bytes(64) + COUNT, offset=64, length=None)
    assert run(io.load(path)) == [0, 1, 2, 3]


def test_the_current_folder_does_not_matter(external, monkeypatch, tmp_path_factory):
    path = external()
    monkeypatch.chdir(path.parent)
    model = io.load(path.name)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert run(model) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": None}, "external data 'w.bin' of tensor 'w' is missing; put it beside the model"),
        ({"content": bytes(15)}, "external data 'w.bin' is too short for tensor 'w'; copy the file again"),
        ({"content": bytes(16), "offset": 4}, "is too short for tensor 'w'"),
        ({"content": bytes(64), "length": 12}, "is too short for tensor 'w'"),
        ({"content": bytes(16), "offset": 4, "length": None}, "is too short for tensor 'w'"),
        ({"content": bytes(64), "offset": -4}, "m.onnx"),
        ({"content": bytes(64), "offset": "junk"}, "m.onnx"),
        ({"location": "../w.bin", "content": None}, "outside the model's folder (../w.bin); do not trust this file"),
        ({"location": "a/../../w.bin", "content": None}, "outside the model's folder"),
        ({"location": "/etc/hostname", "content": None}, "outside the model's folder (/etc/hostname)"),
    ],
)
def test_external_data_that_cannot_be_used(external, options, message):
    with pytest.raises(UserError) as error:
        io.load(external(**options))
    assert message in str(error.value)


def test_external_data_behind_a_link_out_of_the_folder(external, tmp_path_factory):
    secret = tmp_path_factory.mktemp("outside") / "secret.bin"
    secret.write_bytes(bytes(16))
    path = external(content=None)
    (path.parent / "w.bin").symlink_to(secret)
    with pytest.raises(UserError, match="outside the model's folder"):
        io.load(path)


# --- writing


def test_saving_leaves_nothing_else_behind(parse, tmp_path):
    io.save(parse(TEXT), tmp_path / "out.onnx")
    assert files(tmp_path) == ["out.onnx"]


def test_the_same_model_is_the_same_bytes(parse, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        io.save(parse(TEXT), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_folders_that_cannot_be_written(parse, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write: folder .*/none does not exist; create it"):
        io.save(parse(TEXT), tmp_path / "none" / "m.onnx")
    with pytest.raises(UserError, match="cannot write: Not a directory; choose another place"):
        io.save(parse(TEXT), tmp_path / "file" / "m.onnx")
    with pytest.raises(UserError, match="cannot write"):
        io.write_bytes(tmp_path / "none" / "r.json", b"{}")


@pytest.mark.parametrize("function", ["replace", "mkdir"])
def test_a_full_disk_leaves_the_old_file_whole(parse, tmp_path, monkeypatch, function):
    out = tmp_path / "out.onnx"
    out.write_bytes(b"the old model")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    with pytest.raises(UserError, match=r"out\.onnx: cannot write: No space left on device; .* free some space"):
        io.save(parse(TEXT), out)
    monkeypatch.undo()
    assert out.read_bytes() == b"the old model"
    assert files(tmp_path) == ["out.onnx"]


@pytest.mark.parametrize("limit", [io.PROTOBUF_LIMIT, 8])
def test_a_disk_that_fills_up_while_writing(parse, tmp_path, monkeypatch, limit):
    out = tmp_path / "out.onnx"
    out.write_bytes(b"the old model")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(io, "PROTOBUF_LIMIT", limit)
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        io.save(parse(TEXT), out)
    assert out.read_bytes() == b"the old model"
    assert files(tmp_path) == ["out.onnx"]


def test_a_bug_while_writing_leaves_the_old_file_whole(parse, tmp_path, monkeypatch):
    out = tmp_path / "out.onnx"
    out.write_bytes(b"the old model")
    monkeypatch.setattr(io, "to_proto", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        io.save(parse(TEXT), out)
    assert out.read_bytes() == b"the old model"
    assert files(tmp_path) == ["out.onnx"]


def test_outputs_are_refused_before_any_work(model_file, tmp_path):
    source = model_file(TEXT)
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "hard.onnx").hardlink_to(source)
    for out in (source, tmp_path / "." / "m.onnx", tmp_path / "link.onnx", tmp_path / "hard.onnx"):
        with pytest.raises(UserError, match="is also the input; write to another file"):
            io.check_writable(out, [source])
    with pytest.raises(UserError, match="is a folder; name a file"):
        io.check_writable(tmp_path, [source])
    with pytest.raises(UserError, match="does not exist; create it"):
        io.check_writable(tmp_path / "none" / "m.onnx", [source])
    before = files(tmp_path)
    io.check_writable(tmp_path / "new.onnx", [source])
    io.check_writable(tmp_path / "new.onnx", [tmp_path / "missing.onnx"])
    assert files(tmp_path) == before


def test_the_inputs_external_data_is_no_output(external):
    """Writing the model over its own tensors would destroy the input."""
    path = external()
    with pytest.raises(UserError, match="input"):
        io.check_writable(path.parent / "w.bin", io.load(path).meta[io.FILES])


# --- above two gigabytes, with a small limit

BIG = """g (float[N,4] x) => (float[N,4] y) {
    h = MatMul(x, a)
    y = MatMul(h, b)
}"""


@pytest.fixture
def big(model_file):
    path = model_file(BIG, "source.onnx")
    proto = onnx.load(path)
    rng = np.random.default_rng(0)
    for name, shape in {"a": (4, 200), "b": (200, 4)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    path.unlink()
    return ir.from_proto(proto)


def test_a_large_model_is_two_files(big, tmp_path, monkeypatch):
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 1000)
    out = tmp_path / "big.onnx"
    expected = run(big)
    written = io.save(big, out)
    assert files(tmp_path) == ["big.onnx", "big.onnx.data"]
    assert (tmp_path / "big.onnx.data").stat().st_size >= 6400
    again = io.load(out)
    assert written == io.file_bytes(again) == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert run(again) == expected
    for name, value in again.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), big.graph.initializers[name].const_value.numpy())
    assert run(big) == expected, "saving does not use up the model"
    assert onnx.load(out).graph.initializer[0].name in "ab", "any other reader finds the data, too"


def test_a_large_model_can_be_moved_and_written_again(big, tmp_path, monkeypatch):
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 1000)
    io.save(big, tmp_path / "big.onnx")
    hashed = content_hash(tmp_path / "big.onnx")
    (tmp_path / "moved").mkdir()
    for file in ("big.onnx", "big.onnx.data"):
        shutil.move(tmp_path / file, tmp_path / "moved" / file)
    assert content_hash(tmp_path / "moved" / "big.onnx") == hashed
    model = io.load(tmp_path / "moved" / "big.onnx")
    io.save(model, tmp_path / "big.onnx")
    assert content_hash(tmp_path / "big.onnx") == hashed
    monkeypatch.undo()
    io.save(model, tmp_path / "single.onnx")
    shutil.rmtree(tmp_path / "moved")
    assert run(io.load(tmp_path / "single.onnx")) == run(big)


def test_a_large_model_that_fails_to_be_written_leaves_the_old_one_whole(big, tmp_path, monkeypatch):
    """The data file of the old model must not be replaced when the model file then cannot be."""
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 1000)
    out = tmp_path / "big.onnx"
    io.save(big, out)
    expected = run(io.load(out))
    for name in "ab":
        value = big.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() * 2, name=name)
    real = os.replace

    def full(source, destination):
        if str(destination).endswith(".onnx"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, destination)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        io.save(big, out)
    assert run(io.load(out)) == expected


def test_the_input_may_be_the_file_that_is_replaced(big, tmp_path, monkeypatch):
    """A model whose tensors are mapped from OUT.data can be written to OUT."""
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 1000)
    out = tmp_path / "big.onnx"
    io.save(big, out)
    model = io.load(out)
    io.save(model, out)
    assert run(io.load(out)) == run(big)


def test_a_small_model_over_a_large_one(big, parse, tmp_path, monkeypatch):
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 1000)
    out = tmp_path / "big.onnx"
    io.save(big, out)
    assert io.save(parse(TEXT), out) == out.stat().st_size
    assert io.file_bytes(io.load(out)) == out.stat().st_size
    assert run(io.load(out)) == [1, 2, 3, 4]


def test_a_runtime_opens_a_large_model(big, monkeypatch):
    expected = run(big)
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 1000)
    with io.serialized(big) as source:
        assert isinstance(source, str)
        folder = Path(source).parent
    assert not folder.exists()
    assert run(big) == expected


@pytest.mark.slow
def test_more_than_two_gigabytes(external, tmp_path):
    """A sparse file holds the tensor, so that it takes no disk until it is written."""
    path = external(content=None)
    proto = onnx.load(path, load_external_data=False)
    wide = proto.graph.initializer[0]
    del wide.dims[:]
    wide.dims.extend([4, 140_000_000])
    wide.external_data[2].value = str(4 * 4 * 140_000_000)
    proto.graph.node[0].op_type = "MatMul"
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 140_000_000
    path.write_bytes(proto.SerializeToString())
    with (path.parent / "w.bin").open("wb") as stream:
        stream.truncate(4 * 4 * 140_000_000)
        stream.write(np.ones(1, np.float32).tobytes())
    model = io.load(path)
    assert io.total_bytes(model) > 2**31
    out = tmp_path / "out.onnx"
    assert io.save(model, out) > 2**31
    assert (tmp_path / "out.onnx.data").exists()
    result = runtime.open_session(io.load(out), target.find("cpu")).run({"x": np.ones((1, 4), np.float32)})["y"]
    assert result[0, 0] == 1
    assert not result[0, 1:].any()


# --- sizes, hashes, provenance


def test_counts_reach_subgraphs_functions_and_attributes(parse):
    model = parse(
        """<ir_version: 9, opset_import: ["": 18, "local": 1]>
        g (float[N] x, bool c) => (float[N] y) <float[2] w = {1.0, 2.0}> {
            k = Constant<value = float[3] {1.0, 2.0, 3.0}>()
            t = If(c) <then_branch = t () => (float[N] p) <float[5] u = {1.0, 1.0, 1.0, 1.0, 1.0}> { p = local.f(x) },
                       else_branch = e () => (float[N] q) { q = Neg(x) }>
            y = Identity(t)
        }
        <domain: "local", opset_import: ["": 18]>
        f (a) => (b) { h = Constant<value = float[7] {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0}>()  b = Relu(a) }"""
    )
    assert sorted(tensor.size for tensor in io.tensors(model)) == [2, 3, 5, 7]
    assert io.total_bytes(model) == 4 * 17
    assert sorted(node.op_type for node in io.nodes(model)) == sorted(
        ["Constant", "If", "Identity", "f", "Neg", "Constant", "Relu"]
    )


def test_sha256_counts_the_model_and_its_data(external, tmp_path):
    path = external()
    before = content_hash(path)
    (tmp_path / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    assert content_hash(path) != before
    (tmp_path / "d.npz").write_bytes(b"abc")
    assert io.sha256([tmp_path / "d.npz"]) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_provenance_is_deterministic_and_names_no_place():
    orders = ({"model": "00", "data": "11"}, {"data": "11", "model": "00"})
    texts = {io.provenance(["a{x=1}", "b"], hashes, 3) for hashes in orders}
    assert len(texts) == 1
    record = json.loads(texts.pop())
    assert sorted(record) == ["pipeline", "seed", "sha256", "versions"]
    assert record["pipeline"] == ["a{x=1}", "b"]
    assert record["sha256"] == {"data": "11", "model": "00"}
    assert record["seed"] == 3
    assert {"graphopt", "numpy", "onnx", "onnx-ir"} <= set(record["versions"])
    assert "/" not in json.dumps(record)


def test_version_of_what_is_not_installed():
    assert io.version("no-such-distribution-here") is None
