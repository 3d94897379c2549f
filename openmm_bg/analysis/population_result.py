"""Populations of basins and their free energies, from correlated chains or from weighted samples.

A basin is a region of configurations, given as a function of positions or as labels of the samples. With weights w and
the membership I of a sample, P = sum(w I) / sum(w); the error comes from the series w (I - P) / mean(w), the influence
of each sample on P, along every chain (the delta method of a ratio; autocorrelation as in `chain_mean`), or from the
spread of the chains where they differ by more than chance. Errors of free energies come from the same series, so that
covariances are in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import chi2

from openmm_bg.analysis.checks import Verdict, conclude, percent
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.membership import Labels
from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.analysis.timeseries import chain_mean
from openmm_bg.density import FloatArray

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Convergence:
    """Populations from growing parts of the chains, from their beginning and from their end.

    Attributes
    ----------
    fraction : ndarray, shape (n,)
        Part of every chain that was used.
    forward, backward : dict of str to list of Estimate
        By basin: the population in the first, and in the last, such part of the chains.
    """

    fraction: FloatArray
    forward: dict[str, list[Estimate]]
    backward: dict[str, list[Estimate]]


@dataclass(frozen=True)
class Populations:
    """Populations of basins in one ensemble, by one method; made by `populations`.

    Attributes
    ----------
    names : tuple of str
        The basins.
    temperature : float
        K.
    labels : tuple of ndarray of int
        For each chain, the index in `names` of each sample, -1 for one in none of the basins.
    weights : tuple of ndarray or None
        For each chain, the weights of the samples; None where all count alike.
    independent : bool
        Whether the samples were drawn independently.
    """

    names: tuple[str, ...]
    temperature: float
    labels: tuple[Labels, ...] = field(repr=False)
    weights: tuple[FloatArray, ...] | None = field(repr=False)
    independent: bool

    @cached_property
    def populations(self) -> dict[str, Estimate]:
        """Population of each basin; with that of no basin they sum to one.

        The error of a basin that was never entered, or never left, is NaN.
        """
        return {name: self._population(self._values[name], self.influence[name]) for name in self.names}

    @cached_property
    def verdict(self) -> Verdict:
        """Whether to believe the populations: basins never sampled, few visits, drift, chains that differ, weights."""
        from openmm_bg.analysis.population_checks import checks

        return conclude(checks(self))

    @property
    def n_samples(self) -> int:
        """Number of samples of all chains."""
        return sum(len(labels) for labels in self.labels)

    def difference(self, basin: str, other: str) -> Estimate:
        """Return the free energy of a basin less that of another, -kT ln(P / P_other), in kJ/mol.

        Infinite, without error, where one of them was never sampled.
        """
        first, second = self._values[self._named(basin)], self._values[self._named(other)]
        return self._logarithm(first, second, self.influence[basin], self.influence[other])

    def against_the_rest(self, basin: str) -> Estimate:
        """Return the free energy of a basin less that of everything else, -kT ln(P / (1 - P)), in kJ/mol."""
        value, influence = self._values[self._named(basin)], self.influence[basin]
        return self._logarithm(value, 1.0 - value, influence, [-z for z in influence])

    @property
    def free_energies(self) -> dict[str, Estimate]:
        """Free energy of each basin less that of the most populated one, in kJ/mol."""
        lowest = max(self._values, key=self._values.__getitem__)
        zero = Estimate(0.0, 0.0)
        return {name: zero if name == lowest else self.difference(name, lowest) for name in self.names}

    def part(self, start: float, stop: float) -> Populations:
        """Return the populations of a part of every chain, from and to fractions of its length."""
        if not 0.0 <= start < stop <= 1.0:
            raise ValueError(f"the part from {start} to {stop} was asked for; give fractions 0 <= start < stop <= 1")
        spans = [slice(round(start * len(chain)), round(stop * len(chain))) for chain in self.labels]
        labels = tuple(chain[span] for chain, span in zip(self.labels, spans, strict=True))
        weights = self.weights and tuple(w[span] for w, span in zip(self.weights, spans, strict=True))
        return Populations(self.names, self.temperature, labels, weights, self.independent)

    def chain(self, index: int) -> Populations:
        """Return the populations of one of several chains."""
        return self._of([index])

    def without_chain(self, index: int) -> Populations:
        """Return the populations of all chains but one."""
        return self._of([other for other in range(len(self.labels)) if other != index])

    def _of(self, chains: list[int]) -> Populations:
        labels = tuple(self.labels[index] for index in chains)
        weights = self.weights and tuple(self.weights[index] for index in chains)
        return Populations(self.names, self.temperature, labels, weights, self.independent)

    def convergence(self, n: int = 10) -> Convergence:
        """Return the populations over time: from the first, and from the last, 1/n, 2/n, ... of every chain."""
        fractions = np.arange(1, n + 1) / n
        forward = [self.part(0.0, fraction).populations for fraction in fractions]
        backward = [self.part(1.0 - fraction, 1.0).populations for fraction in fractions]
        return Convergence(
            fractions,
            {name: [found[name] for found in forward] for name in self.names},
            {name: [found[name] for found in backward] for name in self.names},
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a row for each basin: population, free energy in kJ/mol above the lowest, and their errors."""
        import pandas

        free_energies = self.free_energies
        rows = [
            {
                "population": self.populations[name].value,
                "population_error": self.populations[name].error,
                "free_energy": free_energies[name].value,
                "free_energy_error": free_energies[name].error,
                "n_effective": self.populations[name].n_effective,
            }
            for name in self.names
        ]
        return pandas.DataFrame(rows, index=pandas.Index(self.names, name="basin"))

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data, with the unit in every name; None for what is not finite."""
        return {
            "temperature_K": self.temperature,
            "n_samples": self.n_samples,
            "populations": {name: estimate.as_json() for name, estimate in self.populations.items()},
            "free_energies_kJ_per_mol": {name: estimate.as_json() for name, estimate in self.free_energies.items()},
            "verdict": self.verdict.answer,
            "verdict_sentence": self.verdict.sentence,
            "checks": [{"name": c.name, "status": c.status, "text": c.text} for c in self.verdict.checks],
        }

    def to_json(self) -> str:
        """Return `as_json` as text."""
        return json.dumps(self.as_json(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        rows = [f"{'basin':<16}{'population':>24}{'free energy, kJ/mol':>24}"]
        rows += [f"{n:<16}{percent(self.populations[n]):>24}{e!s:>24}" for n, e in self.free_energies.items()]
        return "\n".join([*rows, self.verdict.sentence])

    @cached_property
    def _scaled(self) -> list[FloatArray]:
        """Weights of mean one."""
        if self.weights is None:
            return [np.ones(len(chain)) for chain in self.labels]
        mean = sum(float(w.sum()) for w in self.weights) / self.n_samples
        if mean == 0.0:
            return [np.full(len(w), math.nan) for w in self.weights]
        return [w / mean for w in self.weights]

    @cached_property
    def _values(self) -> dict[str, float]:
        sums = {
            name: sum(float(w[chain == index].sum()) for w, chain in zip(self._scaled, self.labels, strict=True))
            for index, name in enumerate(self.names)
        }
        return {name: min(1.0, total / self.n_samples) for name, total in sums.items()}

    @cached_property
    def influence(self) -> dict[str, list[FloatArray]]:
        """For each basin and chain, the series whose mean over all samples is the error of the population."""
        return {
            name: [w * ((chain == i) - self._values[name]) for w, chain in zip(self._scaled, self.labels, strict=True)]
            for i, name in enumerate(self.names)
        }

    def _named(self, basin: str) -> str:
        if basin not in self.names:
            raise ValueError(f"there is no basin {basin!r}; there are {list(self.names)}")
        return basin

    def _population(self, value: float, influence: list[FloatArray]) -> Estimate:
        error = self._error(influence) if 0.0 < value < 1.0 else math.nan
        return Estimate(value, error, value * (1.0 - value) / error**2 if error > 0.0 else math.nan)

    def _logarithm(self, first: float, second: float, z: list[FloatArray], y: list[FloatArray]) -> Estimate:
        kt = thermal_energy(self.temperature)
        if not (first > 0.0 and second > 0.0):
            value = math.nan if not (first > 0.0 or second > 0.0) else math.inf if second > 0.0 else -math.inf
            return Estimate(value, math.nan)
        influence = [a / first - b / second for a, b in zip(z, y, strict=True)]
        return Estimate(-kt * math.log(first / second), kt * self._error(influence))

    def _error(self, influence: list[FloatArray]) -> float:
        """Standard error of the mean of a series of mean zero in one or several chains."""
        shares = [len(z) / self.n_samples for z in influence]
        # A chain that did not move tells nothing of its error, but it counts in the spread of the chains.
        within = [share * self.chain_error(z) for share, z in zip(shares, influence, strict=True) if np.ptp(z) > 0.0]
        return combined_error(within, [share * float(z.mean()) for share, z in zip(shares, influence, strict=True)])

    def chain_error(self, series: FloatArray) -> float:
        """Return the standard error of the mean of a series along one chain, or of independent samples."""
        if self.independent:
            return float(series.std(ddof=1)) / math.sqrt(len(series))
        return chain_mean(series).error


def combined_error(within: Sequence[float], deviations: Sequence[float]) -> float:
    """Return the standard error of a sum over chains; NaN where nothing moved.

    Parameters
    ----------
    within : sequence of float
        Errors of the chains' contributions, from each chain alone; those of chains that did not move are left out.
    deviations : sequence of float
        Deviation of every chain's contribution from its expectation. Where these spread more than the errors allow (at
        95 %), the chains have not mixed, and the error is that of the spread.
    """
    n = len(deviations)
    variance, spread = sum(error**2 for error in within), sum(deviation**2 for deviation in deviations)
    if n > 1 and spread > variance * float(chi2.isf(0.05, n - 1)) / n:
        variance = max(variance, spread * n / (n - 1))
    return math.sqrt(variance) if variance > 0.0 else math.nan
