"""A recipe: the passes to run, in order, as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from graphopt import registry, spec
from graphopt.errors import UserError

if TYPE_CHECKING:
    from graphopt.passbase import Pass


def load(recipe: str) -> list[Pass]:
    """Read a recipe: a ready one by its name, or a file.

    Raises:
        UserError: there is no such recipe, or it is not a mapping with a list of `steps`.
        UsageError: a step names an unknown pass or field.
    """
    path = Path(recipe)
    if not path.suffix:
        found = registry.entry("recipe", recipe).path
        assert found is not None
        path = found
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{recipe}: cannot read the recipe: {error.strerror}; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{recipe}: not a YAML recipe: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not isinstance(document.get("steps"), list):
        raise UserError(f"{recipe}: a recipe is a mapping with a list of passes under 'steps'")
    return [spec.from_entry(entry) for entry in document["steps"]]
