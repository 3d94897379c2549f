"""Slow coordinates of a reference chain by time-lagged independent component analysis (deeptime)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm.app
from numpy.typing import ArrayLike

from openmm_bg.analysis.dihedrals import backbone_pairs, ramachandran_angles
from openmm_bg.analysis.divergences import BinnedFrames, Divergence, histogram_divergence
from openmm_bg.analysis.ensembles import Ensemble, as_ensemble
from openmm_bg.analysis.membership import in_nanometers
from openmm_bg.analysis.side_chains import side_chain_torsions
from openmm_bg.analysis.torsion_distributions import chi_angles
from openmm_bg.density import FloatArray

_BINS = 24


@dataclass(frozen=True)
class SlowCoordinates:
    """Linear combinations of the cosines and sines of torsions that change most slowly; made by `slow_coordinates`.

    Attributes
    ----------
    topology : openmm.app.Topology
    mean : ndarray, shape (n_features,)
    directions : ndarray, shape (n_features, n_components)
        Scaled so that each coordinate has unit variance in the reference.
    timescales : ndarray, shape (n_components,)
        Relaxation times in frames, slowest first; NaN for a coordinate that does not relax like an exponential at the
        lag time.
    lagtime : int
        Frames.
    """

    topology: openmm.app.Topology = field(repr=False)
    mean: FloatArray = field(repr=False)
    directions: FloatArray = field(repr=False)
    timescales: FloatArray
    lagtime: int

    def project(self, positions: Any) -> FloatArray:
        """Return the slow coordinates of structures, shape (n, n_atoms, 3) in nm to (n, n_components)."""
        return (torsion_features(positions, self.topology) - self.mean) @ self.directions

    def compare(
        self,
        generated: Any,
        reference: Any,
        *,
        weights: ArrayLike | None = None,
        reference_weights: ArrayLike | None = None,
        bins: int = _BINS,
        rng: np.random.Generator | int | None = 0,
    ) -> Divergence:
        """Compare two ensembles in the plane of the two slowest coordinates.

        Parameters
        ----------
        generated, reference : array_like, Quantity, mdtraj.Trajectory or Weights
            Positions, shape (n, n_atoms, 3), arrays in nm. The grid covers the reference; samples beyond it share one
            more bin.
        weights, reference_weights : array_like, shape (n,), optional
            Weights of independent samples.
        bins : int
            Number of bins along each coordinate.
        rng : Generator, int or None
            Source of the resamples for the errors.
        """
        ours = as_ensemble(generated, self.topology, weights)
        theirs = as_ensemble(reference, self.topology, reference_weights)
        plane = self.project(theirs.positions)[:, :2]
        low, high = plane.min(axis=0), plane.max(axis=0)

        def binned(side: Ensemble) -> BinnedFrames:
            values = self.project(side.positions)[:, :2]
            place = np.floor((values - low) / (high - low) * bins).astype(np.int64)
            place[values == high] = bins - 1
            inside = np.all((place >= 0) & (place < bins), axis=1)
            cells = np.full(len(values), bins ** plane.shape[1], dtype=np.int64)
            cells[inside] = np.ravel_multi_index(tuple(place[inside].T), (bins,) * plane.shape[1])
            return BinnedFrames(cells, values, side.weights)

        return histogram_divergence(binned(ours), binned(theirs), bins ** plane.shape[1] + 1, rng=rng)


def slow_coordinates(
    chains: Any, topology: openmm.app.Topology, lagtime: int, *, n_components: int = 2
) -> SlowCoordinates:
    """Find the slowest coordinates of a simulation (Perez-Hernandez et al., J. Chem. Phys. 139, 015102 (2013)).

    Features are cosine and sine of phi, psi and the side-chain torsions.

    Parameters
    ----------
    chains : array_like, Quantity or mdtraj.Trajectory, or a list of these
        Positions along each chain of dynamics, shape (n, n_atoms, 3), arrays in nm. A chain with generator moves in
        between has no dynamics; its slow coordinates are those of the sampler.
    topology : openmm.app.Topology
        Of the molecule.
    lagtime : int
        In frames; longer than the vibrations of the torsions, shorter than the processes looked for.
    n_components : int
        How many coordinates.

    Raises
    ------
    ImportError
        If deeptime is not installed.
    ValueError
        If a chain is not longer than the lag time, or the molecule has no torsions to look at.
    """
    try:
        from deeptime.decomposition import TICA
    except ImportError as error:
        raise ImportError(
            "slow_coordinates needs deeptime, which is not installed: pip install 'openmm-bg[tica]'"
        ) from error
    series = [torsion_features(chain, topology) for chain in (chains if isinstance(chains, Sequence) else [chains])]
    if lagtime < 1 or not series or any(len(values) <= lagtime for values in series):
        raise ValueError(
            f"chains of {[len(values) for values in series]} frames were given for a lag time of {lagtime}; each needs "
            "more frames than the lag time, which is 1 or more"
        )
    n_features = series[0].shape[1]
    if not 1 <= n_components <= n_features:
        raise ValueError(
            f"{n_components} slow coordinates were asked for of {n_features} cosines and sines of torsions; give at "
            "least one and no more than there are"
        )
    model = TICA(lagtime=lagtime, dim=n_components, scaling=None).fit_fetch(series)
    directions = np.asarray(model.singular_vectors_left, dtype=np.float64)[:, :n_components]
    with np.errstate(invalid="ignore"):
        correlations = np.asarray(model.singular_values, dtype=np.float64)[:n_components]
        timescales = -lagtime / np.log(np.where((correlations > 0.0) & (correlations < 1.0), correlations, math.nan))
    return SlowCoordinates(topology, np.asarray(model.mean_0, dtype=np.float64), directions, timescales, lagtime)


def torsion_features(positions: Any, topology: openmm.app.Topology) -> FloatArray:
    """Return cosine and sine of phi, psi and the side-chain torsions, shape (n, n_atoms, 3) to (n, n_features)."""
    x = in_nanometers(positions)
    angles = [*ramachandran_angles(x, backbone_pairs(topology)), chi_angles(x, side_chain_torsions(topology))]
    every = np.concatenate(angles, axis=1)
    return np.concatenate([np.cos(every), np.sin(every)], axis=1)
