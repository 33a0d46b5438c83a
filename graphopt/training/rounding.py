"""Learn which way to round weights of a network, along with their scales and biases.

Every integer is q + h with h = clip(1.2 sigmoid(v) - 0.1, 0, 1), which lies between rounding down and up, and a penalty
1 - |2h - 1|^beta drives h to either as beta falls (AdaRound, Nagel et al. 2020, arXiv:2004.10568). The scales are learned
as in LSQ (Esser et al. 2020, arXiv:1902.08153), but by their logarithm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from graphopt import compare, registry

_LOW, _HIGH = -0.1, 1.1
_PENALTY = 10.0
"""Of all numbers undecided, in units of the error of nearest rounding."""
_NOISY = 3.0
"""By how much what is undecided weighs more where the gradient is noisy."""
_WARMUP = 0.2
"""Share of the steps before the penalty sets in."""
_BETA = 20.0, 2.0
_HELD = 4
"""One sample out of so many is not trained on."""
_DECIDED = 0.85
"""Share of the steps after which integers stay, and scales and biases follow them."""
_RATES = {"rounding": 0.2, "scale": 1e-3, "bias": 1e-3}
"""Learning rates; those of biases are in units of their size."""


def start(share: np.ndarray) -> Tensor:
    """Return v such that h is a share between 0 and 1, or nearly so."""
    inner = np.clip((share - _LOW) / (_HIGH - _LOW), 1e-3, 1 - 1e-3)
    return torch.from_numpy(np.log(inner / (1 - inner)).astype(np.float32))


def shares(v: Tensor) -> Tensor:
    """Return h."""
    return (v.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def penalty(h: Tensor, progress: float) -> Tensor | float:
    """Return the penalty on shares that are neither 0 nor 1, in units of the error of nearest rounding.

    Args:
        h: shares.
        progress: how much of the training is done, 0 to 1.
    """
    late = (progress - _WARMUP) / (1 - _WARMUP)
    if late <= 0:
        return 0.0
    beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 - late)
    return _PENALTY * (1 - (2 * h - 1).abs().pow(beta)).mean()


@dataclasses.dataclass(frozen=True)
class Rounding:
    """A weight that is about to be rounded.

    Attributes:
        weight: the float initializer that stands for it.
        bias: that of the bias of the same layer, or None.
        down: integers, if it is rounded down, [groups, channels, inputs].
        share: where between `down` and the next integer its numbers are, 0 to 1.
        low, high: the least and the largest integer, of the same shape.
        scale: [groups, channels].
        is_free: whether the scale may be learned.
        layout: rows [groups, channels, inputs] -> the weight as the graph has it.
    """

    weight: str
    bias: str | None
    down: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray
    is_free: bool
    layout: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Learned:
    """What comes of it, float64: integers [groups, channels, inputs], scale [groups, channels], bias [channels] or None."""

    integers: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None


class Soft(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """A network whose weights lie between integers."""

    def __init__(self, model: ir.Model, roundings: Sequence[Rounding]) -> None:
        """Prepare.

        Args:
            model: of one output; the initializers that stand for weights and biases hold them as they are now.
            roundings: its weights.

        Raises:
            ExecutionError: torch cannot execute it.
        """
        super().__init__()
        names = [name for r in roundings for name in (r.weight, r.bias) if name]
        self.network = registry.find("runtime", "torch")().module(model, names)
        places = {id(parameter): place for place, parameter in self.network.named_parameters()}
        given = self.network.weights()
        self._places = {name: places[id(parameter)] for name, parameter in given.items()}
        self._biases = {name: given[name] for name in (r.bias for r in roundings) if name}
        self.weights = nn.ModuleList(_Weight(rounding) for rounding in roundings)

    def forward(self, feeds: Mapping[str, Tensor], how: str) -> Tensor:
        """Return what the network computes with weights that are "stored", "soft" or "hard", that is rounded."""
        given = {} if how == "stored" else {self._places[w.name]: w.floats(hard=how == "hard") for w in self.weights}
        return next(iter(torch.func.functional_call(self.network, given, (feeds,)).values()))

    def shape(self, feeds: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """Return the shape of what it makes of the first sample, without the axis of samples."""
        with torch.no_grad():
            return tuple(self({name: torch.from_numpy(a[:1]) for name, a in feeds.items()}, "stored").shape[1:])

    def undecided(self, progress: float) -> Any:
        """Return the penalty on soft integers, at a share of all steps."""
        return _NOISY * sum(penalty(w.shares(), progress) for w in self.weights) / len(self.weights)

    def groups(self) -> list[dict[str, Any]]:
        """Return what is trained, with learning rates."""
        sizes = {name: max(float(bias.detach().abs().mean()), 1e-3) for name, bias in self._biases.items()}
        return [
            {"params": [w.rounding for w in self.weights], "lr": _RATES["rounding"]},
            {"params": [w.stretch for w in self.weights], "lr": _RATES["scale"]},
            *({"params": [bias], "lr": _RATES["bias"] * sizes[name]} for name, bias in self._biases.items()),
        ]

    def results(self) -> list[Learned]:
        """Return what comes of the weights."""
        biases = [None if w.bias is None else _array(self._biases[w.bias]) for w in self.weights]
        return [
            Learned(_array(w.integers(hard=True)), _array(w.steps())[..., 0], bias)
            for w, bias in zip(self.weights, biases, strict=True)
        ]


class _Weight(nn.Module):  # type: ignore[misc]
    """One weight."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self.name, self.bias, self._layout = rounding.weight, rounding.bias, rounding.layout
        self._down, self._low, self._high = map(_tensor, (rounding.down, rounding.low, rounding.high))
        self._scale = _tensor(rounding.scale[..., None])
        self.rounding = nn.Parameter(start(rounding.share))
        self.stretch = nn.Parameter(torch.zeros_like(self._scale), requires_grad=rounding.is_free)

    def shares(self) -> Tensor:
        """Return how far every number is on its way to the next integer, 0 to 1."""
        return shares(self.rounding)

    def integers(self, *, hard: bool) -> Tensor:
        """Return integers, soft or rounded."""
        soft = self.shares()
        return (self._down + ((soft >= 0.5).float() if hard else soft)).clamp(self._low, self._high)

    def steps(self) -> Tensor:
        """Return scales, [groups, channels, 1]."""
        return self._scale * self.stretch.exp()

    def floats(self, *, hard: bool) -> Tensor:
        """Return what the network multiplies by, in its layout."""
        return self._layout(self.integers(hard=hard) * self.steps())


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().numpy().astype(np.float64)
    return array


