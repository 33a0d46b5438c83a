"""If, Loop and Scan; bodies arrive as functions of their inputs that return a list of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.runtimes._torch.table import Host, operator

Body = Callable[..., list[Any]]


@operator("If")
def if_(cond: Host, *, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    """One branch or the other."""
    return tuple((then_branch if bool(cond.reshape(-1)[0]) else else_branch)())


@operator("Loop")
def loop(m: Host | None = None, cond: Host | None = None, *carried: Any, body: Body) -> tuple[Any, ...]:
    """Run a body until its condition fails or the count is reached; what it scans is stacked."""
    most = None if m is None else int(m.reshape(-1)[0])
    going = cond is None or bool(cond.reshape(-1)[0])
    state, scanned, step = list(carried), list[list[Any]](), 0
    while going and (most is None or step < most):
        again, *outputs = body(torch.tensor(step), torch.tensor(going), *state)
        state = outputs[: len(carried)]
        scanned.append(outputs[len(carried) :])
        going, step = bool(again), step + 1
    return (*state, *_stacked(scanned))


def _stacked(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Return each scanned output with the steps on a new first axis.

    Raises:
        ValueError: there was no step, which leaves sizes unknown.
    """
    return [torch.stack(list(column)) for column in zip(*rows, strict=True)]


@operator("Scan", 9)
def scan(
    *operands: Any,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: tuple[int, ...] | None = None,
    scan_input_directions: tuple[int, ...] | None = None,
    scan_output_axes: tuple[int, ...] | None = None,
    scan_output_directions: tuple[int, ...] | None = None,
) -> tuple[Any, ...]:
    """Run a body over slices of some inputs, carrying the others along."""
    count = len(operands) - num_scan_inputs
    state, sources = list(operands[:count]), operands[count:]
    axes = scan_input_axes or (0,) * num_scan_inputs
    directions = scan_input_directions or (0,) * num_scan_inputs
    steps = sources[0].shape[axes[0]]
    rows = []
    for step in range(steps):
        slices = [
            x.select(axis, steps - 1 - step if back else step)
            for x, axis, back in zip(sources, axes, directions, strict=True)
        ]
        outputs = body(*state, *slices)
        state = outputs[:count]
        rows.append(outputs[count:])
    scanned = []
    for index, column in enumerate(zip(*rows, strict=True)):
        back = scan_output_directions[index] if scan_output_directions else 0
        axis = scan_output_axes[index] if scan_output_axes else 0
        scanned.append(torch.stack(list(column[::-1] if back else column), axis))
    return (*state, *scanned)


@operator("Scan", 8)
def scan_8(
    sequence_lens: Tensor | None,
    *operands: Any,
    body: Body,
    num_scan_inputs: int,
    directions: tuple[int, ...] | None = None,
) -> tuple[Any, ...]:
    """Scan the sequences of a batch, all of full length, one sample after the other."""
    if sequence_lens is not None:
        raise ValueError("Scan of opset 8 with sequence lengths is not computed; convert the model to opset 9")
    samples = [
        scan(
            *(x[i] for x in operands),
            body=body,
            num_scan_inputs=num_scan_inputs,
            scan_input_directions=directions,
        )
        for i in range(len(operands[0]))
    ]
    return tuple(torch.stack(list(column)) for column in zip(*samples, strict=True))
