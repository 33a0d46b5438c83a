"""Export a PyTorch network to ONNX, and prove that both compute the same."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from graphopt import io, runtime, spec
from graphopt.data import Source as DataSource
from graphopt.errors import UsageError, UserError, did_you_mean
from graphopt.exporting import capture as capturing
from graphopt.exporting.source import Dynamic, Source, open_source
from graphopt.outputs import OutputError, OutputErrors
from graphopt.runtime import ExecutionError
from graphopt.target import Target
from graphopt.target import find as find_target

_SIMPLIFY = "simplify{without=fold-batchnorm,fold-scales}"
"""What removes the traces of decomposition; normalization stays, for those who train on. Checked against the network."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_RTOL = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest error relative to an element and to the root mean square of its tensor: other kernels, other order of sums."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A comparison at one choice of sizes.

    Attributes:
        sizes: of the dynamic axes, by name.
        outputs: how far each is from PyTorch's.
        failure: why the model did not run, or None.
    """

    sizes: dict[str, int]
    outputs: list[OutputError]
    failure: str | None


@dataclasses.dataclass(frozen=True)
class _Sample:
    """What the network computes at one choice of sizes."""

    sizes: dict[str, int]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What `export` did.

    Attributes:
        source: what was exported.
        output: path of the model, or None when nothing was written.
        opset: version of the standard operators.
        inputs, outputs: names with their shapes in words.
        nodes: as the exporter wrote it, and after simplification.
        bytes: of the model with its external data.
        checks: comparisons with PyTorch at several sizes.
        notes: what had to be given up, in words.
        met: whether all comparisons agree.
        seconds: how long it took.
    """

    source: str
    output: str | None
    opset: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    nodes: tuple[int, int]
    bytes: int
    checks: list[Check]
    notes: list[str]
    met: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the object of `export --json`."""
        return dataclasses.asdict(self)


def export(
    source: str | Path | nn.Module,
    output: str | Path,
    *,
    weights: str | Path | None = None,
    inputs: Sequence[str] | Mapping[str, Any] = (),
    data: DataSource | None = None,
    dynamic: Sequence[str] | Dynamic | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    opset: int | None = None,
    dtype: str = "float32",
    target: str | Target = "cpu",
    keep_metadata: bool = False,
    keep_batchnorm: bool = False,
    seed: int = 0,
) -> Exported:
    """Export a PyTorch network to ONNX, check the file against the network, and write it.

    Args:
        source: `package.module:factory`, a `.pt2` file, a folder of Hugging Face, or a module. A factory returns a
            module or (module, example inputs); beside it, `example_inputs()`, `DYNAMIC` and `OUTPUTS` are looked for.
        output: path to write.
        weights: `.pth` state dict or `.safetensors` to fill the network from.
        inputs: example inputs, as tensors by name or written `name=2x3x32x32:float32`.
        data: a data set whose first batch serves as example inputs.
        dynamic: axes to leave open, by input or written `input:axis=symbol`; by default what the source declares,
            else the first axis of all inputs where they agree on its size.
        input_names, output_names: names of the inputs and outputs, in order; by default those of forward's parameters,
            and what the source declares.
        opset: version of the standard operators.
        dtype: element type of weights and floating-point inputs: float32, float16 or bfloat16.
        target: where the file is checked.
        keep_metadata: keep what the exporter notes in nodes, such as lines of source code.
        keep_batchnorm: keep batch normalization as operators of its own, which training the file wants; `simplify`
            folds it into convolutions afterwards.
        seed: of initial weights and generated inputs.

    Returns:
        What was done; `met` is false, and nothing is written, if the file computes something else.

    Raises:
        UserError: anything the caller can fix; nothing is written.
    """
    start = time.perf_counter()
    place = find_target(target) if isinstance(target, str) else target
    if dtype not in _DTYPES:
        raise UsageError(f"--dtype: '{dtype}' is not one of {', '.join(_DTYPES)}")
    files = [Path(weights)] if weights is not None else []
    io.check_writable(output, files)
    network = open_source(source, weights=weights, inputs=inputs, data=data, seed=seed)
    _cast(network, dtype)
    axes = _axes(network, dynamic)
    model, notes = capturing.capture(network, axes, opset, optimize=not keep_batchnorm)
    nodes = sum(1 for _ in io.nodes(model))
    _name(model, network, axes, output_names or network.outputs)
    axes, lost = _open(model, axes)
    notes = [*notes, *lost]
    model = _simplified(model, keep_metadata=keep_metadata)
    after = sum(1 for _ in io.nodes(model))
    results = {p.name: _shape(p) for p in runtime.ports(model.graph.outputs)}
    samples = _samples(network, axes, list(results), notes)
    if input_names:
        samples = _with_inputs_named(model, network, input_names, samples)
    shapes = {p.name: _shape(p) for p in runtime.model_inputs(model)}
    version = model.opset_imports.get("", 0)
    with io.staged(output) as draft:
        size = io.write(model, draft)
        del model  # only the file and the expected outputs are needed from here on
        if not isinstance(source, nn.Module):  # the caller's own module stays as it is
            network.release()
        checks = _checks(draft, place, samples, _RTOL[dtype])
        met = all(check.failure is None and not any(o.mismatch for o in check.outputs) for check in checks)
        if not met:
            draft.unlink()
    return Exported(
        source=str(source) if not isinstance(source, nn.Module) else type(source).__name__,
        output=str(output) if met else None,
        opset=version,
        inputs=shapes,
        outputs=results,
        nodes=(nodes, after),
        bytes=size,
        checks=checks,
        notes=notes,
        met=met,
        seconds=time.perf_counter() - start,
    )


def _cast(source: Source, dtype: str) -> None:
    if dtype == "float32":
        return
    if not isinstance(source.module, nn.Module):
        raise UserError(f"{source.name}: a saved program has its element types; leave out --dtype")
    source.module.to(_DTYPES[dtype])
    source.inputs = {
        name: tensor.to(_DTYPES[dtype]) if tensor.is_floating_point() else tensor
        for name, tensor in source.inputs.items()
    }


def _axes(source: Source, dynamic: Sequence[str] | Dynamic | None) -> Dynamic:
    """Return the axes to leave open."""
    if dynamic is None:
        if source.dynamic is not None:
            return source.dynamic
        first = {tensor.shape[0] if tensor.ndim else None for tensor in source.inputs.values()}
        return {name: {0: "batch"} for name in source.inputs} if len(first) == 1 and None not in first else {}
    if isinstance(dynamic, Mapping):
        return {name: dict(axes) for name, axes in dynamic.items()}
    found: Dynamic = {}
    for text in dynamic:
        place, _, symbol = text.partition("=")
        name, _, axis = place.rpartition(":")
        if not symbol or not name or not axis.isdigit():
            raise UsageError(f"--dynamic: '{text}' is not of the form INPUT:AXIS=SYMBOL, such as image:0=batch")
        if name not in source.inputs:
            raise UsageError(f"--dynamic: there is no input '{name}'{did_you_mean(name, source.inputs)}")
        if int(axis) >= source.inputs[name].ndim:
            raise UsageError(f"--dynamic: '{name}' has {source.inputs[name].ndim} axes, so none has number {axis}")
        found.setdefault(name, {})[int(axis)] = symbol
    return found


def _name(model: ir.Model, source: Source, axes: Dynamic, outputs: Sequence[str]) -> None:
    """Give inputs, outputs and dynamic axes the names that people chose, each unique in the model."""
    graph = model.graph
    if outputs and len(outputs) != len(graph.outputs):
        raise UserError(f"{source.name}: has {len(graph.outputs)} outputs, but {len(outputs)} names are given")
    wanted = dict(zip(graph.inputs, source.inputs, strict=False)) | dict(zip(graph.outputs, outputs, strict=False))
    values = [v for node in graph.all_nodes() for v in node.outputs] + list(graph.inputs)
    taken = set(wanted.values())
    for value in values:
        if value.name in taken and wanted.get(value) != value.name:
            value.name = _fresh(value.name, {v.name for v in values} | taken)
    for value, name in wanted.items():
        value.name = name
    for value in (*graph.inputs, *values):
        if value.shape is not None:
            value.shape = ir.Shape([_settled(dim) for dim in value.shape])
    symbols: dict[str, str] = {}
    for value in graph.inputs:
        for axis, symbol in axes.get(value.name or "", {}).items():
            dim = value.shape[axis] if value.shape is not None else None
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                symbols.setdefault(dim.value, symbol)
    for value in (*graph.inputs, *values):
        if value.shape is not None:
            value.shape = ir.Shape(
                [d if isinstance(d, int) else ir.SymbolicDim(symbols.get(d.value or "", d.value)) for d in value.shape]
            )


def _settled(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    """Return the number where the exporter writes one as if it were the name of an open axis."""
    return int(str(dim)) if str(dim).isdigit() else dim


def _with_inputs_named(
    model: ir.Model, source: Source, names: Sequence[str], samples: Sequence[_Sample]
) -> list[_Sample]:
    """Name the inputs of the model, in the order of forward's parameters; return the samples with these names."""
    if len(names) != len(source.inputs):
        raise UserError(f"{source.name}: has {len(source.inputs)} inputs, but {len(names)} names are given")
    new = dict(zip(source.inputs, names, strict=True))
    others = {v.name for node in model.graph.all_nodes() for v in node.outputs} | set(model.graph.initializers)
    twice = next((name for name in names if name in others or names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{source.name}: the name '{twice}' is taken by another value; choose another --input-name")
    for value in model.graph.inputs:
        value.name = new[value.name or ""]
    return [
        dataclasses.replace(sample, inputs={new[name]: array for name, array in sample.inputs.items()})
        for sample in samples
    ]


def _fresh(name: str | None, taken: set[str | None]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _open(model: ir.Model, axes: Dynamic) -> tuple[Dynamic, list[str]]:
    """Return the axes that came out open, and tell which were to be and are not."""
    ports = {port.name: port for port in runtime.model_inputs(model)}
    found: Dynamic = {}
    lost = []
    for name, chosen in axes.items():
        for axis, symbol in chosen.items():
            size = (ports[name].shape or ())[axis] if name in ports else None
            if isinstance(size, int):
                lost.append(f"axis {axis} ({symbol}) of '{name}' is fixed to {size}: forward depends on this very size")
            else:
                found.setdefault(name, {})[axis] = symbol
    return found, lost


def _simplified(model: ir.Model, *, keep_metadata: bool) -> ir.Model:
    if not keep_metadata:
        ClearMetadataAndDocStringPass()(model)
    spec.parse(_SIMPLIFY)(model)
    return model


def _samples(source: Source, axes: Dynamic, names: Sequence[str], notes: list[str]) -> list[_Sample]:
    """Run the network at several sizes, as far as it accepts them."""
    example = {
        symbol: source.inputs[name].shape[axis] for name, chosen in axes.items() for axis, symbol in chosen.items()
    }
    choices = [example, {s: n + 1 for s, n in example.items()}, {s: max(1, n // 2) for s, n in example.items()}]
    if "batch" in example:
        choices.append({**example, "batch": 1})
    found = []
    for sizes in {tuple(choice.items()): choice for choice in choices}.values():
        inputs = {name: _resized(tensor, axes.get(name, {}), sizes) for name, tensor in source.inputs.items()}
        try:
            results = source.run(inputs)
        except Exception as error:
            if sizes == example:
                raise UserError(
                    f"{source.name}: does not run on the example inputs: {capturing.explain([error])}"
                ) from None
            refused = ", ".join(f"{name} {size}" for name, size in sizes.items())
            notes.append(f"the network itself does not run at {refused}, so that size is not checked")
            continue
        outputs = dict(zip(names, map(_array, results), strict=False))
        found.append(_Sample(sizes, {name: _array(tensor) for name, tensor in inputs.items()}, outputs))
    return found


def _resized(tensor: Tensor, axes: Mapping[int, str], sizes: Mapping[str, int]) -> Tensor:
    """Repeat or cut a tensor along its dynamic axes."""
    for axis, symbol in axes.items():
        tensor = tensor.index_select(axis, torch.arange(sizes[symbol]) % max(tensor.shape[axis], 1))
    return tensor


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return np.asarray(ir.tensor(tensor.detach()).numpy())
    return np.asarray(tensor.detach().cpu().numpy())


def _checks(path: Path, target: Target, samples: Sequence[_Sample], rtol: float) -> list[Check]:
    """Compare a file with what the network computed."""
    ports = {port.name for port in runtime.model_inputs(ir.load(path))}
    try:
        session = _session(path, target)
    except ExecutionError as error:
        return [Check(sample.sizes, [], str(error)) for sample in samples]
    return [_check(session, ports, sample, rtol) for sample in samples]


def _check(session: runtime.Session, ports: Collection[str], sample: _Sample, rtol: float) -> Check:
    errors = OutputErrors(rtol)
    try:
        actual = session.run({name: array for name, array in sample.inputs.items() if name in ports})
    except ExecutionError as error:
        return Check(sample.sizes, [], str(error))
    errors.add(sample.outputs, actual)
    return Check(sample.sizes, errors.rows(), None)


def _session(path: Path, target: Target) -> runtime.Session:
    """Open a file on the target, or where that has no kernel for some operator and type, on the reference evaluator."""
    try:
        return runtime.find(target).open_file(path, target)
    except ExecutionError as error:
        if "NOT_IMPLEMENTED" not in str(error):
            raise
        reference = find_target("reference")
        return runtime.find(reference).open_file(path, reference)


def _shape(port: runtime.Port) -> str:
    dims = "" if port.shape is None else ", ".join("?" if d is None else str(d) for d in port.shape)
    return f"{port.dtype.name.lower() if port.dtype else 'not a tensor'} [{dims}]"
