"""Find the first node at which two versions of a model diverge"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from graphopt.verbs import _options

if TYPE_CHECKING:
    from graphopt.bisection import Bisection


@click.command("bisect")
@click.argument("reference")
@click.argument("candidate")
@_options.data
@click.option(
    "--rtol",
    type=click.FloatRange(0),
    default=1e-4,
    show_default=True,
    help="Largest relative error that counts as equal.",
)
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Accept any difference above this signal-to-noise ratio instead, for a quantized candidate.",
)
@_options.target
@click.option("--reference-target", metavar="T", help="Where to run REFERENCE; by default on the same target.")
@click.option(
    "--memory",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    metavar="MB",
    help="Inner values to hold at a time.",
)
@_options.seed
@_options.as_json
def command(reference: str, candidate: str, memory: int, as_json: bool, **options: Any) -> None:
    """Find the first node at which CANDIDATE computes other numbers than REFERENCE.

    Exit code 0 whether or not they diverge; `graphopt validate` gates.
    """
    from graphopt.bisection import bisect
    from graphopt.console import print_json

    done = bisect(reference, candidate, memory=memory * 2**20, **options)
    if as_json:
        print_json(done.to_json())
    else:
        _print(done)


def _print(done: Bisection) -> None:
    from graphopt.console import console

    out = console()
    first = done.first
    if first is None:
        told = "all agree" if not done.outputs else "all agree, so the difference vanishes when inner values are read"
        out.print(f"{done.compared} inner values compared: {told}", soft_wrap=True)
    else:
        out.print(f"first divergence: {first}", style="bold", soft_wrap=True)
        rows = [("output", first.output), ("error", first.error), ("in the reference", first.reference or "an input")]
        if first.iteration:
            rows.append(("iteration", ", ".join(map(str, first.iteration))))
        rows += [("input", f"{name}: {state}") for name, state in first.inputs]
        if first.before:
            rows.append(("or before it", ", ".join(first.before)))
        for name, text in rows:
            out.print(f"  {name:17}{text}", soft_wrap=True)
    for line in done.outputs:
        out.print(line, soft_wrap=True)
    if done.unmatched:
        out.print(f"{done.unmatched} values of {done.candidate} have no counterpart in the reference", soft_wrap=True)
