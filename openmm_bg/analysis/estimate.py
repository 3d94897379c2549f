"""A number with its standard error, and whether two of them agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Agreement = Literal["agree", "disagree", "undetermined"]


@dataclass(frozen=True)
class Estimate:
    """An estimated average.

    Attributes
    ----------
    value : float
        The estimate; NaN where nothing could be estimated.
    error : float
        One standard error. NaN where the data cannot tell, as for the population of a basin that a chain never
        entered or never left: the spread of a chain that did not move says nothing about its error.
    n_effective : float
        Number of independent samples behind the value; NaN where unknown.
    """

    value: float
    error: float
    n_effective: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.error):
            return f"{self.value:.4g} (error unknown)"
        return f"{self.value:.4g} ± {self.error:.2g}"

    def as_json(self) -> dict[str, float | None]:
        """Return `value` and `error` for a JSON file, with None for what is not finite."""
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "error": self.error if math.isfinite(self.error) else None,
        }


def z_score(first: Estimate, second: Estimate) -> float:
    """Return the difference of two independent estimates in units of their combined standard error.

    NaN where either value or the combined error is not finite, or where the error is zero.
    """
    error = math.hypot(first.error, second.error)
    difference = first.value - second.value
    if not math.isfinite(difference) or not math.isfinite(error) or error == 0.0:
        return math.nan
    return difference / error


def agreement(first: Estimate, second: Estimate, n_sigma: float = 2.0) -> Agreement:
    """Say whether two independent estimates lie within `n_sigma` combined standard errors of each other."""
    z = z_score(first, second)
    if math.isnan(z):
        return "undetermined"
    return "agree" if abs(z) <= n_sigma else "disagree"
