"""The command generated from a pass's dataclass, and what `apply` shares with it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import click

from graphopt import registry, spec
from graphopt.console import console, print_json, print_steps, progress, size

if TYPE_CHECKING:
    from graphopt.application import Applied
    from graphopt.passbase import Pass


def apply_options(fields: Collection[str] = ()) -> list[click.Option]:
    """Return the options of every command that runs passes, but for those that a pass's own `fields` bring."""
    made = [
        click.Option(["-o", "--output"], required=True, metavar="OUT", help="Path of the model to write."),
        click.Option(["--data"], help="Inputs to verify on; by default seeded random ones."),
        click.Option(
            ["--target"], default="cpu", show_default=True, metavar="T", help="Where to verify (see optimize)."
        ),
        click.Option(
            ["--seed"],
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Seed of the random inputs for verification.",
        ),
        click.Option(
            ["--no-verify", "unverified"],
            is_flag=True,
            help="Do not run the model: for one that hardly fits into memory. The report says so.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object instead of a table."),
    ]
    return [option for option in made if option.name not in fields]


def pass_command(name: str) -> click.Command:
    """Make the command for one pass."""
    cls = registry.find("pass", name)
    fields = spec.field_types(cls)

    def run(model: str, output: str, as_json: bool, **options: Any) -> None:
        given = {key: value for key, value in options.items() if key in fields and value is not None}
        common = {key: options[key] for key in ("target", "data", "seed", "unverified") if options[key] is not None}
        run_and_print(model, [spec.build(name, given)], output, as_json, **common)

    return click.Command(
        name,
        params=[click.Argument(["model"]), *spec.options(cls), *apply_options(fields)],
        callback=run,
        help=_help(cls),
    )


def run_and_print(
    model: str,
    passes: Sequence[str | Pass],
    output: str,
    as_json: bool,
    target: str = "cpu",
    data: str | None = None,
    seed: int | str = 0,
    unverified: bool = False,
) -> None:
    """Apply passes, print what came of it, and exit 3 if one failed its verification."""
    from graphopt.application import apply

    with progress() as step:
        done = apply(
            model, passes, output, target=target, seed=int(seed), data=data, verify=not unverified, on_step=step
        )
    if as_json:
        print_json(done.to_json())
    else:
        _print(done)
    sys.exit(0 if done.met else 3)


def _print(done: Applied) -> None:
    print_steps(done.steps)
    if done.output:
        console().print(f"{done.output}: {size(done.bytes[1])}, was {size(done.bytes[0])}", soft_wrap=True)
    else:
        console().print("verification failed; nothing was written", style="bold red")


def _help(cls: type[Pass]) -> str:
    """Return the first paragraph of the pass's module docstring."""
    return (sys.modules[cls.__module__].__doc__ or "").partition("\n\n")[0]
