"""What one check of `graphopt doctor` found."""

from __future__ import annotations

import dataclasses
from typing import Literal

Status = Literal["broken", "warning", "note", "ok"]

SEVERITY: tuple[Status, ...] = ("broken", "warning", "note", "ok")
"""Every status, worst first."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at, such as "onnxruntime" or "memory".
        status: "broken" when graphopt cannot work, "warning" when results may be wrong or slow, "note" when it
            is worth knowing, else "ok".
        message: what was found, in one line.
        fix: what to do about it, a command where there is one; None when there is nothing to do.
    """

    check: str
    status: Status
    message: str
    fix: str | None = None


def one_line(text: object) -> str:
    """Return a message in one line of bounded length."""
    return " ".join(str(text).split())[:300]
