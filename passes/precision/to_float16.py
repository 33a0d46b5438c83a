"""Convert a float32 network to float16, with a stated error

Weights take half the space, and GPUs and phones compute faster. Which nodes stay float32 is decided by what is
measured on data, or on seeded random inputs: nodes whose numbers or constants leave the range of float16 (65504, and
6e-5 at the lower end), whose sums do inside, or whose rounding drowns the signal. Everything else becomes float16. Inputs and
outputs stay float32 unless `--no-keep-io` is given.

The error is measured in a simulation that rounds every tensor that is float16 and adds up in float32, as GPUs do.
Running the result on a CPU would not show it: ONNX Runtime computes most of float16 in float32 there, and does not even
round in between. Nodes go back to float32, those that make most of the noise first, until every output keeps
`--min-sqnr` dB on these inputs; integers and booleans must agree in 99 of 100. The result must also load on the target
and keep within the same error there. On a CPU float16 makes a model smaller, seldom faster.

Random inputs may be far smaller than real ones, so give data where there is some. Functions are inlined, for their
bodies have no types of their own. Networks that are quantized already keep the nodes around their integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.data import Data
from graphopt.passbase import LOSSY, Pass, Result, param
from graphopt.passes.precision import _half


@dataclass(frozen=True)
class ToFloat16(Pass):
    """Convert to float16 what bears it.

    Raises:
        PreconditionError: it cannot be run, nothing can be float16 within the error, or the result does not load.
        UserError: the data does not fit the model, or `keep` names nothing.
        ValueError: a field is out of its range.
    """

    contract = LOSSY

    keep_io: bool = param(True, "Whether inputs and outputs stay float32.")
    min_sqnr: float = param(40.0, "What every output keeps at least: signal-to-noise ratio in dB.")
    headroom: float = param(4.0, "How many times larger than on this data numbers may become before float16 overflows.")
    keep: tuple[str, ...] = param((), "Names of nodes, or operators, that stay float32.")
    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "Inputs to measure on: a .npz file or package.module:factory; by default seeded random ones.", source="data"
    )
    samples: int = param(256, "How many samples to use at most.")
    seed: int = param(0, "Seed of the random inputs.")
    target: str = param("cpu", "Where the result must run.")

    def __post_init__(self) -> None:
        _half.check(self.headroom, self.samples)

    def call(self, model: ir.Model) -> Result:
        """Convert in place; the report counts nodes by type and casts, and tells the ratio of the worst output in dB."""
        request = _half.Request(
            self.pass_name(), ir.DataType.FLOAT16, self.keep_io, self.min_sqnr, self.headroom, tuple(self.keep),
            self.data, self.samples, self.seed, self.target,
        )  # fmt: skip
        return _half.convert(model, request)
