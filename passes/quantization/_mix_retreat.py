"""How far on the way from integers to floats a model must go: a monotone search on quantized models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from graphopt.passes.quantization._mix_plan import Planner
from graphopt.passes.quantization._mix_search import Gauge, Move, moves
from graphopt.passes.quantization._mix_trial import Placement, Trial, Tried
from graphopt.sensitivity import noise
from graphopt.sensitivity.sources import Source


class Retreat:
    """Nodes that go back to float, in the order in which they do.

    Attributes:
        start: the signal-to-noise ratio predicted for the worst output when none has, dB.
    """

    def __init__(
        self,
        planner: Planner,
        trial: Trial,
        each: Mapping[Source, noise.Noise],
        least: float,
        outputs: Iterable[str],
    ) -> None:
        """Begin with everything quantized that pays.

        Args:
            planner: tells what a choice comes to.
            trial: makes and measures it.
            each: what noise each source makes.
            least: signal-to-noise ratio to keep, dB.
            outputs: names of floating-point outputs.
        """
        names = list(outputs)
        self._planner, self._trial, self._least = planner, trial, least
        self._coming = moves(planner, each, least, names)
        self._moves: list[Move] = []
        self.start = Gauge(each, least, names).worst(planner.choose(()))

    def shortest(self) -> list[Move] | None:
        """Return as few moves, from the first on, as bring the model within the budget; None where nothing but floats does.

        Starts where the prediction is good enough, and strides from there in the right direction before it bisects.
        """
        near = 0
        while self.predicted(near) < self._least and self._reaches(near + 1):
            near += 1
        step = 1
        if self._fits(near):
            low, high = -1, near
            while high > 0:
                probe = max(0, high - step)
                if not self._fits(probe):
                    low = probe
                    break
                high, step = probe, 2 * step
        else:
            low = near
            while True:
                probe = low + step
                while not self._reaches(probe):
                    probe -= 1
                if probe == low:
                    return None
                if self._fits(probe):
                    high = probe
                    break
                low, step = probe, 2 * step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(middle) else (middle, high)
        return None if self.tried(high) is None else self._moves[:high]

    def predicted(self, taken: int) -> float:
        """Return the predicted signal-to-noise ratio of the worst output after so many moves, dB."""
        return self._moves[taken - 1].predicted if taken else self.start

    def tried(self, taken: int) -> Tried | None:
        """Return the model after so many moves; None where nothing in it is quantized any more."""
        floats = self._moves[taken - 1].floats if taken else frozenset()
        if not self._planner.choose(floats).integers:
            return None
        return self._trial.make(Placement(self._planner.excluded(floats)))

    def _fits(self, taken: int) -> bool:
        tried = self.tried(taken)
        return tried is None or tried.fits

    def _reaches(self, taken: int) -> bool:
        """Tell whether there are so many moves."""
        while len(self._moves) < taken:
            move = next(self._coming, None)
            if move is None:
                return False
            self._moves.append(move)
        return True
