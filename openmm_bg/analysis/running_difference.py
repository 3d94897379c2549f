"""How a free-energy difference settles as samples are added, from the first and from the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_bg.analysis import mbar
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.reduced_energies import ReducedEnergies

_FEWEST = 10


@dataclass(frozen=True)
class RunningDifference:
    """Estimates from growing parts of all chains.

    Attributes
    ----------
    fractions : list of float
        Part of the samples of each chain.
    forward, backward : list of Estimate
        The difference in kT from the first and from the last of them.
    """

    fractions: list[float]
    forward: list[Estimate]
    backward: list[Estimate]

    def as_json(self) -> dict[str, Any]:
        """Return the estimates as plain data, in kT."""
        return {
            "fractions": self.fractions,
            "forward_kT": [estimate.as_json() for estimate in self.forward],
            "backward_kT": [estimate.as_json() for estimate in self.backward],
        }


def running_difference(
    energies: ReducedEnergies, start: str | int, end: str | int, n_points: int = 8
) -> RunningDifference:
    """Estimate the difference between two states from growing parts of the samples (Klimovich et al., 2015).

    Parameters
    ----------
    energies : ReducedEnergies
        Decorrelated, as `FreeEnergyResult.energies` are.
    start, end : str or int
        The states.
    n_points : int
        Number of parts; those with fewer than ten samples of a sampled state are left out.
    """
    i, j = energies.index(start), energies.index(end)
    fractions: list[float] = []
    forward: list[Estimate] = []
    backward: list[Estimate] = []
    for step in range(1, n_points + 1):
        fraction = step / n_points
        first, last = [], []
        for samples in energies.chain_slices():
            n = round(fraction * (samples.stop - samples.start))
            first.append(np.arange(samples.start, samples.start + n))
            last.append(np.arange(samples.stop - n, samples.stop))
        chosen = [np.concatenate(rows) for rows in (first, last)]
        counts = np.bincount(energies.own[chosen[0]], minlength=energies.n_states)
        if counts[energies.n_k > 0].min() < _FEWEST:
            continue
        found = [mbar.solve(energies.take(rows)) for rows in chosen]
        fractions.append(fraction)
        for target, solution in zip((forward, backward), found, strict=True):
            target.append(Estimate(float(solution.f_k[j] - solution.f_k[i]), float(solution.errors[i, j])))
    return RunningDifference(fractions, forward, backward)
