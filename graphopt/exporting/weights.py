"""Load a checkpoint into a module, from files that hold tensors and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.errors import UserError, did_you_mean

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "ema", "module")
"""Keys under which training scripts put the state dict beside optimizers and counters."""

_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
"""What DataParallel, training wrappers and torch.compile put before names."""

_COUNTER = "num_batches_tracked"
"""Of training only, and absent from old checkpoints."""

_SHOWN = 3


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Fill a module from a `.safetensors` file or a `.pth` state dict.

    Tensors stay in the mapped file until they are used. Pickled modules are refused: to read one is to run it.

    Raises:
        UserError: there is no such file, it holds more than tensors, or they do not fit the module.
    """
    state = _fitted(_unwrapped(_read(Path(path)), str(path)), module)
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith(_COUNTER)]
    unknown = [key for key in state if key not in own]
    if missing or unknown:
        raise UserError(f"{path}: does not fit the network: {_misfit(missing, unknown, own, state)}")
    wrong = next((key for key in state if own[key].shape != state[key].shape), None)
    if wrong is not None:
        shapes = f"{list(state[wrong].shape)}, the network wants {list(own[wrong].shape)}"
        raise UserError(f"{path}: '{wrong}' has shape {shapes}; build the network as it was trained")
    module.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in state.items()}, strict=False, assign=True)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        return torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        found = reason.strip()[:160] or "not a state dict"
        raise UserError(
            f"{path}: holds pickled Python objects, which would run code when read ({found}); save tensors alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        if "mmap can only be used" in str(error):  # the format before zip files
            return _old_format(path)
        raise UserError(f"{path}: cannot be read as weights: {str(error).splitlines()[0][:200]}") from None


def _old_format(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a damaged pickle raises
        raise UserError(f"{path}: cannot be read as weights: {str(error).splitlines()[0][:200]}") from None


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path}: needs the library safetensors; run pip install safetensors") from None
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path}: not a .safetensors file, or a truncated one ({error}); copy it again") from None


def _unwrapped(loaded: Any, path: str) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return dict(loaded)
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    raise UserError(f"{path}: holds no state dict; save one: torch.save(model.state_dict(), FILE)")


def _fitted(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Take off a prefix that all names have and the module's do not."""
    own = module.state_dict().keys()
    for prefix in _PREFIXES:
        if not state.keys() & own and state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _misfit(missing: list[str], unknown: list[str], own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing)} tensors ({', '.join(missing[:_SHOWN])})")
    if unknown:
        parts.append(f"{len(unknown)} have no place ({', '.join(unknown[:_SHOWN])}{did_you_mean(unknown[0], own)})")
    return " and ".join(parts)
