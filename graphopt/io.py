"""Read and write models: external data, sizes, atomic writes, provenance."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import google.protobuf.json_format
import google.protobuf.message
import google.protobuf.text_format
import onnx
import onnx.parser
import onnx_ir as ir

from graphopt import scopes
from graphopt.errors import UserError
from graphopt.redeclared import rename_redeclared

_UNREADABLE = (
    google.protobuf.message.DecodeError,
    google.protobuf.json_format.ParseError,
    google.protobuf.text_format.ParseError,
    onnx.parser.ParseError,
    ValueError,  # text that is not UTF-8 among others
)
"""What onnx raises for files that are no models, by their extension: binary, JSON, protobuf text, ONNX text."""

PROTOBUF_LIMIT = 2**31 - 2**24
"""Models above this many bytes are written with external data: protobuf cannot exceed 2 GiB."""

RENAMED = "graphopt.renamed"
"""Key of `Model.meta`: `(old, new)` names of redeclared values that `load` had to rename."""

SORTED = "graphopt.sorted"
"""Key of `Model.meta`: how many graphs' nodes were out of order, which onnx_ir cannot copy."""

FILES = "graphopt.files"
"""Key of `Model.meta`: the paths a loaded model came from, its external data included."""

EXTERNAL = "graphopt.external"
"""Key of `Model.meta`: bytes from which on an initializer is to be written to `path` + ".data", at any model size."""

_LARGE = 257
"""That number where the model's size alone asks for it."""

_WRITERS = min((os.cpu_count() or 1) + 1, 4)
"""Tensors to write at a time: some may be computed while others are written."""

LENGTH = "graphopt.length"
"""Key of `Model.meta`: bytes of the model when it was last serialized; only for whoever knows that it did not change."""

PROVENANCE = "graphopt"
"""Key of the model's `metadata_props` under which provenance travels."""


def load(path: str | Path) -> ir.Model:
    """Read a model. Tensors stay on disk or in the file's buffer until they are used.

    Values defined more than once are renamed (see `graphopt.redeclared`), and nodes out of order are sorted;
    `model.meta` tells of both under RENAMED and SORTED.

    Raises:
        UserError: the file is missing, truncated or not an ONNX model, or its external data is missing,
            too short, or outside the model's folder.
    """
    path = Path(path)
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path and its permissions") from None
    except _UNREADABLE:
        raise UserError(f"{path}: not an ONNX model, or a truncated one; export or download it again") from None
    if not proto.HasField("graph") or not (proto.opset_import or proto.ir_version):
        raise UserError(f"{path}: not an ONNX model (it holds no graph); export or download it again")
    try:
        renamed = rename_redeclared(proto.graph)
        model: ir.Model = ir.from_proto(proto)
        model.meta[RENAMED] = renamed
        model.meta[SORTED] = _sort(model, path)
        model.meta[FILES] = [path, *_attach_external_data(model, path)]
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:  # names that are not UTF-8, no such type
        raise UserError(f"{path}: malformed model: {_root_cause(error)}; export it again") from None
    return model


def save(model: ir.Model, path: str | Path, notes: Callable[[], Mapping[str, str]] = dict) -> int:
    """Write a model so that `path` holds either the whole new model or whatever it held before.

    Tensors go into `path` itself, or into `path` + ".data" when the file would exceed 2 GiB or `model.meta` asks for it
    under EXTERNAL.

    Args:
        model: the model.
        path: where to.
        notes: more entries for its `metadata_props`, asked for once external tensors are written: what takes long to
            know can be found out in the meantime.

    Returns:
        The bytes written, external data included.

    Raises:
        UserError: the folder does not exist or cannot be written, or the disk is full.
    """
    with staged(path) as draft:
        return write(model, draft, notes)


