"""What an estimate of free energies holds: values, errors, weights, and the reasons to believe them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from openmm_bg.analysis import free_energy_tables, mbar
from openmm_bg.analysis.checks import Verdict
from openmm_bg.analysis.differences import AbsoluteFreeEnergy, FreeEnergyDifference
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.reduced_energies import ReducedEnergies
from openmm_bg.analysis.states import STANDARD_VOLUME, Measure
from openmm_bg.analysis.surfaces import FreeEnergyProfile, FreeEnergySurface, free_energy_profile, free_energy_surface
from openmm_bg.analysis.thermal import thermal_energy
from openmm_bg.density import FloatArray

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FreeEnergyResult:
    """Free energies of K states, their errors, and the reasons to believe them.

    Attributes
    ----------
    method : str
        The estimator.
    names : tuple of str, length K
    temperatures : ndarray, shape (K,)
        K; NaN where a state has none.
    n_k : ndarray of int, shape (K,)
        Samples from each state that were used.
    f_k : ndarray, shape (K,)
        Reduced free energies F / kT relative to the first state.
    asymptotic_errors : ndarray, shape (K, K)
        Standard errors of the differences f_j - f_i by the estimator's own formula.
    bootstrap_f_k : ndarray, shape (n_bootstrap, K)
        f_k of resamples by blocks within chains.
    overlap : ndarray, shape (K, K)
        Overlap matrix; its rows sum to one.
    ess : ndarray, shape (K,)
        Kish's effective number of samples behind each state.
    pareto_k : ndarray, shape (K,)
        Shape of the tail of the weights of the samples in each state.
    mean_u, bootstrap_mean_u : ndarray, shape (K,) and (n_bootstrap, K)
        Averages of each state's own reduced potential.
    known : ndarray, shape (K,)
        Reduced free energies that are known on `measure`; NaN for all others.
    measure : Measure or None
    second_estimates : tuple of FreeEnergyDifference
        The same differences by other estimators.
    verdict : Verdict
        Whether to believe the numbers, and why.
    energies : ReducedEnergies or None
        The input; None for a method that has no weights of samples.
    """

    method: str
    names: tuple[str, ...]
    temperatures: FloatArray
    n_k: NDArray[np.int64]
    f_k: FloatArray
    asymptotic_errors: FloatArray
    bootstrap_f_k: FloatArray
    overlap: FloatArray
    ess: FloatArray
    pareto_k: FloatArray
    mean_u: FloatArray
    bootstrap_mean_u: FloatArray
    known: FloatArray
    measure: Measure | None
    second_estimates: tuple[FreeEnergyDifference, ...]
    verdict: Verdict
    energies: ReducedEnergies | None = field(default=None, repr=False)
    seed: int = 0

    # ---------------------------------------------------------------------------------------------------- differences

    @property
    def differences(self) -> FloatArray:
        """f_j - f_i in kT, shape (K, K), row i, column j."""
        return self.f_k[None, :] - self.f_k[:, None]

    @property
    def bootstrap_errors(self) -> FloatArray:
        """Bootstrap standard errors of `differences`, shape (K, K); NaN without a bootstrap."""
        if len(self.bootstrap_f_k) < 2:
            return np.full_like(self.asymptotic_errors, math.nan)
        replicates = self.bootstrap_f_k[:, None, :] - self.bootstrap_f_k[:, :, None]
        return np.asarray(np.nanstd(replicates, axis=0, ddof=1))

    @property
    def errors(self) -> FloatArray:
        """Standard errors of `differences`, shape (K, K): the larger of the asymptotic and the bootstrap's."""
        return np.fmax(self.asymptotic_errors, self.bootstrap_errors)

    def difference(self, start: str | int, end: str | int) -> FreeEnergyDifference:
        """Return the free energy of `end` minus that of `start`."""
        i, j = self._index(start), self._index(end)
        estimate = Estimate(float(self.differences[i, j]), float(self.errors[i, j]), float(min(self.ess[[i, j]])))
        same = self.temperatures[i] == self.temperatures[j]
        temperature = float(self.temperatures[i]) if same else math.nan
        return FreeEnergyDifference(self.method, self.names[i], self.names[j], estimate, temperature)

    def absolute(
        self,
        state: str | int,
        *,
        modulo_pose: bool = False,
        volume: unit.Quantity | float = STANDARD_VOLUME,
    ) -> AbsoluteFreeEnergy:
        """Return the absolute configurational free energy of a state.

            F_k / kT = (f_k - f_known) - ln(8 pi^2 V)

        with the state of known free energy that gives the smallest error. Momenta are left out.

        Parameters
        ----------
        state : str or int
        modulo_pose : bool
            Whether to leave out the factor 8 pi^2 V of free translation and rotation.
        volume : Quantity or float (nm^3)
            The volume V, by default that of 1 mol/l.

        Raises
        ------
        ValueError
            If no state of known free energy is among the states, or the volume is not positive.
        """
        k = self._index(state)
        candidates = np.flatnonzero(np.isfinite(self.known))
        if self.measure is None or len(candidates) == 0:
            raise ValueError(
                "no state of known free energy is among the states, so only differences can be had; add a "
                "GeneratorState with samples of its generator"
            )
        nm3 = float(volume.value_in_unit(unit.nanometer**3) if isinstance(volume, unit.Quantity) else volume)
        if not (nm3 > 0.0 and math.isfinite(nm3)):
            raise ValueError(f"the volume is {nm3} nm^3; give a positive one")
        reference = int(candidates[np.argmin(self.errors[candidates, k])])
        value = float(self.differences[reference, k] + self.known[reference])
        free = self.measure.pose == "invariant" and not modulo_pose
        if free:
            value -= self.measure.log_pose_volume(nm3)
        estimate = Estimate(value, float(self.errors[reference, k]), float(self.ess[k]))
        return AbsoluteFreeEnergy(
            self.names[k],
            estimate,
            float(self.temperatures[k]),
            self.measure.describe(modulo_pose=self.measure.pose == "invariant" and modulo_pose),
            unit.Quantity(nm3, unit.nanometer**3) if free else None,
        )

    # --------------------------------------------------------------------------------------------- energy and entropy

    def energy_difference(self, start: str | int, end: str | int) -> Estimate:
        """Return <U>_end - <U>_start in kJ/mol (the enthalpy H = U + pV where the reduced potentials hold pV)."""
        i, j = self._index(start), self._index(end)
        kt = [thermal_energy(self.temperatures[k]) for k in (i, j)]
        replicates = kt[1] * self.bootstrap_mean_u[:, j] - kt[0] * self.bootstrap_mean_u[:, i]
        return Estimate(float(kt[1] * self.mean_u[j] - kt[0] * self.mean_u[i]), _spread(replicates))

    def entropy_difference(self, start: str | int, end: str | int) -> Estimate:
        """Return S_end - S_start in k_B, configurational: s = <u> - f."""
        i, j = self._index(start), self._index(end)
        value = self.mean_u[j] - self.mean_u[i] - self.differences[i, j]
        s = self.bootstrap_mean_u - self.bootstrap_f_k
        return Estimate(float(value), _spread(s[:, j] - s[:, i]))

    # --------------------------------------------------------------------------------------------- averages, surfaces

    def log_weights(self, state: str | int) -> FloatArray:
        """Logarithms of the normalised weights of all samples in a state, shape (N,); -inf for weight zero."""
        return mbar.log_weights(self._energies(), self.f_k)[self._index(state)]

    def mean(self, observable: Callable[[FloatArray], ArrayLike] | ArrayLike, state: str | int) -> Estimate:
        """Return the average of an observable in a state, sampled or not.

        Parameters
        ----------
        observable : callable or array_like, shape (N,)
            Values of all original samples, or of those that were used (`energies.kept`), or a function of their
            positions in nm, shape (N, n_atoms, 3) to (N,).
        state : str or int

        Returns
        -------
        Estimate
            With the bootstrap's error, NaN without a bootstrap.
        """
        values = self._values(observable)
        weights = np.exp(self.log_weights(state))
        heavy = weights > 0.0
        if not np.all(np.isfinite(values[heavy])):
            raise ValueError("the observable is not finite for some samples that have a weight")
        values = np.where(heavy, values, 0.0)
        replicates = np.array([w @ values for w in self._resampled_weights(state)])
        return Estimate(float(weights @ values), _spread(replicates), float(1.0 / np.sum(weights**2)))

    def surface(
        self,
        x: Callable[[FloatArray], ArrayLike] | ArrayLike,
        y: Callable[[FloatArray], ArrayLike] | ArrayLike | None = None,
        *,
        state: str | int,
        **options: Any,
    ) -> FreeEnergySurface | FreeEnergyProfile:
        """Return the free energy along one coordinate, or the surface of two, in a state, sampled or not.

        Parameters
        ----------
        x, y : callable or array_like, shape (N,)
            Coordinates of all original samples, or of those that were used, or functions of positions.
        state : str or int
        **options
            `bins`, and `range` (one coordinate) or `ranges` (two); by default the coordinates are angles in radians.

        Returns
        -------
        FreeEnergyProfile or FreeEnergySurface
            In kJ/mol, with errors from the bootstrap.
        """
        temperature = self.temperatures[self._index(state)]
        options |= {"weights": np.exp(self.log_weights(state)), "replicates": self._resampled_weights(state)}
        if y is None:
            return free_energy_profile(self._values(x), temperature, **options)
        return free_energy_surface(self._values(x), self._values(y), temperature, **options)

    def _resampled_weights(self, state: str | int) -> Iterator[FloatArray]:
        """Weights of the samples in a state in each bootstrap resample, shape (N,)."""
        energies, k = self._energies(), self._index(state)
        for f_k, counts in zip(self.bootstrap_f_k, energies.resamples(len(self.bootstrap_f_k), self.seed), strict=True):
            yield np.exp(mbar.log_weights(energies, f_k, counts)[k])

    def _values(self, observable: Callable[[FloatArray], ArrayLike] | ArrayLike) -> FloatArray:
        energies = self._energies()
        if callable(observable):
            if energies.positions is None:
                raise ValueError("the energies came without positions; give the observable's values of the samples")
            observable = observable(energies.positions)
        values = np.asarray(observable, dtype=np.float64)
        if values.shape == (energies.n_original,):
            values = values[energies.kept]
        if values.shape != (energies.n_samples,):
            raise ValueError(
                f"the observable has shape {values.shape}; one number for each of the {energies.n_original} original "
                f"samples is needed, or for each of the {energies.n_samples} that were used (`energies.kept`)"
            )
        return values

    def _energies(self) -> ReducedEnergies:
        if self.energies is None:
            raise ValueError(f"{self.method} gives no weights of samples, so no averages or surfaces; use free_energy")
        return self.energies

    def _index(self, state: str | int) -> int:
        if isinstance(state, str):
            if state not in self.names:
                raise ValueError(f"there is no state {state!r}; there are {list(self.names)}")
            return self.names.index(state)
        return range(len(self.names))[state]

    # --------------------------------------------------------------------------------------------------------- output

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row for each state: free energies in kT relative to the first, errors, overlap, ESS, k-hat."""
        return free_energy_tables.data_frame(self)

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data, with the unit in every name; None for what is not finite."""
        return free_energy_tables.plain(self)

    def to_json(self) -> str:
        """Return `as_json` as text."""
        return json.dumps(self.as_json(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        rows = [f"{'state':<24}{'T / K':>8}{'samples':>9}{'f / kT':>12}{'error':>9}{'ESS':>9}{'k-hat':>7}"]
        for k, name in enumerate(self.names):
            rows.append(
                f"{name[:23]:<24}{self.temperatures[k]:>8.1f}{self.n_k[k]:>9}{self.f_k[k]:>12.4f}"
                f"{self.errors[0, k]:>9.4f}{self.ess[k]:>9.0f}{self.pareto_k[k]:>7.2f}"
            )
        return "\n".join([*rows, self.verdict.sentence])


def _spread(replicates: FloatArray) -> float:
    return float(np.nanstd(replicates, ddof=1)) if len(replicates) > 1 else math.nan
