"""Options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

from collections.abc import Mapping

import click

TARGET_HELP = (
    "Where to run: cpu, cuda, reference or any provider of ONNX Runtime; with settings as in "
    "'cpu{threads=2 level=basic}', 'cuda{enable_cuda_graph=1}'."
)

target = click.option("--target", default="cpu", show_default=True, metavar="T", help=TARGET_HELP)
threads = click.option(
    "--threads", type=click.IntRange(0), default=0, help="Threads within an operator; 0 lets the runtime decide."
)
seed = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of random inputs and resampling."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
batch = click.option(
    "--batch", default="1", show_default=True, metavar="N,...", help="Batch sizes, such as 1,32, where it is dynamic."
)
axis = click.option(
    "--axis",
    "axes",
    multiple=True,
    metavar="NAME=N,...",
    help="Sizes of another dynamic axis, such as sequence=16,128; nameless ones are called input:axis.",
)
data = click.option(
    "--data",
    metavar="D",
    help="Inputs to run on: a .npz with one array per input, or package.module:factory; by default seeded random ones.",
)


def sizes(text: str, option: str) -> list[int]:
    """Read "1,32".

    Raises:
        click.BadParameter: it is not a list of positive numbers.
    """
    try:
        found = [int(size) for size in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a list of sizes such as 1,32", param_hint=option) from None
    if min(found) < 1:
        raise click.BadParameter("sizes start at 1", param_hint=option)
    return found


def axis_sizes(texts: tuple[str, ...]) -> Mapping[str, list[int]]:
    """Read what `--axis` was given.

    Raises:
        click.BadParameter: one of them is not of the form NAME=N,...
    """
    found = {}
    for text in texts:
        name, equals, values = text.rpartition("=")
        if not equals or not name:
            raise click.BadParameter(f"'{text}' is not of the form NAME=16,128", param_hint="--axis")
        found[name] = sizes(values, "--axis")
    return found