def save_all(models: Mapping[Path, ir.Model]) -> list[int]:
    """Write several models, each as `save` does: all of them or, on an error, none; return the bytes of each.

    Raises:
        UserError: as for `save`.
    """
    with contextlib.ExitStack() as stack:
        drafts = [(stack.enter_context(_writing(path)) / path.name, path) for path in models]
        sizes = [write(model, draft) for model, (draft, _) in zip(models.values(), drafts, strict=True)]
        _install([move for draft, path in drafts for move in _moves(draft.parent, path)])
    return sizes


def write(model: ir.Model, path: Path, notes: Callable[[], Mapping[str, str]] = dict) -> int:
    """Write a model to a new file, and its tensors to `path` + ".data" if `save` says so; return the bytes of both."""
    limit = model.meta.get(EXTERNAL, _LARGE if total_bytes(model) > PROTOBUF_LIMIT else None)
    proto = to_proto(model) if limit is None else ir.to_proto(_externalized(model, path, limit))
    if more := notes():
        onnx.helper.set_model_props(proto, {entry.key: entry.value for entry in proto.metadata_props} | dict(more))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return sum(file.stat().st_size for file in path.parent.iterdir())


def _externalized(model: ir.Model, path: Path, limit: int) -> ir.Model:
    """Return a copy whose initializers of at least `limit` bytes lie in `path` + ".data", which is written."""
    copy = model.clone()
    large = [value for value in detachable(copy) if value.const_value is not None and value.const_value.nbytes >= limit]
    found = [value.const_value for value in large if value.const_value is not None]
    embed(copy, keep=large)
    moved = ir.external_data.convert_tensors_to_external(found, path.parent, f"{path.name}.data", max_workers=_WRITERS)
    for value, tensor in zip(large, moved, strict=True):
        value.const_value = tensor
    return copy


@contextlib.contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder; what lies there in the end takes its place beside `path`.

    Nothing does if the file is gone by then, or after an exception.

    Raises:
        UserError: as for `save`.
    """
    path = Path(path)
    with _writing(path) as folder:
        draft = folder / path.name
        yield draft
        if draft.exists():
            _install(_moves(folder, path))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        UserError: as for `save`.
    """
    path = Path(path)
    with _writing(path) as folder:
        (folder / path.name).write_bytes(content)
        _install(_moves(folder, path))


def check_writable(path: str | Path, inputs: Sequence[Path] = ()) -> None:
    """Refuse an output path before any work is done.

    Args:
        path: where a model is going to be written.
        inputs: files that must not be overwritten, by the model or by its external data.

    Raises:
        UserError: it is a folder, lies in a folder that is missing or not writable, or hits one of `inputs`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file, such as {path / 'model.onnx'}")
    for target in (path, path.with_name(f"{path.name}.data")):
        if target.exists() and any(source.exists() and target.samefile(source) for source in inputs):
            raise UserError(f"{target}: is also the input; write to another file")
    with _writing(path):
        pass


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return the model as one protobuf with its external data inside."""
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors(model)):
        model = model.clone()
        embed(model)
    return ir.to_proto(model)


def embed(model: ir.Model, keep: Collection[ir.Value] = ()) -> None:
    """Read external tensors into memory, in place: those of initializers, but of `keep`, and of attributes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor) and value not in keep:
                value.const_value = _in_memory(value.const_value)
    for node in nodes(model):
        for attribute in list(node.attributes.values()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.as_tensor(), ir.ExternalTensor):
                node.attributes.add(ir.AttrTensor(attribute.name, _in_memory(attribute.as_tensor())))


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.external_data.convert_tensors_from_external([tensor])[0]


def detachable(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the initializers that may lie outside the file: all but text."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING:
                yield value


@contextlib.contextmanager
def serialized(model: ir.Model) -> Iterator[bytes | str]:
    """Yield what a runtime can open: the model's bytes, or above 2 GiB the path of a temporary file."""
    if total_bytes(model) <= PROTOBUF_LIMIT:
        content = to_proto(model).SerializeToString()
        model.meta[LENGTH] = len(content)
        yield content
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(model, path)
        yield str(path)


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every tensor of the model: initializers and attributes, in subgraphs and functions too."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in nodes(model):
        for attribute in node.attributes.values():
            if attribute.is_ref() or attribute.value is None:
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.as_tensors()


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of the model, in subgraphs and functions too."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def total_bytes(model: ir.Model) -> int:
    """Return the bytes that the model's tensors take."""
    return sum(tensor.nbytes for tensor in tensors(model))


