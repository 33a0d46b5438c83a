"""Run passes in the given order, each verified"""

from __future__ import annotations

import click

from graphopt.passcommand import apply_options, run_and_print


def _run(
    model: str, passes: tuple[str, ...], output: str, target: str, seed: int, as_json: bool, data: str | None
) -> None:
    run_and_print(model, passes, output, target, seed, as_json, data)


command = click.Command(
    "apply",
    params=[click.Argument(["model"]), click.Argument(["passes"], nargs=-1, required=True), *apply_options(data=True)],
    callback=_run,
    help="Run passes on MODEL in the given order, each written name or 'name{field=value}', each verified.",
)
