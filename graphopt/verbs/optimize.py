"""Make a model smaller and faster, and prove that it still does its job"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.verbs import _options

if TYPE_CHECKING:
    from graphopt.optimizer import Report


@click.command("optimize")
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="OUT", help="Path of the model to write.")
@click.option(
    "--data", metavar="D", help="Calibration data: a .npz with one array per input, or package.module:factory."
)
@click.option("--eval-data", metavar="D", help="Data for the metric, with targets in 'labels'.")
@click.option(
    "--metric",
    metavar="M",
    help="accuracy (the default with --eval-data), top5, f1, mse, agreement, cosine, ... or package.module:function.",
)
@click.option(
    "--max-drop",
    default="0.01",
    show_default=True,
    metavar="X",
    help="Largest accepted drop of the metric: 0.005 is absolute, 0.5% relative.",
)
@_options.target
@_options.threads
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Samples per run when measuring latency."
)
@click.option("--weights", metavar="FILE", help="For a PyTorch network: the checkpoint to fill it from (see export).")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=2x3x32x32", help="For a PyTorch network: an example input."
)
@click.option(
    "--dynamic", multiple=True, metavar="INPUT:AXIS=SYMBOL", help="For a PyTorch network: an axis to leave open."
)
@click.option("--recipe", metavar="FILE|NAME", help="What to run; by default what suits the target.")
@click.option(
    "--report", metavar="DIR", help="Folder for report.json and report.html; by default OUT's name with .report.json."
)
@click.option(
    "--keep-metadata", is_flag=True, help="Keep the metadata that exporters leave in nodes, source paths included."
)
@click.option(
    "--portable", is_flag=True, help="Integers that come to the same on every processor, those without VNNI included."
)
@_options.seed
@_options.as_json
def command(
    model: str,
    output: str,
    report: str | None,
    as_json: bool,
    target: str,
    threads: int,
    weights: str | None,
    inputs: tuple[str, ...],
    dynamic: tuple[str, ...],
    **options: Any,
) -> None:
    """Make a model smaller and faster, and prove that it still does its job.

    MODEL is an .onnx file, or whatever `graphopt export` takes, which is exported first. Without --data only lossless
    passes run, verified on seeded random inputs. With it, int8 quantization is tried and kept if the metric stays
    within its budget and the model measures faster.
    """

    from graphopt.console import print_json, progress
    from graphopt.optimizer import optimize
    from graphopt.report import writer
    from graphopt.target import find

    writer.check(report)
    place = find(target, threads)
    exporting = {"weights": weights, "inputs": inputs, "dynamic": dynamic or None}
    with _file(model, output, target=place, seed=options["seed"], **exporting) as path, progress() as step:
        done = dataclasses.replace(optimize(path, output, target=place, on_step=step, **options), input=model)
    written = writer.write(done, Path(report) if report else None)
    if as_json:
        print_json(done.to_json())
    else:
        _print(done, written)
    sys.exit(0 if done.met else 3)


@contextlib.contextmanager
def _file(source: str, output: str, **exporting: Any) -> Iterator[str]:
    """Yield an .onnx file: the one that is named, or a temporary one exported from a PyTorch network."""
    from graphopt.errors import GateError, UsageError

    path = Path(source)
    if path.suffix != ".pt2" and not path.is_dir() and (path.exists() or ":" not in source):
        if exporting["weights"] or exporting["inputs"] or exporting["dynamic"]:
            raise UsageError("--weights, --input and --dynamic are for exporting a PyTorch network, not for a file")
        yield source
        return
    from graphopt import io
    from graphopt.exporting.exporter import export

    io.check_writable(output)
    with tempfile.TemporaryDirectory() as folder:
        done = export(source, Path(folder) / "model.onnx", **exporting)
        if done.output is None:
            raise GateError(f"{source}: the exported file computes something else; see graphopt export {source}")
        yield done.output


def _print(done: Report, place: Path) -> None:
    from rich.text import Text

    from graphopt.console import console, print_steps, size

    print_steps(done.steps)
    out = console()
    rows = []
    if done.metric:
        m = done.metric
        interval = (
            f", drop {m.drop:+.4f} (95 % interval {m.ci95[0]:+.4f} to {m.ci95[1]:+.4f})"
            if m.ci95
            else f", drop {m.drop:+.4f}"
        )
        rows.append((m.name, f"{m.before:.4f} -> {m.after:.4f}{interval}"))
    if done.latency:
        t = done.latency
        rows.append(
            (
                "latency",
                f"{t.before_ms:.3f} -> {t.after_ms:.3f} ms at batch {t.batch}: {t.speedup:.2f} times the speed (95 % interval {t.ci95[0]:.2f} to {t.ci95[1]:.2f})",
            )
        )
    rows.append(
        ("size", f"{size(done.bytes[0])} -> {size(done.bytes[1])} ({done.bytes[1] / done.bytes[0]:.2f} of the input)")
    )
    rows.append(("nodes", f"{done.nodes[0]} -> {done.nodes[1]}"))
    rows.append(("output", done.output))
    rows.append(("report", str(place)))
    out.print()
    for name, text in rows:
        out.print(Text(f"{name:10} ", "bold"), text, sep="", soft_wrap=True)
    for note in done.notes:
        out.print(Text("note       ", "yellow"), note, sep="", soft_wrap=True)
    if not done.met:
        out.print("the gate was not met", style="bold red")
