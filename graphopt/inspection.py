"""Say what is in a model."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from graphopt import io, runtime
from graphopt.runtime import Port


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Facts about a model, read without running it.

    Attributes:
        path, bytes: the file, and its size with external data.
        ir_version, opsets, producer: as declared.
        inputs, outputs: ports.
        nodes, operators: count in all, subgraphs and functions included, and per operator.
        parameters: elements of all tensors, and of each element type.
        functions: their names.
        renamed: `(old, new)` names of values that the file defines twice.
        metadata: model-level metadata, without provenance.
        provenance: how graphopt made the model, or None.
    """

    path: str
    bytes: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    operators: dict[str, int]
    parameters: dict[str, int]
    functions: list[str]
    renamed: list[tuple[str, str]]
    metadata: dict[str, str]
    provenance: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Return the object of `inspect --json`; element types are names."""
        record = dataclasses.asdict(self)
        for port in (*record["inputs"], *record["outputs"]):
            port["dtype"] = port["dtype"].name if port["dtype"] is not None else None
        return record


def inspect(path: str | Path) -> Inspection:
    """Read a model and say what is in it.

    Raises:
        UserError: it cannot be read.
    """
    model = io.load(path)
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in io.nodes(model))
    parameters: Counter[str] = Counter()
    for tensor in io.tensors(model):
        parameters[tensor.dtype.name] += tensor.size
    metadata = dict(model.metadata_props)
    made = metadata.pop(io.PROVENANCE, None)
    return Inspection(
        path=str(path),
        bytes=io.file_bytes(model),
        ir_version=model.ir_version,
        opsets=dict(model.opset_imports),
        producer=f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        inputs=runtime.model_inputs(model),
        outputs=runtime.ports(model.graph.outputs),
        nodes=sum(operators.values()),
        operators=dict(operators.most_common()),
        parameters=dict(parameters.most_common()),
        functions=[f"{f.domain}::{f.name}" for f in model.functions.values()],
        renamed=model.meta[io.RENAMED],
        metadata=metadata,
        provenance=_provenance(made),
    )


def _provenance(text: str | None) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
