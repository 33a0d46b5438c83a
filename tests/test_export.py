"""`export`: what comes out computes what went in, or nothing comes out; and every refusal says what helps."""

from __future__ import annotations

import json
import sys
import textwrap

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

import graphopt as package  # noqa: E402
from graphopt import io, runtime, target  # noqa: E402
from graphopt.exporting import capture, exporter  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))

def build():
    return Net()

def with_inputs():
    return Net(), {"image": torch.randn(2, 3, 8, 8)}

class Broken(Net):
    def forward(self, image):
        if image.sum() > 0:
            return super().forward(image)
        return super().forward(-image)

class Fixed(Net):
    def forward(self, image):
        return super().forward(image.reshape(2, 3, 8, 8))

class Two(nn.Module):
    def forward(self, x, mask):
        y = torch.where(mask, x, 0.0)
        return {"kept": y, "sum": y.sum(1)}

class Drops(Net):
    def forward(self, image):
        return super().forward(nn.functional.dropout(image, 0.5, self.training))
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A module of networks, importable from the current folder."""
    (tmp_path / "nets.py").write_text(textwrap.dedent(NET), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("nets", None)
    import nets

    yield nets
    sys.modules.pop("nets", None)


IMAGE = ("--input", "image=2x3x8x8")


def run(path, **feeds):
    return runtime.open_session(io.load(path), target.find("cpu")).run(feeds)


def test_a_factory_with_inputs_written_by_hand(graphopt, net, tmp_path):
    ran = graphopt("export", "nets:build", "-o", "out.onnx", *IMAGE, "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["met"] is True
    assert found["inputs"] == {"image": "float [batch, 3, 8, 8]"}
    assert [check["sizes"] for check in found["checks"]] == [{"batch": 2}, {"batch": 3}, {"batch": 1}]
    assert all(o["sqnr"] > 80 for check in found["checks"] for o in check["outputs"])
    torch.manual_seed(0)
    module, x = net.build().eval(), torch.randn(4, 3, 8, 8)
    (y,) = run(tmp_path / "out.onnx", image=x.numpy()).values()
    np.testing.assert_allclose(y, module(x).detach(), rtol=1e-3, atol=1e-5)
    model = io.load("out.onnx")
    assert not any(node.metadata_props for node in model.graph), "no source lines, no paths"


def test_a_factory_that_brings_its_inputs(graphopt, net):
    ran = graphopt("export", "nets:with_inputs", "-o", "out.onnx", "--output-name", "scores", "--opset", "20")
    assert ran.code == 0, ran.err
    assert "output    scores float [batch, 5]" in ran.out
    assert "opset 20" in ran.out
    assert "batch 3" in ran.out


def test_inputs_from_data(net, tmp_path):
    np.savez("d.npz", image=np.zeros((5, 3, 8, 8), np.float32))
    assert package.export("nets:build", "out.onnx", data="d.npz").inputs == {"image": "float [batch, 3, 8, 8]"}


def test_a_module_at_hand_and_several_outputs(net):
    inputs = {"x": torch.randn(3, 4), "mask": torch.rand(3, 4) > 0.5}
    axes = {"x": {0: "batch", 1: "width"}, "mask": {0: "batch", 1: "width"}}
    done = package.export(net.Two(), "out.onnx", inputs=inputs, dynamic=axes, output_names=["kept", "sum"])
    assert done.met
    assert done.outputs == {"kept": "float [batch, width]", "sum": "float [batch]"}
    assert {tuple(check.sizes.values()) for check in done.checks} >= {(3, 4), (4, 5), (1, 4)}


def test_output_names_that_inner_values_bear(net):
    """The exporter itself writes a file that does not load then."""
    done = package.export("nets:with_inputs", "out.onnx", output_names=["relu"])
    assert list(done.outputs) == ["relu"]
    names = [v.name for node in io.load("out.onnx").graph for v in node.outputs]
    assert len(names) == len(set(names))
    assert io.load("out.onnx").meta[io.RENAMED] == []


def test_input_names(graphopt, net):
    args = ("export", "nets:with_inputs", "-o", "out.onnx")
    ran = graphopt(*args, "--input-name", "picture", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["inputs"] == {"picture": "float [batch, 3, 8, 8]"}
    assert "has 1 inputs, but 2 names" in graphopt(*args, "--input-name", "a", "--input-name", "b").error
    assert "is taken by another value" in graphopt(*args, "--input-name", "conv.weight").error


def test_evaluation_mode(net):
    assert package.export(net.Drops().train(), "out.onnx", inputs={"image": torch.randn(2, 3, 8, 8)}).met


@pytest.mark.parametrize(("dtype", "kind"), [("float16", ir.DataType.FLOAT16), ("bfloat16", ir.DataType.BFLOAT16)])
def test_narrow_types(net, dtype, kind):
    inputs = {"x": torch.randn(3, 4), "mask": torch.rand(3, 4) > 0.5}
    done = package.export(net.Two(), "out.onnx", inputs=inputs, dtype=dtype, target="cpu")
    assert done.met, done.checks
    graph = ir.load("out.onnx").graph
    assert {value.dtype for value in (graph.inputs[0], *graph.outputs)} == {kind}, "sums too"


def test_a_size_that_forward_fixes_is_told(net):
    done = package.export(net.Fixed(), "out.onnx", inputs={"image": torch.randn(2, 3, 8, 8)})
    assert done.met
    assert any("the network itself does not run at batch 3" in note or "is fixed to 2" in note for note in done.notes)


def test_a_saved_program(net, tmp_path):
    torch.manual_seed(0)
    module, x = net.build().eval(), torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "net.pt2")
    done = package.export(tmp_path / "net.pt2", "out.onnx")
    assert done.met
    (y,) = run("out.onnx", image=x.numpy()).values()
    np.testing.assert_allclose(y, module(x).detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    ],
)
def test_weights(net, wrap):
    torch.manual_seed(7)
    trained = net.build().eval()
    torch.save(wrap(trained.state_dict()), "w.pth")
    assert package.export("nets:with_inputs", "out.onnx", weights="w.pth").met
    x = torch.randn(2, 3, 8, 8)
    (y,) = run("out.onnx", image=x.numpy()).values()
    np.testing.assert_allclose(y, trained(x).detach(), rtol=1e-3, atol=1e-5)


def test_weights_as_safetensors(net):
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(7)
    trained = net.build().eval()
    safetensors.save_file(trained.state_dict(), "w.safetensors")
    assert package.export("nets:with_inputs", "out.onnx", weights="w.safetensors").met


def test_the_same_seed_gives_the_same_bytes(net, tmp_path):
    for name in ("a", "b"):
        package.export("nets:with_inputs", f"{name}.onnx", seed=3)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_file_that_differs_is_not_written(graphopt, net, tmp_path, monkeypatch):
    """A fault of the exporter, pretended: the check must notice."""
    honest = capture.capture

    def faulty(*args, **options):
        model, notes = honest(*args, **options)
        weight = next(v for v in model.graph.initializers.values() if v.const_value.size > 50)
        weight.const_value = ir.tensor(weight.const_value.numpy() * 1.01, name=weight.name)
        return model, notes

    monkeypatch.setattr(exporter.capturing, "capture", faulty)
    (tmp_path / "out.onnx").write_bytes(b"what was there")
    ran = graphopt("export", "nets:with_inputs", "-o", "out.onnx")
    assert ran.code == 3
    assert "the file differs from the network; nothing was written" in ran.out
    assert (tmp_path / "out.onnx").read_bytes() == b"what was there"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    assert graphopt("export", "nets:with_inputs", "-o", "new.onnx", "--json").json["output"] is None


WRONG = {
    "no such module": (["none:build"], 1, "cannot import none"),
    "no such factory": (["nets:none"], 1, "module nets has no 'none'"),
    "neither": (["nets.py"], 1, "is neither package.module:factory, a .pt2 file, nor a folder"),
    "no program": (["none.pt2"], 1, "none.pt2: no such file"),
    "a damaged program": (["bad.pt2"], 1, "bad.pt2: not a saved torch.export program"),
    "a folder without a model": (["."], 1, "has no readable config.json"),
    "no inputs": (["nets:build"], 1, "no example inputs for image; give --input NAME="),
    "an unknown input": (["nets:build", "--input", "imgae=2x3x8x8"], 1, "has no input 'imgae'; did you mean 'image'?"),
    "a bad input": (["nets:build", "--input", "image"], 2, "is not of the form NAME="),
    "a bad type": (["nets:build", "--input", "image=2x3:float31"], 2, "'float31' is not an element type"),
    "a wrong shape": (["nets:build", "--input", "image=2x5x8x8"], 1, "give others with --input"),
    "control flow on values": (["nets:Broken", *IMAGE], 1, "use torch.where"),
    "a bad axis": (["nets:build", *IMAGE, "--dynamic", "image=batch"], 2, "is not of the form INPUT:AXIS=SYMBOL"),
    "an axis too many": (["nets:build", *IMAGE, "--dynamic", "image:7=x"], 2, "has 4 axes, so none has number 7"),
    "static and dynamic": (["nets:build", *IMAGE, "--static", "--dynamic", "image:0=n"], 2, "give one of them"),
    "pickled weights": (["nets:build", *IMAGE, "--weights", "pickled.pth"], 1, "holds pickled Python objects"),
    "weights of another": (["nets:build", *IMAGE, "--weights", "other.pth"], 1, "does not fit the network: it lacks 4"),
    "weights of another width": (["nets:build", *IMAGE, "--weights", "wide.pth"], 1, "'conv.weight' has shape [8,"),
    "no weights": (["nets:build", *IMAGE, "--weights", "none.pth"], 1, "none.pth: no such file"),
    "truncated weights": (["nets:build", *IMAGE, "--weights", "cut.pth"], 1, "cut.pth: cannot be read as weights"),
    "names for other outputs": (["nets:build", *IMAGE, "--output-name", "a", "--output-name", "b"], 1, "2 names are given"),
    "no folder": (["nets:build", *IMAGE, "-o", "none/out.onnx"], 1, "folder none does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_fix(graphopt, net, tmp_path, name):
    args, code, message = WRONG[name]
    torch.save(net.build(), "pickled.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "other.pth")
    state = net.build().state_dict()
    torch.save({**state, "conv.weight": torch.zeros(8, 3, 3, 3)}, "wide.pth")
    torch.save(state, "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:300])
    (tmp_path / "bad.pt2").write_bytes(b"nothing")
    ran = graphopt("export", *args, *([] if "-o" in args else ["-o", "out.onnx"]))
    assert message in ran.err
    assert ran.code == code
    assert not ran.out
    assert not (tmp_path / "out.onnx").exists()


def test_the_line_at_fault_is_named(graphopt, net):
    ran = graphopt("export", "nets:Broken", *IMAGE, "-o", "out.onnx")
    assert "nets.py, line" in ran.err


def test_a_folder_of_transformers(tmp_path, graphopt):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=120
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    ran = graphopt("export", tmp_path / "bert", "-o", tmp_path / "bert.onnx", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["inputs"]["input_ids"] == "int64 [batch, sequence]"
    assert len({json.dumps(check["sizes"]) for check in ran.json["checks"]}) == 4


def test_the_whole_road(graphopt, net, tmp_path):
    """From a factory and a checkpoint to an optimized file, in one command."""
    torch.save(net.build().state_dict(), "w.pth")
    np.savez("d.npz", image=np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32))
    ran = graphopt("optimize", "nets:with_inputs", "--weights", "w.pth", "--data", "d.npz", "-o", "out.onnx", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["input"] == "nets:with_inputs"
    assert {"simplify", "quantize"} <= {step["pass"].partition("{")[0] for step in ran.json["steps"]}
    assert (tmp_path / "out.onnx").exists()
    assert graphopt("optimize", "out.onnx", "--weights", "w.pth", "-o", "x.onnx").code == 2
    assert "no 'none'" in graphopt("optimize", "nets:none", "-o", "x.onnx").error


def test_without_torch(graphopt, monkeypatch):
    import importlib.util

    for name in [name for name in sys.modules if name.startswith("graphopt.exporting")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (
        graphopt("export", "nets:build", "-o", "x.onnx").error
        == "export needs PyTorch; run pip install 'graphopt[torch]'"
    )


def test_trained_for_quantization(net):
    """What torchao's quantization-aware training leaves arrives as QDQ that ONNX Runtime fuses."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    x = torch.randn(2, 3, 8, 8)
    scheme = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    axes = ({0: torch.export.Dim("batch")},)
    captured = torch.export.export(net.build(), (x,), dynamic_shapes=axes).module()
    module = prepare_qat_pt2e(captured, xnnpack.XNNPACKQuantizer().set_global(scheme))
    module(x)
    module = convert_pt2e(module)
    move_exported_model_to_eval(module)
    assert package.export(module, "out.onnx", inputs={"image": x}).met
    place = target.find("cpu")
    executed = [node.op_type for node in runtime.find(place).optimized(io.load("out.onnx"), place).graph]
    assert {"QLinearConv", "QGemm"} <= set(executed)
    assert not {"Conv", "FusedConv", "Gemm"} & set(executed)


def test_batch_normalization_is_kept_for_those_who_train(tmp_path):
    from graphopt.models import resnet

    counts = {}
    for keep in (False, True):
        path = tmp_path / f"{keep}.onnx"
        inputs = resnet.example_inputs()
        package.export(resnet.resnet20(width=4), path, inputs=inputs, dynamic=resnet.DYNAMIC, keep_batchnorm=keep)
        counts[keep] = sum(node.op_type == "BatchNormalization" for node in io.load(path).graph)
    assert counts == {False: 0, True: 19}
