"""What can be exported: a factory, a saved torch.export program, a folder of Hugging Face, or a module at hand."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphopt.data import Source as DataSource
from graphopt.data import open_data, resolve
from graphopt.errors import UsageError, UserError, did_you_mean
from graphopt.exporting import pretrained
from graphopt.exporting.weights import load_weights

Dynamic = dict[str, dict[int, str]]
"""Input -> axis -> the name of a dynamic axis."""

_INPUT = re.compile(r"([^=]+)=((?:\d+x)*\d+)?(?::(\w+))?")


@dataclasses.dataclass
class Source:
    """A network with inputs to trace it on.

    Attributes:
        name: what to call it in messages.
        module: the network in evaluation mode, or a torch.export program.
        inputs: example inputs by the names of forward's parameters.
        dynamic: axes that it declares dynamic; None when it says nothing.
        outputs: names that it declares for its outputs.
        positional: how many of the inputs are passed by position.
    """

    name: str
    module: nn.Module | torch.export.ExportedProgram
    inputs: dict[str, Tensor]
    dynamic: Dynamic | None = None
    outputs: tuple[str, ...] = ()
    positional: int = 0

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Run the network and return the tensors of its result, however they are nested."""
        module = self.module if isinstance(self.module, nn.Module) else self.module.module()
        values = list(inputs.values())[: self.positional]
        named = dict(list(inputs.items())[self.positional :])
        with torch.no_grad():
            leaves = torch.utils._pytree.tree_leaves(module(*values, **named))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def release(self) -> None:
        """Give the memory of the weights back; torch keeps graphs, and all that hangs on them, in global tables."""
        held = self.module
        tensors = held.state_dict().values() if isinstance(held, nn.Module) else held.state_dict.values()
        for tensor in [*tensors, *(held.parameters() if isinstance(held, nn.Module) else ())]:
            tensor.data = torch.empty(0, dtype=tensor.dtype)


def open_source(
    source: str | Path | nn.Module,
    *,
    weights: str | Path | None,
    inputs: Sequence[str] | Mapping[str, Any],
    data: DataSource | None,
    seed: int,
) -> Source:
    """Open what the user wants exported.

    Args:
        source: `package.module:factory`, a `.pt2` file, a folder with config.json, or a module.
        weights: checkpoint to fill it from.
        inputs: example inputs, as tensors by name or written `name=2x3x32x32:float32`.
        data: a data set whose first batch serves as example inputs.
        seed: of initial weights and of generated inputs.

    Raises:
        UserError: it cannot be opened, or there are no example inputs.
    """
    torch.manual_seed(seed)
    if isinstance(source, nn.Module):
        found = Source(type(source).__name__, source, {})
    elif str(source).endswith(".pt2"):
        found = _program(Path(source))
    elif Path(source).is_dir():
        found = Source(str(source), pretrained.load(Path(source)), {})
    elif ":" in str(source):
        found = _made(str(source))
    else:
        raise UserError(
            f"{source}: is neither package.module:factory, a .pt2 file, nor a folder with config.json; check the path"
        )
    if isinstance(found.module, nn.Module):
        with contextlib.suppress(NotImplementedError):  # what torch.export captured is in the mode it was put in
            found.module.eval()
        if weights is not None:
            load_weights(found.module, weights)
    elif weights is not None:
        raise UserError(f"{source}: a saved program holds its weights; leave out --weights")
    given = _given(inputs, data, seed)
    if given:
        if not isinstance(found.module, nn.Module):
            raise UserError(f"{source}: a saved program holds its inputs; leave out --input and --data")
        found.inputs = _named(found.module, given, found.name)
    if pretrained.knows(found.module):
        found.inputs = found.inputs or pretrained.example(found.module)
        if found.dynamic is None:
            found.dynamic = pretrained.axes(found.inputs)
        names = pretrained.prepare(found.module, found.inputs)
        found.outputs = found.outputs or names
    if not found.inputs and isinstance(found.module, nn.Module):
        wanted = ", ".join(_parameters(found.module))
        raise UserError(f"{found.name}: no example inputs for {wanted}; give --input NAME=2x3x224x224:float32")
    return found


def _made(text: str) -> Source:
    """Call a factory; what is beside it in its module may tell example inputs, dynamic axes and names of outputs."""
    factory = resolve(text)
    try:
        made = factory()
    except TypeError as error:
        raise UserError(f"{text}: cannot be called without arguments: {error}") from None
    beside = sys.modules.get(getattr(factory, "__module__", ""))
    inputs: Any = {}
    if isinstance(made, tuple) and len(made) == 2:
        made, inputs = made
    elif beside is not None and hasattr(beside, "example_inputs"):
        inputs = beside.example_inputs()
    if not isinstance(made, nn.Module):
        raise UserError(f"{text}: returned {type(made).__name__}, not a torch.nn.Module or (module, example inputs)")
    named = inputs if isinstance(inputs, Mapping) else dict(zip(_parameters(made), _listed(inputs), strict=False))
    return Source(
        text,
        made,
        _named(made, named, text) if named else {},
        getattr(beside, "DYNAMIC", None),
        tuple(getattr(beside, "OUTPUTS", ())),
    )


def _listed(inputs: Any) -> Sequence[Any]:
    return inputs if isinstance(inputs, (tuple, list)) else (inputs,)


def _program(path: Path) -> Source:
    try:
        program = torch.export.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except Exception as error:  # a damaged archive raises whatever its parts raise
        raise UserError(f"{path}: not a saved torch.export program: {str(error).splitlines()[0][:200]}") from None
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    values, named = program.example_inputs or ((), {})
    inputs = dict(zip(names, [*torch.utils._pytree.tree_leaves(values), *named.values()], strict=False))
    return Source(str(path), program, inputs, positional=len(values))


def _given(inputs: Sequence[str] | Mapping[str, Any], data: DataSource | None, seed: int) -> dict[str, Tensor]:
    if data is not None:
        feeds, _ = next(iter(open_data(data).batches(2, 2)))
        return {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
    if isinstance(inputs, Mapping):
        return {name: torch.as_tensor(value) for name, value in inputs.items()}
    draw = torch.Generator().manual_seed(seed)
    return dict(_written(text, draw) for text in inputs)


def _written(text: str, draw: torch.Generator) -> tuple[str, Tensor]:
    """Make the input that `name=2x3x32x32:float32` describes; integers are 0 or 1, since they index or mask."""
    match = _INPUT.fullmatch(text)
    if not match:
        raise UsageError(f"--input: '{text}' is not of the form NAME=2x3x224x224:float32")
    name, sizes, kind = match.groups()
    dtype = getattr(torch, kind or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"--input: '{kind}' is not an element type such as float32 or int64")
    shape = [int(size) for size in sizes.split("x")] if sizes else []
    if dtype.is_floating_point:
        return name, torch.randn(shape, generator=draw).to(dtype)
    return name, torch.randint(0, 2, shape, generator=draw).to(dtype)


def _named(module: nn.Module, inputs: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Put inputs in the order of forward's parameters.

    Raises:
        UserError: forward has no such parameter.
    """
    parameters = _parameters(module)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values())
    for key in inputs:
        if key not in parameters and not takes_any:
            raise UserError(f"{name}: forward has no input '{key}'{did_you_mean(key, parameters)}")
    order = [*parameters, *(key for key in inputs if key not in parameters)]
    return {key: inputs[key] for key in order if key in inputs}


def _parameters(module: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_ONLY)
    return [name for name, p in inspect.signature(module.forward).parameters.items() if p.kind in kinds]
