"""Is a quantized model slower than the float model? Measured, longer where a first attempt leaves it open."""

from __future__ import annotations

import functools

import onnx_ir as ir

from graphopt import runtime
from graphopt.data import Data, batch_size
from graphopt.latency import Latency, compare_latency
from graphopt.target import Target

_TIE = 0.97
"""An interval of the speed-up that contains 1 and starts no lower than this counts as no slower."""
_CLEAR = 1.05
"""An interval that starts here or further on is not a matter of chance."""
_LONGER = 3
"""How much longer to measure where a first attempt leaves it open whether the result is slower."""


class Race:
    """Times models against a float model."""

    def __init__(self, model: ir.Model, place: Target, data: Data, seconds: float) -> None:
        """Prepare.

        Args:
            model: the float model.
            place: where to run.
            data: to run on, one sample at a time where the model leaves the choice.
            seconds: for a first attempt.
        """
        self._model, self._place, self._seconds = model, place, seconds
        self._batch = batch_size(runtime.model_inputs(model), 1)
        self._feeds = next(data.batches(self._batch, self._batch))[0]

    def against_float(self, made: ir.Model) -> Latency:
        """Time a model until it is known whether it is slower, or a first attempt and a longer one are over."""
        latency = self._compare(made)
        is_open = latency.ci95[0] < _CLEAR and latency.ci95[1] >= 1
        return self._compare(made, _LONGER) if is_open else latency

    def _compare(self, made: ir.Model, times: float = 1) -> Latency:
        one, two = (functools.partial(runtime.open_session, model, self._place) for model in (self._model, made))
        return compare_latency(one, two, self._feeds, self._batch, seconds=self._seconds * times)


def pays(latency: Latency) -> bool:
    """Tell whether a model is no slower than the float model."""
    return latency.ci95[0] >= _TIE and latency.ci95[1] >= 1


def speed(latency: Latency) -> str:
    """Return the speed-up in words."""
    return f"{latency.speedup:.2f}x the speed ({latency.ci95[0]:.2f} to {latency.ci95[1]:.2f})"