def fit(
    soft: Soft, feeds: Mapping[str, np.ndarray], wanted: np.ndarray, steps: int, batch: int, rng: np.random.Generator
) -> float:
    """Train, and return by how many dB the network comes closer than with stored weights, on samples held out.

    Args:
        soft: the network.
        feeds: what it reads, by input, samples first.
        wanted: what it should compute, samples first.
        steps: of gradient descent.
        batch: samples per step.
        rng: draws the samples.
    """
    given, target = {name: torch.from_numpy(array) for name, array in feeds.items()}, torch.from_numpy(wanted)
    held = np.arange(len(wanted)) % _HELD == 0
    seen, unseen = np.flatnonzero(~held), np.flatnonzero(held)

    def loss(chosen: np.ndarray, how: str) -> Tensor:
        rows = torch.from_numpy(chosen)
        return nn.functional.mse_loss(soft({name: a[rows] for name, a in given.items()}, how), target[rows])

    def error(how: str) -> float:
        with torch.no_grad():
            parts = [unseen[first : first + batch] for first in range(0, len(unseen), batch)]
            return sum(float(loss(part, how)) * len(part) for part in parts)

    before = error("stored")
    unit = max(before / len(unseen), float(np.finfo(np.float32).tiny))
    optimizer = torch.optim.Adam(soft.groups())
    decided = math.ceil(_DECIDED * steps)
    for step in range(steps):
        chosen = rng.choice(seen, min(batch, len(seen)), replace=False)
        optimizer.zero_grad()
        if step < decided:
            (loss(chosen, "soft") / unit + soft.undecided(step / decided)).backward()
        else:
            loss(chosen, "hard").backward()
        optimizer.step()
    return compare.decibels(before, error("hard"))
