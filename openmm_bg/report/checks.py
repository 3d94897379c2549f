"""One check of a run: a grade and a sentence."""

from __future__ import annotations

import math
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


def grade(value: float, enough: float, least: float) -> Status:
    """Grade a number of which much is good."""
    return "good" if value >= enough else "warning" if value >= least else "bad"


def sigma_grade(sigma: float, n_residues: int = 1) -> Status:
    """Grade the largest difference, in standard errors, of those of several residues (Bonferroni)."""
    return "good" if sigma <= _limit(_SIGMA_WARNING, n_residues) else (
        "warning" if sigma <= _limit(_SIGMA_BAD, n_residues) else "bad"
    )  # fmt: skip


def _limit(sigma: float, n_residues: int) -> float:
    """What one of several residues exceeds as rarely by chance as one residue exceeds sigma."""
    return float(norm.isf(norm.sf(sigma) / n_residues))


def percent(estimate: Estimate) -> str:
    """Write a population in percent, with its error if it has one."""
    if math.isnan(estimate.error):
        return f"{100 * estimate.value:.2f} %"
    return f"{100 * estimate.value:.2f} ± {100 * estimate.error:.2f} %"
