"""Save a training, and go on with it: tensors and plain numbers only, so that loading never runs foreign code."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from graphopt import io
from graphopt.errors import UserError

_VERSION = 2


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Return what tells this training from any other: a hash of everything that decides about its result."""
    return hashlib.sha256(json.dumps([_VERSION, facts], sort_keys=True, default=str).encode()).hexdigest()


def digest(model: ir.Model) -> str:
    """Return a hash of a model: its operators with their attributes, inputs and outputs, and its initializers."""
    found = hashlib.sha256(repr(sorted(model.opset_imports.items())).encode())
    for node in (*model.graph, *(node for function in model.functions.values() for node in function)):
        found.update(ir.serde.serialize_node(node).SerializeToString(deterministic=True))
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            found.update(f"{name} {value.const_value.dtype} {value.const_value.shape}".encode())
            found.update(value.const_value.tobytes())
    return found.hexdigest()


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a state atomically.

    Raises:
        UserError: it cannot be written.
    """
    with io.staged(path) as draft:
        try:
            torch.save(dict(content), draft)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: cannot be written ({error}); free some space or choose another place") from None


def load(path: str | Path, expected: str) -> dict[str, Any] | None:
    """Read a state, or return None if there is none, or one of another training.

    Raises:
        UserError: the file is not a state.
    """
    if not Path(path).exists():
        return None
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        found = content["fingerprint"]
    except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a checkpoint of graphopt, or a damaged one ({reason}); remove it") from None
    return content if found == expected else None
