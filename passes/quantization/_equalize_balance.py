"""Choose factors per channel that make the channels of weights and activations alike, and put them into the constants.

Quantization with one scale for all channels of a tensor is as coarse for every channel as for the largest. In logarithms,
channel i has the level l (its largest magnitude) in every tensor that it is part of; a factor 2^e raises some of these
levels by e and lowers the others. The e that makes the levels raised and the levels lowered meet in the middle, weighted,
is a Jacobi step of a least-squares problem: for two layers this is the s = sqrt(r1 r2) / r2 of Nagel et al. 2019
(arXiv:1906.04721), with activations against weights the s = max|X|^alpha / max|W|^(1 - alpha) of Xiao et al. 2023
(arXiv:2211.10438).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization._equalize_channels import Channels, Layer, Scaled

_DEAD = 24.0
"""Channels whose level is so far below the largest of the tensor, in bits, are not revived."""

_SETTLED = 0.01
_WORTH = 0.6
"""Factors closer to one than this, in bits, are left out: more than half, so that rounding does not move back and forth."""
_WORTH_BLIND = 1.0
"""The same where activations are guessed: smaller factors did more harm than good on networks that were even before."""

_DAMPING = 0.75
_ROUNDS = 30


@dataclasses.dataclass(frozen=True)
class Emphasis:
    """How much each kind of tensor counts.

    Attributes:
        outputs: weights, by output channel. Without activations these are a guess at how large activations will be, so
            Euclidean norms are taken, which behave as standard deviations do, and biases join in.
        inputs: weights, by input channel.
        activations: largest magnitudes of activations.
    """

    outputs: float
    inputs: float
    activations: float


@dataclasses.dataclass(frozen=True)
class _Slices:
    """Levels of the channels of one tensor.

    Attributes:
        ids: compact signed numbers of the exponents that raise the levels.
        levels: logarithms to base two.
        weight: how much they count.
    """

    ids: np.ndarray
    levels: np.ndarray
    weight: float


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The weights of a layer.

    Attributes:
        reads, makes: compact signed numbers of the exponents on both sides.
        peaks, norms: logarithms of the largest magnitude and of the norm over all taps, [groups, outputs, inputs].
    """

    reads: np.ndarray
    makes: np.ndarray
    peaks: np.ndarray
    norms: np.ndarray


