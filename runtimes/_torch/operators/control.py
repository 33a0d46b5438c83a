"""If, Loop and Scan; bodies arrive as functions of their inputs that return a list of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import Host, operator

Body = Callable[..., list[Any]]


@operator("If")
def if_(cond: Host, *, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    """One branch or the other."""
    return tuple((then_branch if bool(cond.reshape(-1)[0]) else else_branch)())


@operator("Loop")
def loop(
    m: Host | None = None, cond: Host | None = None, *carried: Any, body: Body, outputs_: int = 0
) -> tuple[Any, ...]:
    """Run a body until its condition fails or the count is reached; what it scans is stacked."""
    most = None if m is None else int(m.reshape(-1)[0])
    going = cond is None or bool(cond.reshape(-1)[0])
    state, rows, step = list(carried), list[list[Any]](), 0
    while going and (most is None or step < most):
        again, *outputs = body(torch.tensor(step), torch.tensor(True), *state)
        state = outputs[: len(carried)]
        rows.append(outputs[len(carried) :])
        going, step = bool(again), step + 1
    if not rows and outputs_ > len(carried):
        return (*state, *_nothing(body, torch.tensor(0), torch.tensor(True), *state)[len(carried) + 1 :])
    return (*state, *(_stacked(column) for column in zip(*rows, strict=True)))


def _stacked(column: Sequence[Any], axis: int = 0) -> Any:
    """Return what a body scanned, with the steps on a new axis."""
    return np.stack(column, axis) if isinstance(column[0], np.ndarray) else torch.stack(list(column), axis)


def _nothing(body: Body, *operands: Any) -> list[Any]:
    """Return the outputs of a body stacked over no steps; only running it tells their sizes.

    Raises:
        ValueError: it does not run on what no step provides.
    """
    try:
        with torch.no_grad():
            outputs = body(*operands)
    except Exception as error:  # whatever a body raises
        raise ValueError("there was no step, and so nothing tells the sizes of what is scanned") from error
    return [_stacked([x])[:0] if isinstance(x, (Tensor, np.ndarray)) else x for x in outputs]


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
    backwards = scan_input_directions or (0,) * num_scan_inputs
    slices = [
        x.unbind(axis)[::-1] if back else x.unbind(axis) for x, axis, back in zip(sources, axes, backwards, strict=True)
    ]
    rows = []
    for taken in zip(*slices, strict=True):
        outputs = body(*state, *taken)
        state = outputs[:count]
        rows.append(outputs[count:])
    if not rows:
        samples = (x.new_zeros(x.movedim(axis, 0).shape[1:]) for x, axis in zip(sources, axes, strict=True))
        none = _nothing(body, *state, *samples)[count:]
        return (*state, *(x.movedim(0, a) for x, a in zip(none, scan_output_axes or (0,) * len(none), strict=True)))
    scanned = []
    for index, column in enumerate(zip(*rows, strict=True)):
        back = scan_output_directions is not None and scan_output_directions[index]
        scanned.append(_stacked(column[::-1] if back else column, scan_output_axes[index] if scan_output_axes else 0))
    return (*state, *scanned)


@operator("Scan", 8)
def scan_8(
    sequence_lens: Host | None,
    *operands: Any,
    body: Body,
    num_scan_inputs: int,
    directions: tuple[int, ...] | None = None,
) -> tuple[Any, ...]:
    """Scan the sequences of a batch one after the other; what the shorter ones leave over is zero."""
    count = len(operands) - num_scan_inputs
    batch, most = operands[-1].shape[:2]
    lengths = [most] * batch if sequence_lens is None else sequence_lens.tolist()
    samples = []
    for length, *given in zip(lengths, *(x.unbind(0) for x in operands), strict=True):
        cut = (x[:length] for x in given[count:])
        made = scan(*given[:count], *cut, body=body, num_scan_inputs=num_scan_inputs, scan_input_directions=directions)
        samples.append([*made[:count], *(_lengthened(x, most) for x in made[count:])])
    return tuple(torch.stack(column) for column in zip(*samples, strict=True))


def _lengthened(x: Tensor, length: int) -> Tensor:
    return x if len(x) == length else torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])
