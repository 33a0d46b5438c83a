"""ONNX Runtime's contrib operator for recurrence with quantized weights."""

from __future__ import annotations

from torch import Tensor

from graphopt.runtimes._torch.operators.recurrent import lstm
from graphopt.runtimes._torch.table import CONTRIB, Host, operator


@operator("DynamicQuantizeLSTM", 1, CONTRIB)
def dynamic_quantize_lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Host | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero_point: Tensor,
    r_scale: Tensor,
    r_zero_point: Tensor,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[Tensor, ...]:
    """LSTM with quantized weights, which lie transposed; inputs and states stay floats, where others round them."""
    made: tuple[Tensor, ...] = lstm(
        x,
        _transposed(w, w_scale, w_zero_point),
        _transposed(r, r_scale, r_zero_point),
        b,
        sequence_lens,
        initial_h,
        initial_c,
        p,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        input_forget=input_forget,
    )
    return made


def _transposed(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return weights [directions, outputs, inputs] of quantized ones, with a scale per direction, or output as well."""
    shape = (len(weight), 1, -1)
    whole = (weight.to(scale.dtype) - zero.reshape(shape).to(scale.dtype)) * scale.reshape(shape)
    return whole.transpose(1, 2)