class Balance:
    """The free exponents of a graph, and the tensors in which their channels should be alike."""

    def __init__(
        self,
        channels: Channels,
        activations: Sequence[tuple[np.ndarray, np.ndarray]],
        layers: Sequence[Layer],
        iterations: int,
    ) -> None:
        """Prepare to choose exponents.

        Args:
            channels: which exponents there are.
            activations: exponents and, in the same shape, largest magnitudes of what layers read.
            layers: whose weights count.
            iterations: Jacobi steps at most.
        """
        table = channels.variables.resolved()
        free = np.unique(np.abs(table[table != 0]))
        compact = np.zeros(len(table), np.int64)
        compact[free] = np.arange(1, len(free) + 1)
        self._table = np.sign(table) * compact[np.abs(table)]
        self._iterations = iterations
        self._size = len(free) + 1
        self._blind = not activations
        self._layers = [
            _Weights(
                self.numbers(layer.inputs),
                self.numbers(layer.outputs),
                _logarithm(_peaks(layer.matrix())),
                _logarithm(np.linalg.norm(layer.matrix(), axis=-1)) if self._blind else np.zeros(0),
            )
            for layer in layers
            if self.numbers(layer.inputs).any() or self.numbers(layer.outputs).any()
        ]
        self._activations = [(self.numbers(ids).ravel(), _logarithm(peaks).ravel()) for ids, peaks in activations]
        made = [] if activations else channels.made
        self._made = [(self.numbers(part.ids).ravel(), _logarithm(part.constants).ravel()) for part in made]
        self.families = self._find_families()

    def numbers(self, ids: np.ndarray) -> np.ndarray:
        """Return the compact signed numbers of exponents, 0 for those that are zero."""
        result: np.ndarray = np.sign(ids) * self._table[np.abs(ids)]
        return result

    def zero(self) -> np.ndarray:
        """Return exponents that change nothing, int64 [number]; number 0 stands for those that must be zero."""
        return np.zeros(self._size, np.int64)

    def solve(self, emphasis: Emphasis, start: np.ndarray | None = None) -> np.ndarray:
        """Return exponents, int64 [number], from which there is no step that makes channels more alike.

        From its own result it finds nothing better, so a second run on the changed model leaves that as it is.

        Args:
            emphasis: what counts.
            start: exponents to begin from; zero by default.
        """
        exponents = self.zero() if start is None else start
        unevenness = self._unevenness(exponents, emphasis)
        for _ in range(_ROUNDS):
            step = self._step(exponents, emphasis)
            new = self._unevenness(exponents + step, emphasis)
            if not step.any() or new >= unevenness * 0.999:
                break
            exponents, unevenness = exponents + step, new
        return exponents

    def _step(self, exponents: np.ndarray, emphasis: Emphasis) -> np.ndarray:
        """Return the nearest whole numbers to what is missing to the real solution."""
        real = exponents.astype(np.float64)
        for _ in range(self._iterations):
            change = self._change(real, emphasis)
            real += _DAMPING * change
            if np.abs(change).max() < _SETTLED:
                break
        missing = real - exponents
        return np.where(np.abs(missing) > (_WORTH_BLIND if self._blind else _WORTH), np.rint(missing), 0).astype(
            np.int64
        )

    def _unevenness(self, exponents: np.ndarray, emphasis: Emphasis) -> float:
        return float(np.square(self._change(exponents.astype(np.float64), emphasis)).sum())

    def _change(self, exponents: np.ndarray, emphasis: Emphasis) -> np.ndarray:
        """Return how far each exponent is from where the levels that it raises meet those that it lowers.

        What all channels of a tensor have in common is left out, as only their differences matter.
        """
        raised, lowered = np.zeros(self._size), np.zeros(self._size)
        up, down = np.zeros(self._size), np.zeros(self._size)
        for kind in self._kinds(exponents, emphasis):
            for sign, total, weights in ((1, raised, up), (-1, lowered, down)):
                highest = np.full(self._size, -np.inf)
                for slices in kind:
                    chosen = slices.ids * sign > 0
                    np.maximum.at(highest, np.abs(slices.ids[chosen]), slices.levels[chosen])
                alive = np.isfinite(highest)
                weight = kind[0].weight if kind else 0.0
                total[alive] += weight * highest[alive]
                weights[alive] += weight
        movable = (up > 0) & (down > 0)
        change = np.zeros(self._size)
        change[movable] = (lowered - raised)[movable] / (up + down)[movable]
        family = self.families[movable]
        common = np.bincount(family, change[movable], self._size) / np.maximum(
            np.bincount(family, minlength=self._size), 1
        )
        change[movable] -= common[family]
        return change

    def _kinds(self, exponents: np.ndarray, emphasis: Emphasis) -> Iterable[list[_Slices]]:
        """Yield what there is of every kind of tensor that counts."""
        outputs, inputs, activations = [], [], []
        for layer in self._layers:
            groups = len(layer.peaks)
            before = _values(layer.reads, exponents).reshape(groups, 1, -1)
            after = _values(layer.makes, exponents).reshape(groups, -1, 1)
            if emphasis.outputs:
                squares = np.exp2(2 * (layer.norms - before)).sum(axis=2, keepdims=True) if self._blind else None
                rows = (layer.peaks - before).max(axis=2, keepdims=True) if squares is None else _logarithm(squares) / 2
                outputs.append(_alive(layer.makes, (rows + after).ravel(), emphasis.outputs))
            columns = (layer.peaks + after).max(axis=1, keepdims=True) - before
            inputs.append(_alive(-layer.reads, columns.ravel(), emphasis.inputs))
        if emphasis.outputs:
            for ids, levels in self._made:
                outputs.append(_alive(ids, levels + _values(ids, exponents), emphasis.outputs))
        for ids, levels in self._activations:
            activations.append(_alive(ids, levels + _values(ids, exponents), emphasis.activations))
        yield from (outputs, inputs, activations)

    def _find_families(self) -> np.ndarray:
        """Return for every number the smallest of those that are channels of the same tensors, [number]."""
        family = np.arange(self._size)
        tensors = [np.abs(ids[ids != 0]) for ids in self._tensors()]
        changed = True
        while changed:
            before = family.copy()
            for members in tensors:
                if members.size:
                    family[members] = family[members].min()
            changed = bool((family != before).any())
        return family

    def _tensors(self) -> Iterable[np.ndarray]:
        for layer in self._layers:
            yield from (layer.reads, layer.makes)
        for ids, _ in (*self._made, *self._activations):
            yield ids


def apply(channels: Channels, balance: Balance, exponents: np.ndarray, model: ir.Model) -> dict[str, int]:
    """Multiply constants by two to the power of the exponents; return what to report."""
    taken = graphs.names(model)
    changed = 0
    for scaled in channels.scaled:
        power = sum((_values(balance.numbers(part), exponents) for part in scaled.parts), np.zeros((), np.int64))
        if power.any():
            _write(model, channels, scaled, power, taken)
            changed += 1
    return {
        "constants": changed,
        "channels": int(np.count_nonzero(exponents)),
        "largest_factor": int(2 ** np.abs(exponents).max(initial=0)) if changed else 1,
    }


def _write(model: ir.Model, channels: Channels, scaled: Scaled, power: np.ndarray, taken: Counter[str]) -> None:
    """Replace a constant, for all layers that share it; what else uses a bias keeps the old one."""
    value = scaled.node.inputs[scaled.index]
    tensor = graphs.constant(value)
    assert value is not None
    assert tensor is not None
    while power.ndim > len(tensor.shape) and power.shape[0] == 1:
        power = power[0]
    twins = list(value.uses()) if value in channels.tied and scaled.index == 1 else []
    graphs.set_constant(model.graph, scaled.node, scaled.index, np.ldexp(tensor.numpy(), power.astype(np.int32)), taken)
    for twin, index in twins:
        twin.replace_input_with(index, scaled.node.inputs[1])
    graphs.discard(value)


def _alive(ids: np.ndarray, levels: np.ndarray, weight: float) -> _Slices:
    keep = np.isfinite(levels) & (levels > levels.max(initial=-np.inf) - _DEAD)
    return _Slices(ids[keep], levels[keep], weight)


def _values(ids: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.sign(ids) * exponents[np.abs(ids)]
    return result


def _peaks(matrix: np.ndarray) -> np.ndarray:
    """Return the largest magnitude over the last axis."""
    result: np.ndarray = np.maximum(matrix.max(axis=-1), -matrix.min(axis=-1))
    return result


def _logarithm(magnitudes: np.ndarray) -> np.ndarray:
    """Return logarithms to base two; minus infinity for zero and for what is not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result: np.ndarray = np.where(np.isfinite(magnitudes), np.log2(magnitudes), -np.inf)
    return result
