"""Cut a model in two at some tensors, verified"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from graphopt.verbs import _options

if TYPE_CHECKING:
    from graphopt.splitting import Part


@click.command("split")
@click.argument("model")
@click.argument("tensors", metavar="TENSOR[,TENSOR...]")
@click.option("--head", required=True, metavar="A", help="Path of the first part to write.")
@click.option("--tail", required=True, metavar="B", help="Path of the second part to write.")
@_options.data
@click.option(
    "--rtol",
    type=click.FloatRange(0),
    default=1e-4,
    show_default=True,
    help="Largest relative error that counts as equal.",
)
@_options.target
@_options.seed
@_options.as_json
def command(model: str, tensors: str, head: str, tail: str, as_json: bool, **options: Any) -> None:
    """Cut MODEL in two: A computes the TENSORs, B everything else.

    B takes over every tensor that crosses the cut, and the inputs that it needs. Both in a row are verified against
    MODEL; if they differ, nothing is written and the exit code is 3.
    """
    from graphopt.console import console, print_json
    from graphopt.splitting import split

    done = split(model, [name for name in tensors.split(",") if name], head, tail, **options)
    if as_json:
        print_json(done.to_json())
        return
    out = console()
    for part in (done.head, done.tail):
        out.print(_row(part), soft_wrap=True)
    more = [name for name in done.handed_over if name not in done.cut]
    if more:
        out.print(f"handed over, too: {', '.join(more)}", soft_wrap=True)
    for name, reason in done.notes:
        out.print(f"{name}: {reason}", soft_wrap=True)
    out.print(f"verified on {done.runs} inputs", soft_wrap=True)


def _row(part: Part) -> str:
    from graphopt.console import size

    names = f"{', '.join(part.inputs)} -> {', '.join(part.outputs)}"
    return f"{part.path}: {part.nodes} nodes, {size(part.bytes)}: {names}"
