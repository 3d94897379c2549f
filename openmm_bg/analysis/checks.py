"""One check of a result, a grade and a sentence; and the plain answer that several of them give together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import norm

from openmm_bg.analysis.estimate import Estimate

Status = Literal["good", "warning", "bad"]

_SIGMA_WARNING, _SIGMA_BAD = 2.5, 4.0  # the largest of several differences, so wider than two


@dataclass(frozen=True)
class Check:
    """One reason to believe the numbers, or not."""

    name: str
    status: Status
    text: str


@dataclass(frozen=True)
class Verdict:
    """A plain answer and the checks behind it."""

    answer: Literal["believe", "believe with care", "do not believe", "nothing to judge"]
    sentence: str
    checks: list[Check]

    @property
    def refused(self) -> bool:
        """Whether the numbers are not to be used."""
        return self.answer == "do not believe"

    def named(self, status: Status) -> list[str]:
        """Names of the checks of one grade."""
        return [check.name for check in self.checks if check.status == status]


def conclude(checks: Sequence[Check]) -> Verdict:
    """Return the verdict of checks: one bad check refuses, one warning asks for care."""
    found = list(checks)
    if not found:
        return Verdict("nothing to judge", "Nothing has been sampled yet, so there is nothing to believe or not.", [])
    bad, warnings = ([check.name for check in found if check.status == status] for status in ("bad", "warning"))
    if bad:
        return Verdict("do not believe", f"Do not believe these numbers: {_listed(bad)} failed.", found)
    if warnings:
        return Verdict("believe with care", f"Believe these numbers with care: see {_listed(warnings)}.", found)
    return Verdict("believe", "Believe these numbers: every check below passed.", found)


def grade(value: float, enough: float, least: float) -> Status:
    """Grade a number of which much is good."""
    return "good" if value >= enough else "warning" if value >= least else "bad"


def sigma_grade(sigma: float, n_differences: int = 1) -> Status:
    """Grade the largest, in standard errors, of several differences (Bonferroni)."""
    return "good" if sigma <= _limit(_SIGMA_WARNING, n_differences) else (
        "warning" if sigma <= _limit(_SIGMA_BAD, n_differences) else "bad"
    )  # fmt: skip


def _limit(sigma: float, n_differences: int) -> float:
    """What one of several differences exceeds as rarely by chance as a single one exceeds sigma."""
    return float(norm.isf(norm.sf(sigma) / n_differences))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def percent(estimate: Estimate) -> str:
    """Write a population in percent, with its error if it has one."""
    if math.isnan(estimate.error):
        return f"{100 * estimate.value:.2f} %"
    return f"{100 * estimate.value:.2f} ± {100 * estimate.error:.2f} %"
