"""Data sets, read one batch at a time."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import importlib
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import UserError, did_you_mean
from graphopt.runtime import Port

LABELS = "labels"

Batch = tuple[dict[str, np.ndarray], np.ndarray | None]
"""Named inputs, each with samples on its first axis, and the targets, or None without labels."""


class Data(abc.ABC):
    """A labelled or unlabelled data set that can be read several times."""

    name: str
    files: tuple[Path, ...] = ()
    """What it lies in, so that no output overwrites it."""

    def __str__(self) -> str:
        """Return the name, so that a specification string shows where the data came from."""
        return self.name

    @abc.abstractmethod
    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield batches of at most `size` samples, of the first `limit` samples."""

    @abc.abstractmethod
    def check(self, inputs: Sequence[Port], *, labels: bool = False) -> None:
        """Refuse data that does not fit the model's inputs.

        Args:
            inputs: what the model wants.
            labels: whether targets are needed.

        Raises:
            UserError: a missing, superfluous or misshapen array; the message names it.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """Return what identifies the content: its sha256, or the name of a function that makes it."""


Source = str | Path | Mapping[str, np.ndarray] | Data
"""What `open_data` opens."""


def open_data(source: Source) -> Data:
    """Open a data set: a `.npz` file, `package.module:factory`, a mapping of arrays, or `Data` as it is.

    A `.npz` holds one array per graph input, samples first, and targets in `labels`. A factory is called
    without arguments, once for every reading, and returns an iterable of `(inputs, target)` batches.

    Raises:
        UserError: the source does not exist or is none of these.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, Mapping):
        return ArrayData("arrays", {name: np.asarray(array) for name, array in source.items()})
    text = str(source)
    if ":" in text and not Path(text).exists() and not text.endswith(".npz"):
        return FactoryData(text, resolve(text))
    return NpzData(Path(text))


