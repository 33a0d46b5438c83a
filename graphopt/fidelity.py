"""How close a candidate's outputs are to those of the model it was made from, on samples that are kept for this."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from graphopt import compare
from graphopt.data import Data, fitted_batches
from graphopt.errors import UserError
from graphopt.padding import Padding
from graphopt.runtime import Arrays, ExecutionError, Port, Session

_LIMIT = 64 << 20
"""Bytes of inputs and outputs to keep at most, beyond the first batch."""


class Fidelity:
    """Samples, and what a model computes on them; padding (see `graphopt.padding`) does not count."""

    def __init__(
        self, reference: Session, data: Data, ports: tuple[Port, ...], *, samples: int, skip: int = 0, batch: int = 32
    ) -> None:
        """Run the reference and keep what it computes.

        Args:
            reference: the model to be close to.
            data: its samples.
            ports: its inputs.
            samples: how many to use at most; fewer where their outputs are large.
            skip: how many to leave out at the beginning, if at least as many as `samples` come after them.
            batch: samples per run, where the model leaves the choice.

        Raises:
            UserError: the model does not run on this data.
        """
        self._kept: list[tuple[Arrays, dict[str, np.ndarray], int]] = []
        self._padding = Padding(reference)
        first: list[tuple[dict[str, np.ndarray], int]] = []
        later: list[tuple[dict[str, np.ndarray], int]] = []
        seen = 0
        for feeds, _, count in fitted_batches(data, ports, batch, skip + samples):
            chosen, begun = (later, seen - skip) if seen >= skip else (first, seen)
            if begun < samples:
                chosen.append((feeds, count))
            seen += count
        enough = sum(count for _, count in later) >= min(samples, skip)
        size = 0
        for feeds, count in later if later and enough else first or later:
            try:
                outputs = reference.run(feeds)
            except ExecutionError as error:
                raise UserError(f"{data.name}: the model does not run on this data: {error}") from None
            size += sum(array.nbytes for array in (*feeds.values(), *outputs.values()))
            if self._kept and size > _LIMIT:
                break
            self._padding.observe(feeds, outputs)
            outputs = self._padding.blanked(outputs, feeds)
            self._kept.append((feeds, outputs, count))

    @property
    def samples(self) -> int:
        """How many samples were kept."""
        return sum(count for _, _, count in self._kept)

    def sqnr(self, session: Session) -> dict[str, float]:
        """Return the signal-to-noise ratio of every floating-point output, dB; -infinity where one becomes unusable.

        Raises:
            ExecutionError: the candidate does not run.
        """
        signal: defaultdict[str, float] = defaultdict(float)
        noise: defaultdict[str, float] = defaultdict(float)
        for feeds, expected, count in self._kept:
            actual = self._padding.blanked(session.run(feeds), feeds)
            for name, reference in expected.items():
                if not compare.is_float(reference.dtype):
                    continue
                got = actual.get(name)
                if got is None or got.shape != reference.shape:
                    noise[name] = math.inf
                    continue
                rows = slice(count) if reference.ndim and len(reference) >= count else ...
                one, two = compare.sqnr_sums(reference[rows], got[rows])
                signal[name] += one
                noise[name] += two if math.isfinite(two) else math.inf
        return {name: compare.decibels(signal[name], noise[name]) for name in noise}

    def worst(self, session: Session) -> float:
        """Return the signal-to-noise ratio of the worst output, dB; infinity where no output is floating-point."""
        return min(self.sqnr(session).values(), default=math.inf)
