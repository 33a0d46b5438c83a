"""Training in several processes, as `torchrun` starts them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import distributed


def join(device: torch.device) -> tuple[int, int]:
    """Join the group of processes that `torchrun` started, if it did.

    Returns:
        The number of this process, and how many there are.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def agreed(value: Any, world: int) -> Any:
    """Return what the first process has: what only it computes, all must act upon."""
    if world == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]
