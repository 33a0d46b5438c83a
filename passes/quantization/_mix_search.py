"""In what order units go back to float, the one first that is rid of the most noise for the time it costs."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping

from graphopt.passes.quantization._mix_plan import Choice, Planner
from graphopt.sensitivity import noise
from graphopt.sensitivity.sources import Source

_STEP_DB = 3.0
"""By how much more is asked for when what was asked for is reached."""
_SILENCE_DB = 120.0
"""Float32 has no more than this."""
_LEAST_US = 0.1
"""What a move costs at least, so that free ones are compared by their noise."""
_LOUD = 1e6
"""Noise beyond this many times what is allowed is no worse."""


@dataclasses.dataclass(frozen=True)
class Move:
    """One step on the way from integers to floats.

    Attributes:
        source: the loudest source of noise that it is rid of.
        floats: names of all nodes to leave in float from here on.
        predicted: the signal-to-noise ratio of the worst output that it comes to, dB.
    """

    source: Source
    floats: frozenset[str]
    predicted: float


def moves(planner: Planner, each: Mapping[Source, noise.Noise], least: float, outputs: list[str]) -> Iterator[Move]:
    """Yield moves until hardly anything is rounded, those first that bring the outputs up to `least`, in dB.

    Lazily greedy (Minoux 1978): a move is tried again only when it may be the best by what it promised before.
    """
    floats: frozenset[str] = frozenset()
    here = planner.choose(floats)
    sources = [source for source in each if planner.around(source)]
    while here.integers and least < _SILENCE_DB:
        gauge = Gauge(each, least, outputs)
        queue = [(-math.inf, number) for number in range(len(sources))]
        while queue and gauge.excess(here) > 0:
            _, number = heapq.heappop(queue)
            source = sources[number]
            if source not in here.rounded:
                continue
            there = floats | planner.around(source)
            after = planner.choose(there)
            gain = (gauge.excess(here) - gauge.excess(after)) / max(after.us - here.us, _LEAST_US)
            if queue and -gain > queue[0][0]:
                heapq.heappush(queue, (-gain, number))
            elif gain > 0:
                rid = [source for source in each if source in here.rounded - after.rounded]
                loudest = min(rid, key=lambda source: noise.worst(each[source]))
                floats, here = there, after
                yield Move(loudest, floats, gauge.worst(here))
        least += _STEP_DB


class Gauge:
    """Tells what noise remains of a choice, and how much more than allowed."""

    def __init__(self, each: Mapping[Source, noise.Noise], least: float, outputs: Iterable[str]) -> None:
        self._each, self._outputs = each, list(outputs)
        self._allowed = 10 ** (-least / 10)

    def worst(self, choice: Choice) -> float:
        """Return the predicted signal-to-noise ratio of the worst output, dB."""
        return noise.worst(self._noise(choice))

    def excess(self, choice: Choice) -> float:
        """Return how much noise there is beyond what is allowed, in multiples of that, over all outputs."""
        over = (min(power / self._allowed, _LOUD) - 1 for power in self._noise(choice).values())
        return math.fsum(max(value, 0.0) for value in over)

    def _noise(self, choice: Choice) -> dict[str, float]:
        return noise.total((self._each[source] for source in choice.rounded), self._outputs)
