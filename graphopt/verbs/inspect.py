"""Say what is in a model"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from graphopt.runtime import Port


@click.command("inspect")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, as_json: bool) -> None:
    """Say what is in MODEL: inputs, outputs, operators, parameters, versions and how it was made."""
    from graphopt.console import console, print_json, size
    from graphopt.inspection import inspect

    found = inspect(model)
    if as_json:
        print_json(found.to_json())
        return
    rows = [
        ("file", f"{found.path}, {size(found.bytes)}"),
        ("producer", found.producer or "unknown"),
        ("versions", f"IR {found.ir_version}, " + ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in found.opsets.items())),
        *(("input", _port(port)) for port in found.inputs),
        *(("output", _port(port)) for port in found.outputs),
        ("nodes", f"{found.nodes}: " + ", ".join(f"{count} {name}" for name, count in found.operators.items())),
        ("parameters", ", ".join(f"{count:,} {name}" for name, count in found.parameters.items()) or "none"),
        *(("function", name) for name in found.functions),
        *(
            ("defined twice", f"{old}, read as {new}; fix it with: graphopt apply MODEL repair -o OUT")
            for old, new in found.renamed
        ),
        *(("metadata", f"{key} = {value[:200]}") for key, value in found.metadata.items()),
    ]
    if found.provenance:
        rows.append(("made by", json.dumps(found.provenance)))
    out = console()
    for name, text in rows:
        out.print(f"{name:14}{text}", soft_wrap=True)


def _port(port: Port) -> str:
    shape = (
        "any rank" if port.shape is None else "[" + ", ".join("?" if d is None else str(d) for d in port.shape) + "]"
    )
    return f"{port.name} {port.dtype.name.lower() if port.dtype else 'not a tensor'} {shape}"
