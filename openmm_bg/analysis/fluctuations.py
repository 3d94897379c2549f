"""Root-mean-square fluctuations of atoms about their mean positions, and the radius of gyration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mdtraj
import numpy as np
import openmm.app
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from openmm_bg.analysis.distances import backbone_atoms
from openmm_bg.analysis.ensembles import Ensemble, as_ensemble
from openmm_bg.analysis.estimate import Estimate
from openmm_bg.analysis.membership import in_nanometers
from openmm_bg.analysis.timeseries import N_RESAMPLES
from openmm_bg.density import FloatArray

_MOST_ROUNDS = 20
_CONVERGED = 1e-5  # nm, below the rounding of single precision in mdtraj


@dataclass(frozen=True)
class Fluctuations:
    """Fluctuations of atoms.

    Attributes
    ----------
    atoms : ndarray of int, shape (m,)
        Indices of the atoms.
    value : ndarray, shape (m,)
        sqrt <|x - <x>|^2> after superposition, in nm.
    error : ndarray, shape (m,)
        One standard error.
    mean : Estimate
        Average over the atoms.
    """

    atoms: NDArray[np.int64]
    value: FloatArray = field(repr=False)
    error: FloatArray = field(repr=False)
    mean: Estimate


def rmsf(
    frames: Any,
    topology: openmm.app.Topology,
    *,
    atoms: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    rng: np.random.Generator | int | None = 0,
) -> Fluctuations:
    """Return the fluctuations of atoms about their mean, after superposition on the mean structure.

    The mean structure depends on the superposition and the other way round; the two are iterated until they agree.

    Parameters
    ----------
    frames : array_like, Quantity, mdtraj.Trajectory or Weights
        Positions, shape (n, n_atoms, 3), arrays in nm, molecules whole.
    topology : openmm.app.Topology
        Of the molecule.
    atoms : array_like of int, optional
        Atoms to superpose and to look at, three or more; by default N, CA and C of all residues.
    weights : array_like, shape (n,), optional
        Weights of independent samples.
    rng : Generator, int or None
        Source of the resamples for the errors.

    Raises
    ------
    ValueError
        If there are fewer than three atoms, or positions or weights do not fit the topology.
    """
    ensemble = as_ensemble(frames, topology, weights)
    chosen = backbone_atoms(topology) if atoms is None else np.asarray(atoms, dtype=np.int64)
    if chosen.ndim != 1 or len(chosen) < 3:
        raise ValueError(f"atoms of shape {chosen.shape} were given; a superposition needs three or more")
    x, mean = _superposed(ensemble, chosen)
    deviation = np.sum((x - mean) ** 2, axis=2)
    slow = deviation.mean(axis=1, keepdims=True)
    shares = ensemble.weights.resamples(slow, N_RESAMPLES, rng)
    # About the mean of each resample: <|x - m|^2> - |<x> - m|^2, free of cancellation as x - m is small.
    shift = (shares @ (x - mean).reshape(len(x), -1)).reshape(len(shares), -1, 3)
    replicates = np.sqrt(np.maximum(shares @ deviation - np.sum(shift**2, axis=2), 0.0))
    value = np.sqrt(ensemble.weights.share @ deviation)
    average = Estimate(float(value.mean()), float(replicates.mean(axis=1).std(ddof=1)), ensemble.weights.n_effective)
    return Fluctuations(chosen, value, replicates.std(axis=0, ddof=1), average)


def radius_of_gyration(positions: Any, topology: openmm.app.Topology) -> FloatArray:
    """Return the mass-weighted radius of gyration of each structure, shape (n, n_atoms, 3) to (n,), in nm."""
    x = in_nanometers(positions)
    masses = np.array([atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms()])
    trajectory = mdtraj.Trajectory(x - x.mean(axis=1, keepdims=True), mdtraj.Topology.from_openmm(topology))
    return np.asarray(mdtraj.compute_rg(trajectory, masses=masses), dtype=np.float64)


def _superposed(ensemble: Ensemble, atoms: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Positions of some atoms on their mean structure, and that mean; shapes (n, m, 3) and (m, 3)."""
    trajectory = mdtraj.Trajectory(ensemble.positions[:, atoms], None)
    mean = trajectory.xyz[0]
    for _ in range(_MOST_ROUNDS):
        trajectory.superpose(mdtraj.Trajectory(mean[None], None), parallel=False)
        before, mean = mean, np.einsum("n,nad->ad", ensemble.weights.share, trajectory.xyz.astype(np.float64))
        if np.abs(mean - before).max() < _CONVERGED:
            break
    return np.asarray(trajectory.xyz, dtype=np.float64), mean
