"""Fourier transforms, windows and mel filters."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import Host, operator
from graphopt.runtimes._torch.values import TYPES


@operator("DFT", 20)
def dft(
    input: Tensor,
    dft_length: Host | None = None,
    axis: Host | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The discrete Fourier transform along an axis; the last axis holds real and imaginary parts."""
    return _transformed(input, dft_length, -2 if axis is None else int(axis.reshape(-1)[0]), inverse, onesided)


@operator("DFT", 17)
def dft_17(
    input: Tensor, dft_length: Host | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """The discrete Fourier transform along an axis."""
    return _transformed(input, dft_length, axis, inverse, onesided)


def _transformed(input: Tensor, dft_length: Host | None, axis: int, inverse: int, onesided: int) -> Tensor:
    axis %= input.ndim
    dtype, input = input.dtype, input.to(torch.promote_types(input.dtype, torch.float32))
    length = input.shape[axis] if dft_length is None else int(dft_length.reshape(-1)[0])
    complex_ = input.shape[-1] == 2
    numbers = torch.view_as_complex(input.contiguous()) if complex_ else input[..., 0]
    if inverse and onesided:
        length = 2 * (input.shape[axis] - 1) if dft_length is None else length
        return torch.fft.irfft(numbers, length, axis).unsqueeze(-1).to(dtype)
    if onesided and not complex_:
        return torch.view_as_real(torch.fft.rfft(numbers, length, axis)).to(dtype)
    made = (torch.fft.ifft if inverse else torch.fft.fft)(numbers, length, axis).resolve_conj()
    if onesided:
        made = made.narrow(axis, 0, length // 2 + 1)
    return torch.view_as_real(made.contiguous()).to(dtype)


@operator("STFT", 17)
def stft(
    signal: Tensor,
    frame_step: Host,
    window: Tensor | None = None,
    frame_length: Host | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """The Fourier transforms of windows of a signal, [batch, frames, frequencies, 2]."""
    if window is None and frame_length is None:
        raise ValueError("STFT needs a window or a frame_length")
    length = window.shape[0] if window is not None else int(frame_length.reshape(-1)[0])  # type: ignore[union-attr]
    wide = signal.to(torch.promote_types(signal.dtype, torch.float32))
    complex_ = signal.ndim == 3 and signal.shape[2] == 2
    numbers = torch.view_as_complex(wide.contiguous()) if complex_ else wide.reshape(signal.shape[:2])
    frames = numbers.unfold(1, length, int(frame_step.reshape(-1)[0]))
    frames = frames if window is None else frames * window
    if onesided and not complex_:
        return torch.view_as_real(torch.fft.rfft(frames)).to(signal.dtype)
    made = torch.fft.fft(frames)
    made = made[..., : length // 2 + 1].contiguous() if onesided else made
    return torch.view_as_real(made).to(signal.dtype)


@operator("HannWindow", 17)
def hann_window(size: Host, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """Hann's window."""
    return _window(size, (0.5, 0.5), output_datatype, periodic)


@operator("HammingWindow", 17)
def hamming_window(size: Host, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """Hamming's window."""
    return _window(size, (25 / 46, 21 / 46), output_datatype, periodic)


@operator("BlackmanWindow", 17)
def blackman_window(size: Host, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """Blackman's window."""
    return _window(size, (0.42, 0.5, 0.08), output_datatype, periodic)


def _window(size: Host, terms: tuple[float, ...], output_datatype: int, periodic: int) -> Tensor:
    """Return a sum of cosines, with alternating signs."""
    count = int(size.reshape(-1)[0])
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / (count if periodic else max(count - 1, 1))
    made = sum((-1) ** i * term * torch.cos(i * angle) for i, term in enumerate(terms))
    dtype = TYPES[ir.DataType(output_datatype)]
    made = torch.as_tensor(made)
    return made if dtype == torch.float64 else made.to(torch.float32).to(dtype)  # ones are whole in float32


@operator("MelWeightMatrix", 17)
def mel_weight_matrix(
    num_mel_bins: Host,
    dft_length: Host,
    sample_rate: Host,
    lower_edge_hertz: Host,
    upper_edge_hertz: Host,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """Triangles over frequencies that are equally wide in mel, [frequencies, mels]."""
    bins, length, rate = (int(x.reshape(-1)[0]) for x in (num_mel_bins, dft_length, sample_rate))
    low, high = (2595 * math.log10(1 + float(x.reshape(-1)[0]) / 700) for x in (lower_edge_hertz, upper_edge_hertz))
    mels = low + np.arange(bins + 2) * ((high - low) / (bins + 2))
    places = np.floor((length + 1) * (700 * (10 ** (mels / 2595) - 1)) / rate).astype(np.int64)
    made = np.zeros((length // 2 + 1, bins))
    for i in range(bins):
        first, middle, last = places[i : i + 3]
        if middle == first:
            made[middle, i] = 1
        else:
            made[first : middle + 1, i] = np.arange(middle - first + 1) / (middle - first)
        if last > middle:
            made[middle:last, i] = (last - np.arange(middle, last)) / (last - middle)
    return torch.from_numpy(made).to(TYPES[ir.DataType(output_datatype)])
