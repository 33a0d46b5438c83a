"""Export a PyTorch network to ONNX, checked against the network"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from graphopt.verbs import _options

if TYPE_CHECKING:
    from graphopt.exporting.exporter import Exported


@click.command("export")
@click.argument("source")
@click.option("-o", "--output", required=True, metavar="OUT", help="Path of the model to write.")
@click.option("--weights", metavar="FILE", help="A .pth state dict or .safetensors to fill the network from.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=2x3x224x224:float32",
    help="An example input; by default the source's own.",
)
@click.option("--data", metavar="D", help="A data set whose first batch serves as example inputs.")
@click.option(
    "--dynamic",
    multiple=True,
    metavar="INPUT:AXIS=SYMBOL",
    help="An axis to leave open; by default what the source declares, else the batch.",
)
@click.option("--static", is_flag=True, help="Leave no axis open.")
@click.option("--input-name", "input_names", multiple=True, metavar="NAME", help="Name of an input, in order.")
@click.option("--output-name", "output_names", multiple=True, metavar="NAME", help="Name of an output, in order.")
@click.option("--opset", type=click.IntRange(7), help="Version of the standard operators; by default the exporter's.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Element type of weights and floating-point inputs.",
)
@click.option("--keep-batchnorm", is_flag=True, help="Keep batch normalization apart, to train the file.")
@click.option("--keep-metadata", is_flag=True, help="Keep what the exporter notes in nodes, source paths included.")
@_options.target
@_options.seed
@_options.as_json
def command(source: str, dynamic: tuple[str, ...], static: bool, as_json: bool, **options: Any) -> None:
    """Export SOURCE to ONNX, and check the file against the network at several sizes.

    SOURCE is package.module:factory, a .pt2 file, or a folder of Hugging Face. Exit code 3, and nothing written, when
    the file computes something else than the network.
    """
    from graphopt.errors import UsageError

    if static and dynamic:
        raise UsageError("--static leaves no axis open, and --dynamic one; give one of them")
    from graphopt.console import print_json
    from graphopt.exporting.exporter import export

    done = export(source, dynamic={} if static else dynamic or None, **options)
    if as_json:
        print_json(done.to_json())
    else:
        _print(done)
    sys.exit(0 if done.met else 3)


def _print(done: Exported) -> None:
    from rich.table import Table

    from graphopt.console import console, size

    out = console()
    for kind, ports in (("input", done.inputs), ("output", done.outputs)):
        for name, text in ports.items():
            out.print(f"{kind:10}{name} {text}", soft_wrap=True)
    out.print(f"nodes     {done.nodes[0]} -> {done.nodes[1]}, opset {done.opset}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("sizes", "output", "max error", "SQNR dB", "equal"):
        table.add_column(heading, justify="left" if heading in ("sizes", "output") else "right", overflow="fold")
    for check in done.checks:
        sizes = ", ".join(f"{name} {number}" for name, number in check.sizes.items()) or "fixed"
        if check.failure:
            table.add_row(sizes, f"does not run: {check.failure}", "", "", "no")
        for o in check.outputs:
            table.add_row(sizes, o.name, f"{o.max_error:.3g}", f"{o.sqnr:.1f}", "no" if o.mismatch else "yes")
    out.print(table)
    for note in done.notes:
        out.print(f"note: {note}", style="yellow", soft_wrap=True)
    if done.output:
        out.print(f"{done.output}: {size(done.bytes)}", soft_wrap=True)
    else:
        out.print("the file differs from the network; nothing was written", style="bold red")
