"""Time models against each other, interleaved in one process"""

from __future__ import annotations

import dataclasses

import click


@click.command("bench")
@click.argument("models", nargs=-1, required=True)
@click.option("--target", default="cpu", show_default=True, help="Where to run: cpu, cuda, reference.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="Threads within an operator; 0 lets the runtime decide."
)
@click.option("--batch", default="1", show_default=True, help="Batch sizes, such as 1,32.")
@click.option("--runs", type=click.IntRange(2), help="Rounds per batch size; by default as many as fit in --seconds.")
@click.option("--seconds", default=3.0, show_default=True, help="Time per batch size.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the inputs and the bootstrap."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(
    models: tuple[str, ...],
    target: str,
    threads: int,
    batch: str,
    runs: int | None,
    seconds: float,
    seed: int,
    as_json: bool,
) -> None:
    """Time MODELS on seeded random inputs; speed-ups are against the first, with 95 % bootstrap intervals."""
    from rich.table import Table

    from graphopt.console import console, print_json
    from graphopt.latency import benchmark
    from graphopt.target import find

    try:
        sizes = [int(size) for size in batch.split(",")]
    except ValueError:
        raise click.BadParameter(f"'{batch}' is not a list of sizes such as 1,32", param_hint="--batch") from None
    if min(sizes) < 1:
        raise click.BadParameter("sizes start at 1", param_hint="--batch")
    rows = benchmark(models, target=find(target, threads), batch=sizes, runs=runs, seconds=seconds, seed=seed)
    if as_json:
        print_json({"target": target, "rows": [dataclasses.asdict(row) for row in rows]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "batch", "median ms", "p90 ms", "samples/s", "speed", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    for row in rows:
        table.add_row(
            row.model, str(row.batch), f"{row.median_ms:.3f}", f"{row.p90_ms:.3f}", f"{row.per_second:.0f}",
            f"{row.speedup:.2f}x", f"{row.ci95[0]:.2f} to {row.ci95[1]:.2f}",
        )  # fmt: skip
    console().print(table)
