"""torch, differentiable: executes a graph for training, and compares with the others on the processor or a GPU."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt import io
from graphopt.errors import UsageError, UserError
from graphopt.runtime import Arrays, ExecutionError, Runtime, Session, flatten, model_inputs
from graphopt.target import Target

if TYPE_CHECKING:
    from graphopt.runtimes._torch.module import OnnxModule

_OPTIONS = ("device", "compile")


class TorchRuntime(Runtime):
    """A graph as a torch module; `torch{device=cuda compile=1}` runs it on a GPU, compiled."""

    def open(self, model: ir.Model, target: Target) -> Session:
        settings = _settings(target)
        device = self.device(settings.get("device", "cpu"))
        return TorchSession(model, device, compiled=settings.get("compile") in ("1", "true"))

    def open_file(self, path: str | Path, target: Target) -> Session:
        return self.open(io.load(path), target)

    def device(self, name: str) -> Any:
        """Return the torch device of that name: cpu, cuda, cuda:1, ...

        Raises:
            UserError: torch is not installed, or has no such device here.
        """
        torch = _library()
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"device '{name}': torch has none of this name here ({reason}); choose cpu") from None
        return device

    def unsupported(self, model: ir.Model) -> list[tuple[str, str]]:
        """Return `(node, reason)` for everything in a model that torch cannot execute.

        Raises:
            UserError: torch is not installed.
        """
        _library()
        from graphopt.runtimes._torch.module import unsupported

        return unsupported(model)

    def module(self, model: ir.Model, trainable: Collection[str] = (), *, learn_scales: bool = False) -> OnnxModule:
        """Return a model as a torch module whose parameters are the named initializers.

        Raises:
            ExecutionError: torch cannot execute the model.
            UserError: torch is not installed.
        """
        _library()
        from graphopt.runtimes._torch.module import OnnxModule

        return OnnxModule(model, trainable, learn_scales=learn_scales)


class TorchSession(Session):
    """A module behind graphopt's protocol."""

    def __init__(self, model: ir.Model, device: Any, *, compiled: bool) -> None:
        from graphopt.runtimes._torch.module import OnnxModule

        module = OnnxModule(model).to(device).eval()
        self._ports = {port.name: port for port in model_inputs(model)}
        self._known = {value.name for value in model.graph.inputs}
        self._device = device
        self._run = module.compiled() if compiled else module

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        import torch

        from graphopt.runtimes._torch import values

        self._check(feeds)
        with torch.inference_mode():
            made = {name: values.from_numpy(np.asarray(array)) for name, array in feeds.items()}
            placed = {n: v.to(self._device) if isinstance(v, torch.Tensor) else v for n, v in made.items()}
            results = self._run(placed)
        arrays: dict[str, np.ndarray] = {}
        for name, value in results.items():
            if outputs is None or name in outputs:
                arrays.update(flatten(name, values.to_numpy(value)))
        return arrays

    def _check(self, feeds: Arrays) -> None:
        """Refuse what other runtimes refuse: torch would broadcast and promote.

        Raises:
            ExecutionError: missing, superfluous, mistyped or misshapen inputs.
        """
        for name, port in self._ports.items():
            if name not in feeds:
                raise ExecutionError(f"torch: input '{name}' is missing")
            array = np.asarray(feeds[name])
            if port.dtype not in (None, ir.DataType.STRING) and array.dtype != port.dtype.numpy():
                raise ExecutionError(f"torch: input '{name}' is {array.dtype}, not {port.dtype.numpy()}")
            if port.shape is not None and not _fits(array.shape, port.shape):
                raise ExecutionError(f"torch: input '{name}' has shape {list(array.shape)}, not {list(port.shape)}")
        for name in feeds:
            if name not in self._known:
                raise ExecutionError(f"torch: the model has no input '{name}'")


def _fits(shape: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    return len(shape) == len(wanted) and all(
        not isinstance(w, int) or w == s for s, w in zip(shape, wanted, strict=True)
    )


def _library() -> Any:
    """Return torch.

    Raises:
        UserError: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UserError("this needs PyTorch; install 'graphopt[torch]'") from None
    return torch


def _settings(target: Target) -> dict[str, str]:
    settings = dict(target.options)
    unknown = sorted(settings.keys() - set(_OPTIONS))
    if unknown:
        raise UsageError(f"target {target.name}: unknown option '{unknown[0]}'; it has {', '.join(_OPTIONS)}")
    return settings