def resolve(reference: str) -> Callable[..., Any]:
    """Import what `package.module:attribute` names; the current folder counts as importable.

    Raises:
        UserError: there is no such module or attribute.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise UserError(f"{reference}: is not of the form package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise UserError(
            f"{reference}: cannot import {module_name} ({error}); run from its folder or install it"
        ) from None
    except AttributeError:
        raise UserError(f"{reference}: module {module_name} has no '{attribute}'") from None
    if not callable(found):
        raise UserError(f"{reference}: is not a function")
    return found  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class _Array:
    """Type of one array of a data set; `shape` counts all samples on the first axis."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _Arrays(Data):
    """Named arrays with samples on the first axis, whatever they lie in."""

    def __init__(self, name: str, arrays: Mapping[str, _Array]) -> None:
        self.name = name
        self._arrays = arrays
        for key, array in arrays.items():
            if not array.shape:
                raise UserError(f"{name}: array '{key}' has no axis; the first axis must count samples")
        lengths = {key: array.shape[0] for key, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{name}: arrays disagree on the number of samples: {_pairs(lengths)}")
        self.length = next(iter(lengths.values()), 0)
        if not self.length:
            raise UserError(f"{name}: holds no samples")

    def check(self, inputs: Sequence[Port], *, labels: bool = False) -> None:
        _check(self.name, self._arrays, inputs, labels=labels)


class ArrayData(_Arrays):
    """Arrays in memory."""

    def __init__(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(name, {key: _Array(a.dtype, a.shape) for key, a in arrays.items()})
        self._values = arrays

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        end = min(self.length, limit or self.length)
        for start in range(0, end, size):
            part = slice(start, min(start + size, end))
            yield _batch({key: array[part] for key, array in self._values.items()})

    def take(self, rows: np.ndarray) -> Batch:
        """Return the samples with these numbers as one batch."""
        return _batch({key: array[rows] for key, array in self._values.items()})

    def labels(self) -> np.ndarray | None:
        """Return the targets of all samples, or None."""
        return self._values.get(LABELS)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for key, array in sorted(self._values.items()):
            digest.update(f"{key} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class NpzData(_Arrays):
    """A `.npz` file, of which no more than one batch is ever in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.files = (path,)
        arrays = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if not member.endswith(".npy"):
                        raise ValueError(f"it holds '{member}', which is not a .npy array")
                    with archive.open(member) as stream:
                        dtype, shape, _ = npy_header(stream)
                        arrays[member.removesuffix(".npy")] = _Array(dtype, shape)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; check the path") from None
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise UserError(f"{path}: not a .npz file of plain arrays ({error}); write it with numpy.savez") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; check the path") from None
        super().__init__(str(path), arrays)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        end = min(self.length, limit or self.length)
        with zipfile.ZipFile(self._path) as archive:
            streams = {key: archive.open(f"{key}.npy") for key in self._arrays}
            try:
                headers = {key: npy_header(stream) for key, stream in streams.items()}
                whole = {key: _read(streams[key], h[0], h[1], fortran=True) for key, h in headers.items() if h[2]}
                for start in range(0, end, size):
                    count = min(size, end - start)
                    yield _batch(
                        {
                            key: whole[key][start : start + count]
                            if key in whole
                            else _read(streams[key], dtype, (count, *shape[1:]))
                            for key, (dtype, shape, _) in headers.items()
                        }
                    )
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise UserError(f"{self._path}: is damaged ({error}); write it again") from None
            finally:
                for stream in streams.values():
                    stream.close()

    def digest(self) -> str:
        with self._path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class FactoryData(Data):
    """Batches from a user's own function."""

    def __init__(self, name: str, factory: Callable[[], Iterable[Any]]) -> None:
        self.name = name
        self._factory = factory

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield the factory's batches as they come, cut at `limit`; `size` is the factory's own business."""
        del size
        seen = 0
        made = self._factory()
        if not isinstance(made, Iterable):
            raise UserError(f"{self.name}: must yield (inputs, target) with inputs a non-empty dict of arrays")
        for item in made:
            try:
                inputs, target = item
                arrays = {name: np.asarray(array) for name, array in inputs.items()}
                count = len(next(iter(arrays.values())))
                target = None if target is None else np.asarray(target)
                len(target if target is not None else ())
            except (TypeError, ValueError, AttributeError, StopIteration):
                raise UserError(
                    f"{self.name}: must yield (inputs, target) with inputs a non-empty dict of arrays"
                ) from None
            keep = count if limit is None else min(count, limit - seen)
            if keep <= 0:
                return
            if keep < count:  # only then, because a state or a flag among the inputs does not count samples
                arrays = {name: a[:keep] for name, a in arrays.items()}
                target = None if target is None else target[:keep]
            yield arrays, target
            seen += keep

    def check(self, inputs: Sequence[Port], *, labels: bool = False) -> None:
        first = next(self.batches(1), None)
        if first is None:
            raise UserError(f"{self.name}: yields no batches")
        arrays, target = first
        if target is not None:
            counts = {next(iter(arrays)): len(next(iter(arrays.values()))), LABELS: len(target)}
            if len(set(counts.values())) > 1:
                raise UserError(f"{self.name}: arrays disagree on the number of samples: {_pairs(counts)}")
            arrays[LABELS] = target
        found = {key: _Array(array.dtype, array.shape) for key, array in arrays.items()}
        _check(self.name, found, inputs, labels=labels)

    def digest(self) -> str:
        return self.name


def _batch(arrays: dict[str, np.ndarray]) -> Batch:
    labels = arrays.pop(LABELS, None)
    return arrays, labels


def _check(name: str, arrays: Mapping[str, _Array], inputs: Sequence[Port], *, labels: bool) -> None:
    """Refuse arrays that do not fit a model's inputs (see `Data.check`)."""
    wanted = {port.name: port for port in inputs}
    given = {key: array for key, array in arrays.items() if key != LABELS or LABELS in wanted}
    if labels and LABELS not in arrays:
        raise UserError(
            f"{name}: has no '{LABELS}' array, which the metric needs; add it or choose --metric agreement or cosine"
        )
    for key in given:
        if key not in wanted:
            raise UserError(f"{name}: the model has no input '{key}'{did_you_mean(key, wanted)}")
    for key, port in wanted.items():
        if key not in given:
            raise UserError(f"{name}: no array for the model's input '{key}'{did_you_mean(key, given)}")
        _check_array(name, port, given[key])


def _check_array(name: str, port: Port, array: _Array) -> None:
    if port.dtype is None:
        raise UserError(
            f"{name}: the model's input '{port.name}' is not a tensor; use a factory with one sample a batch"
        )
    if array.dtype != port.dtype.numpy():
        raise UserError(
            f"{name}: '{port.name}' is {array.dtype}, but the model wants {port.dtype.numpy()}; convert it with .astype"
        )
    if port.shape is None:
        return
    fits = len(array.shape) == len(port.shape) and all(
        not isinstance(want, int) or want == have for want, have in zip(port.shape[1:], array.shape[1:], strict=False)
    )
    if not fits:
        want = ", ".join("?" if d is None else str(d) for d in port.shape)
        raise UserError(
            f"{name}: '{port.name}' has shape {list(array.shape)}, but the model wants [{want}]; reshape it"
        )


def npy_header(stream: Any) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Read the header of a .npy stream: element type, shape, and whether it is in Fortran order.

    Raises:
        ValueError: it is none, or of Python objects.
    """
    major, _ = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return dtype, shape, fortran and len(shape) > 1


def _read(stream: Any, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool = False) -> np.ndarray:
    count = int(np.prod(shape)) * dtype.itemsize
    buffer = stream.read(count)
    if len(buffer) < count:
        raise UserError("a .npz array is shorter than its header says; write the file again")
    return np.frombuffer(buffer, dtype).reshape(shape, order="F" if fortran else "C")


def _pairs(table: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in table.items())


def batch_size(inputs: Sequence[Port], preferred: int = 64) -> int:
    """Return the batch size to feed: `preferred`, unless the model fixes its first axis."""
    fixed = {port.shape[0] for port in inputs if port.shape and isinstance(port.shape[0], int)}
    return fixed.pop() if len(fixed) == 1 else preferred


def fitted_batches(
    data: Data, inputs: Sequence[Port], preferred: int = 64, limit: int | None = None
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None, int]]:
    """Yield batches that the model accepts: `(inputs, targets, samples)`.

    Where the model fixes its first axis, a batch that is too small is filled up with its last sample; the
    first `samples` entries are the real ones. Targets are not filled up.
    """
    size = batch_size(inputs, preferred)
    fixed = batch_size(inputs, 0) != 0
    for arrays, labels in data.batches(size, limit):
        count = len(next(iter(arrays.values())))
        if fixed and count < size:
            arrays = {name: np.concatenate([a, np.repeat(a[-1:], size - count, axis=0)]) for name, a in arrays.items()}
        yield arrays, labels, count
