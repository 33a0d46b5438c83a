"""What can go wrong, sorted by who can fix it.

A `UserError` is something the person at the keyboard can mend: it is printed as one line, without a
traceback, and ends the process with its `exit_code`. Any other exception is a bug in graphopt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input; the message says what is wrong and how to fix it (exit code 1)."""

    exit_code = 1


class UsageError(UserError):
    """The command or the specification of a pass is wrong (exit code 2)."""

    exit_code = 2


class GateError(UserError):
    """An accuracy, latency, size or equivalence gate was not met (exit code 3)."""

    exit_code = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"`, or the list of what is known when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
