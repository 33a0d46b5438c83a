"""How large activations become, channel by channel, on data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.activations import observe
from graphopt.data import Data
from graphopt.passes.quantization._equalize_channels import Channels
from graphopt.target import Target


def peaks(
    model: ir.Model, channels: Channels, values: Sequence[ir.Value], data: Data, place: Target, samples: int, batch: int
) -> dict[ir.Value, np.ndarray]:
    """Return the largest magnitude of values on data, in the shape of their exponents.

    Args:
        model: never changed.
        channels: its exponents.
        values: of its main graph.
        data: the samples.
        place: where it runs.
        samples: how many samples to use at most.
        batch: samples per run at most, where the model leaves the choice.

    Raises:
        UserError: the model does not run on this data.
    """
    found: dict[ir.Value, np.ndarray] = {}
    if not values:
        return found
    for arrays, _ in observe(model, values, data, place=place, samples=samples, batch=batch):
        for value, array in arrays.items():
            axes = tuple(axis for axis, size in enumerate(channels.of(value).shape) if size == 1)
            peak = np.abs(array).max(axis=axes, keepdims=True, initial=0)
            found[value] = np.maximum(found[value], peak) if value in found else peak
    return found
