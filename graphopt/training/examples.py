"""Training data in random order, as a function of seed, epoch and step alone, so that a training can go on anywhere."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from graphopt.data import ArrayData, Batch, Data, NpzData, npy_header


class Examples(Protocol):
    """Batches of one size, in an order of its own for every epoch.

    Attributes:
        steps: batches in an epoch.
    """

    steps: int

    def epoch(self, seed: int, number: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `first` on."""


class Shuffled:
    """Arrays whose samples are drawn without replacement; what does not fill a batch waits for another epoch."""

    def __init__(self, data: ArrayData, batch: int, rows: np.ndarray | None = None) -> None:
        """Prepare to draw.

        Args:
            data: samples.
            batch: how many make a step.
            rows: which samples to draw from; all by default.
        """
        self._data = data
        self._rows = np.arange(data.length) if rows is None else rows
        self._batch = min(batch, len(self._rows))
        self.steps = len(self._rows) // self._batch

    def epoch(self, seed: int, number: int, first: int = 0) -> Iterator[Batch]:
        order = np.random.default_rng([seed, number]).permutation(self._rows)
        for step in range(first, self.steps):
            yield self._data.take(np.sort(order[step * self._batch : (step + 1) * self._batch]))


class Streamed:
    """Batches of a user's function, in the order and of the size in which it yields them."""

    def __init__(self, data: Data, batch: int) -> None:
        self._data, self._batch = data, batch
        self.steps = sum(1 for _ in data.batches(batch))

    def epoch(self, seed: int, number: int, first: int = 0) -> Iterator[Batch]:
        del seed, number
        for step, batch in enumerate(self._data.batches(self._batch)):
            if step >= first:
                yield batch


def examples(data: Data, batch: int) -> Examples:
    """Return what draws batches from a data set."""
    if isinstance(data, NpzData):
        data = mapped(data)
    return Shuffled(data, batch) if isinstance(data, ArrayData) else Streamed(data, batch)


def mapped(data: NpzData) -> ArrayData:
    """Return the arrays of a `.npz` file for random access: mapped into memory, or read if they are compressed."""
    path = data.files[0]
    with zipfile.ZipFile(path) as archive:
        arrays = {info.filename.removesuffix(".npy"): _array(archive, info, path) for info in archive.infolist()}
    return ArrayData(data.name, arrays)


_LOCAL_HEADER = 30
"""Bytes of a local file header before the name (APPNOTE.TXT of the ZIP format, 4.3.7)."""


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    with archive.open(info) as stream:
        if info.compress_type != zipfile.ZIP_STORED:
            return np.lib.format.read_array(stream, allow_pickle=False)
        dtype, shape, fortran = npy_header(stream)
        header = stream.tell()
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(_LOCAL_HEADER)
    name, extra = (int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
    start = info.header_offset + _LOCAL_HEADER + name + extra + header
    return np.memmap(path, dtype, "r", start, shape, order="F" if fortran else "C")
