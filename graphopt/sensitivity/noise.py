"""How much noise each source makes at the outputs of a model.

Noise powers of small independent perturbations add, to first order, so what any choice of sources makes together can be
told from what each makes alone. A deep network has hundreds of sources: these are measured together, a stretch of the
network at a time, and only stretches that matter are taken apart, half by half, down to single sources (group testing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from graphopt import compare, runtime
from graphopt.fidelity import Fidelity
from graphopt.runtime import ExecutionError
from graphopt.sensitivity.sources import Source, Sources
from graphopt.target import Target

Noise = Mapping[str, float]
"""Noise power of every output, as a share of the power of its signal."""

_MOST = 192
"""Sources that are all measured alone."""
_NEGLIGIBLE = 0.01
"""Share of all noise below which a stretch is not taken apart."""


def of(sqnr: Mapping[str, float]) -> dict[str, float]:
    """Return noise, given signal-to-noise ratios in dB."""
    return {name: 10 ** (-decibels / 10) if decibels > -math.inf else math.inf for name, decibels in sqnr.items()}


def decibels(noise: Noise) -> dict[str, float]:
    """Return signal-to-noise ratios in dB, given noise."""
    return {name: compare.decibels(1.0, power) for name, power in noise.items()}


def total(parts: Iterable[Noise], outputs: Iterable[str]) -> dict[str, float]:
    """Return the noise that independent sources make together, the same in whatever order they come."""
    every = list(parts)
    return {name: math.fsum(part[name] for part in every) for name in outputs}


def worst(noise: Noise) -> float:
    """Return the signal-to-noise ratio of the worst output, dB; infinity where there is none."""
    return min(decibels(noise).values(), default=math.inf)


class Meter:
    """Measures sources of noise one at a time.

    Attributes:
        runs: how many models were run so far.
    """

    def __init__(self, sources: Sources, fidelity: Fidelity, place: Target) -> None:
        self._sources, self._fidelity, self._place = sources, fidelity, place
        self.runs = 0

    def together(self, sources: Iterable[Source]) -> dict[str, float]:
        """Return the noise that some sources make, and no others; infinite where the model does not run so."""
        self.runs += 1
        try:
            return of(self._fidelity.sqnr(runtime.open_session(self._sources.apply(sources), self._place)))
        except ExecutionError as error:
            raise RuntimeError(f"the float model with rounded values does not run: {error}") from error

    def each(self, progress: Callable[[str], None] = lambda text: None) -> dict[Source, dict[str, float]]:
        """Return the noise of every source. Those that were measured together and matter little share it equally."""
        every = list(self._sources)
        found: dict[Source, dict[str, float]] = {}
        if len(every) <= _MOST:
            for number, source in enumerate(every, 1):
                progress(f"{number} of {len(every)}: {source.name}")
                found[source] = self.together([source])
            return found
        whole = self.together(every)
        stretches: list[Sequence[Source]] = [every]
        while stretches:
            stretch = stretches.pop()
            progress(f"{len(found)} of {len(every)}: {stretch[0].name}")
            noise = self.together(stretch)
            if len(stretch) == 1 or all(noise[name] <= _NEGLIGIBLE * whole[name] for name in whole):
                share = {name: power / len(stretch) for name, power in noise.items()}
                found.update(dict.fromkeys(stretch, share))
            else:
                middle = len(stretch) // 2
                stretches += [stretch[middle:], stretch[:middle]]
        return found
