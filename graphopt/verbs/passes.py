"""List passes, or describe one with its fields"""

from __future__ import annotations

import click


@click.command("passes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List all passes, or describe the pass NAME with its fields."""
    import dataclasses
    import sys

    from rich.text import Text

    from graphopt import registry, spec
    from graphopt.console import console, print_json

    if name is None:
        found = registry.entries("pass").values()
        if as_json:
            print_json({"passes": [{"name": e.name, "family": e.group, "summary": e.summary} for e in found]})
        else:
            for e in found:
                console().print(Text(f"{e.name:34} ", "bold"), f"{e.group:14} {e.summary}", sep="", soft_wrap=True)
        return
    cls = registry.find("pass", name)
    types = spec.field_types(cls)
    fields = [
        {
            "name": f.name,
            "type": spec.type_name(types[f.name]),
            "default": f.default,
            "help": f.metadata.get("help", ""),
        }
        for f in dataclasses.fields(cls)
    ]
    text = (sys.modules[cls.__module__].__doc__ or "").strip()
    if as_json:
        print_json({"name": name, "contract": dataclasses.asdict(cls.contract), "fields": fields, "description": text})
        return
    out = console()
    out.print(Text(name, "bold"), f"({cls.contract.kind})\n")
    out.print(text)
    for field in fields:
        out.print(f"\n{field['name']}: {field['type']} = {field['default']!r}\n    {field['help']}")
