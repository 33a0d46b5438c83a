"""Run the passes that the user names, verified but not measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from graphopt import io, spec
from graphopt.data import Source, open_data
from graphopt.passbase import Pass
from graphopt.pipeline import Pipeline, Step, begin, feeds_for, unverified
from graphopt.target import Target
from graphopt.target import find as find_target


@dataclasses.dataclass(frozen=True)
class Applied:
    """What `apply` did.

    Attributes:
        input, output: paths; `output` is None when nothing was written.
        target: where it was verified.
        steps: one per pass.
        nodes, bytes: before and after.
        met: whether every pass passed verification.
        seconds: how long it took.
    """

    input: str
    output: str | None
    target: str
    steps: Sequence[Step]
    nodes: tuple[int, int]
    bytes: tuple[int, int]
    met: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the record, with the field names of `optimize --json`."""
        return {**dataclasses.asdict(self), "steps": [step.to_json() for step in self.steps]}


def apply(
    model: str | Path,
    passes: Sequence[str | Mapping[str, Any] | Pass],
    output: str | Path,
    *,
    data: Source | None = None,
    target: str | Target = "cpu",
    seed: int = 0,
    verify: bool = True,
    on_step: Callable[[Step], None] | None = None,
) -> Applied:
    """Run passes on a model in order and write the result.

    Every pass is verified: an exact one must compute the same numbers, a lossy one must keep its signal.
    When one fails, nothing is written and the answer's `met` is false.

    Args:
        model: path of the .onnx file.
        passes: specification strings, recipe entries or passes.
        output: path to write.
        data: inputs to verify on (see `graphopt.data.open_data`); by default the data that a pass is given
            (random inputs would lie outside the ranges calibrated on it), else seeded random ones.
        target: where to verify.
        seed: of the random inputs.
        verify: run the model before and after each pass; without it, nothing is run, which a model that hardly fits into
            memory needs.
        on_step: called after each pass.

    Raises:
        UserError: anything the caller can fix; nothing is written.
    """
    start = time.perf_counter()
    place = find_target(target) if isinstance(target, str) else target
    chosen = [p if isinstance(p, Pass) else spec.from_entry(p) for p in passes]
    loaded = io.load(model)
    read = [open_data(found) for found in (*([] if data is None else [data]), *_data(chosen))]
    source = read[0] if read else None
    others = _other_models(chosen)
    files = [file for found in others.values() for file in found]
    io.check_writable(output, [*loaded.meta[io.FILES], *files, *(file for found in read for file in found.files)])
    before = sum(1 for _ in io.nodes(loaded))
    if not verify:
        made, steps, kept = loaded, unverified(loaded, chosen, on_step), [spec.render(p, sources=False) for p in chosen]
    else:
        opened = begin(loaded, place, chosen, str(model))
        pipeline = Pipeline(opened, place, feeds_for(opened, source, seed, str(model)), seed)
        for pass_ in chosen[len(opened.steps) :]:
            step = pipeline.run(pass_, strict=True)
            if on_step:
                on_step(step)
            if step.status == "reverted":
                break
        made, steps, kept = pipeline.model, pipeline.steps, pipeline.kept
    met = all(step.status != "reverted" for step in steps)
    size = io.file_bytes(loaded)
    sizes = (size, size)
    if met:
        inputs = {"model": loaded.meta[io.FILES], **others}
        with ThreadPoolExecutor(1) as pool:
            hashes = pool.submit(lambda: {role: io.sha256(files) for role, files in inputs.items()})
            sizes = (
                size,
                io.save(made, output, lambda: {io.PROVENANCE: io.provenance(kept, hashes.result(), seed)}),
            )
    nodes = before, sum(1 for _ in io.nodes(made))
    written = str(output) if met else None
    return Applied(str(model), written, place.name, steps, nodes, sizes, met, time.perf_counter() - start)


def _data(passes: Sequence[Pass]) -> list[Any]:
    """Return the data sets that passes are given."""
    return [value for _, field, value in _sources(passes) if field.metadata["source"] == "data"]


def _other_models(passes: Sequence[Pass]) -> dict[str, list[Path]]:
    """Return the files of models that passes are given besides the one they change, by `pass.field`."""
    found: dict[str, list[Path]] = {}
    for pass_, field, value in _sources(passes):
        if field.metadata["source"] == "model":
            found.setdefault(f"{pass_.pass_name()}.{field.name}", []).extend(io.load(value).meta[io.FILES])
    return found


def _sources(passes: Sequence[Pass]) -> Iterator[tuple[Pass, dataclasses.Field[Any], Any]]:
    """Yield the outside sources that passes are given: `(pass, field, value)`."""
    for pass_ in passes:
        for field in dataclasses.fields(cast(Any, pass_)):
            if field.metadata.get("source") and getattr(pass_, field.name) != field.default:
                yield pass_, field, getattr(pass_, field.name)
