"""Which nodes to leave in float32, for the others to keep within the error.

Noise of independent roundings adds up. So the network is taken in parts, in graph order; each is simulated alone, and
the noisiest is divided until it is a single node, which stays float32. Where parts make more noise together than they
add up to, they are allowed less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.passes.precision import _half_operators as operators
from graphopt.passes.precision._half_noise import AGREE, Bench
from graphopt.passes.precision._half_plan import Plan, Site

ATTEMPTS = 24
"""How often less noise may be allowed."""
_SHARE = 0.85
"""Part of the allowed noise that parts may add up to in the first attempt, and by which it shrinks in each."""
_TRIALS = 96
"""How many parts are simulated alone; after that, parts are not divided any further."""

Loads = dict[str, float]
"""By output how much of the noise that it is allowed is made: 1 is all of it."""


class BackOff:
    """The search for the nodes of one network that make the noise."""

    def __init__(self, model: ir.Model, plan: Plan, dtype: ir.DataType, bench: Bench, min_sqnr: float) -> None:
        """Prepare to search in the plan of `model`."""
        self._model, self._plan, self._dtype = model, plan, dtype
        self._bench, self._min_sqnr = bench, min_sqnr
        self._parts: list[tuple[list[Site], Loads]] = []
        self._trials = self._attempts = 0

    def step(self, batch: int) -> None:
        """Let nodes stay float32, so that the others make less of the noise that is allowed than so far.

        Args:
            batch: the index of the batch to look at.
        """
        self._attempts += 1
        share = _SHARE**self._attempts
        if not self._parts:
            sites = [site for site in (*self._plan.ports, *self._plan.sites) if site.half]
            self._parts.append((sites, self._alone(sites, batch)))
        while self._parts:
            total: Loads = {}
            for _, loads in self._parts:
                for name, load in loads.items():
                    total[name] = total.get(name, 0.0) + load
            over = [name for name, load in total.items() if load > share]
            if not over:
                break
            worst = max(self._parts, key=lambda part: max(part[1][name] for name in over))
            self._parts.remove(worst)
            sites, loads = worst
            if len(sites) == 1 or self._trials >= _TRIALS:
                for site in sites:
                    site.stay(self._blame(loads, max(over, key=loads.__getitem__), len(sites)))
            else:
                middle = len(sites) // 2
                self._parts += [(half, self._alone(half, batch)) for half in (sites[:middle], sites[middle:])]

    def _alone(self, sites: Sequence[Site], batch: int) -> Loads:
        """Return the loads of the outputs in one batch if nothing is narrow but these sites."""
        self._trials += 1
        everything = [*self._plan.ports, *self._plan.sites]
        before = [site.half for site in everything]
        for site in everything:
            site.half = False
        for site in sites:
            site.half = True
        try:
            (noise,) = self._bench.simulate(self._model, self._plan, self._dtype, [batch])
        finally:
            for site, half in zip(everything, before, strict=True):
                site.half = half
        return self._bench.loads(noise, self._min_sqnr)

    def _blame(self, loads: Mapping[str, float], name: str, count: int) -> str:
        """Say in words what a part of a few nodes does to an output."""
        who = f"{operators.name(self._dtype)} here" + (f" and in {count - 1} nodes around it" if count > 1 else "")
        if not np.isfinite(loads[name]):
            return f"{who} makes output '{name}' infinite, NaN or of another shape"
        if not self._bench.is_float(name):
            return f"{who} changes {loads[name] * (1 - AGREE):.1%} of output '{name}'"
        left = self._min_sqnr - 10 * np.log10(max(loads[name], 1e-30))
        return f"{who} leaves {left:.1f} dB of output '{name}', without any other noise"
