"""RNN, GRU and LSTM."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import operator

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[float | None, float | None]]] = {
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "elu": (lambda x, a, b: functional.elu(x, a), (1.0, None)),
    "hardsigmoid": (lambda x, a, b: (a * x + b).clamp(0, 1), (0.2, 0.5)),
    "leakyrelu": (lambda x, a, b: functional.leaky_relu(x, a), (0.01, None)),
    "relu": (lambda x, a, b: torch.relu(x), (None, None)),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), (1.0, 1.0)),
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), (None, None)),
    "softplus": (lambda x, a, b: functional.softplus(x), (None, None)),
    "softsign": (lambda x, a, b: functional.softsign(x), (None, None)),
    "tanh": (lambda x, a, b: torch.tanh(x), (None, None)),
    "thresholdedrelu": (lambda x, a, b: torch.where(x > a, x, torch.zeros_like(x)), (1.0, None)),
}
"""Activation functions with the defaults of alpha and beta; None for one that they do not have."""


def _activations(
    names: Sequence[str], alphas: Sequence[float] | None, betas: Sequence[float] | None
) -> list[Activation]:
    """Return functions; alphas and betas are handed out in order to those that have one."""
    left, right = list(alphas or ()), list(betas or ())
    made = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise ValueError(f"activation '{name}' is none of ONNX")
        function, (a, b) = _ACTIVATIONS[name.lower()]
        alpha = left.pop(0) if a is not None and left else a
        beta = right.pop(0) if b is not None and right else b
        made.append(functools.partial(function, a=alpha, b=beta))
    return made


def _clipped(x: Tensor, clip: float) -> Tensor:
    return x.clamp(-clip, clip) if clip else x


Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(projected input of a time [batch, gates * hidden], state) -> state, whose first part is the output."""


def _unrolled(
    gates: Tensor, state: tuple[Tensor, ...], step: Step, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run over time; sequences that are over keep their state and output zeros.

    Args:
        gates: projected inputs, [time, batch, gates * hidden].
        state: at the beginning.
        step: what a time does.
        lengths: of the sequences, or None where all are full.
        reverse: whether to begin at the end, of each sequence its own.
    """
    steps = range(gates.shape[0])
    outputs: list[Tensor] = [gates] * gates.shape[0]
    for t in reversed(steps) if reverse else steps:
        new = step(gates[t], state)
        if lengths is None:
            state, outputs[t] = new, new[0]
        else:
            alive = (t < lengths).unsqueeze(-1)
            state = tuple(torch.where(alive, n, o) for n, o in zip(new, state, strict=True))
            outputs[t] = torch.where(alive, new[0], torch.zeros_like(new[0]))
    return torch.stack(outputs), state


def _run(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    direction: str,
    layout: int,
    lengths: Tensor | None,
    states: Sequence[Tensor | None],
    hidden: int,
    make: Callable[[int, Tensor | None], Step],
) -> tuple[Tensor, ...]:
    """Run all directions; return the outputs and the last states, in the layout asked for.

    Args:
        x: [time, batch, inputs], or [batch, time, inputs] with layout 1.
        w: [directions, gates * hidden, inputs].
        b: [directions, 2 * gates * hidden], biases of inputs, then of the recurrence.
        direction: forward, reverse or bidirectional.
        layout: see `x`.
        lengths: of the sequences.
        states: at the beginning, [directions, batch, hidden] (the first two axes swapped with layout 1).
        hidden: size of the state.
        make: (direction, its recurrent bias) -> step.
    """
    inputs = x.transpose(0, 1) if layout else x
    starts = [s.transpose(0, 1) if s is not None and layout else s for s in states]
    if lengths is not None and bool((lengths == inputs.shape[0]).all()):
        lengths = None
    outputs, ends = [], []
    for d in range(w.shape[0]):
        bias, recurrent = (None, None) if b is None else b[d].chunk(2)
        gates = functional.linear(inputs, w[d], bias)
        state = tuple(inputs.new_zeros(inputs.shape[1], hidden) if s is None else s[d] for s in starts)
        made, last = _unrolled(gates, state, make(d, recurrent), lengths, direction == "reverse" or d == 1)
        outputs.append(made)
        ends.append(last)
    y = torch.stack(outputs, 1)
    finals = [torch.stack(column) for column in zip(*ends, strict=True)]
    if layout:
        return y.permute(2, 0, 1, 3), *(f.transpose(0, 1) for f in finals)
    return y, *finals


@operator("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """The simple recurrent network."""
    del hidden_size  # the weights have it
    chosen = _activations(activations or ("Tanh",) * len(w), activation_alpha, activation_beta)

    def make(d: int, bias: Tensor | None) -> Step:
        def step(gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (chosen[d](_clipped(gates + functional.linear(state[0], r[d], bias), clip)),)

        return step

    return _run(x, w, b, direction, layout, sequence_lens, [initial_h], r.shape[-1], make)


@operator("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """Gated recurrent units (Cho et al., arXiv:1406.1078); gates are in the order update, reset, new."""
    del hidden_size
    chosen = _activations(activations or ("Sigmoid", "Tanh") * len(w), activation_alpha, activation_beta)

    def make(d: int, bias: Tensor | None) -> Step:
        gate, candidate = chosen[2 * d : 2 * d + 2]
        size = r.shape[-1]

        def step(gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = state[0]
            both = functional.linear(h, r[d, : 2 * size], None if bias is None else bias[: 2 * size])
            z, reset = gate(_clipped(gates[..., : 2 * size] + both, clip)).chunk(2, -1)
            own = None if bias is None else bias[2 * size :]
            if linear_before_reset:
                through = reset * functional.linear(h, r[d, 2 * size :], own)
            else:
                through = functional.linear(reset * h, r[d, 2 * size :], own)
            new = candidate(_clipped(gates[..., 2 * size :] + through, clip))
            return ((1 - z) * new + z * h,)

        return step

    return _run(x, w, b, direction, layout, sequence_lens, [initial_h], r.shape[-1], make)


@operator("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Long short-term memory; gates are in the order input, output, forget, cell; P are peepholes of the first three."""
    del hidden_size
    chosen = _activations(activations or ("Sigmoid", "Tanh", "Tanh") * len(w), activation_alpha, activation_beta)

    def make(d: int, bias: Tensor | None) -> Step:
        gate, cell, out = chosen[3 * d : 3 * d + 3]
        peepholes = None if p is None else p[d].chunk(3)

        def step(gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h, c = state
            i, o, f, g = (gates + functional.linear(h, r[d], bias)).chunk(4, -1)
            if peepholes:
                i, f = i + peepholes[0] * c, f + peepholes[2] * c
            i = gate(_clipped(i, clip))
            f = 1 - i if input_forget else gate(_clipped(f, clip))
            new = f * c + i * cell(_clipped(g, clip))
            o = o + peepholes[1] * new if peepholes else o
            return gate(_clipped(o, clip)) * out(new), new

        return step

    return _run(x, w, b, direction, layout, sequence_lens, [initial_h, initial_c], r.shape[-1], make)
