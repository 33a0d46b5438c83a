"""Write networks as PyTorch's exporters leave them, for simplifiers to work on.

    python benchmarks/raw_exports.py FOLDER

Every network of `models/` goes through torch.export without the exporter's own optimizer (NAME.dynamo.onnx) and
through TorchScript where torch still has it and it can (NAME.script.onnx); so do 20 architectures of transformers at
reduced width with random weights, by torch.export. What an exporter refuses is named.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from architectures import build
from networks import factories

from graphopt.exporting import pretrained

ARCHITECTURES = (
    "ViTForImageClassification", "SwinForImageClassification", "ConvNextForImageClassification",
    "MobileNetV2ForImageClassification", "MobileViTForImageClassification", "SegformerForSemanticSegmentation",
    "YolosForObjectDetection", "BertForSequenceClassification", "DistilBertForMaskedLM", "RobertaForTokenClassification",
    "DebertaV2Model", "MobileBertModel", "GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM",
    "T5ForConditionalGeneration", "WhisperForConditionalGeneration", "Wav2Vec2ForCTC", "CLIPModel",
)  # fmt: skip


def write(
    module: torch.nn.Module, inputs: dict[str, Any], dynamic: dict[str, Any], path: Path, *, dynamo: bool
) -> None:
    """Export one network without any optimization."""
    if dynamo:
        shapes = {name: dict.fromkeys(dynamic.get(name, {}), torch.export.Dim.DYNAMIC) for name in inputs}
        program = torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
        made = torch.onnx.export(program, verbose=False, dynamo=True, optimize=False)
        assert made is not None
        made.save(path)
        return
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        dynamic_axes={name: dict(axes) for name, axes in dynamic.items()},
        do_constant_folding=False,
        dynamo=False,
    )


def attempt(what: str, *args: Any, **named: Any) -> None:
    """Export one network, or say why not."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            write(*args, **named)
        print(what, flush=True)
    except Exception as error:  # exporters raise whatever the network's own code raises
        print(f"{what}: refused: {str(error).strip().splitlines()[:1]}", flush=True)


def main() -> None:
    """Export everything into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for package, name in factories():
        home = importlib.import_module(f"graphopt.models.{package}")
        torch.manual_seed(0)
        network, inputs = getattr(home, name)().eval(), home.example_inputs(2)
        for dynamo in (True, False):
            kind = "dynamo" if dynamo else "script"
            attempt(f"{name} {kind}", network, inputs, home.DYNAMIC, folder / f"{name}.{kind}.onnx", dynamo=dynamo)
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as source:
            build(name, Path(source))
            network = pretrained.load(Path(source)).eval()
        inputs = pretrained.example(network)
        pretrained.prepare(network, inputs)
        dynamic = pretrained.axes(inputs)
        attempt(f"{name} dynamo", network, inputs, dynamic, folder / f"{name}.dynamo.onnx", dynamo=True)


if __name__ == "__main__":
    main()
