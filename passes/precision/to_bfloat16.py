"""Convert a float32 network to bfloat16, with a stated error

bfloat16 has the range of float32 and 8 bits of digits: nothing overflows, and everything is eight times coarser than in
float16. As in `to-float16` the error is measured in a simulation that rounds every tensor that is bfloat16, and nodes
go back to float32 until every output keeps `--min-sqnr` dB. Inputs and outputs stay float32 unless `--no-keep-io` is given.

The result must run on the target, and few do: ONNX Runtime's CPU provider has no kernels for bfloat16 but Cast, and inserts
no casts as it does for float16, so the model is refused there, with the operator that it lacks. `--target cuda` has
kernels on GPUs since NVIDIA's Ampere; `--target reference` runs ONNX's own evaluator, which is slow. bfloat16 needs
opset 13.
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
class ToBfloat16(Pass):
    """Convert to bfloat16 what bears it.

    Raises:
        PreconditionError: it cannot be run, nothing can be bfloat16 within the error, or the result does not run on the
            target.
        UserError: the data does not fit the model, or `keep` names nothing.
        ValueError: a field is out of its range.
    """

    contract = LOSSY

    keep_io: bool = param(True, "Whether inputs and outputs stay float32.")
    min_sqnr: float = param(20.0, "What every output keeps at least: signal-to-noise ratio in dB.")
    keep: tuple[str, ...] = param((), "Names of nodes, or operators, that stay float32.")
    data: str | Path | Mapping[str, np.ndarray] | Data = param(
        "", "Inputs to measure on: a .npz file or package.module:factory; by default seeded random ones.", source="data"
    )
    samples: int = param(256, "How many samples to use at most.")
    seed: int = param(0, "Seed of the random inputs.")
    target: str = param("cpu", "Where the result must run.")

    def __post_init__(self) -> None:
        _half.check(_HEADROOM, self.samples)

    def call(self, model: ir.Model) -> Result:
        """Convert in place; the report counts nodes by type and casts, and tells the ratio of the worst output in dB."""
        request = _half.Request(
            self.pass_name(), ir.DataType.BFLOAT16, self.keep_io, self.min_sqnr, _HEADROOM, tuple(self.keep),
            self.data, self.samples, self.seed, self.target,
        )  # fmt: skip
        return _half.convert(model, request)


_HEADROOM = 1.0
"""The range is that of float32."""
