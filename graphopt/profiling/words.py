"""Times and operators in words, as a profile tells them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scale:
    """How to write times that are shown beside each other.

    Attributes:
        unit: "ms" or "us".
        factor: microseconds per unit.
        decimals: how many digits come after the point.
    """

    unit: str
    factor: float
    decimals: int

    def __call__(self, us: float) -> str:
        """Return a time without its unit."""
        return f"{us / self.factor:.{self.decimals}f}"

    def signed(self, us: float) -> str:
        """Return a difference of times without its unit, with its sign."""
        return f"{us / self.factor:+.{self.decimals}f}"


def scale(us: float) -> Scale:
    """Return how to write times up to so many microseconds, the largest with three digits."""
    unit, factor = ("ms", 1000.0) if us >= 1000 else ("us", 1.0)
    return Scale(unit, factor, sum(us / factor < limit for limit in (100, 10, 1)))


def operator(name: str) -> str:
    """Return an operator for people, without the name of the company that most of the others come from."""
    return name.removeprefix("com.microsoft::").removeprefix("com.microsoft.")


def percent(share: float) -> str:
    """Return a share of the time for people."""
    return f"{share:.0%}".replace("%", " %") if share >= 0.1 or share == 0 else f"{share:.1%}".replace("%", " %")
