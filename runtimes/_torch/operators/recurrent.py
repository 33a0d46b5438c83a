"""RNN, GRU and LSTM: by torch's own fused functions where they compute the same, else step by step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators.activation import softplus
from graphopt.runtimes._torch.table import Host, operator

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[float | None, float | None]]] = {
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "elu": (lambda x, a, b: functional.elu(x, a), (1.0, None)),
    "hardsigmoid": (lambda x, a, b: (a * x + b).clamp(0, 1), (0.2, 0.5)),
    "leakyrelu": (lambda x, a, b: functional.leaky_relu(x, a), (0.01, None)),
    "relu": (lambda x, a, b: torch.relu(x), (None, None)),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), (1.0, 1.0)),
    "sigmoid": (lambda x, a, b: torch.sigmoid(x), (None, None)),
    "softplus": (lambda x, a, b: softplus(x), (None, None)),
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
    made: list[Activation] = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise ValueError(f"activation '{name}' is none of ONNX")
        function, (a, b) = _ACTIVATIONS[name.lower()]
        alpha = left.pop(0) if a is not None and left else a
        beta = right.pop(0) if b is not None and right else b
        made.append(functools.partial(function, a=alpha, b=beta))
    return made


def _only(names: Sequence[str], count: int) -> str:
    """Return the names of the activations of a direction, or nothing if directions differ."""
    groups = {" ".join(names[i : i + count]).lower() for i in range(0, len(names), count)}
    return groups.pop() if len(groups) == 1 else ""


def _clipped(x: Tensor, clip: float) -> Tensor:
    return x.clamp(-clip, clip) if clip else x


Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(projected input of a time [batch, gates * hidden], state) -> state, whose first part is the output."""


Fused = Callable[[Tensor, Sequence[Tensor], bool], tuple[Tensor, Sequence[Tensor]]]
"""(inputs, states, whether to run backwards) -> outputs [time, directions, batch, hidden], states."""


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
    lengths: Host | None,
    states: Sequence[Tensor | None],
    hidden: int,
    make: Callable[[int, Tensor | None], Step],
    fused: Fused | None,
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
        fused: torch's function that computes the same over full sequences, or None.
    """
    inputs = x.transpose(0, 1) if layout else x
    shape = (w.shape[0], inputs.shape[1], hidden)
    starts = [inputs.new_zeros(shape) if s is None else s.transpose(0, 1) if layout else s for s in states]
    full = lengths is None or bool((lengths == inputs.shape[0]).all())
    if fused is not None and full:
        y, finals = fused(inputs, starts, direction == "reverse")
    else:
        ends = None if full else torch.tensor(lengths, device=x.device)
        y, finals = _by_steps(inputs, w, b, starts, make, ends, direction == "reverse")
    if layout:
        return y.permute(2, 0, 1, 3), *(f.transpose(0, 1) for f in finals)
    return y, *finals


def _by_steps(
    inputs: Tensor,
    w: Tensor,
    b: Tensor | None,
    starts: Sequence[Tensor],
    make: Callable[[int, Tensor | None], Step],
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    outputs, ends = [], []
    for d in range(w.shape[0]):
        bias, recurrent = (None, None) if b is None else b[d].chunk(2)
        gates = functional.linear(inputs, w[d], bias)
        state = tuple(s[d] for s in starts)
        made, last = _unrolled(gates, state, make(d, recurrent), lengths, reverse or d == 1)
        outputs.append(made)
        ends.append(last)
    return torch.stack(outputs, 1), [torch.stack(column) for column in zip(*ends, strict=True)]


def _fused(
    function: Callable[..., tuple[Tensor, ...]], order: Sequence[int], w: Tensor, r: Tensor, b: Tensor | None
) -> Fused:
    """Return one of torch's functions over whole sequences, given ONNX's weights.

    Args:
        function: torch's.
        order: for every gate of torch's, its place in ONNX.
        w: weights of inputs.
        r: weights of the recurrence.
        b: biases of both.
    """

    def sorted_(x: Tensor) -> Tensor:
        if len(order) == 1:
            return x
        parts = x.chunk(len(order))
        return torch.cat([parts[i] for i in order])

    def run(inputs: Tensor, starts: Sequence[Tensor], reverse: bool) -> tuple[Tensor, Sequence[Tensor]]:
        weights = [[w[d], r[d], *(() if b is None else b[d].chunk(2))] for d in range(len(w))]
        flat = [sorted_(part) for part in itertools.chain(*weights)]
        state = starts[0] if len(starts) == 1 else tuple(starts)
        turned = inputs.flip(0) if reverse else inputs
        made, *finals = function(
            turned, state, flat, b is not None, 1, 0.0, torch.is_grad_enabled(), len(w) == 2, False
        )
        made = made.flip(0) if reverse else made
        return made.unflatten(-1, (len(w), -1)).transpose(1, 2), finals

    return run


@operator("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Host | None = None,
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
    names = activations or ("Tanh",) * len(w)
    chosen = _activations(names, activation_alpha, activation_beta)

    def make(d: int, bias: Tensor | None) -> Step:
        def step(gates: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (chosen[d](_clipped(gates + functional.linear(state[0], r[d], bias), clip)),)

        return step

    function = None if clip else {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}.get(_only(names, 1))
    fused = None if function is None else _fused(function, (0,), w, r, b)
    return _run(x, w, b, direction, layout, sequence_lens, [initial_h], r.shape[-1], make, fused)


@operator("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Host | None = None,
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
    names = activations or ("Sigmoid", "Tanh") * len(w)
    chosen = _activations(names, activation_alpha, activation_beta)

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

    usual = linear_before_reset and not clip and _only(names, 2) == "sigmoid tanh"
    fused = _fused(torch.gru, (1, 0, 2), w, r, b) if usual else None
    return _run(x, w, b, direction, layout, sequence_lens, [initial_h], r.shape[-1], make, fused)


@operator("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Host | None = None,
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
    names = activations or ("Sigmoid", "Tanh", "Tanh") * len(w)
    chosen = _activations(names, activation_alpha, activation_beta)

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

    usual = p is None and not input_forget and not clip and _only(names, 3) == "sigmoid tanh tanh"
    fused = _fused(torch.lstm, (0, 2, 3, 1), w, r, b) if usual else None
    return _run(x, w, b, direction, layout, sequence_lens, [initial_h, initial_c], r.shape[-1], make, fused)
