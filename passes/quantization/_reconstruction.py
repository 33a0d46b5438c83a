"""Learn which way to round the weights of a section of a quantized graph, their scales and biases, all at once.

As in `_adaround` every integer is q + h with h between 0 and 1, driven to either by a penalty; but the error is that of
the section's output, and the scales are learned along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from graphopt import compare, graphs
from graphopt.passes.quantization import _parts
from graphopt.passes.quantization._adaround import penalty, shares, start
from graphopt.passes.quantization._moments import from_rows, to_rows
from graphopt.passes.quantization._twins import Twin
from graphopt.runtimes.torch import TorchRuntime

_HELD = 4
"""One sample out of so many is not trained on."""
_DECIDED = 0.85
"""Share of the steps after which integers stay, and scales and biases follow them."""
_PENALTY = 3.0
"""By how much what is undecided weighs more here, where the gradient is noisy."""
_FARTHEST = 0.99
"""How far from its integer a number may start, in steps."""
_RATES = {"rounding": 0.2, "scale": 1e-3, "bias": 1e-3}
"""Learning rates; those of biases are in units of their size."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a layer gets.

    Attributes:
        rows: its weight.
        bias: float64 [channels], or None where it has none that is trained.
    """

    rows: _parts.Rows
    bias: np.ndarray | None


class Soft(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """A section of a quantized graph whose weights are about to be rounded."""

    def __init__(self, part: ir.Model, layers: Sequence[Twin]) -> None:
        """Prepare.

        Args:
            part: the section as a model of its own, which is changed: weights become floats.
            layers: those of its layers that are trained.

        Raises:
            ExecutionError: torch cannot execute it.
        """
        super().__init__()
        taken = graphs.names(part)
        self._weights = {twin.layer.node.outputs[0].name or "": _Weight(twin) for twin in layers}
        self._names: dict[str, tuple[str, str | None]] = {}
        producers = {value.name: node for node in part.graph for value in node.outputs}
        for name, weight in self._weights.items():
            node = producers[name]
            held = graphs.initializer(part.graph, weight.stored, f"{name}_w", taken)
            node.replace_input_with(1, held)
            self._names[name] = held.name or "", self._bias(part, weight, producers, taken)
        wanted = [given for names in self._names.values() for given in names if given]
        self.network = TorchRuntime().module(part, wanted)
        places = {id(parameter): place for place, parameter in self.network.named_parameters()}
        self._places = {name: places[id(parameter)] for name, parameter in self.network.weights().items()}
        self.learned = nn.ModuleDict({str(number): w for number, w in enumerate(self._weights.values())})

    @staticmethod
    def _bias(
        part: ir.Model, weight: _Weight, producers: Mapping[str | None, ir.Node], taken: Counter[str]
    ) -> str | None:
        """Put a float bias in place of the one of a layer; return its name, None where there is none."""
        bias = weight.bias_place
        if bias is None:
            return None
        node = producers[bias.node.outputs[0].name]
        held = graphs.initializer(part.graph, weight.stored_bias, f"{node.outputs[0].name}_b", taken)
        node.replace_input_with(bias.index, held)
        return held.name

    def forward(self, feeds: Mapping[str, Tensor], *, hard: bool) -> Tensor:
        """Return what the section computes with soft integers, or with rounded ones."""
        given = {}
        for name, weight in self._weights.items():
            weight_name, bias_name = self._names[name]
            given[self._places[weight_name]] = weight.floats(hard=hard)
            if bias_name:
                given[self._places[bias_name]] = weight.bias
        return next(iter(torch.func.functional_call(self.network, given, (feeds,)).values()))

    def shape(self, feeds: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """Return the shape of what the section makes of the first sample, without the axis of samples."""
        with torch.no_grad():
            return tuple(self({name: torch.from_numpy(a[:1]) for name, a in feeds.items()}, hard=True).shape[1:])

    @contextlib.contextmanager
    def as_stored(self) -> Iterator[None]:
        """Compute with what is stored, for a while."""
        for weight in self._weights.values():
            weight.is_stored = True
        yield
        for weight in self._weights.values():
            weight.is_stored = False

    def undecided(self, progress: float) -> Tensor:
        """Return the penalty on soft integers, at a share of all steps."""
        return _PENALTY * sum(penalty(w.shares(), progress) for w in self._weights.values()) / len(self._weights)

    def groups(self) -> list[dict[str, object]]:
        """Return what is trained, with learning rates."""
        weights = list(self._weights.values())
        return [
            {"params": [w.rounding for w in weights], "lr": _RATES["rounding"]},
            {"params": [w.stretch for w in weights], "lr": _RATES["scale"]},
            *(
                {"params": [w.bias], "lr": _RATES["bias"] * max(float(w.bias.detach().abs().mean()), 1e-3)}
                for w in weights
                if w.bias is not None
            ),
        ]

    def results(self) -> list[Learned]:
        """Return what the layers get."""
        return [weight.result() for weight in self._weights.values()]


class _Weight(nn.Module):  # type: ignore[misc]
    """The weight and the bias of one layer."""

    def __init__(self, twin: Twin) -> None:
        super().__init__()
        layer = twin.layer
        self._node, self._shape = layer.node, layer.weight.integers.shape
        rows, levels = _parts.rows_of(layer), _parts.levels_of(layer)
        self.stored, self.is_stored = layer.weight.floats(), False
        offset = np.zeros_like(rows.integers)
        if twin.weight is not None:
            ratio = to_rows(layer.node, twin.weight.astype(np.float64)) / rows.scale[..., None]
            offset = np.clip(ratio - rows.integers, -_FARTHEST, _FARTHEST)
        down = rows.integers - (offset < 0)
        self._down = _tensor(down)
        self._low, self._high = (_tensor(np.broadcast_to(level, down.shape)) for level in (levels.low, levels.high))
        self._scale = _tensor(rows.scale[..., None])
        self.rounding = nn.Parameter(start(offset + (offset < 0)))
        self.stretch = nn.Parameter(torch.zeros_like(self._scale))
        free = layer.weight.scale.size == rows.scale.size
        self.stretch.requires_grad_(free)
        found = _parts.bias_of(layer)
        self.bias_place = found if isinstance(found, _parts.Bias) and found.present else None
        self.bias: nn.Parameter | None = None
        if self.bias_place is not None:
            self.stored_bias = self.bias_place.values(rows.scale.size).astype(np.float32)
            self.bias = nn.Parameter(torch.from_numpy(self.stored_bias.copy()))

    def shares(self) -> Tensor:
        """Return how far every number is on its way to the next integer, 0 to 1."""
        return shares(self.rounding)

    def floats(self, *, hard: bool) -> Tensor:
        """Return what the layer multiplies by, in the layout of the graph."""
        if self.is_stored:
            return torch.from_numpy(self.stored)
        return from_rows(self._node, self._integers(hard=hard) * self._steps(), self._shape)

    def _integers(self, *, hard: bool) -> Tensor:
        soft = self.shares()
        return (self._down + ((soft >= 0.5).float() if hard else soft)).clamp(self._low, self._high)

    def _steps(self) -> Tensor:
        return self._scale * self.stretch.exp()

    def result(self) -> Learned:
        """Return what it comes to."""
        with torch.no_grad():
            rows = _parts.Rows(
                *(t.numpy().astype(np.float64) for t in (self._integers(hard=True), self._steps()[..., 0]))
            )
        return Learned(rows, None if self.bias is None else self.bias.detach().numpy().astype(np.float64))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def fit(
    soft: Soft, feeds: Mapping[str, np.ndarray], wanted: np.ndarray, steps: int, batch: int, rng: np.random.Generator
) -> float:
    """Train a section, and return by how many dB it comes closer than with what is stored, on samples held out.

    Args:
        soft: the section.
        feeds: what it reads, by input, samples first.
        wanted: what it should compute, samples first.
        steps: of gradient descent.
        batch: samples per step.
        rng: draws the samples.
    """
    given, target = {name: torch.from_numpy(array) for name, array in feeds.items()}, torch.from_numpy(wanted)
    held = np.arange(len(wanted)) % _HELD == 0
    seen, unseen = np.flatnonzero(~held), np.flatnonzero(held)

    def loss(chosen: np.ndarray, *, hard: bool) -> Tensor:
        rows = torch.from_numpy(chosen)
        return nn.functional.mse_loss(soft({name: a[rows] for name, a in given.items()}, hard=hard), target[rows])

    def error() -> float:
        with torch.no_grad():
            parts = [unseen[start : start + batch] for start in range(0, len(unseen), batch)]
            return sum(float(loss(part, hard=True)) * len(part) for part in parts)

    with soft.as_stored():
        before = error()
        unit = max(before / len(unseen), float(np.finfo(np.float32).tiny))
    optimizer = torch.optim.Adam(soft.groups())
    decided = math.ceil(_DECIDED * steps)
    for step in range(steps):
        chosen = rng.choice(seen, min(batch, len(seen)), replace=False)
        optimizer.zero_grad()
        hard = step >= decided
        (loss(chosen, hard=hard) / unit + (0.0 if hard else soft.undecided(step / decided))).backward()
        optimizer.step()
    return compare.decibels(before, error())
