"""Learn integers and scales of weights, a section of a quantized graph at a time, without labels

A section lies between two places where the network is a single tensor, as between the blocks of a residual network. Its
weights, their scales and its biases are trained together to make of what the quantized sections before it yield what the
float model computes there. Errors of layers within a section make up for each other so, which layers rounded one by one
(round-weights) cannot, and there are still too few numbers in a section to fit themselves to the few samples (block
reconstruction: Li et al. 2021, arXiv:2102.05426; learned scales: Esser et al. 2020, arXiv:1902.08153).

A section stays as it was where it does not come closer on samples that it was not trained on. Grids of activations stay
as they are, and so do the integer kernels that depend on equal ones. It begins with what is stored, so it may follow
round-weights, which is faster, and with 4-bit weights about as good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import cutting, tapping, target
from graphopt.data import open_data
from graphopt.passbase import Result, param
from graphopt.passes.quantization import _adaround, _parts
from graphopt.passes.quantization._graphs import label
from graphopt.passes.quantization._recovery import Recovery, refusal
from graphopt.passes.quantization._sections import Section, sections
from graphopt.passes.quantization._soft import soften
from graphopt.passes.quantization._twins import Twin, open_reference, read, twins
from graphopt.pipeline import duplicate
from graphopt.runtime import ExecutionError

_LEAST = 8
"""Samples."""
_LEAST_GAIN = 0.1
"""dB on samples held out below which a section stays as it was."""
_LIMIT = 256 << 20
"""Bytes of what a section reads and should compute that are kept at most."""


@dataclasses.dataclass(frozen=True)
class Reconstruct(Recovery):
    """Train sections of a quantized graph to compute what the float model computes; needs torch.

    Raises:
        PreconditionError: no data or reference was given, no weight is quantized, or torch is missing.
        UserError: the reference is another model, or the data does not fit.
        ValueError: a field is out of range.
    """

    layers: int = param(2, "layers of a section, at least")
    steps: int = param(800, "steps of gradient descent for each section")
    seed: int = param(0, "of the order of the samples")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "layers", "steps")
        self._at_least(0, "seed")

    def requires(self, model: ir.Model) -> None:
        """See `Recovery.requires`; torch is needed as well."""
        super().requires(model)
        _adaround.require_torch("use round-weights")

    def call(self, model: ir.Model) -> Result:
        from graphopt.training import rounding

        reference = open_reference(self.reference, "reconstruct")
        found, skipped = twins(model, reference, "reconstruct")
        reasons = [refusal(twin) for twin in found]
        skipped += [(label(t.layer.node), reason) for t, reason in zip(found, reasons, strict=True) if reason]
        trained = {twin.layer.node: twin for twin, reason in zip(found, reasons, strict=True) if not reason}
        names, gains = _parts.Names(model), []
        for number, section in enumerate(sections(model, reference, self.layers)):
            inside = [trained[node] for node in section.nodes if node in trained]
            feeds, wanted = self._gathered(model, reference, section)
            reason = _untrainable(inside, feeds, wanted)
            if not reason:
                try:
                    part = _part(model, section)
                    soft = rounding.Soft(part, soften(part, inside))
                    if soft.shape(feeds) != wanted.shape[1:]:
                        reason = f"the reference has '{section.target.name}' of another shape there"
                except ExecutionError as error:
                    reason = str(error)
            if reason:
                skipped.append((section.end.name or "", reason))
                continue
            rng = np.random.default_rng([self.seed, number])
            gain = rounding.fit(soft, feeds, wanted, self.steps, self.batch, rng)
            gains.append(gain if gain >= _LEAST_GAIN else 0.0)
            if gains[-1]:
                for twin, learned in zip(inside, soft.results(), strict=True):
                    rows = _parts.Rows(learned.integers, learned.scale)
                    layer = _parts.write_weight(model.graph, twin.layer, rows, names)
                    if learned.bias is not None:
                        _parts.write_bias(model.graph, layer, learned.bias, names)
        report = {"sections": len(gains), "mean_gain_db": round(float(np.mean(gains)), 2) if gains else 0.0}
        return Result(model, any(gains), report, skipped)

    def _gathered(
        self, model: ir.Model, reference: ir.Model, section: Section
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return what a section reads in the quantized model, and what it should compute; as many samples as fit."""
        place, held = target.find("cpu", self.threads), 0
        inputs: dict[str, list[np.ndarray]] = {value.name or "": [] for value in section.starts}
        outputs: list[np.ndarray] = []
        wanted = [(model, section.starts), (reference, [section.target])]
        for _, (one, other) in read(wanted, open_data(self.data), place, self.samples, self.batch):
            for value in section.starts:
                inputs[value.name or ""].append(one[value])
            outputs.append(other[section.target])
            held += sum(array.nbytes for array in (*one.values(), *other.values()))
            if held > _LIMIT:
                break
        return {name: np.concatenate(arrays) for name, arrays in inputs.items()}, np.concatenate(outputs)


def _part(model: ir.Model, section: Section) -> ir.Model:
    """Return a section as a model of its own."""
    part = duplicate(model)
    values = tapping.twins(model, part)
    cutting.extract(part, [values[value] for value in section.starts], [values[section.end]])
    return part


def _untrainable(inside: Sequence[Twin], feeds: Mapping[str, np.ndarray], wanted: np.ndarray) -> str | None:
    if not inside:
        return "it has nothing to train"
    if len(wanted) < _LEAST or any(len(array) != len(wanted) for array in feeds.values()):
        return f"its batch is fixed, or there are fewer than {_LEAST} samples"
    return None
