"""Which of several factors per channel lets 8-bit integers compute a product best.

Migration strength is a matter of measurement: each group of products that read the same activation is computed on sampled
rows with 8-bit activations (one scale) and 8-bit weights (one scale per output), and the factors with the least error stay.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.activations import observe
from graphopt.data import Data
from graphopt.passes.quantization._equalize_balance import Balance, Emphasis
from graphopt.passes.quantization._equalize_channels import Layer
from graphopt.target import Target

_ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_SHARES = (0.95, 0.99, 0.999)
"""Of the channels of an activation, how many are as they should be; the rest is brought down to them."""
_ROWS = 256
_LEAST = 0.5
"""Channels are taken to reach this part of what the middle one does."""
_BETTER = 0.98
"""An error must fall below this part of what it is for factors to change."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What an activation holds on data.

    Attributes:
        rows: some of it, float32 [rows, channels].
        low, high: extremes per channel over all of it, and zero, float32 [channels].
    """

    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def peaks(self) -> np.ndarray:
        """The largest magnitude per channel."""
        result: np.ndarray = np.maximum(self.high, -self.low)
        return result

    def cautious(self) -> Sample:
        """Return it with larger maxima where channels are nearly silent: on more data they may speak up."""
        least = _LEAST * float(np.median(self.peaks))
        return dataclasses.replace(self, high=np.where(self.peaks < least, np.float32(least), self.high))


def sample(
    model: ir.Model, values: Sequence[ir.Value], data: Data, place: Target, samples: int, batch: int
) -> dict[ir.Value, Sample]:
    """Observe values whose last axis counts channels.

    Raises:
        UserError: the model does not run on this data.
    """
    rows: defaultdict[ir.Value, list[np.ndarray]] = defaultdict(list)
    low: dict[ir.Value, np.ndarray] = {}
    high: dict[ir.Value, np.ndarray] = {}
    if not values:
        return {}
    for arrays, count in observe(model, values, data, place=place, samples=samples, batch=batch):
        quota = max(1, _ROWS * count // samples)
        for value, array in arrays.items():
            matrix = array.reshape(-1, array.shape[-1])
            rows[value].append(matrix[:: max(1, len(matrix) // quota)][:quota].copy())
            low[value] = np.minimum(low.get(value, 0), matrix.min(axis=0, initial=0))
            high[value] = np.maximum(high.get(value, 0), matrix.max(axis=0, initial=0))
    return {value: Sample(np.concatenate(parts), low[value], high[value]) for value, parts in rows.items()}


def search(
    balance: Balance, samples: Mapping[ir.Value, Sample], readers: Mapping[ir.Value, Sequence[Layer]]
) -> np.ndarray:
    """Return the exponents that are best for each family of channels, int64 [number].

    Args:
        balance: proposes exponents.
        samples: what activations hold.
        readers: the layers that read each of them.
    """
    families: defaultdict[int, list[_Group]] = defaultdict(list)
    for value, layers in readers.items():
        group = _Group(samples[value], balance.numbers(layers[0].inputs), layers)
        for family in np.unique(balance.families[np.abs(group.numbers[group.numbers != 0])]).tolist():
            families[family].append(group)
    exponents = balance.zero()
    errors = {family: sum(group.error(exponents) for group in groups) for family, groups in families.items()}
    changed = True
    while changed:  # ends, as errors fall by a part each time
        changed = False
        proposals = [balance.solve(Emphasis(0, 1 - a, a), exponents) for a in _ALPHAS]
        groups_of_all = list(dict.fromkeys(group for groups in families.values() for group in groups))
        proposals += [_lowered(groups_of_all, exponents, share) for share in _SHARES]
        for proposal in proposals:
            for family, groups in families.items():
                trial = np.where(balance.families == family, proposal, exponents)
                if (trial == exponents).all():
                    continue
                error = sum(group.error(trial) for group in groups)
                if error < errors[family] * _BETTER:
                    exponents, errors[family], changed = trial, error, True
    return exponents


def _lowered(groups: Sequence[_Group], exponents: np.ndarray, share: float) -> np.ndarray:
    """Return exponents that make the largest channels of every activation as large as a share of them is at most.

    A channel that is huge for a few tokens has huge weights, too, so that making both alike leaves it huge.
    """
    result = exponents.copy()
    for group in groups:
        peaks = group.peaks * group.factors(exponents)
        excess = np.rint(np.log2(np.maximum(peaks / max(float(np.quantile(peaks, share)), 1e-30), 1))).astype(np.int64)
        free = group.numbers != 0
        result[np.abs(group.numbers[free])] -= (np.sign(group.numbers) * excess)[free]
    return result


class _Group:
    """The products that read one activation.

    Attributes:
        numbers: of the exponents of its channels.
    """

    def __init__(self, found: Sample, numbers: np.ndarray, layers: Sequence[Layer]) -> None:
        self.numbers = numbers
        self._found = found
        self._weights = [layer.matrix()[0, :, :, 0].T for layer in layers]
        self._exact = [found.rows @ weight for weight in self._weights]

    @property
    def peaks(self) -> np.ndarray:
        """The largest magnitude of each channel."""
        return self._found.peaks

    def factors(self, exponents: np.ndarray) -> np.ndarray:
        """Return what each channel of the activation is multiplied by."""
        result: np.ndarray = np.exp2(np.sign(self.numbers) * exponents[np.abs(self.numbers)]).astype(np.float32)
        return result

    def error(self, exponents: np.ndarray) -> float:
        """Return the sum over layers of the error's energy relative to the output's, row by row.

        A few rows are often so large that an error which drowns all others is nothing beside them; normalizations that
        follow make all rows count alike.
        """
        factors = self.factors(exponents)
        rows, total = _rounded_rows(self._found, factors), 0.0
        for weight, exact in zip(self._weights, self._exact, strict=True):
            error = rows @ _rounded_columns(weight / factors[:, None]) - exact
            total += float(np.mean(np.square(error).sum(axis=1) / np.maximum(np.square(exact).sum(axis=1), 1e-30)))
        return total


def _rounded_rows(found: Sample, factors: np.ndarray) -> np.ndarray:
    """Return scaled activations as 8-bit integers with a zero point hold them."""
    low, high = float((found.low * factors).min()), float((found.high * factors).max())
    scale = max((high - low) / 255, 1e-30)
    zero = np.rint(-low / scale)
    result: np.ndarray = ((np.clip(np.rint(found.rows * factors / scale) + zero, 0, 255) - zero) * scale).astype(
        np.float32
    )
    return result


def _rounded_columns(weight: np.ndarray) -> np.ndarray:
    """Return weights [inputs, outputs] as 8-bit integers with a scale per output hold them."""
    scales = np.maximum(np.abs(weight).max(axis=0) / 127, 1e-30)
    result: np.ndarray = np.rint(weight / scales) * scales
    return result
