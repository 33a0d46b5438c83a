"""Capture a network with torch.export and translate it to ONNX, with fallbacks that say what they gave up."""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from graphopt.errors import UserError
from graphopt.exporting.source import Dynamic, Source

_FLOATS = {
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.DOUBLE,
}

_ADVICE = (
    (r"data-dependent|Could not guard|GuardOnDataDependent|\.item\(\)", "control flow or a size depends on the values "
     "of a tensor: use torch.where, torch.cond, or torch._check on the size"),
    (r"No ONNX function found for <OpOverload\(op='([\w.]+)'", "ONNX has no counterpart of {0}: express it with other "
     "operators in forward"),
    (r"Constraints violated|specializ", "forward works for one size only: make the axis fixed, or take the size from "
     "the input's shape"),
    (r"missing \d+ required|got an unexpected keyword|positional argument", "the example inputs do not fit forward: "
     "give every one of them with --input"),
    (r"mat1 and mat2|must match the size|Expected .* channels|expected input", "the example inputs have a wrong shape: "
     "give others with --input"),
)  # fmt: skip
"""What a message is about, and what usually fixes it."""


def capture(
    source: Source, dynamic: Dynamic, opset: int | None, *, optimize: bool = True
) -> tuple[ir.Model, list[str]]:
    """Return the ONNX model of a network, and in words what had to be given up.

    Args:
        source: the network with its example inputs.
        dynamic: axes to leave open.
        opset: version to write, or None for the exporter's own.
        optimize: whether the exporter simplifies the graph, which also folds batch normalization away.

    Raises:
        UserError: no way of capturing it works; the message names the module, the line and what usually helps.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nobody asked for
    logging.getLogger("torch._guards").setLevel(logging.CRITICAL)  # it dumps the stack of every attempt that fails
    failures: list[BaseException] = []
    for what, program in _attempts(source, dynamic, failures):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = torch.onnx.export(
                    program, opset_version=opset, verbose=False, dynamo=True, external_data=True, optimize=optimize
                )
        except Exception as error:  # the exporter wraps whatever goes wrong
            failures.append(error)
            continue
        assert made is not None
        return _with_types_of(program, made.model), what
    raise UserError(f"{source.name}: cannot be exported: {explain(failures)}")


def _attempts(
    source: Source, dynamic: Dynamic, failures: list[BaseException]
) -> Iterator[tuple[list[str], torch.export.ExportedProgram]]:
    """Yield captures, the best first, each with what it gives up."""
    if not isinstance(source.module, nn.Module):
        yield [], source.module
        return
    wanted: list[tuple[Any, list[str]]] = [(_shapes(source.inputs, dynamic, torch.export.Dim.DYNAMIC), [])]
    if any(dynamic.values()):
        wanted += [
            (_shapes(source.inputs, dynamic, torch.export.Dim.AUTO), []),
            (None, ["every axis is fixed to the size of the example inputs"]),
        ]
    for shapes, lost in wanted:
        for strict in (False, True):
            try:
                with warnings.catch_warnings(), torch.no_grad():
                    warnings.simplefilter("ignore")
                    yield (
                        lost,
                        torch.export.export(source.module, (), source.inputs, dynamic_shapes=shapes, strict=strict),
                    )
            except Exception as error:  # torch.export raises whatever the network's own code raises
                failures.append(error)


def _shapes(inputs: Mapping[str, Tensor], dynamic: Dynamic, kind: Any) -> dict[str, dict[int, Any]]:
    return {name: dict.fromkeys(dynamic.get(name, {}), kind) for name in inputs}


def _with_types_of(program: torch.export.ExportedProgram, model: ir.Model) -> ir.Model:
    """Cast values back to the type that they have in PyTorch.

    The exporter sums half-precision numbers in float32, as PyTorch does, and forgets to go back.
    """
    metas = ((node.name, node.meta.get("val")) for node in program.graph.nodes)
    wanted = {name: _FLOATS[meta.dtype] for name, meta in metas if isinstance(meta, Tensor) and meta.dtype in _FLOATS}
    for node in list(model.graph):
        for value in node.outputs:
            dtype = wanted.get(value.name or "")
            if dtype is None or value.dtype not in _FLOATS.values() or value.dtype == dtype:
                continue
            cast = ir.node("Cast", [value], {"to": dtype.value})
            narrow = cast.outputs[0]
            value.replace_all_uses_with(narrow, replace_graph_outputs=True)
            cast.replace_input_with(0, value)
            narrow.name, value.name = value.name, f"{value.name}_wide"
            narrow.type, narrow.shape = ir.TensorType(dtype), value.shape
            model.graph.insert_after(node, cast)
    return model


def explain(failures: list[BaseException]) -> str:
    """Say in one line what went wrong first, where, and what usually helps."""
    first = failures[0]
    text = "\n".join(str(error) for error in _causes(first))
    place = _place(first, text)
    reason = next((line.strip() for line in str(_causes(first)[-1]).splitlines() if line.strip()), type(first).__name__)
    advice = ""
    for pattern, hint in _ADVICE:
        match = re.search(pattern, text)
        if match:
            advice = f"; {hint.format(*match.groups())}"
            break
    return f"{reason[:300]}{place}{advice}"


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (inner := chain[-1].__cause__) is not None and inner not in chain:
        chain.append(inner)
    return chain


def _place(error: BaseException, text: str) -> str:
    """Return the innermost line of the user's own code, from the traceback or from what torch quotes."""
    frames = [frame for part in _causes(error) for frame in traceback.extract_tb(part.__traceback__)]
    quoted = [
        (name, int(line), where) for name, line, where in re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    ]
    places = [(frame.filename, frame.lineno or 0, frame.name) for frame in frames] + quoted
    own = [p for p in places if not re.search(r"site-packages|graphopt.exporting|<frozen|<string>|/lib/python3", p[0])]
    if not own:
        return ""
    name, line, where = own[-1]
    return f" (in {where}, {Path(name).name}, line {line})"