def file_bytes(model: ir.Model) -> int:
    """Return the size of the files a model was loaded from, external data included."""
    return sum(file.stat().st_size for file in model.meta[FILES])


def sha256(files: Sequence[Path]) -> str:
    """Return the hash of files' contents, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def provenance(pipeline: list[str], inputs: Mapping[str, str], seed: int) -> str:
    """Return the JSON that says how a model was made; it names no path, machine or time.

    Args:
        pipeline: specification strings of the passes that were kept, in order.
        inputs: sha256 of what went in, by role ("model", "data", ...).
        seed: the seed of every random choice.
    """
    libraries = ("graphopt", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript")
    return json.dumps(
        {
            "versions": {name: v for name in libraries if (v := version(name))},
            "pipeline": pipeline,
            "sha256": dict(inputs),
            "seed": seed,
        },
        sort_keys=True,
    )


def version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sort(model: ir.Model, path: Path) -> int:
    """Put the nodes of every graph and function in topological order; return how many graphs were not.

    Raises:
        UserError: there is no such order, or a value that nothing defines.
    """
    owners = scopes.roots(model)
    graphs = [graph for owner in owners for graph in (owner, *owner.subgraphs())]
    before = [list(graph) for graph in graphs]
    try:
        for owner in owners:
            owner.sort()
    except ValueError:
        raise UserError(f"{path}: malformed model: its nodes form a cycle; export it again") from None
    reason = next((why for owner in owners if (why := scopes.undefined(owner))), None)
    if reason:
        raise UserError(f"{path}: malformed model: {reason}; export it again")
    return sum(list(graph) != nodes for graph, nodes in zip(graphs, before, strict=True))


def _attach_external_data(model: ir.Model, path: Path) -> list[Path]:
    """Check every tensor that lies outside the file, tell it where, and return the files."""
    folder = path.parent.resolve()
    files = set()
    for tensor in tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = Path(str(tensor.location))
        file = (folder / location).resolve()
        if location.is_absolute() or not file.is_relative_to(folder):
            raise UserError(
                f"{path}: tensor '{tensor.name}' asks for external data outside the model's folder ({location}); "
                "do not trust this file"
            )
        if not file.is_file():
            raise UserError(
                f"{path}: external data '{location}' of tensor '{tensor.name}' is missing; put it beside the model"
            )
        offset, length = tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length
        if offset < 0 or length < tensor.nbytes or offset + length > file.stat().st_size:
            raise UserError(
                f"{path}: external data '{location}' is too short for tensor '{tensor.name}'; copy the file again"
            )
        tensor.base_dir = folder
        files.add(file)
    return sorted(files)


def _moves(folder: Path, path: Path) -> list[tuple[Path, Path]]:
    """Return what to move from a temporary folder to beside `path`: data before the model that points to it."""
    return [(file, path.parent / file.name) for file in sorted(folder.iterdir(), reverse=True)]


def _install(moves: Sequence[tuple[Path, Path]]) -> None:
    """Move files to their targets, which they replace: all of them or, on an error, none."""
    placed: list[Path] = []
    kept: list[tuple[Path, Path]] = []
    try:
        for file, target in moves:
            if target.exists() and file is not moves[-1][0]:  # the last one is replaced in a single step
                os.replace(target, file.with_name(f"{file.name}.kept"))
                kept.append((file.with_name(f"{file.name}.kept"), target))
            os.replace(file, target)
            placed.append(target)
    except OSError:
        for target in placed:
            target.unlink()
        for old, target in kept:
            os.replace(old, target)
        raise


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, and turn what the system refuses into a `UserError`."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".graphopt-") as folder:
            yield Path(folder)
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot write: folder {path.parent} does not exist; create it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}; choose another place or free some space") from error


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
