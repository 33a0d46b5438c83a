"""DFT, whose axis became an input in opset 20."""

from __future__ import annotations

import numpy as np

from graphopt.passes.precision._opset.site import Site
from graphopt.passes.precision._opset.table import down, up


@up(20, "DFT")
def _axis_to_input(site: Site) -> None:
    site.put(2, np.asarray(site.pop("axis", 1), np.int64), "axis")


@down(20, "DFT")
def _axis_to_attribute(site: Site) -> None:
    axis = -2 if site.input(2) is None else int(site.constant(2, "axis input"))
    if site.input(2) is not None:
        site.put(2, None)
    site.set("axis", axis)
